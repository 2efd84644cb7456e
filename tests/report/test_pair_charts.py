import math
from dataclasses import replace

import pytest
import torch

from lightning_stiffness.functional.distance import DistanceCurve
from lightning_stiffness.report.pair_charts import bars_chart, distance_chart, histogram_chart
from tests.report.runs import complete_run
from tests.report.test_charts import rows_of


def test_bars_keep_their_order_and_names():
    spec = bars_chart({"<b>": 0.1, "x.y[0]": 0.2}, {"<b>": 0.5}, ("now", "before"))
    rows = rows_of(spec, "label")
    assert [row["label"] for row in rows] == ["<b>", "x.y[0]"]
    assert [row["before"] for row in rows] == [0.5, None]


def test_histograms_are_shares_of_each_kind():
    reading = complete_run().history[-1]
    rows = rows_of(histogram_chart(reading, 0.5), "share")
    for kind in ("same class", "different classes"):
        assert sum(row["share"] for row in rows if row["kind"] == kind) == pytest.approx(1, abs=0.01)
    assert (rows[0]["low"], rows[39]["high"]) == (-1, 1)
    nothing = replace(reading, detail=replace(reading.detail, within_counts=torch.zeros(40)))
    assert rows_of(histogram_chart(nothing, 0.5), "share")[0]["share"] == 0


def test_lines_span_the_distances_that_occur():
    curve = DistanceCurve(torch.tensor([0.2, 0.4, 0.8]), torch.tensor([0.5, math.nan]), torch.ones(2), -0.5, 0.6)
    spec = distance_chart({"epoch 1": curve})
    points = rows_of(spec, "pairs")
    assert [(point["distance"], point["value"]) for point in points] == [(pytest.approx(0.3), 0.5)]
    ends = [row for row in rows_of(spec, "distance") if "pairs" not in row]
    assert [(end["distance"], end["value"]) for end in ends] == [(0.2, 0.5), (0.8, 0.2)]


def test_without_a_line_there_are_points_only():
    curve = DistanceCurve(torch.tensor([0.2, 0.4]), torch.tensor([0.5]), torch.ones(1), math.nan, math.nan)
    assert len(rows_of(distance_chart({"epoch 1": curve}), "distance")) == 1
