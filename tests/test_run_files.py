import json
from dataclasses import replace

import pytest

from lightning_stiffness.balance import save_readings
from lightning_stiffness.history import History
from lightning_stiffness.run_files import RunFiles, save_probe
from tests.toy_balance import toy_readings
from tests.toy_history import overfitting_history


@pytest.fixture
def path(tmp_path):
    history = overfitting_history(3)
    ids = tuple(range(len(history.probe.strata)))
    History(replace(history.probe, ids=ids), history).save(tmp_path / "stiffness.jsonl")
    return tmp_path / "stiffness.jsonl"


def test_all_of_it_comes_back(path):
    save_probe(path, {"model": "Net", "planned": 3}, [b"png%d" % k for k in range(40)])
    path.with_name("stiffness_decision.json").write_text('{"stopped": true}')
    path.with_name("stiffness_shadow.json").write_text('{"criteria": []}')
    run = RunFiles.load(path)
    assert len(run.history) == 4
    assert run.settings == {"model": "Net", "planned": 3}
    assert run.thumbnails[7] == b"png7"
    assert (run.decision, run.shadow) == ({"stopped": True}, {"criteria": []})


def test_a_history_alone_will_do(path):
    run = RunFiles.load(path)
    assert (dict(run.settings), run.thumbnails, run.decision, run.shadow) == ({}, (), None, None)


def test_what_is_damaged_or_of_another_probe_is_left_out(path):
    save_probe(path, {}, [b"png"])
    path.with_name("stiffness_decision.json").write_text("{")
    path.with_name("stiffness_shadow.json").write_text(json.dumps([1]))
    run = RunFiles.load(path)
    assert (run.thumbnails, run.decision, run.shadow) == ((), None, None)


def test_without_a_history_there_is_no_run(tmp_path):
    with pytest.raises(FileNotFoundError):
        RunFiles.load(tmp_path / "stiffness.jsonl")


def test_readings_of_a_balancer_stand_beside(path):
    assert RunFiles.load(path).balance == ()
    save_readings(path.with_name("balancing.jsonl"), toy_readings(2))
    assert [reading.step for reading in RunFiles.load(path).balance] == [10, 20]
    path.with_name("balancing.jsonl").write_text("{")
    assert RunFiles.load(path).balance == ()


def test_a_balancer_alone_makes_a_run(tmp_path):
    save_readings(tmp_path / "balancing.jsonl", toy_readings(2, names=tuple("abcdef")))
    run = RunFiles.load(tmp_path / "balancing.jsonl")
    assert (len(run.history), len(run.balance)) == (0, 2)
    assert run.history.probe.class_names == tuple("abcdef")
    save_readings(tmp_path / "balancing.jsonl", [])
    assert RunFiles.load(tmp_path / "balancing.jsonl").balance == []
