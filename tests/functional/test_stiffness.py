"""The formulas against plain loops, their invariances, and what each of them says about bad input."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lightning_stiffness.functional import (
    between_class,
    class_matrix,
    class_pair_sums,
    cosine_pairs,
    cosine_stiffness,
    own_class_alignment,
    sign_pairs,
    sign_stiffness,
    superclass_between,
    superclass_within,
    within_class,
)
from tests.functional import oracle
from tests.functional.synthetic import Labelled, labelled, random_labelled
from tests.unchecked import unchecked_types

NAN = float("nan")
Pairs = Callable[[Tensor], Tensor]
PAIRS = pytest.mark.parametrize(
    ("pairs", "expected"), [(cosine_pairs, oracle.cosine_pairs), (sign_pairs, oracle.sign_pairs)]
)
STIFFNESS = pytest.mark.parametrize(
    ("stiffness", "pairs"), [(cosine_stiffness, cosine_pairs), (sign_stiffness, sign_pairs)]
)


def assert_equal(found: Tensor, expected: object) -> None:
    # Both are float64 and differ only in the order of a few additions.
    wanted = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-13, equal_nan=True)


@PAIRS
@given(data=labelled())
def test_pairs_equal_loops(pairs: Pairs, expected: Callable[..., object], data: Labelled) -> None:
    assert_equal(pairs(data.gram), expected(data.gram.tolist()))


@PAIRS
def test_pairs_of_random_gradients(pairs: Pairs, expected: Callable[..., object]) -> None:
    gram = random_labelled(0).gram
    assert_equal(pairs(gram), expected(gram.tolist()))


@PAIRS
def test_pairs_are_exactly_symmetric(pairs: Pairs, expected: object) -> None:
    gram = random_labelled(1, samples=50).gram
    found = pairs((gram + gram.T) / 2)
    assert torch.equal(found.nan_to_num(7), found.T.nan_to_num(7))


@given(data=labelled(), powers=st.lists(st.floats(-100, 100), min_size=9, max_size=9))
def test_pairs_do_not_change_with_a_positive_factor_per_sample(data: Labelled, powers: list[float]) -> None:
    scale = 10 ** torch.tensor(powers[: len(data.targets)], dtype=torch.float64)
    scaled = scale[:, None] * data.gram * scale
    torch.testing.assert_close(cosine_pairs(scaled), cosine_pairs(data.gram), rtol=1e-9, atol=1e-9, equal_nan=True)
    assert_equal(sign_pairs(scaled), sign_pairs(data.gram))


def test_rounding_beyond_one_is_cut_off() -> None:
    gram = torch.tensor([[1.0, 1.0 + 1e-6], [1.0 + 1e-6, 1.0]])
    assert cosine_pairs(gram)[0, 1] == 1
    gram[0, 1] = gram[1, 0] = -1.0 - 1e-6
    assert cosine_pairs(gram)[0, 1] == -1


def test_equal_samples_are_a_pair_and_a_sample_is_none_with_itself() -> None:
    assert_equal(cosine_pairs(torch.full((2, 2), 3.0, dtype=torch.float64)), [[NAN, 1.0], [1.0, NAN]])


def test_sign_of_orthogonal_gradients_is_zero_and_counts() -> None:
    assert_equal(sign_stiffness(torch.eye(2, dtype=torch.float64), torch.tensor([0, 0]), 1), [[0.0]])


def test_a_diagonal_rounded_below_zero_is_a_zero_gradient() -> None:
    gram = torch.tensor([[1.0, 0.0, 0.5], [0.0, -1e-9, 0.0], [0.5, 0.0, 1.0]])
    assert cosine_pairs(gram).isnan().sum() == 7
    assert sign_pairs(gram).isnan().sum() == 7


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_type_given_comes_back(dtype: torch.dtype) -> None:
    data = random_labelled(2)
    # Norms of 4,000 stay in the range of half precision (65,504), their products do not.
    gram = (data.gram / data.gram.diagonal().max() * 4000).to(dtype)
    matrix = cosine_stiffness(gram, data.targets, data.num_classes)
    assert matrix.dtype == dtype
    assert within_class(matrix).dtype == between_class(matrix).dtype == dtype
    exact = cosine_stiffness(data.gram, data.targets, data.num_classes)
    torch.testing.assert_close(matrix.double(), exact, rtol=0, atol=8 * torch.finfo(dtype).eps)


@PAIRS
@given(data=labelled())
def test_class_matrix_equals_loops(pairs: Pairs, expected: object, data: Labelled) -> None:
    values = pairs(data.gram)
    found = class_matrix(values, data.targets, data.targets, data.num_classes)
    labels = data.targets.tolist()
    assert_equal(found, oracle.class_matrix(values.tolist(), labels, labels, data.num_classes))


@given(rows=labelled(max_classes=1), columns=labelled(), num_classes=st.integers(4, 6))
def test_class_matrix_of_two_sets_equals_loops(rows: Labelled, columns: Labelled, num_classes: int) -> None:
    values = rows.gradients @ columns.gradients.T
    values[0, 0] = NAN
    found = class_matrix(values, rows.targets, columns.targets, num_classes)
    assert_equal(
        found, oracle.class_matrix(values.tolist(), rows.targets.tolist(), columns.targets.tolist(), num_classes)
    )


@STIFFNESS
def test_stiffness_is_the_class_matrix_of_the_pairs(stiffness: Callable[..., Tensor], pairs: Pairs) -> None:
    data = random_labelled(3)
    found = stiffness(data.gram, data.targets, data.num_classes)
    expected = class_matrix(pairs(data.gram), data.targets, data.targets, data.num_classes)
    assert torch.equal(found, expected)


@STIFFNESS
def test_the_order_of_the_samples_does_not_matter(stiffness: Callable[..., Tensor], pairs: Pairs) -> None:
    data = random_labelled(4)
    order = torch.randperm(len(data.targets), generator=torch.Generator().manual_seed(0))
    found = stiffness(data.gram[order][:, order], data.targets[order], data.num_classes)
    assert_equal(found, stiffness(data.gram, data.targets, data.num_classes))


def test_renamed_classes_reorder_the_matrix() -> None:
    data = random_labelled(5)
    names = torch.tensor([2, 0, 3, 1])
    found = cosine_stiffness(data.gram, names[data.targets], 4)
    assert_equal(found[names][:, names], cosine_stiffness(data.gram, data.targets, 4))


def test_a_class_of_one_sample_has_an_undefined_diagonal() -> None:
    found = cosine_stiffness(torch.eye(3, dtype=torch.float64), torch.tensor([0, 0, 1]), 3)
    assert_equal(found, [[0.0, 0.0, NAN], [0.0, NAN, NAN], [NAN, NAN, NAN]])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
@unchecked_types()
def test_targets_of_any_integer_type(dtype: torch.dtype) -> None:
    data = random_labelled(6)
    found = cosine_stiffness(data.gram, data.targets.to(dtype), 4)
    assert torch.equal(found, cosine_stiffness(data.gram, data.targets, 4))


def test_pair_sums_of_two_halves_add_up_to_the_whole() -> None:
    data = random_labelled(7)
    pairs = cosine_pairs(data.gram)
    whole = class_pair_sums(pairs, data.targets, data.targets, 4)
    first = class_pair_sums(pairs[:9], data.targets[:9], data.targets, 4)
    second = class_pair_sums(pairs[9:], data.targets[9:], data.targets, 4)
    assert_equal((first + second).mean, whole.mean)
    assert_equal((whole - first).count, second.count)
    assert whole.count.sum() == 24 * 23


@given(data=labelled(), superclasses=st.lists(st.integers(-1, 1), min_size=4, max_size=4))
def test_summaries_equal_loops(data: Labelled, superclasses: list[int]) -> None:
    matrix = cosine_stiffness(data.gram, data.targets, data.num_classes)
    of_class = superclasses[: data.num_classes]
    assert_equal(within_class(matrix), oracle.within_class(matrix.tolist()))
    assert_equal(between_class(matrix), oracle.between_class(matrix.tolist()))
    assert_equal(superclass_within(matrix, torch.tensor(of_class)), oracle.superclass_within(matrix.tolist(), of_class))
    assert_equal(
        superclass_between(matrix, torch.tensor(of_class)), oracle.superclass_between(matrix.tolist(), of_class)
    )


def test_within_weighs_classes_not_pairs() -> None:
    gradients = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    matrix = cosine_stiffness(gradients @ gradients.T, torch.tensor([0, 0, 1, 1, 1]), 2)
    assert within_class(matrix) == 0.5


def test_between_takes_both_triangles() -> None:
    assert between_class(torch.tensor([[9.0, 1.0], [0.0, 9.0]])) == 0.5


def test_nothing_defined_is_nan() -> None:
    assert within_class(torch.full((2, 2), NAN)).isnan()
    assert between_class(torch.tensor([[1.0]])).isnan()
    assert superclass_within(torch.ones(2, 2), torch.tensor([0, 1])).isnan()
    assert superclass_between(torch.ones(2, 2), torch.tensor([0, 0])).isnan()


@given(data=labelled())
def test_own_class_alignment_equals_loops(data: Labelled) -> None:
    pairs = cosine_pairs(data.gram)
    expected = oracle.own_class_alignment(pairs.tolist(), data.targets.tolist())
    assert_equal(own_class_alignment(pairs, data.targets), expected)


def test_a_mislabelled_sample_has_the_lowest_alignment() -> None:
    gradients = torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, -0.1], [-0.1, 1.0], [0.1, 1.0]])
    targets = torch.tensor([0, 0, 0, 0, 1])
    assert own_class_alignment(cosine_pairs(gradients @ gradients.T), targets)[:4].argmin() == 3


def test_inputs_are_left_as_they_were() -> None:
    data = random_labelled(8)
    gram = data.gram
    before = gram.clone()
    cosine_stiffness(gram, data.targets, 4)
    sign_stiffness(gram, data.targets, 4)
    assert torch.equal(gram, before)
