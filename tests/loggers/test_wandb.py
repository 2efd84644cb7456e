"""Weights & Biases: what the board writes, and what a real run that was offline holds afterwards."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import WandbLogger
from matplotlib.figure import Figure

from lightning_stiffness import History, StiffnessEarlyStopping, StiffnessMonitor
from lightning_stiffness.figures.dashboard import DASHBOARD
from lightning_stiffness.loggers import RunCard
from lightning_stiffness.loggers.wandb import METRICS, WandbBoard
from lightning_stiffness.loggers.wandb_workspace import stiffness_report, stiffness_workspace
from tests.callbacks.modules import QUIET, Memoriser, mislabelled, trainer
from tests.loggers.offline import offline_wandb
from tests.loggers.stopping import at_fourth_reading
from tests.loggers.test_wandb_charts import detail
from tests.toy_balance import toy_readings
from tests.toy_history import Toy, overfitting_history, toy_history, toy_reading

wandb = pytest.importorskip("wandb")
pytestmark = [*QUIET, pytest.mark.filterwarnings("ignore::ResourceWarning")]  # files of wandb's service

CARD = RunCard(toy_history([0.5]).probe, {"measured on": "12 training samples"}, {})
VERDICT = {"stop": True, "reason": "it fell", "best_step": 10, "epoch": 3.0, "step": 30, "criterion": "Rule()"}


class Kept:
    """Lightning's logger, as far as a board uses it, with a run that keeps what it is told."""

    LOGGER_JOIN_CHAR = "-"

    def __init__(self, prefix: str = "") -> None:
        self._prefix, self._wandb_init = prefix, {}
        self.rows: list[tuple[int | None, dict[str, Any]]] = []
        self.defined: dict[str, tuple[str, str]] = {}
        self.alerts: list[dict[str, str]] = []
        self.experiment = SimpleNamespace(
            config=SimpleNamespace(update=lambda values, allow_val_change: self.config.update(values)),
            summary={},
            define_metric=lambda key, step_metric, summary: self.defined.update({key: (step_metric, summary)}),
            alert=lambda **words: self.alerts.append(words),
        )
        self.config: dict[str, Any] = {}

    def log_metrics(self, values, step=None):
        self.rows.append((step, dict(values)))

    def log_text(self, key, columns, data, step):
        self.rows.append((step, {key: wandb.Table(columns=columns, data=data)}))

    def row_of(self, key):
        return [step for step, values in self.rows if key in values]


@pytest.fixture
def board():
    return WandbBoard(Kept(), "stiffness")


def detailed(history):
    return History(history.probe, [replace(reading, detail=detail()) for reading in history])


def shown(board, history):
    board.begin(CARD)
    for count in range(1, len(history) + 1):
        board.reading(history[:count], history[count - 1].step)
    return board.logger


def test_metrics_are_defined_before_the_first_reading(board):
    board.begin(CARD)
    assert set(METRICS) == set(toy_reading(0, 0.5).metrics())
    assert set(board.logger.defined) == {f"stiffness/{key}" for key in METRICS}
    assert board.logger.defined["stiffness/within"] == ("trainer/global_step", "max,last")
    assert board.logger.defined["stiffness/loss"] == ("trainer/global_step", "min,last")
    assert board.logger.defined["stiffness/within_se"] == ("trainer/global_step", "last")
    assert board.logger.config["stiffness_monitor"]["probe"] == {"mode": "train", "classes": 3, "samples": 12}


def test_signals_are_defined_when_they_come(board):
    reading = replace(toy_reading(0, 0.5), signals={"leave_one_out_loss": 1.0, "evidence": 2.0})
    logger = shown(board, History(CARD.probe, [reading]))
    assert logger.defined["stiffness/leave_one_out_loss"][1] == "min,last"
    assert logger.defined["stiffness/evidence"][1] == "max,last"


def test_names_follow_the_prefix_and_the_axis_of_the_logger():
    logger = Kept("mine")
    logger._wandb_init["sync_tensorboard"] = True
    board = WandbBoard(logger, "stiffness")
    board.begin(CARD)
    board.stopped(VERDICT, "why", 30)
    assert logger.defined["mine-stiffness/within"] == ("global_step", "max,last")
    assert logger.experiment.summary["mine-stiffness/stopped_epoch"] == 3.0


def test_tables_and_charts_come_ever_more_rarely_and_at_the_end(board):
    history = detailed(overfitting_history(20, Toy()))
    logger = shown(board, history)
    due = [history[count - 1].step for count in (1, 2, 3, 5, 8, 12, 18)]
    for key in ("class_matrix_table", "class_groups_table", "within_and_between_chart", "within_each_class_chart"):
        assert logger.row_of(f"stiffness/{key}") == due
    assert logger.row_of("stiffness/pair_cosines_within") == [reading.step for reading in history]
    board.end(history)
    assert logger.row_of("stiffness/class_matrix_table") == [*due, history[-1].step]
    assert all("trainer/global_step" not in values for _, values in logger.rows)  # the logger adds it


def test_a_resumed_run_shows_its_first_reading(board):
    history = overfitting_history(20, Toy())
    board.reading(history[:10], 90)
    board.reading(history[:11], 100)
    board.reading(history[:15], 140)
    assert board.logger.row_of("stiffness/class_matrix_table") == [90, 140]


def test_tables_wait_until_a_run_is_long_enough_for_them(board):
    board.begin(CARD)
    for count, elapsed in enumerate([1.0, 2.0, 3.0, 1e6], start=1):
        history = toy_history([0.5] * count)
        board.reading(History(history.probe, [replace(reading, elapsed=elapsed) for reading in history]), count)
        board._seconds = 10.0
    assert board.logger.row_of("stiffness/class_matrix_table") == [1, 4]


def test_a_run_that_ends_with_tables_does_not_write_them_twice(board):
    history = toy_history([0.5, 0.4])
    shown(board, history)
    before = len(board.logger.rows)
    board.end(history)
    assert len(board.logger.rows) == before


def test_the_summary_knows_no_nan(board):
    readings = [replace(toy_reading(i, w), signals={"evidence": e}) for i, (w, e) in enumerate(
        [(math.nan, math.nan), (0.5, math.nan), (0.4, math.nan)]
    )]  # fmt: skip
    history = History(CARD.probe, readings)
    shown(board, history)
    board.end(history)
    summary = board.logger.experiment.summary
    assert summary["stiffness/within"] == {"max": 0.5, "last": 0.4}
    assert "stiffness/loss" not in summary
    assert "stiffness/evidence" not in summary
    assert summary["stiffness/readings"] == 3
    assert summary["stiffness/measuring_seconds"] == 1.5


def test_a_run_without_any_value_ends_well(board):
    history = toy_history([math.nan], toy=Toy(missing=(0, 1, 2)))
    shown(board, history)
    board.end(history)
    assert board.logger.experiment.summary == {"stiffness/readings": 1, "stiffness/measuring_seconds": 0.5}


def test_a_stop_is_told_as_alert_table_and_summary(board):
    shown(board, toy_history([0.5, 0.6, 0.4, 0.3]))
    board.stopped(VERDICT, "Training stops.\nIt fell.", 30)
    board.restored(1.0, "Restored the weights of epoch 1.", 30)
    (alert,) = board.logger.alerts
    assert alert == {
        "title": "Stiffness stops training after 3 epochs",
        "text": "Training stops.\nIt fell.",
        "level": "INFO",
    }
    assert len(alert["title"]) < 64
    summary = board.logger.experiment.summary
    expected = {
        "stopped_epoch": 3.0,
        "stopped_step": 30,
        "stop_reason": "it fell",
        "criterion": "Rule()",
        "best_epoch": 1.0,
        "decision_text": "Training stops.\nIt fell.",
        "restored_epoch": 1.0,
        "restored_text": "Restored the weights of epoch 1.",
    }
    assert {key.removeprefix("stiffness/"): value for key, value in summary.items()} == expected
    assert board.logger.row_of("stiffness/decision") == [30]


def test_a_stop_without_panels_and_without_an_epoch_is_told_too(board):
    board.stopped({"reason": "so", "best_step": None, "epoch": None}, "why", 0)
    assert board.logger.alerts[0]["title"] == "Stiffness stops training"
    assert board.logger.experiment.summary["stiffness/stop_reason"] == "so"


def test_pictures_have_a_caption(board):
    figure = Figure(figsize=(2, 1))
    figure.add_subplot().set_title("Epoch 3", loc="left")
    for tag in ("class_matrix", "other_tag"):
        board.picture(tag, figure, 3)
        figure.axes[0].set_title("", loc="left")
    images = [values[f"stiffness/{tag}"] for (_, values), tag in
              zip(board.logger.rows, ("class_matrix", "other_tag"), strict=True)]  # fmt: skip
    assert [image._caption for image in images] == ["Epoch 3", "other tag"]


def test_a_disabled_run_takes_all_of_it(tmp_path):
    with offline_wandb(tmp_path, "disabled"):
        logger = WandbLogger(save_dir=tmp_path, project="tests")
        board, history = WandbBoard(logger, "stiffness"), detailed(toy_history([0.5, 0.4]))
        board.begin(CARD)
        board.reading(history, 10)
        board.picture("class_matrix", Figure(), 10)
        board.stopped(VERDICT, "why", 10)
        board.end(history)
        logger.experiment.finish()
    assert not (tmp_path / "wandb").exists()


@pytest.mark.slow
def test_nothing_of_it_needs_wandb_or_mlflow_to_be_installed():
    program = """
import sys
sys.modules["wandb"] = sys.modules["mlflow"] = sys.modules["wandb_workspaces"] = None
import lightning_stiffness.loggers
from lightning_stiffness.loggers import wandb_workspace
from lightning_stiffness.errors import StiffnessError
try:
    wandb_workspace.stiffness_workspace("me", "mine")
except StiffnessError as error:
    print(error)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "pip install 'lightning-stiffness[workspaces]'" in result.stdout


# A real run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A fit with both callbacks, and nothing else; what `wandb leet inspect` says of it."""
    folder = tmp_path_factory.mktemp("run")
    with offline_wandb(folder), torch.random.fork_rng():
        torch.manual_seed(0)
        logger = WandbLogger(save_dir=folder, project="tests")
        callbacks = [StiffnessMonitor(probe_size=20), StiffnessEarlyStopping(criterion=at_fourth_reading)]
        trainer(callbacks, logger=logger, max_epochs=9, log_every_n_steps=1).fit(Memoriser(), mislabelled())
        logger.experiment.finish()
        (path,) = folder.glob("wandb/offline-run-*")
        yield SimpleNamespace(
            path=path,
            records=[json.loads(line) for line in inspected("--json", path).splitlines()],
            summary=json.loads(inspected("--json", "--summary", path)),
            history=callbacks[0].history,
        )


def inspected(*arguments: Any) -> str:
    command = [sys.executable, "-m", "wandb", "leet", "inspect", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def of_kind(run: Any, kind: str) -> list[dict[str, Any]]:
    return [record[kind] for record in run.records if record["type"] == kind]


def logged(run: Any) -> list[dict[str, Any]]:
    return [record["item"] for record in of_kind(run, "history")]


def tables(run: Any, key: str) -> list[dict[str, Any]]:
    """The tables that were logged under a key, by their files."""
    paths = [row[f"{key}.path"] for row in logged(run) if f"{key}.path" in row]
    return [json.loads((run.path / "files" / path).read_text()) for path in paths]


@pytest.mark.slow
def test_metrics_have_their_axis_and_their_summary(run):
    defined = {metric["name"]: metric for metric in of_kind(run, "metric") if "name" in metric}
    for key in METRICS:
        assert defined[f"stiffness/{key}"]["step_metric"] == "trainer/global_step"
    assert defined["stiffness/within"]["summary"] == {"max": True, "last": True}
    assert defined["stiffness/loss"]["summary"] == {"min": True, "last": True}
    assert not [name for name in defined if not name.startswith(("stiffness/", "trainer/"))]


@pytest.mark.slow
def test_all_that_is_logged_has_the_global_step(run):
    rows = [row for row in logged(run) if any(key.startswith("stiffness/") for key in row)]
    assert all("trainer/global_step" in row for row in rows)
    values = {row["trainer/global_step"]: row["stiffness/within"] for row in rows if "stiffness/within" in row}
    assert list(values.values()) == pytest.approx(run.history.series("within").tolist())
    steps = [row["trainer/global_step"] for row in rows if "stiffness/class_matrix_table._type" in row]
    assert (steps[0], steps[-1]) == (0, run.history[-1].step - 1)


@pytest.mark.slow
def test_tables_hold_the_matrix_and_the_groups(run):
    last = tables(run, "stiffness/class_matrix_table")[-1]
    assert last["columns"] == ["epoch", "class a", "class b", "mean cosine"]
    matrix = run.history[-1].cosine.matrix
    assert len(last["data"]) == 15
    assert all(value == pytest.approx(float(matrix[int(a), int(b)]), abs=1e-5) for _, a, b, value in last["data"])
    groups = tables(run, "stiffness/class_groups_table")[-1]
    assert sum(row[3] for row in groups["data"]) == 5


@pytest.mark.slow
def test_charts_hold_the_lines(run):
    config = {name: value for record in of_kind(run, "config") for name, value in record["update"].items()}
    for key in ("within_and_between_chart", "within_each_class_chart", "pair_cosines_chart"):
        panel = config[f"_wandb.visualize.stiffness/{key}"]["panel_config"]
        assert panel["panelDefId"] == "wandb/lineseries/v0"
        assert panel["stringSettings"]["title"]
    rows = tables(run, "stiffness/within_and_between_chart_table")[-1]["data"]
    within = [value for _, name, value in rows if name == "within"]
    assert within == pytest.approx(run.history.series("within").tolist())
    assert {name for _, name, _ in tables(run, "stiffness/within_each_class_chart_table")[-1]["data"]} == set("01234")


@pytest.mark.slow
def test_histograms_hold_the_pairs(run):
    counts = [row["stiffness/pair_cosines_within.values"] for row in logged(run) if
              "stiffness/pair_cosines_within.values" in row]  # fmt: skip
    assert len(counts) == len(run.history)
    assert sum(counts[0]) == 5 * 4 * 3


@pytest.mark.slow
def test_pictures_are_images_with_captions(run):
    for tag in DASHBOARD:
        rows = [row for row in logged(run) if f"stiffness/{tag}._type" in row]
        assert rows, tag
        assert rows[-1]["trainer/global_step"] in (20, 21)
        assert all(row[f"stiffness/{tag}._type"] == "image-file" for row in rows)
        assert all(row[f"stiffness/{tag}.caption"] for row in rows)
        assert (run.path / "files" / rows[0][f"stiffness/{tag}.path"]).stat().st_size > 1000


@pytest.mark.slow
def test_the_stop_is_an_alert_a_card_and_part_of_the_summary(run):
    (alert,) = of_kind(run, "alert")
    assert alert["title"] == "Stiffness stops training after 3 epochs"
    assert "Training stops after 3 epochs" in alert["text"]
    summary = run.summary["summary"]
    assert summary["stiffness/stopped_epoch"] == 3
    assert summary["stiffness/stop_reason"] == "enough is enough"
    assert "at_fourth_reading" in summary["stiffness/criterion"]
    assert summary["stiffness/best_epoch"] == summary["stiffness/restored_epoch"] == 1
    assert "Restored the weights of epoch 1" in summary["stiffness/restored_text"]
    assert summary["stiffness/within"]["max"] == pytest.approx(max(run.history.series("within").tolist()))
    assert summary["stiffness/readings"] == 4
    assert "Training stops" in tables(run, "stiffness/decision")[0]["data"][0][1]


@pytest.mark.slow
def test_settings_are_in_the_config(run):
    settings = run.summary["config"]["stiffness_monitor"]
    assert settings["probe"] == {"classes": 5, "mode": "train", "samples": 20}
    assert "Adam" in settings["optimizer"]


@pytest.mark.slow
def test_the_metrics_of_the_user_are_left_alone(run):
    losses = [row for row in logged(run) if "train_loss_step" in row]
    assert len(losses) == 3 * 7
    assert all(not [key for key in row if key.startswith("stiffness/")] for row in losses)


@pytest.mark.slow
@pytest.mark.parametrize("make", [stiffness_workspace, stiffness_report])
def test_workspace_and_report_show_what_is_logged(run, make):
    pytest.importorskip("wandb_workspaces")
    known = {key.split("._")[0] for row in logged(run) for key in row}
    known |= set(run.summary["summary"]) | {key.split(".")[0] for key in known}
    wanted = keys_of(make("me", "tests"))
    assert wanted
    assert wanted <= known, wanted - known


def keys_of(made: Any) -> set[str]:
    """All names of logged things in a workspace or a report."""
    parts = [part for section in getattr(made, "sections", ()) for part in section.panels]
    parts += [part for block in getattr(made, "blocks", ()) for part in getattr(block, "panels", ())]
    text = " ".join(str(part) for part in parts if not hasattr(part, "markdown"))
    return {word for word in text.replace("'", " ").replace("{", " ").replace("}", " ").split() if "stiffness/" in word}


def test_the_classes_of_a_balancer_are_a_table():
    board = WandbBoard(Kept(), "balancing")
    board.balance(toy_readings(2), 20)
    assert board.logger.row_of("balancing/classes_table") == [20]
    ((_, values),) = board.logger.rows
    table = values["balancing/classes_table"]
    assert table.columns[0] == "class"
    assert len(table.data) == 6
