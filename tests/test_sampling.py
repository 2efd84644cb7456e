"""Class rates are reached, samples of a class are drawn evenly, and the order is a function of seed and epoch."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, TensorDataset

from lightning_stiffness.errors import StiffnessError
from lightning_stiffness.functional.class_rates import (
    DeferredRates,
    inverse_frequency_rates,
    natural_rates,
    power_rates,
    square_root_rates,
)
from lightning_stiffness.sampling import ClassRateSampler, class_counts

COUNTS = st.lists(st.integers(1, 40), min_size=2, max_size=6)
STRATEGIES = st.sampled_from([natural_rates, inverse_frequency_rates, square_root_rates, torch.arange])


def labels_with(counts):
    return torch.cat([torch.full((n,), label) for label, n in enumerate(counts)])


def strategy_of(choice):
    """The last one leaves out the first class."""
    return (lambda counts: torch.arange(len(counts))) if choice is torch.arange else choice


@given(COUNTS, STRATEGIES, st.integers(0, 5), st.integers(1, 3), st.booleans())
@settings(max_examples=40)
def test_a_pass(counts, choice, epoch, replicas, replacement):
    labels = labels_with(counts)
    ranks = [
        ClassRateSampler(labels, strategy_of(choice), replacement=replacement, num_replicas=replicas, rank=rank)
        for rank in range(replicas)
    ]
    for sampler in ranks:
        sampler.set_epoch(epoch)
    length = len(ranks[0])
    drawn = [list(sampler) for sampler in ranks]
    assert [len(positions) for positions in drawn] == [length] * replicas
    together = torch.tensor([position for step in zip(*drawn, strict=True) for position in step], dtype=torch.long)
    assert torch.equal(together, ranks[0].order(epoch))
    found = torch.bincount(labels[together], minlength=len(counts))
    assert float((found - len(together) * ranks[0].rates_at(epoch)).abs().max()) < 1 + 1e-6
    times = torch.bincount(together, minlength=len(labels))
    for label in range(len(counts)):
        of_class = times[labels == label]
        assert of_class.max() - of_class.min() <= 1
    assert replacement or times.max() <= 1


def test_without_replacement_a_pass_ends_where_a_class_runs_out():
    labels = labels_with([100, 30, 10])
    sampler = ClassRateSampler(labels, replacement=False)
    assert len(sampler) == 30
    assert torch.bincount(labels[list(sampler)]).tolist() == [10, 10, 10]
    assert len(ClassRateSampler(labels, natural_rates, replacement=False)) == 140
    schedule = DeferredRates(1)
    assert len(ClassRateSampler(labels, schedule, replacement=False)) == 30
    with pytest.raises(StiffnessError, match=r"at most 30 samples .* found num_samples=31"):
        ClassRateSampler(labels, replacement=False, num_samples=31)


def test_rates_are_reached_on_average():
    labels = labels_with([7, 3])
    sampler = ClassRateSampler(labels, torch.tensor([0.55, 0.45]), num_samples=5)
    counts = sum(torch.bincount(labels[sampler.order(epoch)], minlength=2) for epoch in range(400))
    # each pass has 2 or 3 of 2.75: a standard deviation of .43 in 400 passes is .022
    assert abs(float(counts[0]) / 400 - 2.75) < 0.09


def test_every_sample_of_a_class_comes_equally_often_over_epochs():
    labels = labels_with([20, 5])
    sampler = ClassRateSampler(labels)
    times = sum(torch.bincount(sampler.order(epoch), minlength=25) for epoch in range(200)).double() / 200
    assert float((times[:20] - 12.5 / 20).abs().max()) < 0.15  # four standard deviations of a share of 200
    assert float((times[20:] - 2.5).abs().max()) < 0.15


def test_the_order_is_a_function_of_seed_and_epoch():
    labels = labels_with([20, 5])
    first, second = ClassRateSampler(labels, seed=3), ClassRateSampler(labels, seed=3)
    torch.rand(5)
    passes = [list(first) for _ in range(3)]
    assert first.epoch == 3
    second.set_epoch(2)
    assert list(second) == passes[2]
    assert len({tuple(order) for order in passes}) == 3
    assert list(ClassRateSampler(labels, seed=4)) != passes[0]
    before = torch.get_rng_state()
    list(first)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("drawn", [0, 1, 13, 24, 25])
def test_a_pass_goes_on_where_it_was_interrupted(drawn):
    labels = labels_with([20, 5])
    whole, interrupted, resumed = (ClassRateSampler(labels) for _ in range(3))
    for sampler in (whole, interrupted):
        sampler.set_epoch(1)
    expected = list(whole) + list(whole)
    iterator = iter(interrupted)
    beginning = list(itertools.islice(iterator, drawn))
    resumed.load_state_dict(interrupted.state_dict())
    resumed.set_epoch(1)
    assert beginning + list(resumed) + list(resumed) == expected


def test_a_pass_that_was_left_is_followed_by_the_next():
    sampler = ClassRateSampler(labels_with([20, 5]))
    first, second, third = (list(itertools.islice(sampler, 10)) for _ in range(3))
    assert [first, second, third] == [sampler.order(epoch)[:10].tolist() for epoch in range(3)]
    for _ in range(2):  # an epoch that is set counts, as when Lightning asks for a second iterator
        sampler.set_epoch(2)
        assert next(iter(sampler)) == third[0]


def test_another_epoch_begins_at_its_beginning():
    sampler = ClassRateSampler(labels_with([20, 5]))
    sampler.load_state_dict({"epoch": 1, "position": 7})
    sampler.set_epoch(2)
    assert list(sampler) == sampler.order(2).tolist()


def test_a_schedule_is_followed():
    labels = labels_with([30, 10])
    sampler = ClassRateSampler(labels, DeferredRates(1))
    assert torch.bincount(labels[list(sampler)]).tolist() == [30, 10]
    assert torch.bincount(labels[list(sampler)]).tolist() == [20, 20]


class Unreadable(Dataset):
    """Fails when a sample is loaded."""

    def __init__(self, targets):
        self.targets = targets

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        raise AssertionError("a sample was loaded")


def test_labels_are_read_without_loading_samples():
    targets = [0, 0, 0, 1, 2]
    tensors = TensorDataset(torch.zeros(5, 2), torch.tensor(targets))
    for data in (targets, torch.tensor(targets).numpy(), Unreadable(targets), tensors):
        assert ClassRateSampler(data).counts.tolist() == [3, 1, 1]
    nested = Subset(ConcatDataset([Unreadable(targets), tensors]), [0, 3, 5, 9])
    assert ClassRateSampler(nested).labels.tolist() == [0, 1, 0, 2]


def test_a_plain_loop_takes_it():
    data = TensorDataset(torch.arange(100), torch.tensor([0] * 90 + [1] * 10))
    loader = DataLoader(data, batch_size=8, sampler=ClassRateSampler(data))
    epochs = [torch.cat([y for _, y in loader]) for _ in range(2)]
    assert [int(y.sum()) for y in epochs] == [50, 50]
    assert not torch.equal(*epochs)


@pytest.mark.parametrize("replacement", [True, False])
def test_only_some_positions_are_drawn(replacement):
    labels = torch.tensor([0, 1, 0, 1, 0, 0, 2])
    sampler = ClassRateSampler(labels, positions=[5, 3, 1, 0], replacement=replacement)
    assert sampler.counts.tolist() == [2, 2]
    assert sampler.drawable_positions.tolist() == [0, 1, 3, 5]
    assert sorted(sampler) == [0, 1, 3, 5]
    mask = labels < 2
    assert ClassRateSampler(labels, positions=mask.nonzero().flatten()).counts.tolist() == [4, 2]


def test_a_class_without_a_sample_is_never_drawn_where_it_is_known_of():
    for rates in (inverse_frequency_rates, power_rates, DeferredRates(1)):
        sampler = ClassRateSampler(labels_with([30, 0, 10]), rates, num_classes=4)
        assert sampler.counts.tolist() == [30, 0, 10, 0]
        for epoch in range(2):
            drawn = sampler.rates_at(epoch)
            alone = ClassRateSampler(labels_with([30, 10]), rates).rates_at(epoch)
            assert drawn[[0, 2]].tolist() == pytest.approx(alone.tolist())
            assert drawn[[1, 3]].tolist() == [0, 0]
    assert len(ClassRateSampler(labels_with([30, 0, 10]), replacement=False, num_classes=3)) == 20
    with pytest.raises(StiffnessError, match="found none of class 1"):
        ClassRateSampler(labels_with([30, 0, 10]), torch.ones(3), num_classes=3)
    with pytest.raises(StiffnessError, match="one number for each of 3 classes"):
        ClassRateSampler(labels_with([30, 0, 10]), lambda counts: torch.ones(2), num_classes=3)


@pytest.mark.parametrize(
    ("data", "options", "found"),
    [
        ([0, 1, 1], {"positions": [0, 1, 1]}, r"distinct integers in \[0, 3\).*2 of them distinct"),
        ([0, 1, 1], {"positions": [0, 3]}, r"distinct integers in \[0, 3\)"),
        ([0, 1, 1], {"positions": torch.tensor([True, True, False])}, "mask.nonzero"),
        ([0, 1, 1], {"positions": [1, 2]}, "at least"),
        (
            TensorDataset(torch.zeros(3, 2), torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1])),
            {},
            r"found 2 candidates, tensors 1, 2.*dataset.tensors\[2\]",
        ),
        ([0, 0, 2], {}, "at least one sample, found 0 of class 1"),
        ([0, 0, 2], {"rates": torch.ones(3)}, "found none of class 1"),
        ([0, 1], {"rates": torch.ones(3)}, "one number for each of 2 classes"),
        ([0, 0], {}, "at least two classes to balance, found 1"),
        (torch.zeros(0, dtype=torch.long), {}, "at least two classes to balance, found 0"),
        ([0, -1, 1], {}, "found -1 to 1"),
        ([0, 1, 5], {"num_classes": 3}, r"must lie in \[0, 3\), found 0 to 5"),
        ([0.5, 0.1], {}, "must be 2 integers"),
        ([0, 1], {"num_samples": 0}, "num_samples must be at least 1"),
        (TensorDataset(torch.zeros(3)), {}, "found none in TensorDataset"),
    ],
)
def test_what_cannot_be_drawn_from(data, options, found):
    with pytest.raises(StiffnessError, match=found):
        ClassRateSampler(data, **options)


def test_a_class_that_is_left_out_may_be_empty():
    sampler = ClassRateSampler([0, 0, 2], torch.tensor([1.0, 0, 1]), num_samples=10)
    assert torch.bincount(sampler.labels[list(sampler)]).tolist() == [5, 0, 5]


def test_counts_have_room_for_classes_without_samples():
    assert class_counts(torch.tensor([1, 0]), 4).tolist() == [1, 1, 0, 0]
