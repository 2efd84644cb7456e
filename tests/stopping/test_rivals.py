import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_stiffness.stopping import (
    EvidenceBased,
    GradientDisparity,
    GradientWeightAlignment,
    LabelWave,
    signal_path,
)
from tests.toy_history import Toy, measured_history, stops

numbers = st.lists(st.integers(0, 20).map(lambda number: number / 16), min_size=1, max_size=25)


def history_of(name, values, checks_per_epoch=1.0, start=math.nan):
    return measured_history({name: [start, *values]}, toy=Toy(checks_per_epoch=checks_per_epoch))


@given(numbers)
def test_disparity_stops_at_the_fifth_increase_whatever_comes_between(values):
    increases = [epoch for epoch in range(2, len(values) + 1) if values[epoch - 1] > values[epoch - 2]]
    found = stops(GradientDisparity(), history_of("gradient_disparity", values))
    assert found == ([] if len(increases) < 5 else [float(e) for e in range(increases[4], len(values) + 1)])


def test_disparity_in_words_and_numbers():
    decision = GradientDisparity(epochs=3.0)(history_of("gradient_disparity", [1.0, 2.0, 0.5, 0.7, 0.9]))
    assert decision.stop
    assert decision.reason == "gradient disparity 0.9 has risen over 3 of 3 epochs"
    assert (decision.signal, decision.threshold, decision.best, decision.since) == (0.9, 0.7, 0.5, 3.0)
    assert decision.best_step is None
    falling = GradientDisparity()(history_of("gradient_disparity", [1.0, math.nan, 0.5]))
    assert (
        falling.reason == "gradient disparity 0.5 has risen over 0 of 5 epochs (1 readings without a value are skipped)"
    )
    assert math.isnan(falling.since)


@pytest.mark.parametrize("checks", [1, 2, 4])
def test_disparity_counts_epochs(checks):
    rising = [1 + check / checks for check in range(12 * checks)]
    expected = {1: 6.0, 2: 5.5, 4: 5.25}[checks]  # the first of all is no rise
    assert stops(GradientDisparity(), history_of("gradient_disparity", rising, checks))[0] == expected


def test_evidence_stops_above_nothing():
    history = history_of("evidence", [-1.0, 0.0, 0.2, -0.1, 0.1, 0.3], start=5.0)
    path = signal_path(history, EvidenceBased())
    assert [decision.stop for decision in path] == [False, False, False, True, False, True, True]
    last = path[-1]
    assert (last.signal, last.threshold, last.best, last.since, last.best_step) == (0.3, 0.0, -1.0, 4.0, None)
    assert last.reason == "evidence 0.3 is above 0: the gradient is noise"
    assert path[2].reason == "evidence 0 is not above 0: the gradient is more than noise"
    assert path[0].reason == "there is no evidence yet"


@given(numbers, st.integers(1, 4))
def test_label_wave_restores_the_first_local_minimum_of_the_moving_average(values, window):
    means = [sum(values[end - window : end]) / window for end in range(window, len(values) + 1)]
    rise = next((i for i in range(1, len(means)) if means[i] > means[i - 1] + 1e-12), None)
    path = signal_path(history_of("prediction_changes", values), LabelWave(window=window))
    found = next((decision for decision in path if decision.stop), None)
    if rise is None:
        assert found is None
    else:
        lowest = means.index(min(means[:rise])) + window
        assert (found.epoch, found.best) == (rise + window, pytest.approx(min(means[:rise])))
        assert abs(means[found.best_step // 10 - window] - means[lowest - window]) < 1e-12


def test_label_wave_in_words_and_numbers():
    history = history_of("prediction_changes", [0.9, 0.5, 0.1, 0.3, 0.5])
    path = signal_path(history, LabelWave(window=2.0))
    assert [decision.stop for decision in path] == [False] * 5 + [True]
    assert path[1].reason == "not 2 epochs of predictions yet"
    assert path[4].reason == "share of changed predictions 0.2 is at its lowest"
    last = path[5]
    assert last.reason == "share of changed predictions 0.4 has been above its lowest 0.2 (epoch 4) for 1 of 1 epochs"
    assert (last.signal, last.best, last.threshold, last.best_step, last.since) == pytest.approx((0.4, 0.2, 0.2, 40, 4))
    assert not LabelWave(window=2.0, patience=2.0)(history).stop


def test_label_wave_averages_over_epochs_however_often_it_looks():
    values = [abs(check / 4 - 4) for check in range(1, 33)]
    path = signal_path(history_of("prediction_changes", values, 4), LabelWave(window=2.0))
    judged = [decision for decision in path if decision.watched]
    assert judged[0].epoch == 2.0
    assert judged[0].signal == pytest.approx(sum(values[:8]) / 8)
    first = next(decision for decision in path if decision.stop)
    assert first.epoch == first.since + 1.0
    assert not any(decision.stop for decision in signal_path(history_of("prediction_changes", [0.0] * 9), LabelWave()))


def test_label_wave_knows_when_its_first_share_began():
    """Without a reading before training, the first changes are those from the first reading to the second."""
    late = history_of("prediction_changes", [math.nan, 0.5, 0.4, 0.3])[1:]
    assert [LabelWave()(late[:count]).watched is None for count in (1, 2, 3, 4)] == [True, True, True, False]


def test_alignment_holds_its_maximum():
    history = history_of("gradient_weight_alignment", [0.1, 0.3, 0.2, 0.25, 0.3], start=0.9)
    rule = GradientWeightAlignment(patience=3.0)
    assert stops(rule, history) == [5.0]
    decision = rule(history)
    assert (decision.best, decision.best_step, decision.since) == (0.3, 20, 2.0)
    assert decision.reason == "gradient-weight alignment 0.3 has not been above its highest 0.3 (epoch 2) for 3 epochs"


@pytest.mark.parametrize("rule", [GradientDisparity(), EvidenceBased(), LabelWave(), GradientWeightAlignment()])
def test_what_is_not_measured_is_named(rule):
    (name,) = rule.needs
    reason = rule(measured_history({"other": [0.1, 0.2]})).reason
    assert reason == f"{name} is not measured: have the monitor measure the signal {name!r}"
    assert rule(history_of(name, [math.nan])).reason.startswith("there is no ")
