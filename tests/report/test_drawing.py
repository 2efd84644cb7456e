import json
import math

import altair as alt

from lightning_stiffness.report.drawing import (
    FEW,
    colors_by,
    dots,
    epoch_axis,
    hover,
    look,
    mark_lines,
    mark_words,
    rounded,
    spec_of,
    value_axis,
    zero_line,
)
from tests.toy_history import toy_history


def spec(layer):
    return spec_of(alt.layer(layer), "what it shows")


def test_numbers_are_short_and_finite():
    assert rounded(1 / 3) == 0.333333
    assert rounded(math.nan) is None
    assert rounded(-math.inf) is None


def test_a_chart_is_plain_json_without_size_and_colours_of_its_own():
    found = spec(zero_line())
    assert found["description"] == "what it shows"
    assert "width" not in found
    assert "config" not in found
    assert "var(--muted)" in json.dumps(found)
    json.dumps(look(), allow_nan=False)


def test_a_legend_is_there_for_more_than_one_kind():
    assert colors_by({"a": "red"}, "kind").to_dict()["legend"] is None
    assert colors_by({"a": "red", "b": "blue"}, "kind").to_dict()["scale"]["range"] == ["red", "blue"]


def test_dots_are_for_few_readings():
    assert dots(toy_history([0.5] * FEW))
    assert dots(toy_history([0.5] * (FEW + 1))) is False


def test_axes_follow_the_data():
    assert epoch_axis().to_dict()["scale"]["nice"] is False
    assert value_axis("value", "loss").to_dict()["title"] == "loss"


def test_names_with_dots_and_brackets_are_no_fields():
    found = spec(hover([{"epoch": 1.0, "x.y[0]": "0.5"}, {"epoch": 3.0, "x.y[0]": "0.4"}]))
    first, second = next(iter(found["datasets"].values()))
    assert first == {"epoch": 1.0, "from": 1.0, "to": 2.0, "f0": "0.5"}
    assert second == {"epoch": 3.0, "from": 2.0, "to": 3.0, "f0": "0.4"}
    assert found["layer"][0]["encoding"]["tooltip"][1]["title"] == "x.y[0]"
    assert spec(hover([]))


def test_marks_have_their_words_on_the_side_with_room():
    history = toy_history([0.5] * 11)
    assert mark_lines({}) == []
    marks = {"stop": 9.0, "restored": 2.0}
    assert len(mark_lines(marks)) == 1
    words = [spec(layer)["layer"][0]["mark"]["align"] for layer in mark_words(marks, history)]
    assert words == ["right", "left"]
