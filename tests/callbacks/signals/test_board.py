"""Names of signals, and signals that fail."""

import math

import pytest

from lightning_stiffness import History, StiffnessError, StiffnessMonitor
from lightning_stiffness.callbacks.signals import SIGNALS, board
from lightning_stiffness.callbacks.signals.signal import Stateless
from tests.callbacks.modules import QUIET, Classifier, Validated, loader, trainer

pytestmark = QUIET


def test_an_unknown_name_is_an_error_that_lists_those_there_are():
    with pytest.raises(StiffnessError, match=r"no signal 'leave_two_out'; choose of leave_one_out, .*evidence"):
        StiffnessMonitor(signals=["leave_two_out"])


def test_signals_need_a_probe():
    with pytest.raises(StiffnessError, match="measured on a probe"):
        StiffnessMonitor(signals=["evidence"], probe="batch")
    with pytest.raises(StiffnessError, match="measured on a probe"):
        StiffnessMonitor(probe="batch").require_signals(["evidence"])


def test_required_signals_are_measured_once():
    monitor = StiffnessMonitor(probe_size=15, signals=["evidence"])
    monitor.require_signals(("prediction_changes", "evidence"))
    assert monitor.signals == ("evidence", "prediction_changes")


class Breaks(Stateless):
    """Works at the first reading only."""

    def __init__(self, scene):
        self.count = 0

    def read(self, gram):
        self.count += 1
        if self.count == 2:
            raise RuntimeError("no more")
        return {"breaks": float(self.count)}


@pytest.fixture
def _breaking(monkeypatch):
    monkeypatch.setitem(board.SIGNALS, "breaks", Breaks)


@pytest.mark.slow
@pytest.mark.usefixtures("_breaking")
def test_one_that_fails_is_given_up_with_a_warning_and_the_others_go_on():
    monitor = StiffnessMonitor(probe_size=15, signals=["breaks", "gradient_disparity"])
    run = trainer([monitor], max_epochs=3)
    with pytest.warns(UserWarning, match=r"signal 'breaks' cannot be measured any more.*no more") as caught:
        run.fit(Classifier(), loader())
    assert len([one for one in caught if "any more" in str(one.message)]) == 1
    assert run.current_epoch == 3
    assert monitor.history.series("breaks").tolist() == pytest.approx([1, *[math.nan] * 3], nan_ok=True)
    assert bool(monitor.history.series("gradient_disparity").isfinite().all())


@pytest.mark.usefixtures("_breaking")
def test_strict_raises():
    with pytest.raises(RuntimeError, match="no more"):
        trainer([StiffnessMonitor(probe_size=15, signals=["breaks"], strict=True)]).fit(Classifier(), loader())


def test_numbers_of_all_signals_are_logged_saved_and_loaded(tmp_path):
    monitor = StiffnessMonitor(probe_size=15, signals=list(SIGNALS), save_dir=str(tmp_path))
    run = trainer([monitor], max_epochs=2)
    run.fit(Validated(), loader(), loader(30, shuffle=False))
    names = set(monitor.history[-1].signals)
    assert {"leave_one_out_loss", "evidence", "prediction_changes", "gradient_disparity"} <= names
    assert {f"stiffness/{name}" for name in names} <= set(run.callback_metrics)
    loaded = History.load(tmp_path / "stiffness.jsonl")
    assert loaded[-1].signals == monitor.history[-1].signals
    assert loaded[-1].logged == monitor.history[-1].logged
    assert {"val_loss", "train_loss"} <= set(loaded[-1].logged)
    assert loaded[-1].logged["val_loss"] == pytest.approx(float(run.callback_metrics["val_loss"]))
    assert not any(name.startswith("stiffness/") for name in loaded[-1].logged)


@pytest.mark.slow
def test_cross_mode_has_the_within_class_value_of_training_pairs_too():
    cross = StiffnessMonitor(probe_size=15, mode="cross", name="cross")
    train = StiffnessMonitor(probe_size=15)
    trainer([cross, train], max_epochs=2).fit(Validated(), loader(), loader(30, shuffle=False))
    assert cross.history.series("train_within").tolist() == pytest.approx(train.history.series("within").tolist())
