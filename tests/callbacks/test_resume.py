"""A run that is taken up again from a checkpoint measures and decides as if it had not been interrupted."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from lightning_stiffness import ConfirmedDrop, History, StiffnessDrop, StiffnessEarlyStopping, StiffnessMonitor
from tests.callbacks.modules import QUIET, Classifier, Memoriser, Validated, loader, mislabelled, trainer
from tests.callbacks.test_early_stopping import Says
from tests.callbacks.test_monitor import assert_same, points

pytestmark = [*QUIET, pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before")]


def monitor(**options) -> StiffnessMonitor:
    return StiffnessMonitor(probe_size=15, **options)


def fit(callbacks, folder, epochs, resume=None, val=False, save=None, name="{epoch}", **options):
    """A run in data order that keeps a checkpoint of each epoch."""
    checkpoints = ModelCheckpoint(folder / "checkpoints", name, save_top_k=-1, **(save or {}))
    run = trainer([*callbacks, checkpoints], enable_checkpointing=True, max_epochs=epochs, **options)
    data = [loader(shuffle=False), *([loader(30, shuffle=False)] if val else [])]
    run.fit(Validated() if val else Classifier(), *data, ckpt_path=resume)
    return run


@pytest.mark.parametrize("epoch", [0, *(pytest.param(k, marks=pytest.mark.slow) for k in (1, 2, 3)), 4])
def test_a_monitor_goes_on_from_the_checkpoint_of_any_epoch(epoch, tmp_path):
    whole, resumed = monitor(every_n_steps=4), monitor(every_n_steps=4)
    fit([whole], tmp_path, 6)
    fit([resumed], tmp_path, 6, tmp_path / f"checkpoints/epoch={epoch}.ckpt")
    assert_same(resumed.history, whole.history)


@pytest.mark.slow
@pytest.mark.parametrize("epoch", [0, 2])
@pytest.mark.parametrize(
    ("save", "options"),
    [({"save_on_train_epoch_end": False}, {}), ({}, {"val_check_interval": 0.5}), ({}, {"check_val_every_n_epoch": 2})],
)
def test_it_does_from_checkpoints_saved_after_validation(epoch, save, options, tmp_path):
    whole, resumed = monitor(every_n_steps=4), monitor(every_n_steps=4)
    fit([whole], tmp_path, 4, val=True, save=save, **options)
    path = sorted((tmp_path / "checkpoints").iterdir())[min(epoch, 1)]
    fit([resumed], tmp_path, 4, path, val=True, save=save, **options)
    assert_same(resumed.history, whole.history)


@pytest.mark.slow
@pytest.mark.parametrize("step", [3, 4, 6, 7, 11, 12])
def test_it_does_from_checkpoints_saved_after_a_batch(step, tmp_path):
    whole, resumed = monitor(every_n_steps=4), monitor(every_n_steps=4)
    save = {"every_n_train_steps": step}
    fit([whole], tmp_path, 3, save=save, name="{step}")
    fit([resumed], tmp_path, 3, tmp_path / f"checkpoints/step={step}.ckpt", save=save, name="{step}")
    # Lightning begins with the data of the epoch again: what follows is another run, of the same schedule.
    assert points(resumed.history) == pytest.approx([pytest.approx(point) for point in points(whole.history)])
    before = sum(reading.step < step for reading in whole.history)
    assert_same(resumed.history[:before], whole.history[:before])


def stopped(callbacks, folder, epochs, resume=None):
    checkpoints = ModelCheckpoint(folder / "checkpoints", "{epoch}", save_top_k=-1)
    run = trainer([*callbacks, checkpoints], enable_checkpointing=True, max_epochs=epochs)
    run.fit(Memoriser(), mislabelled(), ckpt_path=resume)
    return run.current_epoch


@pytest.mark.slow
@pytest.mark.parametrize("is_alone", [True, False])
def test_a_stopper_stops_where_it_would_have(is_alone, tmp_path):
    def callbacks():
        measures = StiffnessMonitor(probe_size=60)
        stopper = StiffnessEarlyStopping(source=measures if is_alone else None)
        return [stopper] if is_alone else [measures, stopper]

    whole = callbacks()
    end = stopped(whole, tmp_path, 60)
    assert 6 <= end <= 30
    for epoch in (0, end // 2, end - 2):
        resumed = callbacks()
        assert stopped(resumed, tmp_path, 60, tmp_path / f"checkpoints/epoch={epoch}.ckpt") == end
        assert_same(resumed[-1].history, whole[-1].history)
        assert resumed[-1].decision == whole[-1].decision
        assert resumed[-1].stopping_reason_message == whole[-1].stopping_reason_message


@pytest.mark.slow
def test_arguments_are_those_given_now(tmp_path):
    first = StiffnessEarlyStopping(patience=2, criterion=None, source=monitor())
    fit([first], tmp_path, 2)
    second = StiffnessEarlyStopping(patience=50, warmup=7.0, source=monitor(every_n_epochs=2, seed=0))
    fit([second], tmp_path, 4, tmp_path / "checkpoints/epoch=1.ckpt")
    assert second.patience == 50
    assert second.criterion == ConfirmedDrop(StiffnessDrop(patience=50, warmup=7.0))
    assert points(second.history) == [(0, 0.0), (6, 1.0), (12, 2.0), (24, 4.0)]


def test_a_verdict_of_before_does_not_bind(tmp_path):
    first = StiffnessEarlyStopping(criterion=Says(stops=(3,)), source=monitor())
    run = fit([first], tmp_path, 6)
    assert run.current_epoch == 2
    second = StiffnessEarlyStopping(criterion=Says(), source=monitor())
    run = fit([second], tmp_path, 4, tmp_path / "checkpoints/epoch=1.ckpt")
    assert run.current_epoch == 4
    assert second.stopping_reason_message is None
    assert second.stopping_reason.name == "NOT_STOPPED"
    assert len(second.history) == 5


@pytest.mark.slow
def test_a_checkpoint_holds_plain_things_only_and_no_arguments(tmp_path):
    fit([StiffnessEarlyStopping(source=monitor()), monitor(name="other")], tmp_path, 1)
    checkpoint = torch.load(tmp_path / "checkpoints/epoch=0.ckpt", weights_only=True)
    states = {key: state for key, state in checkpoint["callbacks"].items() if "Stiffness" in key}
    assert len(states) == 2
    stopper = next(state for key, state in states.items() if "EarlyStopping" in key)
    assert stopper.keys() == {"stopped_epoch", "stopping_reason_message", "monitor", "weights"}
    assert stopper["monitor"].keys() == {"history", "fingerprint", "signals"}
    assert next(state for key, state in states.items() if "Monitor" in key).keys() == {"history", "fingerprint"}


def test_a_run_resumes_without_full_unpickling(tmp_path):
    fit([monitor()], tmp_path, 1)
    resumed = monitor()
    run = trainer([resumed, ModelCheckpoint(tmp_path / "checkpoints")], max_epochs=2, enable_checkpointing=True)
    run.fit(Classifier(), loader(), ckpt_path=tmp_path / "checkpoints/epoch=0.ckpt", weights_only=True)
    assert points(resumed.history) == [(0, 0.0), (6, 1.0), (12, 2.0)]


@pytest.mark.parametrize("state", [{}, {"stopped_epoch": 3}, {"history": None}, {"history": {}}, {"wait_count": 1}])
def test_states_that_lack_something_are_taken(state):
    StiffnessEarlyStopping().load_state_dict(state)
    if not state.get("history"):
        loaded = monitor()
        loaded.load_state_dict(state)
        assert loaded.history is None


def test_an_old_state_without_a_fingerprint_is_taken(tmp_path):
    fit([monitor()], tmp_path, 1)
    path = tmp_path / "checkpoints/epoch=0.ckpt"
    change_state(path, lambda state: state.pop("fingerprint"))
    resumed = monitor()
    fit([resumed], tmp_path, 2, path)
    assert len(resumed.history) == 3


def test_a_state_of_a_newer_version_begins_a_new_history(tmp_path):
    fit([monitor()], tmp_path, 1)
    path = tmp_path / "checkpoints/epoch=0.ckpt"
    change_state(path, lambda state: state["history"].update(version=99))
    resumed = monitor()
    with pytest.warns(UserWarning, match="cannot be read and starts anew"):
        fit([resumed], tmp_path, 2, path)
    assert points(resumed.history) == [(6, 1.0), (12, 2.0)]


def change_state(path: Path, change) -> None:
    checkpoint = torch.load(path, weights_only=True)
    change(next(state for key, state in checkpoint["callbacks"].items() if "StiffnessMonitor" in key))
    torch.save(checkpoint, path)


@pytest.mark.slow
@pytest.mark.parametrize("changed", [{"seed": 1}, {"probe_size": 18}, {"probe": loader(15, shuffle=False)}])
def test_another_probe_begins_a_new_history(changed, tmp_path):
    fit([monitor()], tmp_path, 2)
    resumed = StiffnessMonitor(**{"probe_size": 15, **changed})
    with pytest.warns(UserWarning, match="another one"):
        fit([resumed], tmp_path, 3, tmp_path / "checkpoints/epoch=1.ckpt")
    assert points(resumed.history) == [(12, 2.0), (18, 3.0)]


@pytest.mark.slow
def test_probes_without_positions_are_told_apart_by_their_content(tmp_path):
    x, y = loader(15).dataset.tensors
    fit([StiffnessMonitor(probe=(x, y))], tmp_path, 1)
    same, other = StiffnessMonitor(probe=(x.clone(), y)), StiffnessMonitor(probe=(x + 1, y))
    path = tmp_path / "checkpoints/epoch=0.ckpt"
    fit([same], tmp_path, 2, path)
    assert len(same.history) == 3
    with pytest.warns(UserWarning, match="another one"):
        fit([other], tmp_path, 2, path)
    assert len(other.history) == 2


def test_a_monitor_that_is_new_begins_where_the_run_is(tmp_path):
    fit([], tmp_path, 2)
    added = monitor()
    fit([added], tmp_path, 3, tmp_path / "checkpoints/epoch=1.ckpt")
    assert points(added.history) == [(12, 2.0), (18, 3.0)]


def test_a_separate_monitor_takes_over_from_a_stopper(tmp_path):
    fit([StiffnessEarlyStopping(source=monitor(), criterion=Says())], tmp_path, 2)
    added = monitor()
    stopper = StiffnessEarlyStopping(criterion=Says())
    fit([added, stopper], tmp_path, 3, tmp_path / "checkpoints/epoch=1.ckpt")
    assert points(added.history) == [(0, 0.0), (6, 1.0), (12, 2.0), (18, 3.0)]


@pytest.mark.slow
def test_the_file_is_written_anew_from_the_checkpoint(tmp_path):
    logger = CSVLogger(tmp_path, "logs", version="one")
    fit([monitor()], tmp_path, 4, logger=logger)
    path = tmp_path / "logs" / "one" / "stiffness.jsonl"
    assert len(History.load(path)) == 5
    resumed = monitor()
    fit([resumed], tmp_path, 3, tmp_path / "checkpoints/epoch=0.ckpt", logger=logger)
    assert points(History.load(path)) == [(0, 0.0), (6, 1.0), (12, 2.0), (18, 3.0)]
    assert_same(History.load(path), resumed.history)
