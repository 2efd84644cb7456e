import json

import pytest

from lightning_stiffness.report.matrix import frames, tree_of
from lightning_stiffness.report.matrix_chart import HEAT, MOST_NUMBERS, matrix_chart, matrix_width
from tests.report.runs import EVIL
from tests.toy_history import Toy, overfitting_history


def chart(toy, epochs=3):
    history = overfitting_history(epochs, toy)
    shown = frames(history)
    return matrix_chart(history, shown, tree_of(history, shown.classes))


def params(spec):
    return {param["name"]: param["value"] for param in spec["params"]}


def test_signals_are_those_that_the_page_sets():
    found = params(chart(Toy(num_classes=3)))
    assert (found["frame"], found["order"], found["step"]) == (3, "tree", 1)
    assert len(found["frames"]) == 4
    assert found["orders"]["given"] == [0, 1, 2]
    for order, places in found["orders"].items():
        assert [places[rank] for rank in found["ranks"][order]] == [0, 1, 2]


def test_names_are_values_and_never_part_of_an_expression():
    spec = chart(Toy(num_classes=4, class_names=EVIL))
    assert params(spec)["names"] == list(EVIL)
    assert "alert" not in json.dumps(spec["layer"])


@pytest.mark.parametrize(("classes", "has_text"), [(MOST_NUMBERS, True), (MOST_NUMBERS + 1, False)])
def test_numbers_stand_in_the_cells_of_few_classes(classes, has_text):
    assert ('"type": "text"' in json.dumps(chart(Toy(num_classes=classes))["layer"])) == has_text


def test_super_classes_have_a_strip_and_frames():
    groups = (0, 0, 1, 1)
    spec = chart(Toy(num_classes=4, superclasses=groups))
    rows = [row for rows in spec["datasets"].values() for row in rows]
    assert {row["group"] for row in rows if "group" in row} == {"super-class 0", "super-class 1"}
    assert [(row["low"], row["high"]) for row in rows if "low" in row] == [(0, 2), (2, 4)]
    assert spec["usermeta"]["ratio"] > matrix_width(4, has_groups=False)


def test_colours_are_variables_of_the_page():
    assert f"var(--heat-{HEAT - 1})" in json.dumps(chart(Toy()))


@pytest.mark.parametrize("classes", [1, 2])
def test_a_class_or_two_are_drawn(classes):
    assert chart(Toy(num_classes=classes))["usermeta"]["ratio"] == 1
