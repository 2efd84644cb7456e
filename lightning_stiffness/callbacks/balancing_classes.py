"""Which classes a ClassGroupingBalancer has to do with: what data, user and network say of them must agree."""

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from lightning_stiffness.callbacks.balancing_head import classifier_of, one_output
from lightning_stiffness.errors import StiffnessError
from lightning_stiffness.functional.class_rates import require_counts


def outputs_of(name: str, layer: nn.Module, number: int | None) -> int:
    """Number of classes of the classifier.

    Args:
        name: Of the layer, for messages.
        layer: The classifier.
        number: As the user or the data have it, if they do.

    Raises:
        StiffnessError: The layer does not tell, and nobody else does; or it has fewer outputs than there are classes.

    >>> outputs_of("head", nn.Linear(8, 3), None)
    3
    """
    found: Any = getattr(layer, "out_features", number)
    if found is None:
        raise StiffnessError(
            f"The number of classes must be known, and {type(layer).__name__} {name!r} does not tell its number of "
            "outputs. Pass num_classes=."
        )
    if number == 2 and int(found) == 1:
        raise StiffnessError(one_output(name))
    if number is not None and int(found) < number:
        raise StiffnessError(
            f"The classifier must have an output for each class, found {found} outputs of {name!r} for {number} "
            "classes. Pass classifier= as the name of another layer, or targets= if the labels that the dataset stores "
            "are not the classes."
        )
    return int(found)


def classifier_for(module: nn.Module, number: int | None, name: str | None, given: int | None) -> tuple[str, nn.Module]:
    """The classifier layer and its name, as `classifier_of`, with what the user of a balancer can do where it fails.

    Args:
        module: The user's LightningModule.
        number: Number of classes, or None.
        name: Of the layer, if the user has given it.
        given: Number of classes, if the user has given it.

    Raises:
        StiffnessError: There is no such layer, or more than one, or the number of classes is not known.
    """
    if number is None and name is None:
        raise StiffnessError(
            "The number of classes must be known to find the classifier, and the training data do not tell it without "
            'loading samples. Pass num_classes=, or classifier="name", as in named_modules.'
        )
    try:
        return classifier_of(module, number, name)
    except StiffnessError as error:
        sizes = {getattr(layer, "out_features", None) for layer in module.modules()}
        if name is not None or given is not None or number in sizes or (number == 2 and 1 in sizes):
            raise
        raise StiffnessError(
            f"{error} Or pass num_classes=, if there are classes without a training sample, or targets=, if the labels "
            "that the dataset stores are not the classes."
        ) from None


def agreed_counts(
    found: Tensor | None, given: Tensor | None, size: int, may_be_empty: bool = False
) -> Int[Tensor, "c"] | None:
    """Samples of each class.

    Args:
        found: Those of the labels that the dataset stores, up to the largest; None if there are none.
        given: Those that the user gives, or None.
        size: Number of classes.
        may_be_empty: Whether a class may be without a sample, since the user has said how many there are; it then
            counts as one sample.

    Returns:
        The counts, or None where neither is known.

    Raises:
        StiffnessError: The two disagree, there are not so many classes, or one of them has no sample.

    >>> agreed_counts(torch.tensor([4, 2]), None, 2)
    tensor([4, 2])
    """
    stored = None if found is None else torch.cat([found, found.new_zeros(max(size - len(found), 0))])
    if stored is not None and may_be_empty:
        stored = stored.clamp(min=1)
    if stored is not None and given is not None and not torch.equal(stored, given):
        raise StiffnessError(
            f"counts= must be those of the labels, found {_short(given)} given and {_short(stored)} in the dataset. "
            "Leave counts= out to use the latter."
        )
    known = stored if given is None else given
    if known is None:
        return None
    counts = require_counts(known)
    if len(counts) != size:
        raise StiffnessError(
            f"There must be one count for each of {size} outputs of the classifier, found {len(counts)}. Number the "
            "classes without gaps, or pass classifier= as the name of another layer."
        )
    return counts


def require_labels(labels: Tensor, num_classes: int) -> None:
    """Raises StiffnessError unless all labels lie in [0, num_classes)."""
    if len(labels) and (int(labels.min()) < 0 or int(labels.max()) >= num_classes):
        raise StiffnessError(
            f"Class labels must lie in [0, {num_classes}), found {int(labels.min())} to {int(labels.max())}. Leave out "
            "unlabelled samples, pass num_classes=, or targets= if these are not the classes."
        )


def _short(counts: Tensor) -> str:
    return str(counts.tolist()) if len(counts) <= 10 else f"{counts[:10].tolist()} ... ({len(counts)} classes)"
