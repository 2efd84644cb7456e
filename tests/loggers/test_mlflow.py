"""MLflow: artifacts and tags of a run in a local file store."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import MLFlowLogger
from matplotlib.figure import Figure

from lightning_stiffness import History, StiffnessEarlyStopping, StiffnessMonitor
from lightning_stiffness.loggers import RunCard
from lightning_stiffness.loggers.mlflow import LONGEST_TAG, MLFlowBoard
from tests.callbacks.modules import QUIET, Memoriser, mislabelled, trainer
from tests.loggers.stopping import at_fourth_reading
from tests.toy_balance import toy_readings
from tests.toy_history import Toy, toy_history

pytest.importorskip("mlflow")
pytestmark = QUIET


@pytest.fixture
def logger(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # MLflow 3 refuses it otherwise
    return MLFlowLogger("tests", tracking_uri=f"file:{tmp_path}/store", artifact_location=f"file:{tmp_path}/artifacts")


def artifacts(logger: Any, tmp_path: Path) -> dict[str, Path]:
    root = tmp_path / "artifacts" / logger.run_id / "artifacts"
    return {str(path.relative_to(root)): path for path in root.rglob("*") if path.is_file()}


def tags(logger: Any) -> dict[str, str]:
    return logger.experiment.get_run(logger.run_id).data.tags


def test_each_thing_is_an_artifact_or_a_tag(logger, tmp_path):
    history = toy_history([0.5, 0.4], toy=Toy(class_names=("cat", "dog", "car"), missing=(1,)))
    board = MLFlowBoard(logger, "stiffness")
    board.begin(RunCard(history.probe, {"readings": "every epoch"}, {}))
    board.reading(history, 10)
    board.picture("class_matrix", Figure(figsize=(1, 1)), 10)
    board.text("stiffness/restored", "Restored.", 10)
    board.stopped({"reason": "r" * 2 * LONGEST_TAG, "epoch": 2.0, "best_step": None, "criterion": "Rule()"}, "why", 10)
    board.end(history)
    found = artifacts(logger, tmp_path)
    assert json.loads(found["stiffness/settings.json"].read_text()) == {
        "readings": "every epoch",
        "probe": {"mode": "train", "classes": 3, "samples": 12},
    }
    assert found["stiffness/class_matrix/step_00000010.png"].stat().st_size > 100
    assert found["stiffness/restored.txt"].read_text() == "Restored."
    assert found["stiffness/decision.txt"].read_text() == "why"
    assert json.loads(found["stiffness/decision.json"].read_text())["epoch"] == 2.0
    matrix = json.loads(found["stiffness/class_matrix.json"].read_text())
    assert matrix["columns"] == ["epoch", "class a", "class b", "mean cosine"]
    assert matrix["data"][0] == [1.0, "cat", "cat", 0.4]
    assert "NaN" not in found["stiffness/class_groups.json"].read_text()
    assert tags(logger)["stiffness/stopped_epoch"] == "2.0"
    assert tags(logger)["stiffness/stop_reason"] == "r" * LONGEST_TAG
    assert tags(logger)["stiffness/last_within"] == "0.4"
    assert "stiffness/best_step" not in tags(logger)


def test_a_run_without_values_ends_well(logger):
    history = toy_history([math.nan], toy=Toy(missing=(0, 1, 2)))
    MLFlowBoard(logger, "stiffness").end(history)
    assert tags(logger)["stiffness/readings"] == "1"
    assert "stiffness/last_within" not in tags(logger)


def test_settings_may_change_when_a_run_is_resumed(logger, tmp_path):
    probe = toy_history([0.5]).probe
    for schedule in ("every epoch", "every 2 epochs"):
        MLFlowBoard(logger, "stiffness").begin(RunCard(probe, {"readings": schedule}, {}))
    assert "every 2" in artifacts(logger, tmp_path)["stiffness/settings.json"].read_text()


def test_a_history_of_another_probe_has_its_own_name(logger, tmp_path):
    history = toy_history([0.5])
    MLFlowBoard(logger, "val_stiffness").end(History(replace(history.probe, mode="val"), history))
    assert "val_stiffness/class_matrix.json" in artifacts(logger, tmp_path)


@pytest.mark.slow
def test_a_fit_with_both_callbacks(logger, tmp_path):
    monitor = StiffnessMonitor(probe_size=20)
    callbacks = [monitor, StiffnessEarlyStopping(criterion=at_fourth_reading)]
    trainer(callbacks, logger=logger, max_epochs=9).fit(Memoriser(), mislabelled())
    values = logger.experiment.get_metric_history(logger.run_id, "stiffness/within")
    assert [value.value for value in values] == pytest.approx(monitor.history.series("within").tolist())
    assert [value.step for value in values] == [0, 6, 13, 20]
    found = artifacts(logger, tmp_path)
    assert "Training stops after 3 epochs" in found["stiffness/decision.txt"].read_text()
    assert "Adam" in found["stiffness/settings.json"].read_text()
    assert any(place.startswith("stiffness/class_matrix/step_") for place in found)
    assert tags(logger)["stiffness/stop_reason"] == "enough is enough"


def test_the_classes_of_a_balancer_are_a_table_and_words(logger, tmp_path):
    MLFlowBoard(logger, "balancing").balance(toy_readings(2, recalls=False), 20)
    found = artifacts(logger, tmp_path)
    table = json.loads(found["balancing/classes.json"].read_text())
    assert (table["columns"][0], len(table["data"])) == ("class", 6)
    assert table["data"][0][-1] is None
    assert "the network confuses them" in found["balancing/classes.txt"].read_text()
