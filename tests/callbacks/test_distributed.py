"""Two processes measure the same, decide the same, and never wait for one another in vain."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lightning_stiffness import History
from tests.callbacks import distributed_fit
from tests.processes import seen_by_both

pytestmark = pytest.mark.slow


def fitted(case: str, folder: Path) -> list[dict[str, Any]]:
    """What each of the two processes saw."""
    return seen_by_both(distributed_fit.main, case, folder=folder)


def launched(case: str, folder: Path) -> list[dict[str, Any]]:
    """The same of a program that Lightning starts a second time by itself."""
    inherited = {name: value for name, value in os.environ.items() if name != "PL_GLOBAL_SEED"}
    result = subprocess.run(
        [sys.executable, "-m", "tests.callbacks.distributed_fit", case, folder],
        env=dict(inherited, PYTHONPATH=".", OMP_NUM_THREADS="1", NCCL_DEBUG=""),
        timeout=1200,
        capture_output=True,
        text=True,
        check=False,
    )
    files = [folder / "rank0.json", folder / "rank1.json"]
    assert all(path.exists() for path in files), result.stderr[-3000:]
    return [json.loads(path.read_text()) for path in files]


def test_both_processes_read_and_decide_the_same_and_write_once(tmp_path):
    first, second = launched("default", tmp_path)
    assert first == second
    assert 6 <= first["epochs"] < 30
    assert first["decision"]["stop"]
    assert first["decision"]["epoch"] == first["epochs"]
    files = sorted(path.name for path in tmp_path.rglob("*stiffness*"))
    assert files == ["stiffness.jsonl", "stiffness_decision.json", "stiffness_probe.json"]
    history = History.load(next(tmp_path.rglob("stiffness.jsonl")))
    assert [reading.step for reading in history] == [reading[0] for reading in first["readings"]]


def test_readings_before_steps(tmp_path):
    first, second = fitted("steps", tmp_path)
    assert first == second
    assert [reading[0] for reading in first["readings"]] == [0, 2, 3, 4, 6]


@pytest.mark.parametrize(("rank", "readings"), [(0, 2), (1, 4)])
def test_a_measurement_that_fails_in_one_process_does_not_hang(rank, readings, tmp_path):
    first, second = fitted(f"fails on {rank}", tmp_path)
    assert first == second
    assert first["epochs"] == 3
    assert len(first["readings"]) == readings  # the first process counts for all


def test_a_verdict_of_one_process_stops_both_at_the_same_epoch(tmp_path):
    first, second = fitted("disagree", tmp_path)
    assert first["epochs"] == second["epochs"] == 2
    assert first["message"] is not None
    assert second["message"] is not None


def test_what_cannot_work_is_said_by_both(tmp_path):
    first, second = fitted("no targets", tmp_path)
    assert "targets=" in first["error"]
    assert first["error"] == second["error"]


def test_both_processes_end_with_the_weights_that_the_first_holds_for_the_best(tmp_path):
    first, second = seen_by_both(distributed_fit.restored, folder=tmp_path)
    assert first == second
    assert 6 <= first["epochs"] < 30
    assert first["weights"] == first["then"] != first["last"]
    files = sorted(path.name for path in tmp_path.rglob("*stiffness_*"))
    assert files == ["stiffness_decision.json", "stiffness_probe.json", "stiffness_shadow.json"]
    written = json.loads(next(tmp_path.rglob("stiffness_decision.json")).read_text())
    assert written["restored_step"] == first["step"] < written["step"]
    assert json.loads(next(tmp_path.rglob("stiffness_shadow.json")).read_text()).items() >= first["shadow"].items()
