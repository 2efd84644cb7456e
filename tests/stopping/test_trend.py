import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_stiffness.history import History
from lightning_stiffness.stopping.trend import (
    Point,
    begun,
    best_so_far,
    column,
    lasted,
    moving_average,
    stood_for,
    trailing,
    unavailable,
    waited,
)
from tests.toy_history import measured_history, toy_history, toy_probe

gaps = st.lists(st.floats(0.1, 3.0), min_size=1, max_size=12)


def points_at(*epochs, best=0):
    return [Point(index, epoch, 1.0, 1.0, best) for index, epoch in enumerate(epochs)]


def test_a_column_has_signals_logged_metrics_and_what_every_reading_has():
    history = measured_history(
        {"evidence": [math.nan, 0.2, None]}, {"val_loss": [None, 0.7, 0.6], "loss": [9, 9, 9]}, [3.0, 2.0, 1.0]
    )
    assert column(history, "evidence")[1] == 0.2
    assert [math.isnan(number) for number in column(history, "evidence")] == [True, False, True]
    assert column(history, "val_loss")[1:] == [0.7, 0.6]
    assert column(history, "loss") == [3.0, 2.0, 1.0]  # the probe's own goes before a logged one
    for name in ("evidence", "val_loss", "loss", "within"):
        assert column(history, name) == pytest.approx(history.series(name).tolist(), nan_ok=True)


def test_what_is_missing_is_named_and_what_is_there_once_is_not():
    history = measured_history({"evidence": [None, 0.2]}, {"val_loss": [0.1, None]})
    assert unavailable(history, ["evidence", "val_loss"], "is not there") is None
    absent = unavailable(history, ["evidence", "val_acc", "other"], "is not there")
    assert (absent.stop, absent.reason, absent.epoch) == (False, "val_acc is not there", 1.0)
    assert unavailable(toy_history([0.5]), [], "") is None
    assert unavailable(History(toy_probe()), [], "").reason == "no readings yet"


@given(gaps, st.floats(0.0, 0.95), st.randoms())
def test_the_average_is_the_weighted_mean_of_the_values(steps, smoothing, random):
    """Each value's weight: its own share, times what later ones keep of it."""
    epochs = [sum(steps[: index + 1]) for index in range(len(steps))]
    values = [random.uniform(-1, 1) for _ in steps]
    for first_weight in (1.0, 1 - smoothing):
        found = moving_average(epochs, values, smoothing, first_weight)
        for last, average in enumerate(found):
            shares = [first_weight] + [1 - smoothing**gap for gap in steps[1 : last + 1]]
            weights = [share * smoothing ** (epochs[last] - epochs[i]) for i, share in enumerate(shares)]
            expected = sum(w * v for w, v in zip(weights, values, strict=False)) / sum(weights)
            assert average == pytest.approx(expected, abs=1e-9)


def test_the_average_of_a_constant_is_the_constant_and_of_times_that_stand_still_the_first_value():
    assert moving_average([1, 2, 5], [0.3] * 3, 0.7) == pytest.approx([0.3] * 3)
    assert moving_average([1, 2, 5], [0.3] * 3, 0.7, 0.3) == pytest.approx([0.3] * 3)
    assert moving_average([1, 1, 1], [0.3, 9.0, 9.0], 0.5) == [0.3] * 3
    assert moving_average([1, 2], [0.3, 9.0], 0.0) == [0.3, 9.0]
    assert moving_average([], [], 0.5) == []


def test_the_best_needs_to_be_better_by_more_than_the_margin():
    history = toy_history([0.5] * 6)
    signals = [3.0, 2.0, 2.0, 1.5, 1.0, 4.0]
    low = best_so_far(history, [0, 1, 2, 3, 4, 5], signals, is_high_good=False)
    assert [point.best_index for point in low] == [0, 1, 1, 3, 4, 4]
    assert [point.best for point in low] == [3.0, 2.0, 2.0, 1.5, 1.0, 1.0]
    assert [point.signal for point in low] == signals
    wide = best_so_far(history, [0, 1, 2, 3, 4, 5], signals, is_high_good=False, margin=1.0)
    assert [point.best_index for point in wide] == [0, 0, 0, 3, 3, 3]
    high = best_so_far(history, [1, 3, 5], [1.0, 0.5, 2.0], is_high_good=True)
    assert [(point.index, point.epoch, point.best_index) for point in high] == [(1, 1.0, 1), (3, 3.0, 1), (5, 5.0, 5)]


@pytest.mark.parametrize(
    ("epochs", "counts", "expected"),
    [
        ([1, 2, 3, 4], "-xxx", 3.0),
        ([1, 2, 3, 4], "-x-x", 2.0),
        ([1, 2, 3, 4], "----", 0.0),
        ([0, 0.25, 0.5, 0.75], "-xxx", 0.75),
        ([0, 5, 10, 15], "-xxx", 11.0),  # the first counts for an epoch, the others in full
        ([0, 5, 10, 15], "-x-x", 2.0),
        ([0, 5, 10, 15], "xx--", 5.0),
        ([7], "x", 0.0),
    ],
)
def test_what_readings_stand_for(epochs, counts, expected):
    assert stood_for(points_at(*epochs), [mark == "x" for mark in counts]) == expected


def test_waiting_begins_after_the_best():
    assert waited(points_at(1, 2, 3, 4, best=1), [True] * 4) == 2.0
    assert waited(points_at(1, 2, 3, 4, best=3), [True] * 4) == 0.0
    assert waited(points_at(0, 4, 8, best=0), [True] * 3) == 5.0
    assert waited(points_at(1, 2, 3, 4, best=1), [True, True, False, True]) == 1.0


@given(gaps, st.integers(0, 11))
def test_what_lasted_is_what_the_last_ones_stand_for(steps, count):
    count = min(count, len(steps) - 1)
    points = points_at(*[sum(steps[: index + 1]) for index in range(len(steps))])
    counts = [index >= len(points) - count for index in range(len(points))]
    assert lasted(points, count) == pytest.approx(stood_for(points, counts))
    assert trailing(counts) == count


def test_trailing_and_begun():
    assert (trailing([]), trailing([True, True]), trailing([True, False])) == (0, 2, 0)
    points = points_at(2.0, 2.25, 5.0)
    assert [begun(points, position) for position in range(3)] == [2.0, 2.0, 4.0]
