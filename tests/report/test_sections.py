import math
from dataclasses import replace
from pathlib import Path

import pytest

from lightning_stiffness.history import History
from lightning_stiffness.report import matrix
from lightning_stiffness.report.sections import cost_of, matrix_figure, run_section, tiles, verdict_tables
from lightning_stiffness.report.words import DASH, MINUS
from lightning_stiffness.run_files import RunFiles
from lightning_stiffness.stopping import StiffnessDrop
from tests.report.runs import DECISION, SHADOW, batch_run, complete_run, plain_run, undefined_run
from tests.toy_history import Toy, overfitting_history, toy_history, toy_probe


@pytest.mark.slow
def test_a_complete_run_has_every_part():
    section = run_section(complete_run(decision=DECISION, shadow=SHADOW), "run0", "mine")
    empty = [name for name, value in vars(section).items() if not value]
    assert empty == ["least_stiff"]  # there are six pairs of classes, all in the other table
    assert section.candidates[0].picture.startswith("data:image/png;base64,")
    assert ("processes", "1") in section.settings


@pytest.mark.parametrize(
    "run",
    [
        batch_run(),
        undefined_run(),
        plain_run(toy_history([0.5])),
        plain_run(overfitting_history(3, Toy(num_classes=1))),
        plain_run(overfitting_history(3, Toy(num_classes=2, missing=(0, 1)))),
        plain_run(History(toy_probe())),
    ],
    ids=["batch", "undefined", "one reading", "one class", "no pairs", "empty"],
)
def test_every_run_has_a_section(run):
    section = run_section(run, "run0", "mine")
    assert section.headline
    assert section.advice is not None
    assert "nan" not in " ".join(tile.value + tile.note for tile in section.tiles)


def test_tiles_say_what_is_not_known():
    found = {tile.label: tile for tile in tiles(complete_run().history)}
    assert found["overhead"].value == "5.0 %"
    assert found["within classes, now"].note == "± 0.020"
    bare = {tile.label: tile for tile in tiles(toy_history([0.5]))}
    assert bare["measuring took"].value == "500 ms"
    undefined = {tile.label: tile for tile in tiles(undefined_run().history)}
    assert (undefined["within classes, now"].value, undefined["within classes, now"].note) == (DASH, "error not known")
    assert "at its highest" not in undefined


def test_the_matrix_says_what_is_left_out(monkeypatch):
    history = overfitting_history(9, Toy(num_classes=5, missing=(1,)))
    assert matrix_figure(history).notes == ("Grey: no pair of samples to measure.",)
    monkeypatch.setattr(matrix, "MOST_CLASSES", 3)
    monkeypatch.setattr(matrix, "MOST_ENTRIES", 9 * 4)
    found = matrix_figure(history)
    assert "Of 5 classes the 3" in found.notes[0]
    assert "4 of 10 readings" in found.notes[1]
    assert len(found.words) == 4
    assert found.words[0].startswith(f"epoch 0, within 0.55, between {MINUS}0.1")
    assert list(found.orders) == ["tree", "given"]
    assert matrix_figure(undefined_run().history) is None
    assert "super" in matrix_figure(overfitting_history(1, Toy(superclasses=(0, 0, 1)))).orders


def test_verdicts_are_those_that_were_saved_and_those_of_now():
    saved, now = verdict_tables(complete_run(decision=DECISION, shadow=SHADOW), None)
    assert saved.rows == (("Mine<b>", "epoch 7", "epoch 5", "0.25"), ("Never", "never", DASH, DASH))
    assert saved.reasons["Mine<b>"] == "since <b>"
    assert "ValidationPatience" in [row[0] for row in now.rows]
    assert "later stops cannot be seen" in now.note
    (chosen,) = verdict_tables(complete_run(), {"mine": StiffnessDrop()})
    assert [row[0] for row in chosen.rows] == ["mine"]
    assert "stopped there" not in chosen.note


def test_a_damaged_shadow_file_does_no_harm():
    for shadow in ({"criteria": "?"}, {"criteria": [1, {"name": "x"}]}, {"best": None}):
        assert verdict_tables(complete_run(shadow=shadow), None)


def test_costs_are_in_words():
    ((label, text),) = cost_of(complete_run().history)
    assert label == "cost of readings"
    assert text.startswith("500 ms a reading, 5 s for all 10 readings: 5.0 % of the 2 min from the start of training")
    ((_, bare),) = cost_of(toy_history([0.5]))
    assert bare == "500 ms a reading, 500 ms for all 1 reading"


def test_settings_of_any_kind_are_text():
    settings = {"a": [1, 2], "b": 12345, "c": True, "d": None}
    run = RunFiles(Path("x", "stiffness.jsonl"), toy_history([0.5]), settings)
    assert run_section(run, "run0", "mine").settings[:4] == (
        ("a", "1, 2"),
        ("b", "12,345"),
        ("c", "True"),
        ("d", "None"),
    )


def test_a_history_of_the_first_version_has_no_details():
    history = overfitting_history(3)
    old = History(history.probe, [replace(reading, elapsed=math.nan, detail=None) for reading in history])
    section = run_section(plain_run(old), "run0", "old")
    assert (section.candidates, section.pairs, section.distance) == ((), (), None)
