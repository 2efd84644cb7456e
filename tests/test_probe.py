import math
import random
import weakref
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    Sampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
)

from lightning_stiffness.balanced_loader import make_balanced_loader
from lightning_stiffness.errors import StiffnessError
from lightning_stiffness.probe import LARGEST_PROBE, Probe, label_entropy


def tensors(counts: list[int]) -> TensorDataset:
    """Samples whose only feature is their position, in a mixed order of classes."""
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(3))]
    return TensorDataset(torch.arange(len(labels)).unsqueeze(1), labels)


class Items(Dataset[Any]):
    """The same samples without stored labels, counting how many were read."""

    def __init__(self, counts: list[int]) -> None:
        self.samples = tensors(counts)
        self.read = 0

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, position: int) -> Any:
        self.read += 1
        return self.samples[position]


class Stream(IterableDataset[Any]):
    """Samples in a given order of labels, for ever if asked."""

    def __init__(self, labels: list[int], endless: bool = False) -> None:
        self.labels = labels
        self.endless = endless
        self.read = 0

    def __iter__(self) -> Iterator[Any]:
        position = 0
        while position < len(self.labels) or self.endless:
            self.read += 1
            yield torch.tensor([position]), self.labels[position % len(self.labels)]
            position += 1


class Noisy(Dataset[Any]):
    """Draws from every global random state for each sample."""

    def __init__(self) -> None:
        self.targets = [0, 1] * 20

    def __len__(self) -> int:
        return 40

    def __getitem__(self, position: int) -> Any:
        noise = [random.random(), np.random.rand(), torch.rand(1).item()]  # noqa: NPY002
        return torch.tensor(noise), self.targets[position]


class Untouchable(Sampler[int]):
    def __iter__(self) -> Iterator[int]:
        raise AssertionError("the sampler was iterated")

    def __len__(self) -> int:
        return 10


def per_class(probe: Probe) -> dict[int, int]:
    return dict(sorted(Counter(probe.targets.tolist()).items()))


def positions(probe: Probe) -> list[int]:
    return [int(position) for position in probe.batch[0].flatten().tolist()]


def states() -> tuple[Any, ...]:
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002
    return random.getstate(), kind, keys.tolist(), rest, torch.get_rng_state().tolist()


counts_of_classes = st.lists(st.integers(2, 40), min_size=1, max_size=5)


@pytest.mark.parametrize("make", [tensors, Items])
@settings(deadline=None, max_examples=30)
@given(counts=counts_of_classes, size=st.integers(2, 60), seed=st.integers(0, 2**32 - 1))
def test_draw_is_balanced_unique_consistent_and_deterministic(make, counts, size, seed):
    loader = DataLoader(make(counts), batch_size=7, shuffle=True)
    probe = Probe.draw(loader, size, seed=seed, num_classes=len(counts))

    assert len(set(probe.ids)) == len(probe.ids) == len(probe.targets)
    assert positions(probe) == list(probe.ids)
    labels = tensors(counts).tensors[1]
    assert probe.targets.tolist() == [int(labels[i]) for i in probe.ids]
    assert probe.targets.tolist() == sorted(probe.targets.tolist())
    got = per_class(probe)
    assert all(got[c] >= 2 for c in range(len(counts)))
    enough = [got[c] for c in range(len(counts)) if got[c] < counts[c]]
    assert not enough or max(got.values()) - min(enough) <= 1
    assert len(probe.ids) == max(2 * len(counts), min(size, sum(counts)))
    assert probe.missing == ()
    assert probe.num_classes == len(counts)
    assert Probe.draw(loader, size, seed=seed, num_classes=len(counts)).ids == probe.ids


@pytest.mark.parametrize("make", [tensors, Items])
def test_different_seeds_draw_different_samples(make):
    loader = DataLoader(make([100, 100]))
    assert len({Probe.draw(loader, 20, seed=seed).ids for seed in range(4)}) == 4


@pytest.mark.parametrize("make", [tensors, Items])
def test_draw_does_not_depend_on_sampler_batch_size_workers_or_global_state(make):
    torch.manual_seed(1)
    expected = Probe.draw(DataLoader(make([50, 50])), 20).ids
    torch.manual_seed(2)
    assert Probe.draw(DataLoader(make([50, 50]), batch_size=9, drop_last=True, shuffle=True), 20).ids == expected
    assert Probe.draw(DataLoader(make([50, 50]), num_workers=2, sampler=Untouchable()), 20).ids == expected


def test_small_classes_give_all_they_have_and_leave_the_rest_to_others():
    probe = Probe.draw(DataLoader(tensors([100, 5, 40, 1])), 60)
    got = per_class(probe)
    assert (got[1], got[3]) == (5, 1)
    assert {got[0], got[2]} == {27}
    assert probe.missing == (3,)


def test_two_of_each_class_even_above_the_size():
    assert per_class(Probe.draw(DataLoader(tensors([10] * 6)), 4)) == dict.fromkeys(range(6), 2)


def test_absent_classes_are_missing():
    probe = Probe.draw(DataLoader(tensors([10, 0, 10])), 8, num_classes=5)
    assert probe.missing == (1, 3, 4)
    assert probe.num_classes == 5


def test_one_class_is_allowed():
    probe = Probe.draw(DataLoader(tensors([50])), 10)
    assert per_class(probe) == {0: 10}
    assert probe.num_classes == 1


def test_stored_labels_spare_the_reading():
    dataset = Items([500, 500])
    dataset.targets = dataset.samples.tensors[1]
    Probe.draw(DataLoader(dataset), 20)
    assert dataset.read == 20


def test_num_classes_covers_labels_that_are_not_drawn():
    assert Probe.draw(DataLoader(tensors([50, 50, 1])), 4).num_classes == 3


def test_reading_stops_when_every_class_has_enough():
    dataset = Items([3000, 3000])
    Probe.draw(DataLoader(dataset), 20, num_classes=2)
    assert dataset.read < 120
    dataset = Items([3000, 3000])
    Probe.draw(DataLoader(dataset), 100)
    assert dataset.read < 400


def test_reading_is_bounded():
    dataset = Items([5000])
    probe = Probe.draw(DataLoader(dataset), 50, num_classes=3)
    assert dataset.read == 2000 + 50
    assert probe.missing == (1, 2)


def test_subset_of_joined_datasets():
    whole = ConcatDataset([tensors([20, 20]), tensors([0, 0, 20])])
    part = Subset(whole, list(range(5, 55)))
    probe = Probe.draw(DataLoader(part, shuffle=True), 12)
    assert per_class(probe) == {0: 4, 1: 4, 2: 4}
    assert probe.targets.tolist() == [part[i][1].item() for i in probe.ids]


def test_batches_that_are_dicts():
    dataset = [{"x": torch.tensor([float(i)]), "name": f"s{i}", "label": i % 3} for i in range(60)]
    probe = Probe.draw(DataLoader(dataset, batch_size=4, shuffle=True), 9)
    assert per_class(probe) == {0: 3, 1: 3, 2: 3}
    assert probe.batch["name"] == [f"s{i}" for i in probe.ids]


def test_collate_function_of_the_loader_is_used():
    dataset = [(torch.ones(1 + i % 5), i % 2) for i in range(40)]

    def pad(items: list[Any]) -> Any:
        return {
            "x": pad_sequence([x for x, _ in items], batch_first=True),
            "labels": torch.tensor([y for _, y in items]),
        }

    probe = Probe.draw(DataLoader(dataset, collate_fn=pad, batch_size=4), 20)
    assert probe.batch["x"].shape == (20, 5)
    assert probe.batch["x"].sum(1).tolist() == [1 + i % 5 for i in probe.ids]


@pytest.mark.parametrize("make", [tensors, Items])
def test_collate_function_that_reorders_keeps_targets_with_their_samples(make):
    def latest_first(items: list[Any]) -> Any:
        x, y = zip(*sorted(items, key=lambda item: -int(item[0])), strict=True)
        return torch.stack(x), torch.stack(y)

    dataset = make([30, 30])
    probe = Probe.draw(DataLoader(dataset, collate_fn=latest_first), 10)
    labels = tensors([30, 30]).tensors[1]
    assert probe.targets.tolist() == [int(labels[i]) for i in positions(probe)]
    assert per_class(probe) == {0: 5, 1: 5}
    assert probe.ids == (None,) * 10


class Coarse(Dataset[Any]):
    """Stores fine labels and yields coarse ones."""

    def __init__(self) -> None:
        self.targets = [i % 10 for i in range(200)]

    def __len__(self) -> int:
        return 200

    def __getitem__(self, position: int) -> Any:
        return torch.tensor([position]), int(self.targets[position] > 7)


def test_target_transform_overrules_the_stored_labels():
    probe = Probe.draw(DataLoader(Coarse()), 20)
    assert per_class(probe) == {0: 10, 1: 10}
    assert probe.num_classes == 2
    assert probe.targets.tolist() == [int(i % 10 > 7) for i in probe.ids]


def test_targets_read_by_the_user():
    dataset = TensorDataset(torch.arange(40).unsqueeze(1), torch.arange(40) % 4)
    probe = Probe.draw(DataLoader(dataset), 12, targets=lambda batch: (batch[1] == 3).long())
    assert per_class(probe) == {0: 6, 1: 6}
    regression = TensorDataset(torch.arange(40).unsqueeze(1), torch.arange(40).float())
    probe = Probe.draw(DataLoader(regression), 12, targets=lambda batch: (batch[1] > 20).long())
    assert per_class(probe) == {0: 6, 1: 6}


def test_stream_is_balanced_and_left_alone():
    stream = Stream([0] * 90 + [1] * 10 + [2] * 100)
    probe = Probe.draw(DataLoader(stream, batch_size=8), 60)
    assert per_class(probe) == {0: 25, 1: 10, 2: 25}
    assert probe.ids == (None,) * 60
    assert [stream.labels[i] for i in positions(probe)] == probe.targets.tolist()
    assert stream.read == 0


def test_endless_stream_of_one_class_first_is_bounded_and_reports_the_missing():
    probe = Probe.draw(DataLoader(Stream([0] * 5000 + [1] * 10, endless=True)), 20, num_classes=2)
    assert per_class(probe) == {0: 20}
    assert probe.missing == (1,)


def test_stream_that_starts_with_one_class_is_read_on():
    probe = Probe.draw(DataLoader(Stream([0] * 1500 + [1] * 100, endless=True)), 20)
    assert per_class(probe) == {0: 10, 1: 10}


def test_class_that_comes_soon_after_the_others_had_enough_is_found():
    probe = Probe.draw(DataLoader(Stream([0, 1] * 10 + [2] * 100, endless=True)), 20)
    assert probe.num_classes == 3
    assert min(per_class(probe).values()) >= 6


def test_no_more_samples_of_a_class_are_kept_than_can_be_drawn():
    alive: weakref.WeakSet[Tensor] = weakref.WeakSet()
    most = 0

    def collate(items: list[Any]) -> Any:
        nonlocal most
        alive.update(x for x, _ in items)
        most = max(most, len(alive))
        return torch.stack([x for x, _ in items]), torch.tensor([y for _, y in items])

    Probe.draw(DataLoader(Stream([0], endless=True), collate_fn=collate), 20)
    assert 20 <= most <= 22


def test_stream_that_cannot_be_copied_says_what_to_pass():
    stream = Stream([0, 1])
    stream.source = (item for item in [1])
    with pytest.raises(StiffnessError, match=r"deep copy .*Pass probe="):
        Probe.draw(DataLoader(stream))


class ReadyBatches(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        for start in range(0, 60, 15):
            position = torch.arange(start, start + 15)
            yield {"x": position.unsqueeze(1), "y": position % 3, "shared": torch.eye(2)}


def ready_items() -> list[Any]:
    return list(ReadyBatches())


@pytest.mark.parametrize("dataset", [ReadyBatches(), ready_items()], ids=["stream", "items"])
def test_ready_made_batches_are_taken_apart(dataset):
    probe = Probe.draw(DataLoader(dataset, batch_size=None), 12)
    assert per_class(probe) == {0: 4, 1: 4, 2: 4}
    x = probe.batch["x"].flatten()
    assert (x % 3).tolist() == probe.targets.tolist()
    assert len(set(x.tolist())) == 12
    assert probe.batch["shared"].equal(torch.eye(2))


def shuffled_order(draw: bool) -> list[int]:
    torch.manual_seed(5)
    loader = DataLoader(tensors([30, 30]), batch_size=4, shuffle=True)
    order = []
    for epoch in range(2):
        if draw and epoch == 0:
            Probe.draw(loader, 10)
        for x, _ in loader:
            order += x.flatten().tolist()
            if draw:
                Probe.draw(loader, 10, seed=len(order))
    return order


def test_data_order_is_the_same_with_and_without_a_draw():
    assert shuffled_order(draw=True) == shuffled_order(draw=False)


def test_data_order_of_a_loader_with_its_own_generator_is_the_same():
    orders = []
    for draws in (0, 3):
        loader = DataLoader(tensors([30, 30]), shuffle=True, generator=torch.Generator().manual_seed(7))
        for _ in range(draws):
            Probe.draw(loader, 10)
        orders.append([int(x) for x, _ in loader])
    assert orders[0] == orders[1]


@pytest.mark.parametrize("read", [Probe.draw, Probe.from_loader])
def test_global_random_states_are_put_back(read):
    before = states()
    read(DataLoader(Noisy(), batch_size=4, shuffle=True))
    assert states() == before


def test_global_random_states_are_put_back_after_an_error():
    before = states()
    noisy = Noisy()
    noisy.targets = [0.5] * 40
    with pytest.raises(StiffnessError):
        Probe.draw(DataLoader(noisy))
    assert states() == before


def test_random_transforms_are_seeded():
    loader = DataLoader(Noisy(), batch_size=4, shuffle=True)
    first, second = Probe.draw(loader, 8, seed=1), Probe.draw(loader, 8, seed=1)
    assert first.batch[0].equal(second.batch[0])
    assert not first.batch[0].equal(Probe.draw(loader, 8, seed=2).batch[0])


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seed_out_of_range_is_refused(seed):
    with pytest.raises(StiffnessError, match=f"seed must .*found {seed}"):
        Probe.draw(DataLoader(tensors([5, 5])), seed=seed)


def test_loader_made_for_the_purpose_is_used_whole_and_in_its_order():
    dataset = tensors([10, 10])
    probe = Probe.from_loader(DataLoader(dataset, batch_size=3, sampler=[7, 1, 1, 12, 4, 0]))
    assert probe.ids == (7, 1, 1, 12, 4, 0)
    assert positions(probe) == list(probe.ids)
    assert probe.targets.tolist() == [int(dataset[i][1]) for i in probe.ids]


def test_shuffled_loader_made_for_the_purpose_gives_the_same_probe_each_time():
    loader = DataLoader(tensors([10, 10]), shuffle=True)
    assert Probe.from_loader(loader).ids == Probe.from_loader(loader).ids


@pytest.mark.parametrize("dataset", [ReadyBatches(), ready_items()], ids=["stream", "items"])
def test_loader_of_ready_made_batches_is_used_whole(dataset):
    probe = Probe.from_loader(DataLoader(dataset, batch_size=None))
    assert probe.batch["x"].flatten().tolist() == list(range(60))


def test_endless_loader_is_refused():
    with pytest.raises(StiffnessError, match=f"1 to {LARGEST_PROBE} samples; found {LARGEST_PROBE + 1} or more"):
        Probe.from_loader(DataLoader(Stream([0, 1], endless=True)))


def test_more_classes_than_a_probe_can_hold_are_refused_before_reading():
    dataset = Items([1])
    dataset.samples = TensorDataset(torch.zeros(20_000), torch.zeros(20_000))
    dataset.targets = torch.arange(20_000)
    with pytest.raises(StiffnessError, match="found 20000 or more"):
        Probe.draw(DataLoader(dataset))
    assert dataset.read == 0


X = torch.zeros(4, 2)


def test_batch_of_the_user():
    probe = Probe.from_batch({"x": X, "labels": torch.tensor([1, 1, 3, 0])}, num_classes=5)
    assert probe.targets.tolist() == [1, 1, 3, 0]
    assert probe.missing == (0, 2, 3, 4)
    assert probe.ids == (None,) * 4
    assert Probe.from_batch(X, targets=lambda batch: [0, 0, 1, 1]).targets.tolist() == [0, 0, 1, 1]


def test_replaced_batch_leaves_the_rest():
    probe = Probe.from_batch((X, torch.tensor([0, 0, 1, 1])))
    other = probe.with_batch("elsewhere")
    assert other.batch == "elsewhere"
    assert other.targets is probe.targets
    assert probe.batch[0] is X


@pytest.mark.parametrize(
    ("labels", "num_classes", "message"),
    [
        ([0, 0, 1, 2], 2, "between 0 and 1; found 0 to 2"),
        ([0, 0, 1, -1], None, "found -1 to 1.* unlabelled"),
        ([0, 0, 1, 10**9], None, "number the classes from 0"),
        ([0, 1, 2, 3], None, "At least one class must have two samples; found 4 samples of 4 classes"),
    ],
)
def test_bad_classes_are_refused(labels, num_classes, message):
    with pytest.raises(StiffnessError, match=message):
        Probe.from_batch((X, torch.tensor(labels)), num_classes=num_classes)
    dataset = TensorDataset(X, torch.tensor(labels))
    with pytest.raises(StiffnessError, match=message):
        Probe.draw(DataLoader(dataset), num_classes=num_classes)
    with pytest.raises(StiffnessError, match=message):
        Probe.draw(DataLoader([dataset[i] for i in range(4)]), num_classes=num_classes)


def test_label_out_of_range_is_refused_even_when_not_drawn():
    with pytest.raises(StiffnessError, match="found 0 to 2"):
        Probe.draw(DataLoader(tensors([500, 500, 1])), 4, num_classes=2)


@pytest.mark.parametrize(
    "dataset",
    [TensorDataset(X[:0], torch.zeros(0, dtype=torch.int64)), [], Stream([])],
    ids=["tensors", "list", "stream"],
)
def test_empty_dataset_is_refused(dataset):
    loader = DataLoader(dataset, sampler=None if isinstance(dataset, Stream) else [])
    for read in (Probe.draw, Probe.from_loader):
        with pytest.raises(StiffnessError, match="found 0"):
            read(loader)


def test_empty_batch_is_refused():
    with pytest.raises(StiffnessError, match="found 0"):
        Probe.from_batch((X[:0], torch.zeros(0, dtype=torch.int64)))


def test_size_of_less_than_a_pair_is_refused():
    with pytest.raises(StiffnessError, match="size must be at least 2 samples; found 1"):
        Probe.draw(DataLoader(tensors([5, 5])), 1)


def test_regression_targets_are_refused():
    with pytest.raises(StiffnessError, match=r"Regression values.*pass targets="):
        Probe.draw(DataLoader(TensorDataset(X, torch.zeros(4))))


def test_sample_that_cannot_be_read_is_named_by_its_error():
    class Broken(Noisy):
        def __getitem__(self, position: int) -> Any:
            raise OSError("disk on fire")

    with pytest.raises(StiffnessError, match="must be readable; OSError: disk on fire"):
        Probe.draw(DataLoader(Broken()))


def test_collate_function_that_makes_more_samples_is_refused():
    def twice(items: list[Any]) -> Any:
        x, y = torch.stack([x for x, _ in items]), torch.stack([y for _, y in items])
        return x.repeat(2, 1), y.repeat(2)

    with pytest.raises(StiffnessError, match=r"one sample of each item; found 20 samples from 10"):
        Probe.draw(DataLoader(tensors([20, 20]), collate_fn=twice), 10)


def test_several_loaders_are_refused():
    with pytest.raises(StiffnessError, match=r"found 2 in list\. Pass probe="):
        Probe.draw([DataLoader(tensors([5, 5])), DataLoader(tensors([5, 5]))])


@given(st.lists(st.integers(0, 6), min_size=1, max_size=50))
def test_entropy_is_the_mean_surprise(labels):
    expected = sum(-math.log(labels.count(label) / len(labels)) for label in labels) / len(labels)
    assert label_entropy(torch.tensor(labels)) == pytest.approx(expected, abs=1e-12)
    assert 0 <= label_entropy(torch.tensor(labels)) <= math.log(len(set(labels))) + 1e-12


def test_entropy_of_one_class_is_zero_and_of_none_is_nan():
    assert str(label_entropy(torch.tensor([4, 4]))) == "0.0"
    assert math.isnan(label_entropy(torch.zeros(0, dtype=torch.int64)))


def test_probe_is_frozen():
    probe = Probe.from_batch((X, torch.tensor([0, 0, 1, 1])))
    with pytest.raises(AttributeError):
        probe.num_classes = 3  # type: ignore[misc]
    assert isinstance(probe.targets, Tensor)
    assert probe.targets.dtype == torch.int64


@pytest.mark.parametrize("dataset", [tensors([20, 20, 20]), Items([20, 20, 20])], ids=["stored labels", "read"])
@pytest.mark.parametrize("draw", [Probe.draw, Probe.draw_by_chance])
def test_samples_that_are_never_trained_on_are_left_out(dataset, draw):
    held_out = set(range(0, 60, 3))
    trained = SubsetRandomSampler([position for position in range(60) if position not in held_out])
    probe = draw(DataLoader(dataset, batch_size=5, sampler=trained), 30)
    assert len(probe.ids) == 30
    assert held_out.isdisjoint(probe.ids)
    assert positions(probe) == list(probe.ids)
    limited = draw(DataLoader(dataset, batch_size=5), 30, batches=4)
    assert set(limited.ids) == set(range(20))


def test_a_balanced_loader_measures_what_it_draws():
    trained = SubsetRandomSampler(range(0, 60, 2))
    balanced = make_balanced_loader(DataLoader(tensors([20, 20, 20]), batch_size=5, sampler=trained))
    assert set(Probe.draw(balanced, 30).ids) == set(range(0, 60, 2))
