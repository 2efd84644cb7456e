import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_stiffness.history import History
from lightning_stiffness.stopping import LearningGuard, StiffnessGap, signal_path
from tests.toy_history import Toy, spreading_history, stops

RAW = StiffnessGap(smoothing=0.0, guard=LearningGuard(warmup=0.0, warmup_factor=0.0))
TOY = Toy(num_classes=2, per_class=5)


def history_of(train, gaps, toy=TOY):
    """Readings of a cross probe with this stiffness among training samples and this gap; learning shows at the 2nd."""
    within = [stiffness * (1 - gap) for stiffness, gap in zip(train, gaps, strict=True)]
    plain = spreading_history(within, toy=toy)
    readings = [
        replace(reading, signals={"train_within": stiffness}) for reading, stiffness in zip(plain, train, strict=True)
    ]
    return History(replace(plain.probe, mode="cross"), readings)


def test_it_stops_when_the_gap_grows_while_stiffness_falls():
    history = history_of([0.9, 0.5, 0.48, 0.48, 0.48], [0.1, 0.1, 0.1, 0.12, 0.12])
    assert stops(RAW, history) == [4.0]  # behind at 3 and 4
    decision = RAW(history)
    assert (decision.signal, decision.best, decision.threshold) == pytest.approx((0.12, 0.1, 0.11))
    assert (decision.since, decision.best_step, decision.epoch) == (2.0, None, 4.0)
    assert decision.reason == (
        "within-class stiffness among training samples 0.480 is 4 % below its peak 0.500 (epoch 1), and the gap 0.120 "
        "to validation samples is 0.020 above its least 0.100 (epoch 1); more than is allowed for 2 epochs"
    )


@pytest.mark.parametrize(
    ("train", "gaps"),
    [
        ([0.9, 0.5, *[0.49] * 5], [0.1, 0.1, *[0.2] * 5]),  # stiffness fell by too little
        ([0.9, 0.5, *[0.45] * 5], [0.1, 0.1, *[0.105] * 5]),  # the gap grew by too little
        ([0.9, 0.5, 0.45, 0.5, 0.45, 0.5, 0.45], [0.1, 0.1, *[0.2] * 5]),  # never for two epochs
    ],
)
def test_one_without_the_other_does_not_stop(train, gaps):
    history = history_of(train, gaps)
    assert stops(RAW, history) == []
    assert RAW(history[:2]).reason.endswith("; 3 % and 0.01, or 20 % alone, are allowed")


def test_a_collapse_stops_without_any_gap():
    history = history_of([0.9, 0.5, 0.45, 0.39, 0.39, 0.39], [0.1] * 6)
    assert stops(RAW, history) == [4.0, 5.0]
    assert stops(replace(RAW, collapse=0.3), history) == []


def test_nothing_counts_before_learning_and_the_warm_up():
    history = history_of([0.9, 0.5, *[0.4] * 6], [0.0, 0.1, *[0.2] * 6])
    assert stops(RAW, history)[0] == 3.0
    assert stops(replace(RAW, guard=LearningGuard()), history) == []  # the peak is 0.4 at epoch 3 now
    assert RAW(history[:1]).reason.startswith("nothing learned yet")


def test_readings_without_a_positive_stiffness_are_passed_over():
    history = history_of([0.9, 0.5, 0.3, -0.1, math.nan, 0.3], [0.1] * 6)
    decision = RAW(history)
    assert decision.stop
    assert decision.reason.endswith("for 4 epochs (2 readings without a gap are skipped)")


def test_both_averages_are_smoothed():
    history = history_of([0.9, 0.8, 0.4], [0.1, 0.1, 0.3])
    decision = replace(RAW, smoothing=0.5)(history)
    assert decision.signal == pytest.approx(0.2)
    assert "0.600 is 25 % below its peak 0.800" in decision.reason


def test_it_needs_readings_between_training_and_validation():
    decision = RAW(spreading_history([0.9, 0.5, 0.4]))
    assert decision.reason == 'train_within is not measured: it comes with a monitor of mode="cross"'


@given(st.lists(st.tuples(st.floats(0.1, 1.0), st.floats(-0.2, 0.5)), min_size=2, max_size=20), st.floats(0.0, 0.9))
def test_it_agrees_with_a_plain_loop(rows, smoothing):
    train, gaps = (list(column) for column in zip(*rows, strict=True))
    history = history_of(train, gaps)
    rule = replace(RAW, smoothing=smoothing)
    count, average, stop = 0, None, None
    for epoch, row in enumerate(rows):
        if epoch == 0:
            continue
        if average is None:
            average = row
            peak, least = row
        average = tuple(smoothing * old + (1 - smoothing) * new for old, new in zip(average, row, strict=True))
        peak, least = max(peak, average[0]), min(least, average[1])
        is_behind = average[0] < 0.97 * peak - 1e-12 and average[1] > least + 0.01 + 1e-12
        count = count + 1 if is_behind or average[0] < 0.8 * peak - 1e-12 else 0
        stop = epoch if count >= 2 and stop is None else stop
    found = next((decision.epoch for decision in signal_path(history, rule) if decision.stop), None)
    assert found == stop
