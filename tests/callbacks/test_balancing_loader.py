"""Which loaders are exchanged; that the exchange works in a fit is tested with the callback."""

from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from lightning_stiffness.balanced_loader import make_balanced_loader
from lightning_stiffness.callbacks.balancing_loader import (
    LoaderExchange,
    known_counts,
    known_frequencies,
    why_left_alone,
)
from lightning_stiffness.functional.class_rates import square_root_rates
from tests.test_balanced_loader import Stream, imbalanced

DATA = imbalanced()


def distributed(**options):
    return DataLoader(DATA, sampler=DistributedSampler(DATA, num_replicas=2, rank=0, **options))


@pytest.mark.parametrize(
    ("loader", "reason"),
    [
        (DataLoader(DATA, shuffle=True), None),
        (distributed(), None),
        (distributed(shuffle=False), "its own sampler"),
        (DataLoader(DATA), "its own sampler"),
        (DataLoader(DATA, sampler=RandomSampler(DATA, replacement=True)), "its own sampler"),
        (DataLoader(DATA, sampler=WeightedRandomSampler([1.0] * 50, 50)), "its own sampler"),
        (DataLoader(DATA, batch_sampler=BatchSampler(SequentialSampler(DATA), 5, False)), "its own sampler"),
        (make_balanced_loader(DataLoader(DATA)), ""),
        (DataLoader(Stream()), "a stream"),
        ([1, 2], "no torch DataLoader"),
        (DataLoader(TensorDataset(torch.zeros(3)), shuffle=True), "no labels that can be read"),
    ],
)
def test_which_loaders_are_left_alone(loader, reason):
    found = why_left_alone(loader)
    assert found == reason or (reason and reason in found)


def trainer_of(loader, training=True):
    return SimpleNamespace(
        train_dataloader=loader, training=training, strategy=SimpleNamespace(process_dataloader=lambda given: [given])
    )


def test_the_strategy_has_the_last_word_and_gets_its_own_back():
    trainer = trainer_of(DataLoader(DATA, shuffle=True))
    own = trainer.strategy.process_dataloader
    exchange = LoaderExchange(trainer, square_root_rates, seed=3)
    ((made,),) = [trainer.strategy.process_dataloader(trainer.train_dataloader)]
    assert made.sampler.seed == 3
    trainer.training = False
    assert trainer.strategy.process_dataloader(trainer.train_dataloader) == [trainer.train_dataloader]
    exchange.remove()
    assert trainer.strategy.process_dataloader is own


def test_frequencies_are_those_of_the_sampler():
    counts = torch.tensor([30, 15, 5])
    plain = trainer_of(DataLoader(DATA, shuffle=True))
    assert known_counts(plain, None).tolist() == counts.tolist()
    assert known_frequencies(plain, counts).tolist() == pytest.approx([0.6, 0.3, 0.1])
    assert known_frequencies(plain, None) is None
    balanced = trainer_of(make_balanced_loader(DataLoader(DATA)))
    assert known_frequencies(balanced, counts).tolist() == pytest.approx([1 / 3] * 3)
    weighted = trainer_of(DataLoader(DATA, sampler=WeightedRandomSampler([1.0] * 50, 50)))
    assert known_frequencies(weighted, counts) is None
    for unknown in (trainer_of(DataLoader(Stream())), trainer_of([DataLoader(DATA), DataLoader(DATA)])):
        assert known_counts(unknown, None) is None
        assert known_frequencies(unknown, counts) is None


def test_counts_of_labels_that_were_given():
    data = TensorDataset(torch.zeros(4))
    loader = make_balanced_loader(DataLoader(data), labels=[0, 1, 1, 1])
    assert known_counts(trainer_of(loader), None).tolist() == [1, 3]
