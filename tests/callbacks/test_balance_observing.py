"""A fit whose balancer takes readings: when, of what, and that training does not notice."""

import itertools
import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, Subset, TensorDataset

from lightning_stiffness import StiffnessError
from lightning_stiffness.callbacks import balance_schedule
from lightning_stiffness.callbacks.balancer import ClassGroupingBalancer
from tests.callbacks.modules import QUIET, Classifier, Validated, trainer
from tests.callbacks.test_balancer import Checkpointed, Functional, Manual, Mixed, Smooth, Stream, Two, data
from tests.callbacks.test_monitor_neutrality import assert_identical, fitted, without_empty_logs
from tests.test_balanced_loader import imbalanced
from tests.unchecked import unchecked_types

pytestmark = [*QUIET, pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before")]


FEWER_PARTS = ({"sampling": False}, {"logits": False, "shift": False})


@pytest.fixture(autouse=True)
def _affordable(monkeypatch):
    """Readings are as cheap as can be, whatever else this machine has to do."""
    monkeypatch.setattr(balance_schedule, "ALLOWED_SECONDS", math.inf)


def validation():
    return DataLoader(imbalanced(), batch_size=20)


def fit(module=None, train=None, val=None, epochs=3, trainer_options=None, **options):
    balancer = ClassGroupingBalancer(**{"max_readings": 3, **options})
    run = trainer([balancer], max_epochs=epochs, **(trainer_options or {}))
    run.fit(Classifier() if module is None else module, data() if train is None else train, val)
    return balancer, run


def test_it_reads_evenly_and_at_the_end():
    balancer, run = fit(Validated(), val=validation(), epochs=4)
    assert [reading.epoch for reading in balancer.readings] == [2.0, 3.0, 4.0]
    assert balancer.readings[-1].step == run.global_step == 20
    within, _ = fit(epochs=1)
    assert [reading.step for reading in within.readings] == [2, 4, 5]


@pytest.mark.slow
def test_without_a_shift_absorption_is_that_of_the_last_reading():
    balancer, _ = fit()
    assert torch.equal(balancer.absorption, balancer.readings[-1].absorption)
    assert not torch.equal(fit(shift=True)[0].absorption, balancer.absorption)
    assert ClassGroupingBalancer().absorption is None


def test_a_run_that_is_stopped_is_read_at_its_end():
    class Stops(Classifier):
        def on_train_batch_start(self, batch, batch_idx):
            return -1 if self.global_step == 7 else None

    balancer, run = fit(Stops(), epochs=30)
    assert [reading.step for reading in balancer.readings] == [run.global_step]


def test_dear_readings_are_left_out_but_for_the_last(monkeypatch):
    monkeypatch.setattr(balance_schedule, "ALLOWED_SECONDS", -1e9)
    balancer, _ = fit(epochs=4)
    assert [reading.epoch for reading in balancer.readings] == [4.0]


def test_what_a_reading_says():
    balancer, _ = fit(Validated(), val=validation())
    for before, reading in itertools.pairwise(balancer.readings):
        assert reading.counts.tolist() == [30, 15, 5]
        assert reading.measured.tolist() == [30, 15, 5]
        assert reading.classifier.shape == reading.features.shape == reading.absorption.shape == (3, 3)
        assert sorted(reading.order) == [0, 1, 2]
        assert reading.reason
        assert -0.5 <= reading.agreement <= 1
        assert reading.progress.isfinite().all()
        assert reading.elapsed > before.elapsed
        assert reading.seconds > 0
    assert math.isnan(balancer.readings[0].agreement)


def test_recalls_are_those_of_validation():
    module = Validated()
    balancer, _ = fit(module, val=validation())
    x, y = imbalanced().tensors
    module.eval()
    logits = module(x).detach()
    last = balancer.readings[-1]
    for label in range(3):
        assert last.recall[label] == pytest.approx(float((logits[y == label].argmax(1) == label).float().mean()))
        natural = balancer.natural_probabilities(logits[y == label]).argmax(1)
        assert last.natural_recall[label] == pytest.approx(float((natural == label).float().mean()))
        assert last.lost[label] == pytest.approx(float(1 - logits[y == label].softmax(1)[:, label].mean()), abs=1e-6)


def test_without_validation_there_are_no_recalls():
    balancer, _ = fit()
    assert all(reading.recall is None for reading in balancer.readings)
    assert all(reading.lost.isfinite().all() for reading in balancer.readings)


def test_the_sanity_check_is_no_validation():
    balancer, _ = fit(Validated(), val=validation(), trainer_options={"check_val_every_n_epoch": 3})
    assert [reading.recall is None for reading in balancer.readings] == [True, True, False]


@pytest.mark.slow
def test_a_reading_within_an_epoch_has_no_old_recalls():
    balancer, _ = fit(Validated(), val=validation(), epochs=1, max_readings=5)
    assert [reading.recall is None for reading in balancer.readings] == [True] * 4 + [False]


class Named(TensorDataset):
    classes = ("cat", "dog", "cow")


@pytest.mark.slow
def test_classes_have_the_names_of_the_dataset_or_the_user():
    named = DataLoader(Subset(Named(*imbalanced().tensors), range(50)), 10, shuffle=True)
    assert fit(train=named, epochs=1)[0].readings[0].class_names == ("cat", "dog", "cow")
    given, _ = fit(train=named, epochs=1, class_names=["a", "b", "c"])
    assert given.readings[0].class_names == ("a", "b", "c")
    assert fit(epochs=1)[0].readings[0].class_names is None


@unchecked_types()  # the checker draws random numbers of Python's to look into dicts
@pytest.mark.parametrize("parts", [{}, *(pytest.param(parts, marks=pytest.mark.slow) for parts in FEWER_PARTS)])
def test_training_is_the_same_bit_by_bit(parts, tmp_path):
    balancer = ClassGroupingBalancer(**parts, save_dir=str(tmp_path))
    with_readings = fitted([balancer], tmp_path)
    without = fitted([ClassGroupingBalancer(**parts, max_readings=0)], tmp_path)
    with_readings["logged"] = without_empty_logs(with_readings["logged"])
    assert_identical(without, with_readings)
    assert len(balancer.readings) > 3


@pytest.mark.slow
@unchecked_types()
def test_training_is_the_same_where_measuring_fails(tmp_path):
    def targets(batch):
        if len(batch[1]) > 10:  # the probe, not a batch
            torch.rand(3)
            raise RuntimeError("no")
        return batch[1]

    parts = {"sampling": False, "targets": targets, "num_classes": 3, "shift": False}
    with pytest.warns(UserWarning, match="could not be measured at step"):
        failing = fitted([ClassGroupingBalancer(**parts)], tmp_path)
    failing["logged"] = without_empty_logs(failing["logged"])
    assert_identical(fitted([ClassGroupingBalancer(**parts, max_readings=0)], tmp_path), failing)


@pytest.mark.parametrize(
    ("module", "options", "parts"),
    [
        pytest.param(Smooth, {}, {}, marks=pytest.mark.slow),
        pytest.param(Checkpointed, {}, {}, marks=pytest.mark.slow),
        pytest.param(Classifier, {"accumulate_grad_batches": 2}, {}, marks=pytest.mark.slow),
        (Classifier, {"precision": "bf16-mixed"}, {}),
        pytest.param(Classifier, {"precision": "bf16-true"}, {}, marks=pytest.mark.slow),
        pytest.param(Classifier, {"precision": 64}, {}, marks=pytest.mark.slow),
        (Classifier, {"max_steps": 7, "max_epochs": -1}, {}),
        (Classifier, {"fast_dev_run": True}, {}),
        (Classifier, {}, {"logits": False, "shift": False}),
        (Classifier, {}, {"sampling": False, "logits": False}),
    ],
)
def test_ways_of_training(module, options, parts):
    balancer = ClassGroupingBalancer(**parts, max_readings=3)
    run = trainer([balancer], **{"max_epochs": 2, **options})
    run.fit(module(), data())
    assert balancer.readings[-1].step == run.global_step
    assert balancer.readings[-1].features.isfinite().all()


class Compiled(Validated):
    def __init__(self):
        super().__init__()
        self.net.compile(backend="eager")


@pytest.mark.slow
@pytest.mark.parametrize("checks", [0, 2])
def test_compiled_modules(checks):
    options = {"num_sanity_val_steps": checks}
    readings = [
        fit(module(), val=validation(), epochs=1, trainer_options=options)[0].readings[-1]
        for module in (Validated, Compiled)
    ]
    for name in ("classifier", "features", "recall", "progress"):
        assert torch.allclose(getattr(readings[0], name), getattr(readings[1], name), atol=1e-4), name


def test_a_stream_is_read_at_its_end():
    balancer, _ = fit(train=DataLoader(Stream(), 10), epochs=2, num_classes=3)
    assert [reading.epoch for reading in balancer.readings] == [2.0]
    assert balancer.readings[0].counts.tolist() == [60, 30, 10]  # what was drawn


class Unlabelled(Validated):
    def validation_step(self, batch, batch_idx):
        self(batch)


def test_validation_without_labels_is_passed_over():
    images = DataLoader(imbalanced().tensors[0], 10)
    with pytest.warns(UserWarning, match="could not be measured at step"):
        balancer, _ = fit(Unlabelled(), val=images)
    assert [reading.recall for reading in balancer.readings] == [None] * 3


SAMPLING = {"logits": False, "shift": False, "smoothing": 0.0}


class Unusual(Classifier):
    """Its classifier is called for each half of a batch."""

    def forward(self, x):
        return torch.cat([self.net(part) for part in x.chunk(2)])


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        (Manual, {}, "updates the weights itself"),
        (Unusual, {"shift": False, "smoothing": 0.0}, "must be called once in a training step.* found 2 calls"),
        (Mixed, {"shift": False, "smoothing": 0.0}, "must not depend on|MixedSamplesError"),
        (Two, SAMPLING, "cannot be measured: .*only Linear layer with 3 outputs; found 2"),
        (Functional, SAMPLING, "must be called once .* found 0 calls"),
    ],
)
def test_what_cannot_be_measured_is_said_once_and_trained(module, options, message):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        balancer, run = fit(module(), **options)
    found = [str(one.message) for one in said if "How the network treats its classes" in str(one.message)]
    assert len(found) == 1
    assert pytest.importorskip("re").search(message, found[0])
    assert "max_readings=0" in found[0]
    assert balancer.readings == []
    assert run.global_step == 15


def test_labels_that_cannot_be_read_are_said_once():
    class Soft(Classifier):
        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self(batch[0]), batch[1])

    x, y = imbalanced().tensors
    soft = DataLoader(TensorDataset(x, F.one_hot(y, 3).float()), 10)
    with pytest.warns(UserWarning, match=r"could not be measured.*class labels") as said:
        balancer, _ = fit(Soft(), soft, logits=False, shift=False, smoothing=0.0, counts=[30, 15, 5])
    assert len([one for one in said if "could not be measured" in str(one.message)]) == 1
    assert balancer.readings == []


def resumable(folder, resume=None):
    balancer = ClassGroupingBalancer(max_readings=4)
    checkpoints = ModelCheckpoint(folder, "{step}", save_top_k=-1, every_n_train_steps=1)
    run = trainer([balancer, checkpoints], enable_checkpointing=True, max_epochs=3)
    run.fit(Validated(), data(), validation(), ckpt_path=resume)
    return balancer


@pytest.mark.slow
def test_a_run_goes_on_with_its_readings(tmp_path):
    whole = resumable(tmp_path)
    resumed = resumable(tmp_path, tmp_path / "step=9.ckpt")
    assert len(whole.readings) == 4
    assert_identical(whole.state_dict()["observed"], resumed.state_dict()["observed"])
    for before, after in zip(whole.readings, resumed.readings, strict=True):
        assert (before.step, before.epoch, before.groups) == (after.step, after.epoch, after.groups)
        assert torch.equal(before.classifier, after.classifier)
        assert torch.equal(before.progress, after.progress)
    assert resumed.readings[-1].elapsed > resumed.readings[0].elapsed


def test_older_checkpoints_have_no_readings():
    balancer = ClassGroupingBalancer()
    balancer.load_state_dict(
        {"counts": None, "frequencies": None, "drawn": torch.zeros(3), "batches": 3, "means": None}
    )
    assert balancer.readings == []


@pytest.mark.slow
def test_a_second_fit_begins_anew():
    balancer = ClassGroupingBalancer(max_readings=2)
    for _ in range(2):
        trainer([balancer], max_epochs=2).fit(Classifier(), data())
        assert [reading.epoch for reading in balancer.readings] == [1.0, 2.0]


def test_nothing_is_read_where_no_part_is_on():
    balancer, _ = fit(sampling=False, logits=False, shift=False, smoothing=0.0)
    assert balancer.readings == []


def test_hooks_are_gone_afterwards():
    module = Validated()
    fit(module, val=validation())
    assert not module.net[-1]._forward_hooks


def test_a_number_of_readings_that_is_none():
    with pytest.raises(StiffnessError, match="max_readings must be a number of readings, 0 for none; found -1"):
        ClassGroupingBalancer(max_readings=-1)


def test_names_that_do_not_fit():
    with pytest.raises(StiffnessError, match="class_names must have a name for each of 3 classes, found 2"):
        fit(class_names=["a", "b"])
