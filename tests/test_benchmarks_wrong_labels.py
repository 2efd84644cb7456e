import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
pytest.importorskip("cleanlab")


@pytest.fixture(autouse=True)
def _path_of_the_scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def module(name):
    return importlib.import_module(name)


def cell(seed, auc, hits=0.5, **changed):
    methods = ("ours", "loss", "margin", "alignment", "folds_confidence")
    rankings = {method: {"auc": auc, "precision": hits} for method in methods}
    rankings |= {method: {"auc": auc, "precision": value} for method, value in changed.items()}
    found = {name: {"count": 30, "precision": 0.5, "recall": 0.6} for name in ("ours", "cleanlab")}
    readings = [
        {"name": name, "epoch": epoch, "seconds": 1.0, "rankings": rankings, "found": found}
        for name, epoch in (("epoch 2", 2), ("epoch 4", 4), ("stopped", 3))
    ]
    setting = {"data": "digits", "network": "perceptron", "share": 0.1, "seed": seed, "samples": 200}
    return {"setting": setting, "stop_epoch": 7, "seconds": {"a fit": 2.0}, "readings": readings}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
def test_the_quick_run_writes_tables_numbers_and_a_picture(tmp_path, capsys):
    script = module("wrong_labels")
    assert script.main(["--quick", "--output", str(tmp_path)]) == 0
    for name in ("wrong_labels.md", "wrong_labels.png"):
        assert (tmp_path / name).stat().st_size > 500
    results = json.loads((tmp_path / "wrong_labels.json").read_text())
    readings = results["cells"][0]["readings"]
    assert [reading["name"] for reading in readings] == ["epoch 2", "epoch 4", "stopped"]
    assert readings[1]["rankings"]["ours"]["auc"] > 0.7
    assert script.main(["--quick", "--report-only", "--output", str(tmp_path)]) == 0
    assert "**ours**" in capsys.readouterr().out


def test_the_report_says_where_ours_loses():
    report = module("wrong_labels_report")
    cells = [cell(0, 0.9, loss=0.8), cell(1, 0.8, loss=0.6), cell(2, 0.7, loss=0.7)]
    text = report.markdown({"facts": {"processor": "P", "versions": {"torch": "2"}}, "cells": cells})
    assert "| **ours** | 80.0 +- 5.8 | 50.0 +- 0.0 |" in text
    assert "## Where it loses" in text
    assert "-20.0 +- 5.8" in text
    assert text.count("small loss; cleanlab's default, in-sample | -20.0 +- 5.8 | +0.0 +- 0.0 |") == 3


def test_the_picture_shows_each_group():
    picture = module("wrong_labels_picture")
    figure = picture.draw([cell(0, 0.9), cell(1, 0.8)])
    assert [axes.get_title() for axes in figure.axes if axes.axison] == ["Digits, perceptron, 200 samples: 10% wrong"]


def test_flips_are_as_many_as_asked_for_and_repeatable():
    training = module("wrong_labels_training")
    setting = training.Setting("digits", "CNN", 0.2, 3, 150, (1,))
    first, second = training.flipped(setting, None), training.flipped(setting, None)
    assert int(first.is_wrong.sum()) == 30
    assert torch.equal(first.given, second.given)
    assert training.untrained(setting, first).network(first.inputs).shape == (150, 10)


def test_scores_of_a_perfect_and_of_a_useless_ranking():
    training = module("wrong_labels_training")
    wrong = np.array([True, False, True, False])
    assert training.ranked(np.array([0.0, 0.9, 0.1, 0.8]), wrong) == {"auc": 1.0, "precision": 1.0}
    assert training.ranked(np.ones(4), wrong)["auc"] == 0.5
    assert training.counted(wrong, wrong) == {"count": 2, "precision": 1.0, "recall": 1.0}
    assert training.counted(~wrong, wrong)["recall"] == 0


def test_data_that_are_not_there_are_told(tmp_path, capsys):
    with pytest.raises(SystemExit):
        module("wrong_labels").main(["--output", str(tmp_path), "--data", str(tmp_path / "none.npz")])
    assert "--data must be a file" in capsys.readouterr().err
