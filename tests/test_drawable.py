import pytest
import torch
from lightning.fabric.utilities.distributed import DistributedSamplerWrapper
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from lightning_stiffness.drawable import drawable_positions, draws_evenly, innermost_sampler

DATA = TensorDataset(torch.arange(6))
ALL = [0, 1, 2, 3, 4, 5]


class Own(Sampler):
    def __iter__(self):
        yield 2

    def __len__(self):
        return 1


class Telling(Own):
    drawable_positions = (4, 2)


class Endless(Dataset):
    """Of no length."""

    def __getitem__(self, index):
        return index


def of(sampler):
    return DataLoader(DATA, sampler=sampler)


PART = SubsetRandomSampler([4, 1, 4])


@pytest.mark.parametrize(
    ("loader", "expected"),
    [
        (DataLoader(DATA), ALL),
        (DataLoader(DATA, shuffle=True), ALL),
        (of(PART), [1, 4]),
        (of(SubsetRandomSampler(torch.tensor([3]))), [3]),
        (of(RandomSampler(DATA, num_samples=2)), ALL),
        (of(RandomSampler(range(4))), [0, 1, 2, 3]),
        (of(SequentialSampler(range(2))), [0, 1]),
        (of(WeightedRandomSampler([0.0, 1.0, 0.0, 2.0, 0.0, 0.0], 9)), [1, 3]),
        (of(DistributedSampler(DATA, num_replicas=2, rank=1)), ALL),
        (of(DistributedSamplerWrapper(PART, num_replicas=2, rank=1)), [1, 4]),
        (of([5, 0, 5]), [0, 5]),
        (of(range(1, 3)), [1, 2]),
        (of(Telling()), [2, 4]),
        (of(Own()), None),
        (of(RandomSampler(range(7))), None),
        (of([-1]), None),
        (of(["a"]), None),
        (of([[0, 1], [2, 3]]), None),
        (of([]), None),
        (of(torch.tensor([], dtype=torch.long)), []),
        (DataLoader(Endless(), sampler=[1, 2]), None),
        (DataLoader(DATA, batch_sampler=BatchSampler(PART, 2, False)), [1, 4]),
        (DataLoader(DATA, batch_sampler=[[0, 1], [2]]), None),
        (DataLoader(DATA, batch_size=None, sampler=BatchSampler(PART, 2, False)), [1, 4]),
        (DataLoader(DATA, batch_size=None, sampler=PART), [1, 4]),
    ],
)
def test_which_samples_a_loader_can_draw(loader, expected):
    found = drawable_positions(loader)
    assert found is None if expected is None else found.tolist() == expected


def test_the_sampler_inside():
    assert innermost_sampler(DataLoader(DATA, batch_sampler=BatchSampler(PART, 2, False))) is PART
    assert innermost_sampler(of(DistributedSamplerWrapper(PART, num_replicas=2, rank=1))) is PART
    assert innermost_sampler(DataLoader(DATA, batch_sampler=[[0]])) is None


def test_which_samplers_draw_evenly():
    assert draws_evenly(RandomSampler(DATA, num_samples=2))
    assert draws_evenly(SubsetRandomSampler([1, 4]))
    assert draws_evenly(DistributedSampler(DATA, num_replicas=2, rank=1))
    assert not draws_evenly(PART)
    assert not draws_evenly(WeightedRandomSampler([1.0] * 6, 6))
    assert not draws_evenly(Own())
    assert not draws_evenly(None)
