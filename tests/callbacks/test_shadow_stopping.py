"""A run that is watched by several criteria, and changed by none."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from lightning_stiffness import Decision, History, StiffnessDrop, StiffnessEarlyStopping, StiffnessError
from lightning_stiffness import StiffnessMonitor as Monitor
from lightning_stiffness.callbacks.shadow_stopping import ShadowStopping
from lightning_stiffness.stopping import LabelWave, shadow
from tests.callbacks.modules import QUIET, Classifier, Memoriser, Validated, loader, mislabelled, trainer

pytestmark = QUIET


@dataclass(frozen=True)
class After:
    """Says stop at that many readings."""

    count: int
    needs: tuple[str, ...] = ()

    def __call__(self, history: History) -> Decision:
        held = history[1].step if len(history) > 1 else None
        stop = len(history) == self.count
        return Decision(stop, f"{len(history)} readings", best_step=held, epoch=history[-1].epoch if history else 0.0)


def test_it_tells_what_each_criterion_would_have_done_and_stops_nothing(tmp_path, capsys):
    watching = ShadowStopping({"early": After(3), "never": After(99)}, source=Monitor(probe_size=15))
    run = trainer([watching], logger=CSVLogger(tmp_path), max_epochs=4)
    run.fit(Validated(), loader(shuffle=False), loader(30, shuffle=False))
    assert run.current_epoch == 4
    history = watching.history
    losses = history.series("val_loss").tolist()
    early, never = watching.verdicts.stops
    assert (early, never) == tuple(shadow(history, watching.criteria, ["val_loss"]))
    assert (early.epoch, early.restored_epoch, never.epoch) == (2.0, 1.0, None)
    assert early.at_stop["val_loss"] == losses[2]
    assert early.at_restored["val_loss"] == losses[1]
    text = capsys.readouterr().out
    assert f"{losses[2]:.4g} -> {losses[1]:.4g}" in text
    assert "early: 3 readings." in text
    written = json.loads((Path(run.logger.log_dir) / "stiffness_shadow.json").read_text())
    assert written == {
        **watching.verdicts.as_dict(), "epochs": 4.0,
        "rules": {"early": "After(count=3, needs=())", "never": "After(count=99, needs=())"},
    }  # fmt: skip
    assert written["best"] == {"val_loss": min(filter(math.isfinite, losses))}


def test_training_is_the_same_with_it():
    def weights(callbacks):
        module = Classifier()
        torch.manual_seed(0)
        trainer(callbacks).fit(module, loader())
        return [*module.parameters(), torch.rand(3)]

    assert all(map(torch.equal, weights([]), weights([ShadowStopping([StiffnessDrop(), LabelWave()])])))


def test_the_signals_of_all_criteria_are_measured_once(monkeypatch):
    asked = []
    monkeypatch.setattr(Monitor, "require_signals", lambda self, names, wished: asked.append((*names, *wished)))
    watching = ShadowStopping([After(1, ("a", "b")), StiffnessDrop(), After(2, ("b", "c"))])
    trainer([watching, Monitor(probe_size=15)], max_epochs=1).fit(Classifier(), loader())
    assert asked == [("a", "b", "c")]


def test_a_signal_is_there_to_be_judged():
    watching = ShadowStopping([LabelWave()], metrics=["prediction_changes"])
    trainer([watching], max_epochs=3).fit(Classifier(), loader())
    assert "not measured" not in watching.verdicts.stops[0].reason
    assert 0 <= watching.verdicts.best["prediction_changes"] <= 1


@pytest.mark.slow
@pytest.mark.parametrize("first", [True, False])
def test_it_shares_the_readings_of_a_monitor_by_its_name(first):
    monitors = [Monitor(probe_size=15), Monitor(probe_size=18, name="other")]
    watching = [ShadowStopping([After(2)]), ShadowStopping([After(2)], name="other")]
    trainer([*watching, *monitors] if first else [*monitors, *watching], max_epochs=1).fit(Classifier(), loader())
    assert [each.history for each in watching] == [each.history for each in monitors]
    assert all(each.verdicts.stops[0].epoch == 1.0 for each in watching)


def test_beside_a_stopper_it_shares_the_monitor_that_one_of_them_brings():
    watching, stopper = ShadowStopping([After(2)]), StiffnessEarlyStopping(criterion=After(3))
    run = trainer([watching, stopper], max_epochs=5)
    run.fit(Classifier(), loader())
    assert run.current_epoch == 2
    assert watching.history is stopper.history
    assert len(watching.history) == 3


@pytest.mark.slow
def test_a_resumed_run_tells_the_same(tmp_path, capsys):
    def fit(epochs, resume=None):
        watching = ShadowStopping([StiffnessDrop(), After(3)], source=Monitor(probe_size=60))
        checkpoints = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
        run = trainer([watching, checkpoints], enable_checkpointing=True, max_epochs=epochs)
        run.fit(Memoriser(), mislabelled(), ckpt_path=resume)
        return watching.verdicts

    whole = fit(12)
    assert whole.stops[0].epoch is not None
    for epoch in (0, 4, 10):
        assert fit(12, tmp_path / f"epoch={epoch}.ckpt") == whole


def test_metrics_that_the_run_does_not_log_are_left_out_aloud(capsys):
    watching = ShadowStopping([After(2)], metrics=["val_f1", "train_loss_epoch"])
    trainer([watching]).fit(Classifier(), loader())
    assert watching.verdicts.missing == ("val_f1",)
    assert watching.verdicts.best.keys() == {"train_loss_epoch"}
    assert "left out: val_f1" in capsys.readouterr().out


def test_fast_dev_run_and_no_logger(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    watching = ShadowStopping([After(2)])
    trainer([watching], fast_dev_run=2).fit(Classifier(), loader())
    assert watching.verdicts is None
    assert capsys.readouterr().out == ""
    trainer([watching]).fit(Classifier(), loader())
    assert watching.verdicts is not None
    assert not list(tmp_path.rglob("*_shadow.json"))


@pytest.mark.parametrize("criteria", [[], {}, None, StiffnessDrop()])
def test_there_must_be_criteria(criteria):
    with pytest.raises(StiffnessError, match="one criterion or more"):
        ShadowStopping(criteria)


@pytest.mark.parametrize("criteria", [[StiffnessDrop], ["drop"], {"drop": 3}])
def test_criteria_must_be_some(criteria):
    with pytest.raises(StiffnessError, match="Each criterion must be one, such as"):
        ShadowStopping(criteria)


def test_names_without_names():
    def own(history):
        return Decision(False, "")

    assert list(ShadowStopping((After(1), own, After(2), After(3))).criteria) == ["After", "own", "After 2", "After 3"]
