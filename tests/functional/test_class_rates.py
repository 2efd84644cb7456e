import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_stiffness.errors import StiffnessError
from lightning_stiffness.functional.class_rates import (
    DeferredRates,
    effective_number_rates,
    inverse_frequency_rates,
    natural_rates,
    power_rates,
    require_rates,
    sample_weights,
    square_root_rates,
    within_group_rates,
)
from tests.unchecked import unchecked_types

COUNTS = st.lists(st.integers(1, 5000), min_size=2, max_size=12)
STRATEGIES = [natural_rates, inverse_frequency_rates, square_root_rates, effective_number_rates, power_rates]


def shares(values):
    total = math.fsum(values)
    return [value / total for value in values]


def effective(counts, beta):
    """The number of samples that do not repeat one another, as the sum of a geometric series."""
    return [n / math.fsum(beta**k for k in range(n)) for n in counts]


@given(COUNTS)
def test_rates_are_those_of_plain_loops(counts):
    expected = {
        natural_rates: shares(counts),
        inverse_frequency_rates: shares([n / n for n in counts]),
        square_root_rates: shares([math.sqrt(n) for n in counts]),
        power_rates: shares([n**0.75 for n in counts]),
        partial(effective_number_rates, beta=0.9): shares(effective(counts, 0.9)),
    }
    for strategy, rates in expected.items():
        # the power beta^n is rounded once in either way
        assert strategy(torch.tensor(counts)).tolist() == pytest.approx(rates, rel=1e-9)


@given(COUNTS)
def test_rates_lie_between_natural_and_equal_ones(counts):
    sizes = torch.tensor(counts)
    natural, largest = natural_rates(sizes), sizes.argmax()
    for strategy in STRATEGIES:
        rates = strategy(sizes)
        assert float(rates.sum()) == pytest.approx(1)
        assert 1 / len(counts) - 1e-12 <= rates[largest] <= natural[largest] + 1e-9


@given(COUNTS, st.integers(1, 4))
def test_groups_keep_their_share_and_classes_inside_are_equal(counts, groups):
    sizes, of = torch.tensor(counts), torch.arange(len(counts)) % groups
    rates = within_group_rates(sizes, 7 - of)
    for group in of.unique():
        inside = of == group
        assert float(rates[inside].sum()) == pytest.approx(float(natural_rates(sizes)[inside].sum()))
        assert float(rates[inside].max()) == pytest.approx(float(rates[inside].min()))


@given(COUNTS)
def test_weights_and_counts_make_the_rates(counts):
    sizes = torch.tensor(counts)
    weights = sample_weights(square_root_rates(sizes), sizes)
    assert float((weights * sizes).sum() / sizes.sum()) == pytest.approx(1)
    assert (weights * sizes / sizes.sum()).tolist() == pytest.approx(square_root_rates(sizes).tolist())


def test_a_schedule_changes_at_its_start():
    schedule = DeferredRates(2, before=square_root_rates)
    assert [schedule.at(epoch) for epoch in range(4)] == [square_root_rates] * 2 + [inverse_frequency_rates] * 2


def test_effective_numbers_go_from_natural_to_equal():
    counts = torch.tensor([90, 10])
    assert torch.allclose(effective_number_rates(counts, 0.0), natural_rates(counts))
    assert torch.allclose(effective_number_rates(counts, 1 - 1e-9), inverse_frequency_rates(counts), atol=1e-6)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(
    ("counts", "found"),
    [
        (torch.tensor([3, 0, 1, 0]), "found 0 of classes 1, 3"),
        (torch.tensor([4]), "at least two classes to balance, found 1"),
        (torch.tensor([0.5, 0.5]), r"found torch.float32 of shape \(2,\)"),
        (torch.tensor([[3, 4]]), r"shape \(1, 2\)"),
        (torch.tensor([3, -1]), "found -1 of class 1"),
    ],
)
def test_counts_that_are_none(strategy, counts, found):
    with unchecked_types(), pytest.raises(StiffnessError, match=found):
        strategy(counts)


@pytest.mark.parametrize("beta", [-0.1, 1.0, math.nan])
def test_a_beta_out_of_range(beta):
    with pytest.raises(StiffnessError, match="beta must lie"):
        effective_number_rates(torch.tensor([1, 2]), beta)


@pytest.mark.parametrize(
    ("rates", "found"),
    [
        ([1.0], "one number for each of 2 classes"),
        ([1.0, -1.0], "not negative"),
        ([0.0, 0.0], "one of them positive"),
        ([1.0, math.nan], "must be finite"),
    ],
)
def test_rates_that_are_none(rates, found):
    with pytest.raises(StiffnessError, match=found):
        require_rates(torch.tensor(rates), torch.tensor([3, 4]))


def test_a_class_without_samples_cannot_be_drawn():
    with pytest.raises(StiffnessError, match="found none of class 1"):
        require_rates(torch.tensor([0.5, 0.5]), torch.tensor([3, 0]))
    assert require_rates(torch.tensor([2.0, 0.0]), torch.tensor([3, 0])).tolist() == [1, 0]
