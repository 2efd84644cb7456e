"""Stiffness as published: from the Gram matrix of per-sample gradients to pairs, class matrix, within and between.

A matrix of `pairs` holds one value for each pair of samples, and nan where a pair does not count: a sample with itself,
or with a sample whose gradient is zero. Two different samples that are equal in value are a pair like any other.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lightning_stiffness.functional.tally import Tally, class_sums, pair_tally, summation_dtype
from lightning_stiffness.functional.validation import (
    require_gram,
    require_integers,
    require_matrix,
    require_square,
    require_targets,
)


def cosine_pairs(gram: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """Cosine of the gradients of each pair of samples, K_ij / sqrt(K_ii K_jj).

    Args:
        gram: inner products of the gradients of the samples' losses.

    Returns:
        Values in [-1, 1] (rounding beyond is cut off); nan for self-pairs and for samples whose gradient is zero.

    Raises:
        StiffnessError: `gram` is empty, not square, not finite, or has a negative diagonal.

    Source: Fort et al., Stiffness, arXiv:1901.09491 (v3), cosine stiffness.

    >>> cosine_pairs(torch.tensor([[4.0, 3.0], [3.0, 9.0]]))
    tensor([[   nan, 0.5000],
            [0.5000,    nan]])
    """
    require_gram(gram)
    norms = gram.diagonal().clamp(min=0).to(summation_dtype(gram.device)).sqrt()
    cosines = (gram / (norms[:, None] * norms)).clamp_(-1, 1).to(gram.dtype)
    return _only_counted(cosines, gram)


def sign_pairs(gram: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """Sign of the inner product of the gradients of each pair of samples.

    Args:
        gram: inner products of the gradients of the samples' losses.

    Returns:
        -1, 0 or 1; nan for self-pairs and for samples whose gradient is zero.

    Raises:
        StiffnessError: `gram` is empty, not square, not finite, or has a negative diagonal.

    Source: Fort et al., Stiffness, arXiv:1901.09491 (v1), eq. 5.

    >>> sign_pairs(torch.tensor([[4.0, -3.0], [-3.0, 9.0]]))
    tensor([[nan, -1.],
            [-1., nan]])
    """
    require_gram(gram)
    return _only_counted(gram.sign(), gram)


def class_pair_sums(
    pairs: Float[Tensor, "n m"], row_targets: Int[Tensor, "n"], column_targets: Int[Tensor, "m"], num_classes: int
) -> Tally:
    """Sum and number of the counted pairs of each two classes: the additive form of the class matrix.

    Args:
        pairs: one value for each pair of a row and a column sample, nan where it does not count.
        row_targets: class of each row sample.
        column_targets: class of each column sample.
        num_classes: number of classes, those without a sample included.

    Returns:
        Tally with shape [c c], in float64 (float32 on devices that have no float64).

    Raises:
        StiffnessError: `pairs` is empty, or the targets do not fit it or the number of classes.

    Source: ours.

    >>> class_pair_sums(torch.tensor([[0.5, 0.25]]), torch.tensor([0]), torch.tensor([1, 1]), num_classes=2).total
    tensor([[0.0000, 0.7500],
            [0.0000, 0.0000]], dtype=torch.float64)
    """
    require_matrix(pairs, "pairs")
    row_targets = require_targets(row_targets, pairs.shape[0], num_classes, "row_targets")
    column_targets = require_targets(column_targets, pairs.shape[1], num_classes, "column_targets")
    columns = pair_tally(pairs).map(lambda values: class_sums(values, column_targets, num_classes, 1))
    return columns.map(lambda values: class_sums(values, row_targets, num_classes))


def class_matrix(
    pairs: Float[Tensor, "n m"], row_targets: Int[Tensor, "n"], column_targets: Int[Tensor, "m"], num_classes: int
) -> Float[Tensor, "c c"]:
    """Mean pair value C(a, b) between the row samples of class a and the column samples of class b.

    Args:
        pairs: one value for each pair of a row and a column sample, nan where it does not count.
        row_targets: class of each row sample.
        column_targets: class of each column sample.
        num_classes: number of classes, those without a sample included.

    Returns:
        Values in the range of the pairs; nan where no pair counts, such as the diagonal entry of a class of one sample.

    Raises:
        StiffnessError: `pairs` is empty, or the targets do not fit it or the number of classes.

    Source: Fort et al., Stiffness, arXiv:1901.09491 (v1), eq. 6.

    >>> pairs = cosine_pairs(torch.tensor([[4.0, 3.0, 0.0], [3.0, 9.0, 0.0], [0.0, 0.0, 1.0]]))
    >>> targets = torch.tensor([0, 0, 1])
    >>> class_matrix(pairs, targets, targets, num_classes=2)
    tensor([[0.5000, 0.0000],
            [0.0000,    nan]])
    """
    return class_pair_sums(pairs, row_targets, column_targets, num_classes).mean.to(pairs.dtype)


def cosine_stiffness(gram: Float[Tensor, "n n"], targets: Int[Tensor, "n"], num_classes: int) -> Float[Tensor, "c c"]:
    """Class stiffness matrix of the cosine: `class_matrix` of `cosine_pairs`.

    Args:
        gram: inner products of the gradients of the samples' losses.
        targets: class of each sample.
        num_classes: number of classes, those without a sample included.

    Returns:
        Symmetric, in [-1, 1]; nan where no pair counts.

    Raises:
        StiffnessError: `gram` is no Gram matrix, or the targets do not fit it.

    Source: Fort et al., Stiffness, arXiv:1901.09491 (v1, eq. 6, with the cosine of v3).

    >>> cosine_stiffness(torch.tensor([[4.0, 3.0], [3.0, 9.0]]), torch.tensor([0, 0]), num_classes=1)
    tensor([[0.5000]])
    """
    return class_matrix(cosine_pairs(gram), targets, targets, num_classes)


def sign_stiffness(gram: Float[Tensor, "n n"], targets: Int[Tensor, "n"], num_classes: int) -> Float[Tensor, "c c"]:
    """Class stiffness matrix of the sign: `class_matrix` of `sign_pairs`.

    Args:
        gram: inner products of the gradients of the samples' losses.
        targets: class of each sample.
        num_classes: number of classes, those without a sample included.

    Returns:
        Symmetric, in [-1, 1]; nan where no pair counts.

    Raises:
        StiffnessError: `gram` is no Gram matrix, or the targets do not fit it.

    Source: Fort et al., Stiffness, arXiv:1901.09491 (v1), eqs. 5 and 6.

    >>> sign_stiffness(torch.tensor([[4.0, 3.0], [3.0, 9.0]]), torch.tensor([0, 0]), num_classes=1)
    tensor([[1.]])
    """
    return class_matrix(sign_pairs(gram), targets, targets, num_classes)


def within_class(matrix: Float[Tensor, "c c"]) -> Float[Tensor, ""]:
    """Mean of the defined diagonal of a class matrix: every class weighs the same, however many pairs it has.

    Returns:
        A value in the range of the matrix; nan when no diagonal entry is defined.

    Raises:
        StiffnessError: `matrix` is not square or empty.

    Source: Fort et al., Stiffness, arXiv:1901.09491 (v3), within-class stiffness.

    >>> within_class(torch.tensor([[0.5, 0.1], [0.2, torch.nan]]))
    tensor(0.5000)
    """
    require_square(matrix, "matrix")
    return _mean_where(_diagonal(matrix), matrix)


def between_class(matrix: Float[Tensor, "c c"]) -> Float[Tensor, ""]:
    """Mean of the defined entries of a class matrix off its diagonal, in both triangles.

    Returns:
        A value in the range of the matrix; nan when no such entry is defined.

    Raises:
        StiffnessError: `matrix` is not square or empty.

    Source: Fort et al., Stiffness, arXiv:1901.09491 (v3), between-class stiffness.

    >>> between_class(torch.tensor([[0.5, 0.1], [0.2, torch.nan]]))
    tensor(0.1500)
    """
    require_square(matrix, "matrix")
    return _mean_where(~_diagonal(matrix), matrix)


def superclass_within(matrix: Float[Tensor, "c c"], superclasses: Int[Tensor, "c"]) -> Float[Tensor, ""]:
    """Mean of the defined entries C(a, b), a != b, of classes in the same super-class.

    Args:
        matrix: class matrix.
        superclasses: the super-class of each class; any integers.

    Returns:
        A value in the range of the matrix; nan when no such entry is defined.

    Raises:
        StiffnessError: `matrix` is not square, or `superclasses` does not hold one integer for each class.

    Source: Fort et al., Stiffness, arXiv:1901.09491 (v3), super-classes of CIFAR-100.

    >>> superclass_within(torch.tensor([[0.9, 0.4, 0.1], [0.4, 0.8, 0.3], [0.1, 0.3, 0.7]]), torch.tensor([0, 0, 1]))
    tensor(0.4000)
    """
    return _mean_where(_same_superclass(matrix, superclasses) & ~_diagonal(matrix), matrix)


def superclass_between(matrix: Float[Tensor, "c c"], superclasses: Int[Tensor, "c"]) -> Float[Tensor, ""]:
    """Mean of the defined entries C(a, b) of classes in different super-classes.

    Args:
        matrix: class matrix.
        superclasses: the super-class of each class; any integers.

    Returns:
        A value in the range of the matrix; nan when no such entry is defined.

    Raises:
        StiffnessError: `matrix` is not square, or `superclasses` does not hold one integer for each class.

    Source: Fort et al., Stiffness, arXiv:1901.09491 (v3), super-classes of CIFAR-100.

    >>> superclass_between(torch.tensor([[0.9, 0.4, 0.1], [0.4, 0.8, 0.3], [0.1, 0.3, 0.7]]), torch.tensor([0, 0, 1]))
    tensor(0.2000)
    """
    return _mean_where(~_same_superclass(matrix, superclasses), matrix)


def class_alignment(
    pairs: Float[Tensor, "n m"], row_targets: Int[Tensor, "n"], column_targets: Int[Tensor, "m"], num_classes: int
) -> Float[Tensor, "n c"]:
    """Mean pair value of each row sample with the column samples of each class.

    Args:
        pairs: one value for each pair of a row and a column sample, nan where it does not count.
        row_targets: class of each row sample.
        column_targets: class of each column sample.
        num_classes: number of classes, those without a sample included.

    Returns:
        Values in the range of the pairs; nan where no pair counts, as for the only sample of a class with its own.

    Raises:
        StiffnessError: `pairs` is empty, or the targets do not fit it or the number of classes.

    Source: ours.

    >>> pairs = torch.tensor([[torch.nan, 0.5, 0.1], [0.5, torch.nan, 0.3], [0.1, 0.3, torch.nan]])
    >>> targets = torch.tensor([0, 0, 1])
    >>> class_alignment(pairs, targets, targets, num_classes=2)
    tensor([[0.5000, 0.1000],
            [0.5000, 0.3000],
            [0.2000,    nan]])
    """
    require_matrix(pairs, "pairs")
    require_targets(row_targets, pairs.shape[0], num_classes, "row_targets")
    column_targets = require_targets(column_targets, pairs.shape[1], num_classes, "column_targets")
    rows = pair_tally(pairs).map(lambda values: class_sums(values, column_targets, num_classes, 1))
    return rows.mean.to(pairs.dtype)


def own_class_alignment(pairs: Float[Tensor, "n n"], targets: Int[Tensor, "n"]) -> Float[Tensor, "n"]:
    """Mean pair value of each sample with the other samples of its own class; low for mislabelled and odd samples.

    Args:
        pairs: one value for each pair of samples, nan where it does not count.
        targets: class of each sample.

    Returns:
        Values in the range of the pairs; nan for a class of one sample and for a sample with zero gradient.

    Raises:
        StiffnessError: `pairs` is not square, or `targets` does not hold one integer for each sample.

    Source: ours.

    >>> pairs = cosine_pairs(torch.tensor([[4.0, 3.0, 0.0], [3.0, 9.0, 0.0], [0.0, 0.0, 1.0]]))
    >>> own_class_alignment(pairs, torch.tensor([0, 0, 1]))
    tensor([0.5000, 0.5000,    nan])
    """
    require_square(pairs, "pairs")
    require_integers(targets, pairs.shape[0], "targets")
    classes, members = targets.unique(return_inverse=True)
    alignment = class_alignment(pairs, members, members, len(classes))
    return alignment.gather(1, members[:, None]).squeeze(1)


def _only_counted(pairs: Tensor, gram: Tensor) -> Float[Tensor, "n n"]:
    """The pairs with nan, in place, for self-pairs and for samples without a gradient."""
    still = gram.diagonal() <= 0
    pairs[still] = torch.nan
    pairs[:, still] = torch.nan
    return pairs.fill_diagonal_(torch.nan)


def _diagonal(matrix: Tensor) -> Bool[Tensor, "c c"]:
    return torch.eye(len(matrix), dtype=torch.bool, device=matrix.device)


def _same_superclass(matrix: Tensor, superclasses: Tensor) -> Bool[Tensor, "c c"]:
    require_square(matrix, "matrix")
    require_integers(superclasses, len(matrix), "superclasses")
    return superclasses[:, None] == superclasses


def _mean_where(chosen: Tensor, matrix: Tensor) -> Float[Tensor, ""]:
    return pair_tally(matrix.masked_fill(~chosen, torch.nan)).map(torch.sum).mean.to(matrix.dtype)
