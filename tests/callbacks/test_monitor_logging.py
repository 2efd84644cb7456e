"""Where the monitor's numbers go: other callbacks, loggers, the progress bar and the history file."""

import csv
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.callbacks.progress import TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_stiffness import History, StiffnessError, StiffnessMonitor
from tests.callbacks.modules import QUIET, Classifier, Validated, loader, trainer
from tests.callbacks.test_monitor import KEYS, assert_same, points

pytestmark = QUIET


# Logging


class Seen(Callback):
    """The metrics that other callbacks find."""

    def __init__(self):
        self.values = []

    def on_train_end(self, trainer, pl_module):
        self.values.append(dict(trainer.callback_metrics))


def test_callback_metrics_hold_what_the_docstring_says():
    monitor, seen = StiffnessMonitor(probe_size=15), Seen()
    run = trainer([seen, monitor], max_epochs=1)
    run.fit(Classifier(), loader())
    for metrics in (seen.values[0], run.callback_metrics):
        assert {f"stiffness/{key}" for key in KEYS} <= metrics.keys()
    for key, value in monitor.history[-1].metrics().items():
        assert float(run.callback_metrics[f"stiffness/{key}"]) == pytest.approx(value)
        assert f"stiffness/{key.removesuffix('_se')}" in StiffnessMonitor.__doc__
    assert "train_loss_epoch" in run.callback_metrics


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_several_loggers_get_all_numbers_at_the_steps_of_lightnings_own(tmp_path):
    monitor = StiffnessMonitor(probe_size=15, every_n_steps=4)
    written, board = CSVLogger(tmp_path, "csv"), TensorBoardLogger(tmp_path, "board")
    trainer([monitor], logger=[written, board], log_every_n_steps=1).fit(
        Validated(), loader(), loader(30, shuffle=False)
    )
    rows = rows_of(Path(written.log_dir) / "metrics.csv")
    steps = [int(row["step"]) for row in rows if row["stiffness/within"]]
    assert steps == [0, 4, 5, 8, 11]
    assert [int(row["step"]) for row in rows if row["train_loss_epoch"]] == [5, 11]
    assert [int(row["step"]) for row in rows if row["val_loss"]] == [5, 11]
    values = [float(row["stiffness/within"]) for row in rows if row["stiffness/within"]]
    assert values == pytest.approx(monitor.history.series("within").tolist(), rel=1e-5)

    events = EventAccumulator(board.log_dir)
    events.Reload()
    assert {f"stiffness/{key}" for key in KEYS} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("stiffness/within")] == steps
    assert [event.value for event in events.Scalars("stiffness/within")] == pytest.approx(values, rel=1e-5)
    assert [event.step for event in events.Scalars("train_loss_epoch")] == [5, 11]


def test_step_values_lie_on_the_axis_where_the_loss_of_the_same_weights_lies(tmp_path):
    monitor = StiffnessMonitor(probe=loader(10, batch_size=10), every_n_steps=1)
    written = CSVLogger(tmp_path)
    train = loader(10, batch_size=10, shuffle=False)
    trainer([monitor], logger=written, log_every_n_steps=1, max_epochs=4).fit(Classifier(), train)
    rows = rows_of(Path(written.log_dir) / "metrics.csv")
    losses = {int(row["step"]): float(row["train_loss_step"]) for row in rows if row["train_loss_step"]}
    assert losses[0] == pytest.approx(monitor.history[0].loss, rel=1e-4)


def test_without_a_logger_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monitor = StiffnessMonitor(probe_size=15)
    trainer([monitor], default_root_dir=tmp_path, max_epochs=1).fit(Classifier(), loader())
    assert len(monitor.history) == 2
    assert not list(tmp_path.iterdir())


def test_fast_dev_run_measures_once_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monitor = StiffnessMonitor(probe_size=15, save_dir=str(tmp_path / "here"))
    run = trainer([monitor], default_root_dir=tmp_path, fast_dev_run=True, logger=True)
    run.fit(Validated(), loader(), loader(30, shuffle=False))
    assert points(monitor.history) == [(0, 0.0)]
    assert not list(tmp_path.iterdir())


def test_the_sanity_check_is_not_measured():
    measured = []

    class Watches(Callback):
        def on_sanity_check_end(self, trainer, pl_module):
            measured.append(monitor.history)

    monitor = StiffnessMonitor(mode="val", probe_size=15)
    run = trainer([monitor, Watches()], max_epochs=1, num_sanity_val_steps=2)
    run.fit(Validated(), loader(), loader(30, shuffle=False))
    assert measured == [None]
    assert points(monitor.history) == [(0, 0.0), (6, 1.0)]


def test_other_callbacks_can_watch_the_values(tmp_path):
    monitor = StiffnessMonitor(probe_size=15)
    checkpoint = ModelCheckpoint(
        tmp_path, "{epoch}", monitor="stiffness/within", mode="max", save_top_k=-1, auto_insert_metric_name=False
    )
    stopper = EarlyStopping("stiffness/loss", min_delta=10.0, patience=2)
    run = trainer([stopper, checkpoint, monitor], max_epochs=6, enable_checkpointing=True)
    run.fit(Classifier(), loader())
    within = monitor.history.series("within")
    assert run.current_epoch == 3
    assert checkpoint.best_model_path == str(tmp_path / f"{int(within[1:].argmax())}.ckpt")
    assert float(checkpoint.best_model_score) == pytest.approx(float(within[1:].max()))


@pytest.mark.parametrize("prog_bar", [True, False])
def test_the_progress_bar_shows_the_newest_value(prog_bar, capsys):
    monitor, bar = StiffnessMonitor(probe_size=15, prog_bar=prog_bar, every_n_steps=2), TQDMProgressBar()
    shown = []

    class Looks(Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            shown.append(bar.get_metrics(trainer, pl_module).get("stiffness/within"))

    run = trainer([monitor, Looks(), bar], enable_progress_bar=True, max_epochs=1)
    run.fit(Classifier(), loader())
    capsys.readouterr()
    within = monitor.history.series("within").tolist()
    expected = [within[0], within[0], within[1], within[1], within[2], within[2]]
    assert shown == (expected if prog_bar else [None] * 6)


def test_several_monitors_log_under_their_names(tmp_path):
    monitors = [
        StiffnessMonitor(probe_size=15),
        StiffnessMonitor(mode="val", name="val_stiffness", probe_size=15, every_n_epochs=2),
    ]
    run = trainer(monitors, logger=CSVLogger(tmp_path))
    run.fit(Validated(), loader(), loader(30, shuffle=False))
    assert {"stiffness/within", "val_stiffness/within"} <= run.callback_metrics.keys()
    files = sorted(path.name for path in Path(run.logger.log_dir).glob("*.jsonl"))
    assert files == ["stiffness.jsonl", "val_stiffness.jsonl"]
    with pytest.raises(StiffnessError, match='name="stiffness_val"'):
        trainer([StiffnessMonitor(), StiffnessMonitor(mode="val")]).fit(Classifier(), loader())


# The file


def test_the_history_lies_beside_the_checkpoints_and_can_be_read_during_training(tmp_path):
    monitor, lengths = StiffnessMonitor(probe_size=15), []

    class Reads(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            lengths.append(len(History.load(Path(trainer.logger.log_dir) / "stiffness.jsonl")))

    run = trainer([monitor, Reads()], logger=CSVLogger(tmp_path), enable_checkpointing=True, max_epochs=3)
    run.fit(Classifier(), loader())
    path = Path(run.checkpoint_callback.dirpath).parent / "stiffness.jsonl"
    assert lengths == [1, 2, 3]
    assert_same(History.load(path), monitor.history)


@pytest.mark.slow
def test_a_folder_can_be_chosen(tmp_path):
    monitor = StiffnessMonitor(probe_size=15, save_dir=str(tmp_path / "new" / "folder"), name="mine")
    trainer([monitor], max_epochs=1).fit(Classifier(), loader())
    assert_same(History.load(tmp_path / "new" / "folder" / "mine.jsonl"), monitor.history)


def test_a_disk_that_cannot_be_written_does_not_stop_training(tmp_path):
    (tmp_path / "file").write_text("")
    monitor = StiffnessMonitor(probe_size=15, save_dir=str(tmp_path / "file"))
    run = trainer([monitor])
    with pytest.warns(UserWarning, match="cannot be written"):
        run.fit(Classifier(), loader())
    assert run.current_epoch == 2
    assert len(monitor.history) == 3


KILLED = """
import os, signal, sys, warnings
warnings.simplefilter("ignore")
from lightning.pytorch import Callback
from lightning_stiffness import StiffnessMonitor
from tests.callbacks.modules import Classifier, loader, trainer

class Kill(Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == 9:
            os.kill(os.getpid(), signal.SIGKILL)

trainer([StiffnessMonitor(probe_size=15, every_n_steps=2, save_dir=sys.argv[1]), Kill()]).fit(Classifier(), loader())
"""


@pytest.mark.slow
def test_a_run_that_is_killed_leaves_a_file_that_loads(tmp_path):
    result = subprocess.run([sys.executable, "-c", KILLED, tmp_path], env=dict(os.environ, PYTHONPATH="."), check=False)
    assert result.returncode == -signal.SIGKILL
    assert points(History.load(tmp_path / "stiffness.jsonl")) == pytest.approx(
        [pytest.approx(point) for point in [(0, 0), (2, 2 / 6), (4, 4 / 6), (6, 1), (8, 8 / 6)]]
    )
