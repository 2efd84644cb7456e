"""Several loggers at once, one, none, and those of the user's own: each gets what it can show, and none can do harm."""

import csv
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_stiffness import StiffnessEarlyStopping, StiffnessMonitor, loggers
from lightning_stiffness.loggers import Board
from tests.callbacks.modules import QUIET, Classifier, Memoriser, Rich, Validated, loader, mislabelled, trainer
from tests.callbacks.test_monitor import KEYS
from tests.callbacks.test_monitor_neutrality import assert_identical
from tests.loggers.offline import offline_wandb
from tests.loggers.stopping import at_fourth_reading
from tests.unchecked import unchecked_types

pytestmark = [*QUIET, pytest.mark.filterwarnings("ignore::ResourceWarning")]  # files of wandb's service


class Smallest:
    """What Lightning asks of a logger, and no more."""

    name, version, save_dir, log_dir, root_dir, group_separator = "smallest", 0, None, None, None, "/"

    def __init__(self) -> None:
        self.values: dict[str, list[float]] = {}
        self.saved = 0

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        for key, value in metrics.items():
            self.values.setdefault(key, []).append(value)

    def save(self) -> None:
        self.saved += 1

    def log_hyperparams(self, params: Any) -> None: ...
    def log_graph(self, model: Any) -> None: ...
    def finalize(self, status: str) -> None: ...
    def after_save_checkpoint(self, callback: Any) -> None: ...


class Own(Logger):
    """A user's own, on Lightning's class; keeps numbers only."""

    name, version = "own", 0

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[str, list[float]] = {}

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        for key, value in metrics.items():
            self.values.setdefault(key, []).append(value)

    def log_hyperparams(self, params: Any) -> None:
        """Not kept."""


class Failing(Own):
    """Takes numbers; what shows more than numbers fails."""


class FailingBoard(Board):
    shows_pictures = True

    def begin(self, run):
        torch.rand(3)

    def picture(self, tag, figure, step):
        raise ConnectionError("the server is gone")


def callbacks() -> list[Any]:
    return [StiffnessMonitor(probe_size=20), StiffnessEarlyStopping(criterion=at_fourth_reading)]


def fitted(logger: Any, **options: Any) -> StiffnessMonitor:
    monitor, stopper = callbacks()
    trainer([monitor, stopper], logger=logger, max_epochs=9, **options).fit(Memoriser(), mislabelled())
    assert len(monitor.history) == 4
    return monitor


def all_loggers(folder: Path) -> list[Any]:
    return [
        TensorBoardLogger(folder, "board"),
        WandbLogger(save_dir=folder, project="tests"),
        CSVLogger(folder, "csv"),
        MLFlowLogger("tests", tracking_uri=f"file:{folder}/store"),
    ]


def numbers_of(logger: Any) -> list[float]:
    """Within-class stiffness, as a logger has it."""
    key = "stiffness/within"
    if isinstance(logger, TensorBoardLogger):
        events = EventAccumulator(logger.log_dir)
        events.Reload()
        return [event.value for event in events.Scalars(key)]
    if isinstance(logger, CSVLogger):
        with Path(logger.log_dir, "metrics.csv").open() as file:
            return [float(row[key]) for row in csv.DictReader(file) if row[key]]
    if isinstance(logger, MLFlowLogger):
        return [metric.value for metric in logger.experiment.get_metric_history(logger.run_id, key)]
    return logger.values[key]


@pytest.fixture
def offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    with offline_wandb(tmp_path):
        yield


@pytest.mark.slow
def test_numbers_arrive_everywhere(tmp_path, offline):
    board, wandb, table, mlflow = used = all_loggers(tmp_path)
    expected = pytest.approx(fitted(used).history.series("within").tolist(), rel=1e-5)
    assert [numbers_of(logger) for logger in (board, table, mlflow)] == [expected] * 3
    assert wandb.experiment.summary["stiffness/readings"] == 4
    assert wandb.experiment.summary["stiffness/stop_reason"] == "enough is enough"
    wandb.experiment.finish()


@pytest.mark.slow
@unchecked_types()  # the checker draws random numbers of Python's to look into dicts
def test_training_is_unchanged_bit_by_bit(tmp_path, offline):
    def state(folder, added):
        used = all_loggers(folder)
        assert all(
            logger.experiment for logger in used
        )  # MLflow draws from `random` to name a new one, how often is chance
        random.seed(3)
        np.random.seed(3)  # noqa: NPY002
        torch.manual_seed(3)
        module = Rich()
        run = trainer(added, logger=used, max_epochs=3, log_every_n_steps=1)
        run.fit(module, loader(), loader(24, shuffle=False))
        used[1].experiment.finish()
        random_state = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
        return module.state_dict(), run.optimizers[0].state_dict(), module.order, module.noise, random_state

    with_panels = state(tmp_path / "with", [StiffnessMonitor(probe_size=18, every_n_steps=2)])
    assert_identical(state(tmp_path / "without", []), with_panels)


@pytest.mark.slow
def test_a_fast_run_writes_nothing(tmp_path, offline, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = trainer(callbacks(), logger=all_loggers(tmp_path), fast_dev_run=True)
    run.fit(Validated(), loader(), loader(30, shuffle=False))
    assert run.global_step == 1
    written = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert not {name for name in written if "stiffness" in name or name.startswith("events")}


def test_a_table_alone(tmp_path):
    logger = CSVLogger(tmp_path)
    monitor = fitted(logger)
    assert numbers_of(logger) == pytest.approx(monitor.history.series("within").tolist())
    with Path(logger.log_dir, "metrics.csv").open() as file:
        assert {f"stiffness/{key}" for key in KEYS} <= set(next(csv.reader(file)))


def test_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fitted(False)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Own, Smallest])
def test_a_logger_of_the_users_own(kind, tmp_path):
    logger = kind()
    monitor = fitted(logger, default_root_dir=tmp_path)
    assert numbers_of(logger) == pytest.approx(monitor.history.series("within").tolist())
    assert {f"stiffness/{key}" for key in KEYS} <= set(logger.values)


@pytest.mark.slow
def test_a_logger_that_fails_is_told_of_once_and_the_others_go_on(tmp_path, monkeypatch):
    monkeypatch.setitem(loggers.BOARDS, "Failing", FailingBoard)
    failing, board = Failing(), TensorBoardLogger(tmp_path)
    with pytest.warns(UserWarning, match="Failing cannot show") as seen:
        monitor = fitted([failing, board], default_root_dir=tmp_path)
    told = [str(warning.message) for warning in seen if "cannot show" in str(warning.message)]
    assert len(told) == 1
    assert "ConnectionError: the server is gone" in told[0]
    assert "Training goes on" in told[0]
    expected = pytest.approx(monitor.history.series("within").tolist(), rel=1e-5)
    assert numbers_of(failing) == expected
    assert numbers_of(board) == expected
    events = EventAccumulator(board.log_dir)
    events.Reload()
    assert any("class_matrix" in tag for tag in events.Tags()["images"])


def test_a_board_that_fails_leaves_training_as_it_is(monkeypatch, tmp_path):
    monkeypatch.setitem(loggers.BOARDS, "Failing", FailingBoard)

    def state(added, logger):
        torch.manual_seed(3)
        module = Classifier()
        trainer(added, logger=logger, default_root_dir=tmp_path).fit(module, loader())
        return module.state_dict(), torch.get_rng_state()

    with pytest.warns(UserWarning, match="Failing cannot show"):
        measured = state([StiffnessMonitor(probe_size=18)], Failing())
    assert_identical(state([], False), measured)


def test_panels_can_be_left_out(tmp_path):
    board = TensorBoardLogger(tmp_path)
    monitor = StiffnessMonitor(probe_size=20, panels=False)
    trainer([monitor, StiffnessEarlyStopping(criterion=at_fourth_reading)], logger=board, max_epochs=9).fit(
        Memoriser(), mislabelled()
    )
    events = EventAccumulator(board.log_dir)
    events.Reload()
    assert not events.Tags()["images"]
    decision = json.loads(Path(board.log_dir, "stiffness_decision.json").read_text())
    assert decision["stopped"]
