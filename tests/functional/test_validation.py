"""What the functions say about input that does not fit."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lightning_stiffness.errors import StiffnessError
from lightning_stiffness.functional import (
    between_class,
    class_matrix,
    cosine_pairs,
    cosine_stiffness,
    own_class_alignment,
    sign_pairs,
    sign_stiffness,
    superclass_between,
    superclass_within,
    within_class,
)
from tests.unchecked import unchecked_types

NAN = float("nan")
PAIRS = pytest.mark.parametrize("pairs", [cosine_pairs, sign_pairs])
STIFFNESS = pytest.mark.parametrize("stiffness", [cosine_stiffness, sign_stiffness])


@PAIRS
@pytest.mark.parametrize(
    ("gram", "message"),
    [
        (torch.ones(2, 3), r"gram must be square.* shape \(2, 3\)"),
        (torch.ones(2), r"gram must be a matrix.* shape \(2,\)"),
        (torch.ones(2, 2, dtype=torch.int64), r"floating-point.* torch.int64"),
        (torch.ones(0, 0), r"at least one sample.* \(0, 0\)"),
        (-torch.eye(3), "squared gradient norms.* found -1 "),
        (torch.diag(torch.tensor([1.0, -0.01])), "squared gradient norms.* found -0.01 "),
    ],
)
@unchecked_types()
def test_no_gram_matrix(pairs: Callable[[Tensor], Tensor], gram: Tensor, message: str) -> None:
    with pytest.raises(StiffnessError, match=message):
        pairs(gram)


@PAIRS
@pytest.mark.parametrize("value", [NAN, float("inf")])
def test_a_gram_that_is_not_finite_names_the_sample(pairs: Callable[[Tensor], Tensor], value: float) -> None:
    gram = torch.eye(4)
    gram[2, :] = gram[:, 2] = value
    with pytest.raises(StiffnessError, match="gram has 7 non-finite entries, the loss of sample 2 is probably nan"):
        pairs(gram)


@STIFFNESS
@pytest.mark.parametrize(
    ("targets", "num_classes", "message"),
    [
        (torch.tensor([0, 1, 1]), 2, r"targets must have shape \(2,\).* \(3,\)"),
        (torch.tensor([[0], [1]]), 2, r"targets must have shape \(2,\).* \(2, 1\)"),
        (torch.tensor([0.0, 1.0]), 2, r"targets must be integers, but are torch.float32"),
        (torch.tensor([True, False]), 2, r"targets must be integers, but are torch.bool"),
        (torch.tensor([0, 2]), 2, r"targets must lie in \[0, 2\), but range from 0 to 2"),
        (torch.tensor([-100, 1]), 2, r"targets must lie in \[0, 2\), but range from -100 to 1"),
        (torch.tensor([0, 1]), 0, "num_classes must be an integer of at least 1, but is 0"),
        (torch.tensor([0, 1]), 2.0, "num_classes must be an integer of at least 1, but is 2.0"),
        (torch.tensor([0, 0]), True, "num_classes must be an integer of at least 1, but is True"),
    ],
)
@unchecked_types()
def test_targets_that_do_not_fit(
    stiffness: Callable[..., Tensor], targets: Tensor, num_classes: int, message: str
) -> None:
    with pytest.raises(StiffnessError, match=message):
        stiffness(torch.eye(2), targets, num_classes)


@unchecked_types()
def test_class_matrix_says_which_targets_do_not_fit() -> None:
    three, two = torch.tensor([0, 1, 1]), torch.tensor([0, 1])
    with pytest.raises(StiffnessError, match="row_targets must have"):
        class_matrix(torch.ones(2, 3), three, three, 2)
    with pytest.raises(StiffnessError, match="column_targets must have"):
        class_matrix(torch.ones(2, 3), two, two, 2)
    with pytest.raises(StiffnessError, match="pairs must hold at least one sample"):
        class_matrix(torch.ones(2, 0), two, two[:0], 2)


@pytest.mark.parametrize("summary", [within_class, between_class])
@unchecked_types()
def test_no_class_matrix(summary: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(StiffnessError, match="matrix must be square"):
        summary(torch.ones(2, 3))


@pytest.mark.parametrize("summary", [superclass_within, superclass_between])
@unchecked_types()
def test_superclasses_that_do_not_fit(summary: Callable[[Tensor, Tensor], Tensor]) -> None:
    with pytest.raises(StiffnessError, match=r"superclasses must have shape \(2,\)"):
        summary(torch.ones(2, 2), torch.tensor([0, 0, 1]))
    with pytest.raises(StiffnessError, match="superclasses must be integers"):
        summary(torch.ones(2, 2), torch.tensor([0.0, 1.0]))
    with pytest.raises(StiffnessError, match="matrix must be square"):
        summary(torch.ones(2, 3), torch.tensor([0, 1]))


@unchecked_types()
def test_alignment_needs_one_target_for_each_sample() -> None:
    with pytest.raises(StiffnessError, match=r"targets must have shape \(2,\)"):
        own_class_alignment(torch.ones(2, 2), torch.tensor([0]))
    with pytest.raises(StiffnessError, match="pairs must be square"):
        own_class_alignment(torch.ones(2, 3), torch.tensor([0, 0]))
