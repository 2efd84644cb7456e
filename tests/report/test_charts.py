import math

import pytest

from lightning_stiffness.report.charts import columns_chart, lines_chart, runs_chart, stiffness_chart
from tests.report.runs import batch_run, complete_run, undefined_run
from tests.toy_history import toy_history


def rows_of(spec, *fields):
    """All rows of a chart that have these fields."""
    return [row for rows in spec["datasets"].values() for row in rows if {*fields} <= row.keys()]


def test_bands_are_two_standard_errors():
    spec = stiffness_chart(toy_history([0.5, 0.4]), {"stop": 1.0})
    row = next(row for row in rows_of(spec, "low") if row["kind"] == "within classes" and not row["sign"])
    assert (row["value"], row["low"], row["high"]) == pytest.approx((0.5, 0.48, 0.52))
    tips = rows_of(spec, "f1")
    assert tips[0]["f1"] == "0.500 ± 0.020"
    assert any(row["words"] == "stop" for row in rows_of(spec, "words"))


def test_what_is_undefined_is_a_gap():
    for run in (undefined_run(), batch_run()):
        values = rows_of(stiffness_chart(run.history, {}), "value")
        assert all(row["value"] is None or math.isfinite(row["value"]) for row in values)


def test_lines_have_the_words_that_they_are_given():
    history = complete_run().history
    spec = lines_chart(history, {"loss": "of the probe", "val_loss": "val.loss[0]"}, "loss", {})
    rows = rows_of(spec, "kind")
    assert {row["kind"] for row in rows} == {"of the probe", "val.loss[0]"}
    assert rows[10]["value"] is None  # not logged before training
    assert columns_chart(history, {"a": [1.0] * len(history)}, "a", {})["layer"]


def test_runs_of_all_kinds_are_in_one_chart():
    runs = {"a": complete_run().history, "b": batch_run().history, "c": undefined_run().history}
    spec = runs_chart(runs, "within", "within classes")
    assert {row["run"] for row in rows_of(spec, "run")} == {"a", "b", "c"}
    spec = runs_chart(runs, "val_loss", "val_loss")
    assert [row["value"] for row in rows_of(spec, "run") if row["run"] == "b"] == [None] * 6


@pytest.mark.parametrize(("count", "widths"), [(1, [2]), (2, [5, 2]), (5, [8, 5, 2, 2, 2])])
def test_a_line_that_lies_below_another_is_wider(count, widths):
    runs = {str(number): toy_history([0.5, 0.4]) for number in range(count)}
    rows = rows_of(runs_chart(runs, "within", "within classes"), "run")
    assert {row["run"]: row["width"] for row in rows} == dict(zip(runs, widths, strict=True))
