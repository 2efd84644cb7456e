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
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from lightning_stiffness.balanced_loader import make_balanced_loader
from lightning_stiffness.callbacks.balancing_loader import (
    LoaderExchange,
    is_natural,
    known_counts,
    known_frequencies,
    known_number,
    why_left_alone,
)
from lightning_stiffness.errors import StiffnessError
from lightning_stiffness.functional.class_rates import square_root_rates
from tests.test_balanced_loader import Own, Stream, imbalanced

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
        (DataLoader(DATA, sampler=RandomSampler(DATA)), None),
        (DataLoader(DATA, sampler=RandomSampler(DATA, replacement=True)), "its own sampler"),
        (DataLoader(DATA, sampler=RandomSampler(DATA, num_samples=30)), "its own sampler"),
        (DataLoader(DATA, sampler=RandomSampler(range(40))), "its own sampler"),
        (DataLoader(DATA, sampler=DistributedSampler(range(40), num_replicas=2, rank=0)), "its own sampler"),
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


def trainer_of(loader):
    strategy = SimpleNamespace(process_dataloader=lambda given: [given])
    trainer = SimpleNamespace(train_dataloader=loader, strategy=strategy, seen=[])
    trainer.fit_loop = SimpleNamespace(setup_data=lambda: trainer.seen.append(strategy.process_dataloader(loader)))
    return trainer


def test_the_strategy_has_the_last_word_and_gets_its_own_back():
    trainer = trainer_of(DataLoader(DATA, shuffle=True))
    own = trainer.strategy.process_dataloader, trainer.fit_loop.setup_data
    exchange = LoaderExchange(trainer, square_root_rates, seed=3)
    trainer.fit_loop.setup_data()
    ((made,),) = trainer.seen
    assert made.sampler.seed == 3
    assert trainer.strategy.process_dataloader(trainer.train_dataloader) == [trainer.train_dataloader]
    exchange.remove()
    assert (trainer.strategy.process_dataloader, trainer.fit_loop.setup_data) == own


def test_methods_of_the_class_are_found_again():
    class Loop:
        def setup_data(self):
            raise RuntimeError("no data")

    trainer = trainer_of(None)
    trainer.fit_loop, own = Loop(), trainer.strategy.process_dataloader
    exchange = LoaderExchange(trainer, square_root_rates)
    with pytest.raises(RuntimeError, match="no data"):
        trainer.fit_loop.setup_data()
    assert trainer.strategy.process_dataloader is own
    exchange.remove()
    assert vars(trainer.fit_loop) == {}


def test_why_is_said_once(caplog):
    trainer = trainer_of(DataLoader(DATA))
    LoaderExchange(trainer, square_root_rates)
    for _ in range(2):
        trainer.fit_loop.setup_data()
    assert trainer.seen == [[trainer.train_dataloader]] * 2
    assert caplog.text.count("its own sampler is respected") == 1


def test_labels_that_could_be_either_column_are_refused():
    x, y = DATA.tensors
    data = TensorDataset(x, y % 2, y)
    with pytest.raises(StiffnessError, match=r"tensors 1, 2. Pass targets=, such as lambda batch: batch\[2\]"):
        why_left_alone(DataLoader(data, shuffle=True))
    assert "its own sampler" in why_left_alone(DataLoader(data))
    assert known_counts(trainer_of(DataLoader(data)), None) is None


def test_frequencies_are_those_of_the_sampler():
    counts = torch.tensor([30, 15, 5])
    plain = trainer_of(DataLoader(DATA, shuffle=True))
    assert known_counts(plain, None).tolist() == counts.tolist()
    assert known_counts(plain, 4).tolist() == [30, 15, 5, 0]
    assert known_frequencies(plain, counts, 3).tolist() == pytest.approx([0.6, 0.3, 0.1])
    assert known_frequencies(plain, None, 3) is None
    balanced = trainer_of(make_balanced_loader(DataLoader(DATA)))
    assert known_frequencies(balanced, counts, 3).tolist() == pytest.approx([1 / 3] * 3)
    weighted = trainer_of(DataLoader(DATA, sampler=WeightedRandomSampler([1.0] * 50, 50)))
    assert known_frequencies(weighted, counts, 3) is None
    for unknown in (trainer_of(DataLoader(Stream())), trainer_of([DataLoader(DATA), DataLoader(DATA)])):
        assert known_counts(unknown, None) is None
        assert known_frequencies(unknown, counts, 3) is None
        assert is_natural(unknown)


TRAINED = [*range(20), *range(32, 42), 46, 47, 48]


def test_only_what_is_drawn_is_counted():
    part = SubsetRandomSampler(TRAINED)
    for loader in (
        DataLoader(DATA, sampler=part),
        DataLoader(DATA, batch_sampler=BatchSampler(part, 4, False)),
        DataLoader(DATA, sampler=WeightedRandomSampler([float(k in TRAINED) for k in range(50)], 50)),
    ):
        assert known_counts(trainer_of(loader), None).tolist() == [20, 10, 3]
    counts = torch.tensor([20, 10, 3])
    frequencies = known_frequencies(trainer_of(DataLoader(DATA, sampler=part)), counts, 3)
    assert frequencies.tolist() == pytest.approx([20 / 33, 10 / 33, 3 / 33])
    few = trainer_of(DataLoader(DATA, sampler=SubsetRandomSampler(range(40))))
    assert known_counts(few, None).tolist() == [30, 10, 0]  # the third class is known of
    own = trainer_of(DataLoader(DATA, sampler=Own(TRAINED)))
    assert known_counts(own, None) is None
    assert known_number(own) == 3


def test_whether_classes_are_drawn_as_they_occur():
    weighted = WeightedRandomSampler([1.0] * 50, 50)
    for sampler, expected in ((SubsetRandomSampler(TRAINED), True), (weighted, False), (Own(TRAINED), False)):
        assert is_natural(trainer_of(DataLoader(DATA, sampler=sampler))) is expected
    assert (
        known_frequencies(trainer_of(DataLoader(DATA, batch_sampler=BatchSampler(weighted, 5, False))), None, 3) is None
    )


def test_each_of_several_loaders_draws_classes_as_they_occur():
    plain, weighted = DataLoader(DATA), DataLoader(DATA, sampler=WeightedRandomSampler([1.0] * 50, 50))
    assert is_natural(trainer_of({"labelled": plain, "more": [plain, DataLoader(Stream())]}))
    assert not is_natural(trainer_of({"labelled": plain, "more": [weighted]}))
    assert is_natural(trainer_of("no loader at all"))


def test_a_class_that_is_never_drawn_counts_as_one_sample():
    loader = make_balanced_loader(DataLoader(DATA), torch.tensor([1.0, 1, 0]))
    rates = torch.tensor([0.5, 0.5, 0.02, 0.02]) / 1.04  # a class that the sampler does not know of, too
    assert known_frequencies(trainer_of(loader), None, 4).tolist() == pytest.approx(rates.tolist())


def test_counts_of_labels_that_were_given():
    data = TensorDataset(torch.zeros(4))
    loader = make_balanced_loader(DataLoader(data), labels=[0, 1, 1, 1])
    assert known_counts(trainer_of(loader), None, is_stored=False).tolist() == [1, 3]
    assert known_counts(trainer_of(DataLoader(DATA)), None, is_stored=False) is None
