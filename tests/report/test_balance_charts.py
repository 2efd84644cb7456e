import math
from dataclasses import replace

import pytest
import torch

from lightning_stiffness.report.balance_charts import level_chart, raster_chart, recall_chart, share_chart, takers_chart
from tests.toy_balance import toy_reading, toy_readings

READINGS = toy_readings(3, names=("cat", "dog", "sea lion", "a/b", "</script>", "x.y[0]"))
LAST = READINGS[-1]


def rows_of(spec, *fields):
    """The rows of the first data set that has these fields."""
    layers = [spec, *spec.get("layer", ())]
    found = [layer["data"]["values"] for layer in layers if "values" in layer.get("data", {})]
    found += list(spec.get("datasets", {}).values())
    return next(rows for rows in found if rows and set(fields) <= set(rows[0]))


def test_a_level_is_a_matrix_in_cluster_order():
    spec = level_chart(LAST, LAST.classifier, "At the classifier")
    rows = rows_of(spec, "first", "second")
    order = list(LAST.order)
    for row in (rows[1], rows[-2]):
        expected = LAST.classifier[order[row["y"]], order[row["x"]]]
        assert row["value"] == pytest.approx(float(expected), abs=1e-4)
    assert rows[0]["first"].startswith("cat (n=")
    assert [(box["low"], box["high"]) for box in rows_of(spec, "low", "high")] == [(0, 2), (4, 6)]
    assert spec["usermeta"]["classes"] == 6
    names = next(parameter for parameter in spec["params"] if parameter["name"] == "names")
    assert names["value"] == [row["second"] for row in rows[:6]]


def test_a_level_without_pairs_or_groups():
    reading = replace(LAST, groups=tuple(range(6)))
    matrix = torch.full((6, 6), math.nan)
    matrix[0, 0] = 0.5
    spec = level_chart(reading, matrix, "x")
    assert len(rows_of(spec, "first")) == 1
    assert level_chart(reading, torch.full((6, 6), math.nan), "x")["usermeta"]["ratio"] == 1


def test_shares_of_a_bar_add_up():
    rows = rows_of(takers_chart(LAST, LAST.small), "taker")
    for label in {row["label"] for row in rows}:
        own = [row for row in rows if row["label"] == label]
        assert own[0]["start"] == 0
        assert own[-1]["end"] == 1
        assert sum(row["share"] for row in own) == pytest.approx(1, abs=1e-4)
        assert [row["named"] for row in own] == [True] * (len(own) - 1) + [False]


def test_a_class_without_samples_is_named():
    reading = replace(LAST, lost=torch.full((6,), math.nan), absorption=torch.zeros(6, 6))
    assert {row["lost"] for row in rows_of(takers_chart(reading, (5,)), "taker")} == {"no sample"}


@pytest.mark.parametrize("classes", [6, 60])
def test_recalls_from_the_largest_class_on(classes):
    reading = toy_reading(
        classes=classes, recall=torch.full((classes,), 0.5), natural_recall=torch.linspace(1, 0, classes)
    )
    rows = rows_of(recall_chart(reading), "before")
    assert [row["place"] for row in rows] == list(range(classes))
    assert rows[0]["color"] != rows[-1]["color"]
    gap = replace(reading, recall=torch.full((classes,), math.nan))
    assert gap.recall.isnan().all()


def test_a_class_without_validation_samples_has_no_dot():
    recall = torch.tensor([0.5, math.nan, 0.5, 0.5, 0.5, 0.5])
    assert len(rows_of(recall_chart(replace(LAST, recall=recall)), "before")) == 5


def test_sacrificed_classes():
    progress, error = torch.tensor([1.0, 1, 1, -1, -1, math.nan]), torch.tensor([0.1, 0.1, 0.1, 0.9, 0.1, 0.1])
    readings = [replace(one, progress=progress, progress_se=error) for one in READINGS]
    assert [row["share"] for row in rows_of(share_chart(readings), "share")] == [1.0] * 3 + [0.5] * 3
    rows = rows_of(raster_chart(readings, LAST.small), "progress")
    assert len(rows) == 9
    colors = {row["label"][:3]: row["color"] for row in rows}
    assert raster_chart([toy_reading(progress=torch.ones(6))], (5,))
    assert colors == {"a/b": "var(--fight-7)", "</s": "var(--between)", "x.y": "var(--missing)"}
