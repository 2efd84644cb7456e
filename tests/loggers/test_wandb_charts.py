"""Lines of the charts of Weights & Biases."""

import math
from dataclasses import replace

import pytest
import torch

from lightning_stiffness.functional.detail import Detail
from lightning_stiffness.loggers.wandb_charts import (
    MOST_LINES,
    Lines,
    class_lines,
    pair_histograms,
    pair_lines,
    spread,
    stiffness_lines,
)
from tests.toy_history import Toy, overfitting_history, toy_history, toy_reading


def detail(within=(0.0, 1.0, 3.0), between=(2.0, 0.0, 0.0)):
    none = torch.full((2,), math.nan)
    unknown = torch.full((2,), -1)
    return Detail(none, none, unknown, unknown, torch.tensor(within), torch.tensor(between))


def test_bands_are_two_standard_errors():
    lines = stiffness_lines(toy_history([0.5, 0.4]))
    assert lines.names == [name + band for name in ("within", "between") for band in ("", " + 2 se", " - 2 se")]
    assert lines.xs[0] == [0.0, 1.0]
    assert lines.ys[0] == [0.5, 0.4]
    assert lines.ys[1] == pytest.approx([0.52, 0.42])
    assert lines.ys[2] == pytest.approx([0.48, 0.38])


def test_values_that_are_not_there_are_left_out():
    history = toy_history([0.5, math.nan, 0.4])
    assert stiffness_lines(history).xs[0] == [0.0, 2.0]
    lines = Lines("", "")
    lines.add("nothing", [0, 1], [math.nan, math.inf])
    assert lines.names == lines.xs == lines.ys == []


def test_an_error_that_is_not_known_leaves_the_value():
    reading = toy_reading(0, 0.5)
    history = type(toy_history([0.5]))(
        toy_history([0.5]).probe, [replace(reading, cosine=replace(reading.cosine, within_se=math.nan))]
    )
    assert stiffness_lines(history).names[:2] == ["within", "between"]


def test_each_class_has_a_line():
    lines = class_lines(toy_history([0.5, 0.4], toy=Toy(class_names=("cat", "dog", "car"), missing=(1,))))
    assert lines.names == ["cat", "car"]
    assert lines.ys == [[0.5, 0.4], [0.5, 0.4]]
    assert "lowest" not in lines.title


def test_of_many_classes_the_lowest_and_the_highest_are_shown():
    history = toy_history([0.5], toy=Toy(num_classes=50))
    history[0].cosine.matrix.fill_diagonal_(0).diagonal().copy_(torch.arange(50) / 50)
    lines = class_lines(history)
    assert lines.names == [str(label) for label in (*range(10), *range(40, 50))]
    assert len(lines.names) == MOST_LINES
    assert "lowest and highest" in lines.title


def test_the_pairs_are_a_histogram_and_a_chart():
    reading = replace(toy_reading(3, 0.5), detail=detail())
    counts, edges = pair_histograms(reading)["within"]
    assert (counts, edges) == ([0.0, 1.0, 3.0], pytest.approx([-1, -1 / 3, 1 / 3, 1]))
    lines = pair_lines(reading)
    assert lines.names == ["within classes", "between classes"]
    assert lines.xs[0] == pytest.approx([-2 / 3, 0, 2 / 3])
    assert lines.ys == [[0.0, 0.25, 0.75], [1.0, 0.0, 0.0]]


def test_no_pairs_no_chart():
    reading = toy_reading(3, 0.5)
    assert pair_lines(reading) is None
    assert pair_histograms(reading) == {}
    assert pair_lines(replace(reading, detail=detail((0.0,), (0.0,)))) is None


def test_long_runs_are_thinned():
    history = overfitting_history(50, Toy())
    steps = [reading.step for reading in spread(history, 10)]
    assert (len(set(steps)), steps[0], steps[-1]) == (10, 0, 500)
    assert spread(history) == list(history)
