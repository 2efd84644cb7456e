"""What StiffnessMonitor measures, and where it logs and writes it."""

import math

import pytest
import torch
import torch.nn.functional as F

from lightning_stiffness import History, Probe, StiffnessError, StiffnessMonitor
from lightning_stiffness.functional import cosine_pairs, sign_pairs, summarise, summarise_cross
from tests.callbacks.modules import CLASSES, QUIET, Classifier, Validated, loader, trainer
from tests.oracle import loop_gram

pytestmark = QUIET

KEYS = {
    "within", "within_se", "between", "between_se", "within_sign", "within_sign_se", "between_sign", "between_sign_se",
    "zero_fraction", "loss", "seconds",
}  # fmt: skip


def cross_entropies(module, batch):
    return F.cross_entropy(module(batch[0]), batch[1], reduction="none")


def points(history: History) -> list[tuple[int, float]]:
    return [(reading.step, reading.epoch) for reading in history]


def assert_same(first: History, second: History, tolerance: float = 0.0) -> None:
    assert points(first) == points(second)
    assert first.probe == second.probe
    for name in KEYS - {"seconds"}:
        torch.testing.assert_close(
            first.series(name), second.series(name), rtol=tolerance, atol=tolerance, equal_nan=True
        )


# Values


@pytest.mark.parametrize("mode", ["train", "val", "cross"])
def test_readings_are_the_formulas_on_a_float64_loop_over_samples(mode):
    monitor, module = StiffnessMonitor(mode=mode, probe_size=15), Validated()
    trainer([monitor]).fit(module, loader(), loader(30, shuffle=False))
    train, val = Probe.draw(loader(), 15), Probe.draw(loader(30), 15)
    rows, columns = {"train": (train, None), "val": (val, None), "cross": (train, val)}[mode]
    parts = [probe for probe in (rows, columns) if probe is not None]
    batch = tuple(torch.cat(tensors) for tensors in zip(*(probe.batch for probe in parts), strict=True))
    gram = loop_gram(module, cross_entropies, batch)[0]
    reading = monitor.history[-1]
    for pairs, found in ((cosine_pairs(gram), reading.cosine), (sign_pairs(gram), reading.sign)):
        if columns is None:
            expected = summarise(pairs, rows.targets, CLASSES)
        else:
            expected = summarise_cross(pairs[:15, 15:], rows.targets, columns.targets, CLASSES)
        torch.testing.assert_close(found.matrix, expected.matrix, rtol=1e-4, atol=1e-5)
        assert found.within == pytest.approx(expected.within, abs=1e-5)
        assert found.within_se == pytest.approx(expected.within_se, abs=1e-5)
        assert found.between == pytest.approx(expected.between, abs=1e-5)
    losses = cross_entropies(module, rows.batch).detach().double()
    assert reading.loss == pytest.approx(float(losses.mean()), rel=1e-5)
    assert reading.loss_se == pytest.approx(float(losses.std() / math.sqrt(15)), rel=1e-4)


def test_the_first_reading_is_of_the_untrained_network_and_the_others_of_the_ends_of_epochs():
    monitor = StiffnessMonitor(probe_size=15)
    trainer([monitor], max_epochs=3).fit(Classifier(), loader())
    assert points(monitor.history) == [(0, 0.0), (6, 1.0), (12, 2.0), (18, 3.0)]
    losses = cross_entropies(Classifier(), Probe.draw(loader(), 15).batch)
    assert monitor.history[0].loss == pytest.approx(float(losses.mean().detach()), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"every_n_epochs": 2}, [(0, 0.0), (12, 2.0)]),
        ({"every_n_epochs": 2, "at_start": False}, [(12, 2.0)]),
        ({"every_n_epochs": 0, "every_n_steps": 4}, [(0, 0.0), (4, 4 / 6), (8, 8 / 6), (12, 2.0), (16, 16 / 6)]),
        ({"every_n_steps": 5}, [(0, 0), (5, 5 / 6), (6, 1), (10, 10 / 6), (12, 2), (15, 2.5), (18, 3)]),
        ({"every_n_epochs": 0}, [(0, 0.0)]),
        ({"every_n_epochs": 0, "at_start": False}, []),
    ],
)
def test_the_schedule(options, expected):
    monitor = StiffnessMonitor(probe_size=15, **options)
    trainer([monitor], max_epochs=3).fit(Classifier(), loader())
    assert points(monitor.history) == pytest.approx([pytest.approx(point) for point in expected])


def test_accumulated_gradients_are_one_step_and_measured_once():
    monitor = StiffnessMonitor(probe_size=15, every_n_steps=1)
    trainer([monitor], max_epochs=1, accumulate_grad_batches=3).fit(Classifier(), loader())
    assert points(monitor.history) == [(0, 0.0), (1, 0.5), (2, 1.0)]


def test_an_epoch_that_is_cut_short_counts_in_part():
    monitor = StiffnessMonitor(probe_size=15)
    trainer([monitor], max_steps=9, max_epochs=-1).fit(Classifier(), loader())
    assert points(monitor.history) == [(0, 0.0), (6, 1.0), (9, 1.5)]


def test_names_are_in_the_history():
    monitor = StiffnessMonitor(probe_size=15, class_names=["a", "b", "c"], superclasses=[0, 0, 1], num_classes=3)
    trainer([monitor], max_epochs=1).fit(Classifier(), loader())
    assert monitor.history.probe.class_names == ("a", "b", "c")
    assert monitor.history.probe.superclasses == (0, 0, 1)
    assert monitor.history.probe.label_entropy == pytest.approx(math.log(3))


# Several runs


def test_a_monitor_begins_anew_with_a_new_trainer_and_goes_on_with_the_same():
    monitor, module = StiffnessMonitor(probe_size=15), Classifier()
    run = trainer([monitor], max_epochs=1)
    run.fit(module, loader())
    first = monitor.history[0].loss
    run.fit_loop.max_epochs = 2
    run.fit(module, loader())
    assert points(monitor.history) == [(0, 0.0), (6, 1.0), (12, 2.0)]
    trainer([monitor], max_epochs=1).fit(module, loader())
    assert points(monitor.history) == [(0, 0.0), (6, 1.0)]
    assert monitor.history[0].loss != first


def test_validate_and_test_do_not_measure():
    class Tested(Validated):
        def test_step(self, batch, batch_idx):
            self.validation_step(batch, batch_idx)

    monitor = StiffnessMonitor(probe_size=15)
    run = trainer([monitor])
    run.validate(Tested(), loader(30, shuffle=False), verbose=False)
    run.test(Tested(), loader(30, shuffle=False), verbose=False)
    assert monitor.history is None


# Arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"every_n_epochs": -1}, "must not be negative, found -1 and 0"),
        ({"every_n_steps": -2}, "must not be negative, found 1 and -2"),
        ({"mode": "both"}, "'both'"),
        ({"mode": "cross", "probe": torch.zeros(3)}, "leave out probe="),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(StiffnessError, match=message):
        StiffnessMonitor(**arguments)
