import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from lightning_stiffness.errors import StiffnessError
from lightning_stiffness.sequential_data import SequentialData, loader_of, number_of_classes, transfer_to
from lightning_stiffness.targets import targets_of


def tensors(size=10):
    return TensorDataset(torch.arange(size), torch.arange(size) % 3)


class Stream(IterableDataset):
    def __init__(self):
        self.read = 0

    def __iter__(self):
        for k in range(5):
            self.read += 1
            yield torch.tensor(k), torch.tensor(k % 2)


class ReadyBatches(Dataset):
    def __len__(self):
        return 3

    def __getitem__(self, index):
        return torch.arange(4) + 4 * index, torch.arange(4) % 2


class Noisy(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return torch.randn(2), index % 2


def first_parts(data):
    return torch.cat([batch[0].flatten() for batch in data]).tolist()


def test_all_samples_come_in_the_order_of_the_data_set_whatever_the_loader_does():
    loader = DataLoader(tensors(), batch_size=4, shuffle=True, drop_last=True, num_workers=1)
    data = SequentialData(loader, size=3)
    assert first_parts(data) == list(range(10)) == first_parts(data)
    assert len(data) == 10


def test_a_stream_is_read_from_a_copy():
    stream = Stream()
    data = SequentialData(DataLoader(stream, batch_size=2), size=3)
    assert first_parts(data) == [0, 1, 2, 3, 4] == first_parts(data)
    assert stream.read == 0
    assert len(data) == 0


def test_ready_batches_stay_as_they_are():
    data = SequentialData(DataLoader(ReadyBatches(), batch_size=None, shuffle=True))
    assert [len(batch[0]) for batch in data] == [4, 4, 4]
    assert first_parts(data) == list(range(12))
    assert len(data) == 0


def test_random_transforms_draw_the_same_numbers_and_the_random_state_is_put_back():
    before = torch.get_rng_state()
    data = SequentialData(DataLoader(Noisy()))
    assert first_parts(data) == first_parts(data)
    assert torch.equal(before, torch.get_rng_state())


def test_a_sample_that_cannot_be_read_is_explained():
    with pytest.raises(StiffnessError, match="must be readable, in batches of another size too; IndexError"):
        list(SequentialData(DataLoader(Subset(tensors(), [3, 99]))))


def test_what_can_be_read():
    class Digits(L.LightningDataModule):
        def train_dataloader(self):
            return {"labelled": DataLoader(tensors(), batch_size=4)}

    assert len(loader_of(Digits()).dataset) == 10
    assert len(loader_of(tensors()).dataset) == 10
    loader = DataLoader(tensors())
    assert loader_of([loader][0]) is loader


def test_what_cannot_is_told():
    class Broken(L.LightningDataModule):
        def train_dataloader(self):
            return self.missing

    with pytest.raises(StiffnessError, match="Broken must load without a Trainer; AttributeError"):
        loader_of(Broken())
    with pytest.raises(StiffnessError, match="found tuple"):
        loader_of((torch.zeros(3), torch.zeros(3)))


def test_batches_go_where_the_module_is_through_its_hooks():
    class Doubling(L.LightningModule):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            return [2 * part for part in batch]

    assert transfer_to(Doubling())([torch.ones(2)])[0].tolist() == [2, 2]
    plain = torch.nn.Linear(1, 1)
    assert transfer_to(plain)({"x": torch.ones(2), "name": "a"}) == {"x": pytest.approx(torch.ones(2)), "name": "a"}


def test_the_number_of_classes():
    data = SequentialData(DataLoader(tensors()))
    assert number_of_classes(data, targets_of) == 3
    assert number_of_classes(SequentialData(DataLoader(Stream())), targets_of) == 2
    with pytest.raises(StiffnessError, match="found none"):
        number_of_classes(SequentialData(DataLoader(tensors(0))), targets_of)
    unlabelled = TensorDataset(torch.zeros(2), torch.tensor([0, -1]))
    with pytest.raises(StiffnessError, match="must be 0 or more; found -1"):
        number_of_classes(SequentialData(DataLoader(unlabelled)), targets_of)
