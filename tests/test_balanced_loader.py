"""The loader is the given one but for the order; its state lets Lightning resume in the middle of an epoch."""

import itertools

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from lightning_stiffness.balanced_loader import ClassRateLoader, make_balanced_loader
from lightning_stiffness.errors import StiffnessError
from lightning_stiffness.functional.class_rates import square_root_rates
from tests.callbacks.modules import QUIET, Classifier, blobs, trainer

pytestmark = QUIET


def imbalanced():
    x, y = blobs(90)
    keep = torch.cat([(y == label).nonzero().flatten()[:n] for label, n in enumerate((30, 15, 5))])
    return TensorDataset(x[keep], y[keep])


def with_names(items):
    return {"x": torch.stack([x for x, _ in items]), "labels": torch.stack([y for _, y in items])}


def test_the_settings_are_those_of_the_given_loader():
    given = DataLoader(imbalanced(), batch_size=7, shuffle=True, drop_last=True, collate_fn=with_names, timeout=0)
    made = make_balanced_loader(given, square_root_rates, seed=5)
    assert made.dataset is given.dataset
    assert (made.batch_size, made.drop_last, made.collate_fn, len(made)) == (7, True, with_names, len(given))
    assert made.sampler.seed == 5
    assert next(iter(made)).keys() == {"x", "labels"}


def test_the_classes_are_balanced():
    made = make_balanced_loader(DataLoader(imbalanced(), batch_size=8), num_samples=60)
    assert torch.bincount(torch.cat([y for _, y in made])).tolist() == [20, 20, 20]


def test_labels_can_be_given():
    data = TensorDataset(torch.zeros(4))
    made = make_balanced_loader(DataLoader(data), labels=[0, 0, 0, 1])
    assert made.sampler.counts.tolist() == [3, 1]
    with pytest.raises(StiffnessError, match="one for each of 4 samples, found 3"):
        make_balanced_loader(DataLoader(data), labels=[0, 0, 1])


TRAINED = [*range(20), *range(32, 42), 46, 47, 48]


class Own(Sampler):
    """A sampler that does not tell what it draws."""

    def __init__(self, positions):
        self.positions = positions

    def __iter__(self):
        return iter(self.positions)

    def __len__(self):
        return len(self.positions)


@pytest.mark.parametrize(
    "sampler",
    [
        SubsetRandomSampler(TRAINED),
        WeightedRandomSampler([float(position in TRAINED) for position in range(50)], 90),
        TRAINED,
        BatchSampler(SubsetRandomSampler(TRAINED), 5, False),
    ],
)
def test_held_out_samples_are_never_drawn(sampler):
    data = TensorDataset(torch.arange(50), imbalanced().tensors[1])
    where = "batch_sampler" if isinstance(sampler, BatchSampler) else "sampler"
    made = make_balanced_loader(DataLoader(data, **{where: sampler}), batch_size=8)
    assert made.sampler.counts.tolist() == [20, 10, 3]
    seen = torch.cat([positions for _ in range(5) for positions, _ in made])
    assert len(seen) == 5 * 33
    assert set(seen.tolist()) <= set(TRAINED)


def test_the_first_part_of_the_data_stays_the_first_part():
    made = make_balanced_loader(DataLoader(imbalanced(), sampler=RandomSampler(range(46))))
    assert made.sampler.counts.tolist() == [30, 15, 1]


def test_a_sampler_that_does_not_tell_is_refused():
    loader = DataLoader(imbalanced(), batch_size=8, sampler=Own(TRAINED))
    with pytest.raises(StiffnessError, match=r"Own does not tell\. Make the loader of torch\.utils\.data\.Subset"):
        make_balanced_loader(loader)
    assert make_balanced_loader(loader, positions=TRAINED).sampler.counts.tolist() == [20, 10, 3]
    batches = DataLoader(imbalanced(), batch_sampler=[[0, 1], [2, 40]])
    with pytest.raises(StiffnessError, match="list does not tell"):
        make_balanced_loader(batches, batch_size=2)


def test_two_columns_of_integers_are_ambiguous():
    x, y = imbalanced().tensors
    with pytest.raises(StiffnessError, match="found 2 candidates, tensors 1, 2"):
        make_balanced_loader(DataLoader(TensorDataset(x, y % 2, y)))
    assert make_balanced_loader(DataLoader(TensorDataset(x, y % 2, y)), labels=y).sampler.counts.tolist() == [30, 15, 5]


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("workers", [0, 1])
def test_a_pass_that_was_left_is_followed_by_the_next(workers):
    options = {"batch_size": 8, "num_workers": workers, "multiprocessing_context": "fork" if workers else None}
    whole, left = (make_balanced_loader(DataLoader(imbalanced(), **options)) for _ in range(2))
    for epoch in range(3):
        expected = [x for x, _ in whole]
        assert left.sampler.epoch == max(0, epoch - 1)
        assert all(map(torch.equal, [x for x, _ in itertools.islice(left, 2)], expected))
        assert left.state_dict() == {"epoch": epoch, "batches": 2}
    left.load_state_dict(left.state_dict())
    assert all(map(torch.equal, [x for x, _ in left], expected[2:]))


class Stream(IterableDataset):
    def __iter__(self):
        yield from range(3)


def test_streams_and_unknown_batch_sizes_are_refused():
    with pytest.raises(StiffnessError, match="map-style dataset, which has positions; found Stream"):
        make_balanced_loader(DataLoader(Stream()))
    with pytest.raises(StiffnessError, match="found list"):
        make_balanced_loader([1, 2])
    data = imbalanced()
    batches = DataLoader(data, batch_sampler=BatchSampler(SequentialSampler(data), 5, False))
    with pytest.raises(StiffnessError, match="Pass batch_size="):
        make_balanced_loader(batches)
    assert make_balanced_loader(batches, batch_size=5).batch_size == 5


@pytest.mark.parametrize("seen", [0, 1, 3, 7])
def test_a_plain_loop_resumes(seen):
    whole, interrupted, resumed = (make_balanced_loader(DataLoader(imbalanced(), batch_size=8)) for _ in range(3))
    expected = [x for _ in range(2) for x, _ in whole]
    assert len(expected) == 14
    iterator = iter(interrupted)
    beginning = [next(iterator)[0] for _ in range(seen)]
    resumed.load_state_dict(interrupted.state_dict())
    rest = [x for _ in range(1 if seen == 7 else 2) for x, _ in resumed]
    assert all(map(torch.equal, beginning + rest, expected))
    assert len(beginning + rest) == 14


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_workers_that_read_ahead_are_not_counted():
    options = {"batch_size": 8, "num_workers": 1, "multiprocessing_context": "fork"}
    whole, interrupted = (make_balanced_loader(DataLoader(imbalanced(), **options)) for _ in range(2))
    expected = [x for x, _ in whole]
    iterator = iter(interrupted)
    next(iterator)
    state = interrupted.state_dict()
    assert state == {"epoch": 0, "batches": 1}
    assert sum(1 for _ in iterator) == 6
    interrupted.load_state_dict(state)
    assert all(map(torch.equal, [x for x, _ in interrupted], expected[1:]))


class Seen(Callback):
    """The batches of a run."""

    def __init__(self):
        self.batches = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batches.append(batch[0])


def fit(folder, resume=None):
    seen, module = Seen(), Classifier()
    checkpoints = ModelCheckpoint(folder, "{step}", save_top_k=-1, every_n_train_steps=1)
    run = trainer([seen, checkpoints], enable_checkpointing=True, max_epochs=3)
    run.fit(module, make_balanced_loader(DataLoader(imbalanced(), batch_size=8)), ckpt_path=resume)
    return seen.batches, [value.clone() for value in module.state_dict().values()]


@pytest.mark.parametrize("step", [3, 7, 10])
def test_lightning_resumes_as_if_there_had_been_no_interruption(step, tmp_path):
    batches, weights = fit(tmp_path)
    assert len(batches) == 21
    after, resumed = fit(tmp_path, tmp_path / f"step={step}.ckpt")
    assert len(after) == 21 - step
    assert all(map(torch.equal, after, batches[step:]))
    assert all(map(torch.equal, resumed, weights))


def test_it_is_a_loader_as_any_other():
    made = make_balanced_loader(DataLoader(imbalanced(), batch_size=8))
    assert isinstance(made, ClassRateLoader)
    assert isinstance(made, DataLoader)
