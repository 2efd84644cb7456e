"""What the formulas require of their inputs; every message says what was required, what was found and what to do."""

import torch
from torch import Tensor

from lightning_stiffness.errors import StiffnessError


def require_gram(gram: Tensor) -> None:
    """Raise StiffnessError unless `gram` can be the matrix of inner products of the samples' gradients."""
    require_square(gram, "gram")
    lowest, highest = gram.aminmax()  # nan if any entry is; a third of the time of looking at each
    if not bool(lowest.isfinite() & highest.isfinite()):
        raise StiffnessError(_non_finite_message(~gram.isfinite()))
    squared_norms = gram.diagonal()
    # A sum of products may round to just below zero; the square root of the precision leaves room for that.
    rounding = float(squared_norms.max()) * torch.finfo(gram.dtype).eps ** 0.5
    if float(squared_norms.min()) < -abs(rounding):
        raise StiffnessError(
            "gram must hold the squared gradient norms, which are never negative, on its diagonal, but found "
            f"{float(squared_norms.min()):.3g} there; pass the inner products g_i . g_j of the samples' gradients"
        )


def require_square(matrix: Tensor, name: str) -> None:
    """Raise StiffnessError unless `matrix` is a non-empty square matrix of floating-point numbers."""
    require_matrix(matrix, name)
    if matrix.shape[0] != matrix.shape[1]:
        raise StiffnessError(
            f"{name} must be square, one row and one column for each sample or class, but has shape "
            f"{tuple(matrix.shape)}; for two different sets of samples use class_matrix or summarise_cross"
        )


def require_matrix(matrix: Tensor, name: str) -> None:
    """Raise StiffnessError unless `matrix` is a non-empty matrix of floating-point numbers."""
    if matrix.ndim != 2 or not matrix.is_floating_point():
        raise StiffnessError(
            f"{name} must be a matrix of floating-point numbers, but has shape {tuple(matrix.shape)} and type "
            f"{matrix.dtype}; pass a two-dimensional float tensor"
        )
    if matrix.numel() == 0:
        raise StiffnessError(
            f"{name} must hold at least one sample, but has shape {tuple(matrix.shape)}; pass a batch that is not empty"
        )


def require_targets(targets: Tensor, samples: int, num_classes: int, name: str = "targets") -> Tensor:
    """The targets as int64: smaller types, such as the uint8 of image archives, would index as masks.

    Raises:
        StiffnessError: `targets` does not hold one class in [0, num_classes) for each of the samples.
    """
    require_num_classes(num_classes)
    require_integers(targets, samples, name)
    lowest, highest = int(targets.min()), int(targets.max())
    if lowest < 0 or highest >= num_classes:
        raise StiffnessError(
            f"{name} must lie in [0, {num_classes}), but range from {lowest} to {highest}; "
            "raise num_classes, or leave the samples without a class out of the batch"
        )
    return targets.long()


def require_integers(labels: Tensor, length: int, name: str) -> None:
    """Raise StiffnessError unless `labels` is a vector of `length` integers."""
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise StiffnessError(
            f"{name} must be integers, but are {labels.dtype}; for one-hot or soft labels pass labels.argmax(-1)"
        )
    if labels.shape != (length,):
        raise StiffnessError(
            f"{name} must have shape ({length},), one label for each row or column, but have {tuple(labels.shape)}; "
            "take both from the same batch"
        )


def require_num_classes(num_classes: int) -> None:
    """Raise StiffnessError unless there is at least one class."""
    if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 1:
        raise StiffnessError(
            f"num_classes must be an integer of at least 1, but is {num_classes!r}; pass the number of classes"
        )


def _non_finite_message(wrong: Tensor) -> str:
    # One sample without a finite loss spoils its whole row and column, but only one entry of every other row.
    sample = int(wrong.sum(dim=1).argmax())
    return (
        f"gram has {int(wrong.sum())} non-finite entries, the loss of sample {sample} is probably nan or infinite; "
        "look at that sample's input, target and loss, and leave it out"
    )
