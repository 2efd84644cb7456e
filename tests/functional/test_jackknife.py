"""Replicates against samples really left out, and standard errors against the spread over many draws."""

from math import isnan

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lightning_stiffness.errors import StiffnessError
from lightning_stiffness.functional import (
    Stiffness,
    Tally,
    between_class,
    class_matrix,
    cosine_pairs,
    jackknife_error,
    pair_rows,
    sign_pairs,
    summarise,
    summarise_cross,
    summarise_rows,
    within_class,
)
from tests.functional import oracle
from tests.functional.synthetic import Labelled, labelled, random_labelled
from tests.unchecked import unchecked_types

NAN = float("nan")


def assert_replicates(found: Stiffness, expected: list[tuple[float, float]]) -> None:
    # Sums of at most some hundred values of size 1 in float64, made in another order.
    replicates = torch.stack([found.within_replicates, found.between_replicates], dim=1)
    torch.testing.assert_close(
        replicates, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12, equal_nan=True
    )


def assert_statistic(found: Stiffness, matrix: Tensor) -> None:
    torch.testing.assert_close(found.matrix, matrix, rtol=0, atol=1e-14, equal_nan=True)
    assert found.within == pytest.approx(float(within_class(matrix)), abs=1e-14, nan_ok=True)
    assert found.between == pytest.approx(float(between_class(matrix)), abs=1e-14, nan_ok=True)


@given(data=labelled(), use_sign=st.booleans())
def test_replicates_equal_samples_really_left_out(data: Labelled, use_sign: bool) -> None:
    pairs = sign_pairs(data.gram) if use_sign else cosine_pairs(data.gram)
    found = summarise(pairs, data.targets, data.num_classes)
    assert_statistic(found, class_matrix(pairs, data.targets, data.targets, data.num_classes))
    assert_replicates(found, oracle.replicates(pairs.tolist(), data.targets.tolist(), data.num_classes))


def test_replicates_of_random_gradients() -> None:
    data = random_labelled(0, samples=40)
    pairs = cosine_pairs(data.gram)
    found = summarise(pairs, data.targets, data.num_classes)
    assert_replicates(found, oracle.replicates(pairs.tolist(), data.targets.tolist(), data.num_classes))
    assert found.within_se == pytest.approx(
        oracle.jackknife_error(found.within_replicates.tolist(), data.targets.tolist())
    )
    assert found.between_se == pytest.approx(
        oracle.jackknife_error(found.between_replicates.tolist(), data.targets.tolist())
    )


def test_pairs_that_are_neither_symmetric_nor_undefined_on_the_diagonal() -> None:
    pairs = torch.rand(7, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    targets = torch.tensor([0, 1, 2, 0, 1, 2, 0])
    assert_replicates(summarise(pairs, targets, 3), oracle.replicates(pairs.tolist(), targets.tolist(), 3))


@given(rows=labelled(max_samples=6), columns=labelled(max_samples=6), holes=st.sets(st.integers(0, 35)))
def test_cross_replicates_equal_samples_really_left_out(rows: Labelled, columns: Labelled, holes: set[int]) -> None:
    pairs = rows.gradients @ columns.gradients.T
    for hole in holes:
        pairs.view(-1)[hole % pairs.numel()] = NAN
    found = summarise_cross(pairs, rows.targets, columns.targets, 4)
    assert_statistic(found, class_matrix(pairs, rows.targets, columns.targets, 4))
    assert_replicates(
        found, oracle.cross_replicates(pairs.tolist(), rows.targets.tolist(), columns.targets.tolist(), 4)
    )


def test_cross_errors_are_stratified_by_set_and_class() -> None:
    rows, columns = random_labelled(1, samples=12), random_labelled(1, samples=15)
    pairs = torch.tanh(rows.gradients @ columns.gradients.T)
    found = summarise_cross(pairs, rows.targets, columns.targets, 4)
    strata = rows.targets.tolist() + [4 + target for target in columns.targets.tolist()]
    assert found.within_se == pytest.approx(oracle.jackknife_error(found.within_replicates.tolist(), strata))
    assert found.between_se == pytest.approx(oracle.jackknife_error(found.between_replicates.tolist(), strata))


def test_a_zero_gradient_deletes_nothing() -> None:
    data = random_labelled(2)
    data.gradients[3] = 0
    found = summarise(cosine_pairs(data.gram), data.targets, 4)
    assert found.within_replicates[3] == found.within
    assert found.between_replicates[3] == found.between


def test_single_precision_pairs_are_summed_in_double() -> None:
    data = random_labelled(3)
    pairs = cosine_pairs(data.gram)
    single, double = summarise(pairs.float(), data.targets, 4), summarise(pairs, data.targets, 4)
    assert single.matrix.dtype == torch.float32
    assert single.within_replicates.dtype == torch.float64
    torch.testing.assert_close(single.within_replicates, double.within_replicates, rtol=0, atol=1e-7)


def test_errors_without_a_statistic_are_nan() -> None:
    one_each = summarise(cosine_pairs(torch.eye(2)), torch.tensor([0, 1]), 2)
    assert isnan(one_each.within)
    assert isnan(one_each.within_se)
    assert one_each.between == 0
    assert isnan(one_each.between_se)
    one_class = summarise(cosine_pairs(torch.eye(2)), torch.tensor([0, 0]), 1)
    assert one_class.within == 0
    assert isnan(one_class.within_se)
    assert isnan(one_class.between)


replicate_lists = st.lists(st.tuples(st.floats(-1, 1), st.integers(-2, 2)), min_size=1, max_size=12)


@given(replicates=replicate_lists)
def test_jackknife_error_equals_loops(replicates: list[tuple[float, int]]) -> None:
    values, strata = [value for value, _ in replicates], [stratum for _, stratum in replicates]
    found = jackknife_error(torch.tensor(values, dtype=torch.float64), torch.tensor(strata))
    assert float(found) == pytest.approx(oracle.jackknife_error(values, strata), abs=1e-12, nan_ok=True)


def test_jackknife_error_of_a_mean_is_the_textbook_one() -> None:
    values = torch.randn(30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    replicates = (values.sum() - values) / 29
    found = jackknife_error(replicates, torch.zeros(30, dtype=torch.int64))
    torch.testing.assert_close(found, values.std() / 30**0.5)


def test_a_stratum_of_one_sample_adds_nothing() -> None:
    strata = torch.tensor([0, 0, 1])
    spread = jackknife_error(torch.tensor([1.0, 2.0]), strata[:2])
    assert jackknife_error(torch.tensor([1.0, 2.0, 9.0]), strata) == spread
    assert jackknife_error(torch.tensor([1.0, 2.0, NAN]), strata) == spread


def test_an_undefined_replicate_makes_the_error_undefined() -> None:
    assert jackknife_error(torch.tensor([1.0, NAN, 3.0, 4.0]), torch.tensor([0, 0, 1, 1])).isnan()


def test_the_type_given_comes_back() -> None:
    assert jackknife_error(torch.tensor([1.0, 2.0]), torch.tensor([0, 0])).dtype == torch.float32


PER_CLASS, CLASSES, PARAMETERS, DRAWS = 20, 4, 20, 400


def two_measurements(generator: torch.Generator, per_class: int) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of fresh samples of fixed classes, and of the same samples a little later in training."""
    fixed = torch.Generator().manual_seed(5)
    means = 0.3 + torch.randn(CLASSES, PARAMETERS, generator=fixed, dtype=torch.float64)
    targets = torch.arange(CLASSES).repeat_interleave(per_class)
    noise = torch.randn(2, len(targets), PARAMETERS, generator=generator, dtype=torch.float64)
    earlier = means[targets] + noise[0]
    later = 0.7 * means[targets] + 0.8 * noise[0] + 0.6 * noise[1]
    return earlier, later, targets


def coverage(values: list[list[float]], errors: list[list[float]]) -> list[float]:
    """Mean estimated error over the standard deviation that the draws really have."""
    ratios: list[float] = (torch.tensor(errors).mean(dim=0) / torch.tensor(values).std(dim=0)).tolist()
    return ratios


# The standard deviation of 400 draws is itself known to 3.5 %.
@pytest.mark.slow
def test_errors_are_those_of_many_draws() -> None:
    generator = torch.Generator().manual_seed(0)
    values, errors = [], []
    for _ in range(DRAWS):
        earlier, later, targets = two_measurements(generator, PER_CLASS)
        first = summarise(cosine_pairs(earlier @ earlier.T), targets, CLASSES)
        second = summarise(cosine_pairs(later @ later.T), targets, CLASSES)
        within = jackknife_error(second.within_replicates - first.within_replicates, targets)
        between = jackknife_error(second.between_replicates - first.between_replicates, targets)
        values.append([first.within, first.between, second.within - first.within, second.between - first.between])
        errors.append([first.within_se, first.between_se, float(within), float(between)])
    assert coverage(values, errors) == pytest.approx([1, 1, 1, 1], abs=0.15)


@pytest.mark.slow
def test_cross_errors_are_those_of_many_draws() -> None:
    generator = torch.Generator().manual_seed(1)
    values, errors = [], []
    for _ in range(DRAWS):
        train, _, row_targets = two_measurements(generator, PER_CLASS)
        validation, _, column_targets = two_measurements(generator, PER_CLASS // 2)
        gradients = torch.cat([train, validation])
        pairs = cosine_pairs(gradients @ gradients.T)[: len(train), len(train) :]
        found = summarise_cross(pairs, row_targets, column_targets, CLASSES)
        values.append([found.within, found.between])
        errors.append([found.within_se, found.between_se])
    assert coverage(values, errors) == pytest.approx([1, 1], abs=0.15)


@unchecked_types()
def test_bad_input_to_the_summaries() -> None:
    two = torch.tensor([0, 1])
    with pytest.raises(StiffnessError, match=r"pairs must be square.* summarise_cross"):
        summarise(torch.ones(2, 3), two, 2)
    with pytest.raises(StiffnessError, match=r"targets must lie in \[0, 1\)"):
        summarise(torch.ones(2, 2), two, 1)
    with pytest.raises(StiffnessError, match=r"row_targets must have shape \(3,\)"):
        summarise_cross(torch.ones(3, 2), two, two, 2)
    with pytest.raises(StiffnessError, match=r"column_targets must have shape \(3,\)"):
        summarise_cross(torch.ones(2, 3), two, two, 2)
    with pytest.raises(StiffnessError, match="pairs must be a matrix"):
        summarise_cross(torch.ones(2), two, two, 2)


@unchecked_types()
def test_bad_input_to_the_error() -> None:
    with pytest.raises(StiffnessError, match=r"replicates must be a vector.* \(0,\)"):
        jackknife_error(torch.ones(0), torch.ones(0, dtype=torch.int64))
    with pytest.raises(StiffnessError, match=r"replicates must be a vector.* \(2, 2\)"):
        jackknife_error(torch.ones(2, 2), torch.tensor([0, 0]))
    with pytest.raises(StiffnessError, match=r"strata must have shape \(2,\)"):
        jackknife_error(torch.ones(2), torch.tensor([0]))
    with pytest.raises(StiffnessError, match="strata must be integers"):
        jackknife_error(torch.ones(2), torch.tensor([0.0, 0.0]))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
@unchecked_types()
def test_labels_of_any_integer_type(dtype):
    targets = torch.tensor([0, 0, 1, 1, 1])
    pairs = cosine_pairs(torch.eye(5) + 0.5)
    expected = summarise(pairs, targets, 2)
    found = summarise(pairs, targets.to(dtype), 2)
    assert torch.equal(found.matrix, expected.matrix)
    assert torch.equal(found.within_replicates, expected.within_replicates)
    cross = summarise_cross(pairs, targets.to(dtype), targets.to(dtype), 2)
    assert torch.equal(cross.matrix, summarise_cross(pairs, targets, targets, 2).matrix)


def blocks(batches: list[Labelled]) -> tuple[Tensor, Tally, Tensor]:
    """The pairs of all samples, nan across batches, and the same as rows."""
    pairs = [cosine_pairs(one.gram) for one in batches]
    rows = [pair_rows(values, one.targets, 4) for values, one in zip(pairs, batches, strict=True)]
    whole = torch.block_diag(*[values.nan_to_num(nan=9.0) for values in pairs])
    inside = torch.block_diag(*[torch.ones_like(values) for values in pairs]) > 0
    whole = whole.masked_fill(~inside | (whole == 9), NAN)
    joined = Tally(torch.cat([one.total for one in rows]), torch.cat([one.count for one in rows]))
    return whole, joined, torch.cat([one.targets for one in batches])


@given(batches=st.lists(labelled(max_samples=5), min_size=1, max_size=4))
def test_rows_of_batches_equal_samples_really_left_out(batches: list[Labelled]) -> None:
    pairs, rows, targets = blocks(batches)
    found = summarise_rows(rows, targets, 4)
    assert_statistic(found, class_matrix(pairs, targets, targets, 4))
    assert_replicates(found, oracle.replicates(pairs.tolist(), targets.tolist(), 4))


@pytest.mark.slow
@pytest.mark.parametrize(("batch", "most"), [(32, 1.25), (8, 1.5)])
def test_errors_of_batches_are_safe_and_near_those_of_many_draws(batch: int, most: float) -> None:
    generator = torch.Generator().manual_seed(0)
    means = 0.3 + torch.randn(CLASSES, PARAMETERS, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    values, errors = [], []
    for _ in range(200):
        targets = torch.randint(CLASSES, (10, batch), generator=generator)
        noise = torch.randn(10, batch, PARAMETERS, generator=generator, dtype=torch.float64)
        drawn = [Labelled(means[of] + one, of, CLASSES) for of, one in zip(targets, noise, strict=True)]
        _, rows, together = blocks(drawn)
        found = summarise_rows(rows, together, CLASSES)
        values.append([found.within, found.between])
        errors.append([found.within_se, found.between_se])
    assert all(0.9 < ratio < most for ratio in coverage(values, errors))
