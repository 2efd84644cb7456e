from typing import Any

import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from lightning_stiffness.errors import StiffnessError
from lightning_stiffness.samples import (
    IndexedSamples,
    ReadyBatches,
    StreamedSamples,
    copied_stream,
    dataset_length,
    drawn_positions,
    only_loader,
    samples_of,
)


class Stream(IterableDataset[Any]):
    def __init__(self, items: list[Any]) -> None:
        self.items = items
        self.read = 0

    def __iter__(self) -> Any:
        for item in self.items:
            self.read += 1
            yield item


class Bulk(Dataset[Any]):
    """Read with lists of positions only."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, positions: list[int]) -> Any:
        return torch.tensor([10 * position for position in positions])


class AllAtOnce(Dataset[Any]):
    def __len__(self) -> int:
        return 6

    def __getitem__(self, position: int) -> Any:
        raise AssertionError("read one by one")

    def __getitems__(self, positions: list[int]) -> list[Any]:
        return [torch.tensor(10 * position) for position in positions]


NUMBERS = TensorDataset(torch.arange(6) * 10)
READY = [[torch.tensor([0, 10])], [torch.tensor([20, 30, 40])], [torch.tensor([50])]]


def loaders() -> dict[str, DataLoader[Any]]:
    return {
        "indexed": DataLoader(NUMBERS, batch_size=4),
        "all at once": DataLoader(AllAtOnce(), batch_size=4),
        "bulk": DataLoader(Bulk(), batch_size=None, sampler=BatchSampler(SequentialSampler(Bulk()), 4, False)),
        "stream": DataLoader(Stream([torch.tensor(10 * i) for i in range(6)]), batch_size=4),
        "ready stream": DataLoader(Stream(READY), batch_size=None),
        "ready items": DataLoader(READY, batch_size=None),
    }


def numbers(batch: Any) -> list[int]:
    return (batch if isinstance(batch, torch.Tensor) else batch[0]).tolist()


@pytest.mark.parametrize("kind", list(loaders()))
def test_in_order_is_what_the_loader_yields(kind):
    samples = samples_of(loaders()[kind])
    expected = [number for batch in loaders()[kind] for number in numbers(batch)]
    assert numbers(samples.gather(list(samples.in_order()))) == expected


@pytest.mark.parametrize("kind", list(loaders()))
def test_shuffled_has_every_sample_once(kind):
    samples = samples_of(loaders()[kind])
    entries = list(samples.shuffled(torch.Generator().manual_seed(1)))
    assert sorted(numbers(samples.gather(entries))) == [0, 10, 20, 30, 40, 50]


@pytest.mark.parametrize("kind", list(loaders()))
def test_some_entries_make_their_samples_in_order(kind):
    samples = samples_of(loaders()[kind])
    entries = list(samples.in_order())
    assert numbers(samples.gather([entries[5], entries[0], entries[3]])) == [50, 0, 30]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("indexed", IndexedSamples),
        ("all at once", IndexedSamples),
        ("bulk", IndexedSamples),
        ("stream", StreamedSamples),
        ("ready stream", ReadyBatches),
        ("ready items", ReadyBatches),
    ],
)
def test_kind_of_samples(kind, expected):
    samples = samples_of(loaders()[kind])
    assert type(samples) is expected
    entries = list(samples.in_order())
    assert samples.ids(entries) == (tuple(range(6)) if expected is IndexedSamples else (None,) * 6)


def test_sampler_decides_the_order_and_the_end():
    assert list(samples_of(DataLoader(NUMBERS, batch_size=4, drop_last=True)).in_order()) == [0, 1, 2, 3]
    assert list(samples_of(DataLoader(NUMBERS, sampler=[5, 2])).in_order()) == [5, 2]


def test_positions_that_are_no_integers_are_no_ids():
    samples = samples_of(DataLoader({"a": 1, "b": 2}, sampler=["b", "a"], batch_size=2))
    entries = list(samples.in_order())
    assert samples.gather(entries).tolist() == [2, 1]
    assert samples.ids(entries) == (None, None)


def test_shuffling_a_stream_leaves_it_alone():
    stream = Stream([1, 2, 3])
    assert len(list(samples_of(DataLoader(stream)).shuffled(torch.Generator()))) == 3
    assert stream.read == 0


def test_items_of_a_stream_survive_a_collate_function_that_takes_them_apart():
    def collate(items: list[dict[str, int]]) -> Any:
        return torch.tensor([item.pop("x") for item in items])

    samples = samples_of(DataLoader(Stream([{"x": 1}, {"x": 2}]), collate_fn=collate))
    entries = list(samples.in_order())
    assert samples.gather(entries).tolist() == samples.gather(entries).tolist() == [1, 2]


def test_stream_that_cannot_be_copied_says_what_to_pass():
    loader = DataLoader(Stream(item for item in [1]))
    with pytest.raises(StiffnessError, match=r"copying Stream failed with TypeError.*Pass probe="):
        copied_stream(loader)


class Combined:
    """Has what Lightning's CombinedLoader has."""

    def __init__(self, iterables: Any) -> None:
        self.iterables = iterables


def test_the_one_loader_is_found():
    loader = DataLoader(NUMBERS)
    for given in (loader, [loader], {"a": loader}, {"a": [loader], "b": []}, Combined({"a": loader}), (loader, None)):
        assert only_loader(given) is loader


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (None, "found 0 in NoneType"),
        (range(3), "found 0 in range"),
        ([], "found 0 in list"),
        ({"a": DataLoader(NUMBERS), "b": DataLoader(NUMBERS)}, "found 2 in dict"),
        (Combined([DataLoader(NUMBERS)] * 3), "found 3 in Combined"),
    ],
)
def test_no_loader_or_several_say_what_to_pass(given, found):
    with pytest.raises(StiffnessError, match=f"{found}. Pass probe="):
        only_loader(given)


class Broken(Dataset[Any]):
    def __len__(self) -> int:
        raise TypeError("unknown length")

    def __getitem__(self, position: int) -> Any:
        raise OSError("disk on fire")


def test_failures_keep_their_cause():
    broken = DataLoader(Broken(), sampler=[0], batch_size=2)
    with pytest.raises(StiffnessError, match="must be readable; OSError: disk on fire") as error:
        samples_of(broken).gather([0])
    assert isinstance(error.value.__cause__, OSError)
    with pytest.raises(StiffnessError, match=r"must have a length .*unknown length"):
        dataset_length(broken)
    with pytest.raises(StiffnessError, match=r"collate_fn must make a batch .*RuntimeError"):
        samples_of(DataLoader([torch.zeros(2), torch.zeros(3)], batch_size=2)).gather([0, 1])


def test_stream_that_fails_is_explained():
    class Failing(IterableDataset[Any]):
        def __iter__(self) -> Any:
            yield 1
            raise OSError("connection lost")

    samples = samples_of(DataLoader(Failing()))
    with pytest.raises(StiffnessError, match="must yield samples; OSError: connection lost"):
        list(samples.in_order())


def test_own_errors_are_not_wrapped():
    def collate(items: list[Any]) -> Any:
        raise StiffnessError("as it is")

    with pytest.raises(StiffnessError, match=r"^as it is$"):
        samples_of(DataLoader(NUMBERS, collate_fn=collate)).gather([0])


TEN = TensorDataset(torch.arange(10))


class OfTheUser(RandomSampler):
    """May draw anything."""


@pytest.mark.parametrize(
    ("sampler", "expected"),
    [
        (SubsetRandomSampler([7, 1, 1, 4]), [1, 4, 7]),
        (SubsetRandomSampler(torch.tensor([3, 2])), [2, 3]),
        (RandomSampler(range(6)), [0, 1, 2, 3, 4, 5]),
        (SequentialSampler(range(2)), [0, 1]),
        (WeightedRandomSampler([0.0, 1.0, 0.0, 2.0, *[0.0] * 6], 5), [1, 3]),
        (WeightedRandomSampler([1.0] * 10, 5), None),
        (RandomSampler(TEN), None),
        (RandomSampler(TEN, num_samples=3), None),  # others in the next epoch
        (OfTheUser(range(6)), None),
        ([1, 2], [1, 2]),
    ],
)
def test_positions_that_a_sampler_draws(sampler, expected):
    found = drawn_positions(DataLoader(TEN, batch_size=2, sampler=sampler))
    assert (None if found is None else list(found)) == expected


def test_the_first_batches_of_a_loader_that_does_not_shuffle():
    assert list(drawn_positions(DataLoader(TEN, batch_size=3), 2)) == [0, 1, 2, 3, 4, 5]
    assert drawn_positions(DataLoader(TEN, batch_size=3), 4) is None
    assert drawn_positions(DataLoader(TEN, batch_size=3, shuffle=True), 2) is None


def test_batches_of_ones_own_are_not_understood():
    batches = [[0, 1], [2, 3]]
    assert drawn_positions(DataLoader(TEN, batch_sampler=batches), 1) is None
    assert (
        drawn_positions(
            DataLoader(Bulk(), sampler=BatchSampler(SequentialSampler(range(6)), 2, False), batch_size=None)
        )
        is None
    )


def test_entries_are_of_what_is_drawn():
    samples = samples_of(DataLoader(TEN, sampler=SubsetRandomSampler([7, 1, 4])))
    assert sorted(samples.shuffled(torch.Generator())) == [1, 4, 7]
