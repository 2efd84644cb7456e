from dataclasses import replace

import pytest
import torch

from lightning_stiffness.history import History
from lightning_stiffness.report.balancing import balance_section
from lightning_stiffness.report.sections import run_section
from lightning_stiffness.report.words import headline, run_names
from lightning_stiffness.run_files import RunFiles
from tests.report.runs import complete_run
from tests.toy_balance import toy_reading, toy_readings
from tests.toy_history import toy_probe


def balanced_run(readings, path="logs/version_0/balancing.jsonl"):
    return RunFiles(path=type(complete_run().path)(path), history=History(toy_probe()), balance=readings)


def test_without_readings_there_is_no_section():
    assert balance_section([]) is None


def test_four_parts_with_their_words():
    section = balance_section(toy_readings(3))
    assert [[figure.key for figure in figures] for figures, _ in section.parts] == [
        ["balance-classifier", "balance-features"],
        ["balance-takers"],
        ["balance-recall"],
        ["balance-sacrificed", "balance-raster"],
    ]
    assert all("What to do: " in words for _, words in section.parts)
    assert "3 times in the run (300 ms in all) on 120 training samples" in section.lead
    assert len(section.rows) == 6
    assert section.note == ""


@pytest.mark.parametrize(
    ("changes", "missing"),
    [
        ({"features": None}, "balance-features"),
        ({"recalls": False}, "balance-recall"),
        ({"counts": torch.full((6,), 9.0)}, "balance-takers"),
        ({"absorption": None}, "balance-takers"),
    ],
)
def test_what_is_not_known_is_left_out(changes, missing):
    keys = [figure.key for figure in balance_section([toy_reading(**changes)]).figures]
    assert missing not in keys
    assert "balance-classifier" in keys


@pytest.mark.slow
def test_many_classes():
    section = balance_section(toy_readings(2, classes=400))
    titles = [figure.title for figure in section.figures]
    assert "Who takes the small classes' probability, the 40 smallest of 220" in titles
    assert "Which ones, the 40 smallest of 220" in titles
    assert (len(section.rows), section.note) == (200, "200 larger classes are left out.")


def test_a_run_without_a_history_has_a_section():
    run = balanced_run(toy_readings(3))
    section = run_section(run, "run0", "mine")
    assert section.headline == "Trained with balanced classes for 3 epochs, balanced accuracy in validation 79 %."
    assert section.described == "3 readings of 6 classes, epoch 3 at the end."
    assert section.advice == ()
    assert section.figures == section.balance.figures
    assert run_names([run]) == ["version_0"]
    assert headline(balanced_run(toy_readings(1, recalls=False))) == "Trained with balanced classes for 1 epoch."


@pytest.mark.slow
def test_a_run_with_a_history_has_both():
    section = run_section(replace(complete_run(), balance=toy_readings(2)), "run0", "mine")
    assert section.curves
    assert section.balance is not None
    assert all(figure in section.figures for figure in section.balance.figures)
