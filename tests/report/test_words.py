import math
from dataclasses import replace
from pathlib import Path

import pytest

from lightning_stiffness.history import History
from lightning_stiffness.report.words import (
    DASH,
    class_names,
    duration,
    headline,
    listed,
    number,
    overhead,
    peak,
    percent,
    readings_of,
    reasons,
    run_names,
    short,
)
from lightning_stiffness.run_files import RunFiles
from tests.report.runs import DECISION, batch_run, complete_run, plain_run, undefined_run
from tests.toy_history import Toy, toy_history, toy_probe


def test_what_is_no_number_is_a_dash():
    assert {number(math.nan), number(None), short(math.inf), percent(math.nan), duration(math.nan)} == {DASH}
    assert number(-0.00001) == "0.000"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.5, "500 ms"), (12.34, "12.3 s"), (600, "10 min"), (7260, "2 h 1 min")]
)
def test_durations_have_the_unit_that_fits(seconds, text):
    assert duration(seconds) == text


def test_long_lists_are_cut():
    assert listed(["a"]) == "a"
    assert listed(list("abcdefgh"), 2) == "a, b and 6 more"


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["logs/version_3/stiffness.jsonl"], ["version_3"]),
        (["logs/version_3/val_stiffness.jsonl"], ["version_3/val_stiffness"]),
        (["logs/a/stiffness.jsonl", "logs/b/stiffness.jsonl"], ["a", "b"]),
        (["logs/a/v0/stiffness.jsonl", "logs/b/v0/stiffness.jsonl"], ["a/v0", "b/v0"]),
        (["logs/a/stiffness.jsonl", "logs/a/val_stiffness.jsonl"], ["a", "a/val_stiffness"]),
    ],
)
def test_runs_are_called_by_what_differs_in_their_paths(paths, names):
    assert run_names([RunFiles(Path(path), toy_history([])) for path in paths]) == names


def test_the_headline_says_what_happened():
    assert headline(complete_run(decision=DECISION)) == ("Stopped after 9 epochs. It ends with the weights of epoch 4.")
    assert headline(complete_run()) == "Measured for 9 epochs, with nothing in charge of stopping."
    goes_on = {**DECISION, "stopped": False, "restored_epoch": None}
    assert headline(complete_run(decision=goes_on)) == "Measured for 9 epochs and not stopped."
    assert headline(plain_run(toy_history([]))) == "Nothing was measured yet."


def test_reasons_are_those_of_the_stopper_and_name_a_best_below_the_peak():
    lines = reasons(complete_run(decision=DECISION))
    assert lines[:2] == ["Training stops after 9 epochs.", "It fell."]
    assert "below the peak of the curve" in lines[2]
    assert reasons(complete_run(decision={**DECISION, "explanation": None, "best": 2.0})) == ["It fell."]
    assert reasons(complete_run()) == []


def test_readings_are_described():
    assert readings_of(complete_run().history) == (
        "10 readings of 16 samples, pairs of a training and a validation sample, 4 classes, epoch 0 to 9."
    )
    assert readings_of(batch_run().history).startswith("6 readings, pairs of samples of the same training batch")
    assert readings_of(History(toy_probe())) == "0 readings of 12 samples, pairs of training samples, 3 classes."


def test_peak_and_overhead_know_what_is_missing():
    assert peak(undefined_run().history) is None
    assert peak(toy_history([0.1, 0.9, 0.3])).epoch == 1
    assert math.isnan(overhead(toy_history([])))
    assert math.isnan(overhead(toy_history([0.5, 0.5])))  # of a version that did not save the time
    history = toy_history([0.5, 0.5])
    timed = History(history.probe, [replace(reading, elapsed=10 * (reading.epoch + 1)) for reading in history])
    assert overhead(timed) == pytest.approx(0.05)


def test_classes_without_names_have_numbers():
    assert class_names(toy_probe()) == ["0", "1", "2"]
    assert class_names(toy_probe(Toy(class_names=("a", "b", "c")))) == ["a", "b", "c"]
    assert class_names(toy_probe(Toy(class_names=("a", "b", "a")))) == ["a (0)", "b", "a (2)"]
