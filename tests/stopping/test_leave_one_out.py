import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_stiffness.stopping import LeaveOneOut, signal_path
from tests.toy_history import Toy, measured_history, stops

shares = st.integers(0, 64).map(lambda wrong: wrong / 64)  # of 64 samples


def history_of(errors, doubts=None, excess=None, checks_per_epoch=1.0):
    """One reading before training, then these; the leave-one-out loss is above the loss 0.5 by this share of it."""
    count = len(errors)
    excess = [0.5] * count if excess is None else excess
    signals = {
        "leave_one_out_error": [math.nan, *errors],
        "leave_one_out_doubt": [math.nan, *(doubts or [0.0] * count)],
        "leave_one_out_loss": [math.nan, *(0.5 * (1 + share) for share in excess)],
        "leave_one_out_train_loss": [math.nan, *[0.5] * count],
    }
    return measured_history(signals, toy=Toy(checks_per_epoch=checks_per_epoch))


def first_stop_of_a_loop(scores, excess, patience, weight_of_new, guard, skipped):
    """The rule once more, as a loop over readings an epoch apart, the first at epoch 1: (epoch of stop, of best)."""
    total = weight = largest = 0.0
    best, best_epoch, count = math.inf, skipped + 1, 0
    for epoch, (score, share) in enumerate(zip(scores, excess, strict=True), start=1):
        total = (1 - weight_of_new) * total + weight_of_new * score
        weight = (1 - weight_of_new) * weight + weight_of_new
        largest = max(largest, total / weight)
        if epoch <= skipped:
            continue
        if total / weight < best - 1e-12 * largest:
            best, best_epoch, count = total / weight, epoch, 0
        elif share > guard:
            count += 1
            if count == patience:
                return epoch, best_epoch
    return None, best_epoch


@pytest.mark.slow
@given(st.lists(st.tuples(shares, shares, st.floats(0.0, 0.5)), min_size=3, max_size=30))
def test_it_agrees_with_a_plain_loop(rows):
    errors, doubts, excess = (list(column) for column in zip(*rows, strict=True))
    both = [error + doubt for error, doubt in zip(errors, doubts, strict=True)]
    excess = [round(share, 2) + 0.005 for share in excess]  # off the guard, whose side rounding would decide
    history = history_of(errors, doubts, excess)
    for rule, scores, loop in (
        (LeaveOneOut(), errors, (5, 0.7, 0.2, 1)),
        (LeaveOneOut.for_loss(), both, (4, 1.0, 0.1, 2)),
    ):
        expected, best = first_stop_of_a_loop(scores, excess, *loop)
        path = signal_path(history, rule)
        found = next((decision for decision in path if decision.stop), None)
        assert (None if found is None else found.epoch) == expected
        assert (found or path[-1]).best_step == 10 * best


def test_the_best_reading_is_held_and_given_in_words():
    history = history_of([0.9, 0.5, 0.3, 0.35, 0.4, 0.4, 0.4, 0.4, 0.1])
    rule = LeaveOneOut(smoothing=0.0)
    assert stops(rule, history) == [8.0]
    decision = rule(history[:9])
    assert (decision.best_step, decision.best, decision.signal, decision.since) == (30, 0.3, 0.4, 3.0)
    assert decision.reason == "leave-one-out error 0.4 has not been below its lowest 0.3 (epoch 3) for 5 epochs"
    assert decision.watched == "leave-one-out error"


def test_doubt_counts_with_its_weight():
    history = history_of([0.5, 0.5, 0.5], [0.4, 0.2, 0.3])
    decision = LeaveOneOut(doubt_weight=2.0, smoothing=0.0)(history)
    assert decision.signal == pytest.approx(0.5 + 2 * 0.3)
    assert decision.best_step == 20
    assert decision.reason.startswith("leave-one-out score 1.1 has not been below its lowest 0.9 (epoch 2) for 1 of 5")


def test_without_memorisation_it_waits_for_ever():
    errors = [0.9, 0.5, *[0.6] * 30]
    assert stops(LeaveOneOut(), history_of(errors, excess=[0.15] * 32)) == []
    assert stops(LeaveOneOut(guard=None), history_of(errors, excess=[0.15] * 32))[0] == 7.0
    assert stops(LeaveOneOut(guard=0.1), history_of(errors, excess=[0.15] * 32))[0] == 7.0
    reason = LeaveOneOut()(history_of(errors, excess=[0.15] * 32)).reason
    assert "for 0 of 5 epochs; leave-one-out loss exceeds the training loss by 15 %, which has to be more" in reason


def test_four_readings_an_epoch_stop_as_late():
    errors = [abs(check / 4 - 3) for check in range(1, 50)]
    assert stops(LeaveOneOut(smoothing=0.0), history_of(errors, checks_per_epoch=4))[0] == 8.0


def test_the_warm_up_is_not_held():
    assert LeaveOneOut(smoothing=0.0)(history_of([0.0, 0.5, 0.4])).best_step == 30
    assert LeaveOneOut(smoothing=0.0, warmup=0.0)(history_of([0.0, 0.5, 0.4])).best_step == 10


def test_what_is_not_measured_is_named():
    history = measured_history({"leave_one_out_error": [0.1, 0.2]})
    missing = "leave_one_out_loss is not measured: have the monitor measure the signal 'leave_one_out'"
    assert LeaveOneOut()(history).reason == missing
    assert LeaveOneOut.for_loss()(history).reason.startswith("leave_one_out_doubt is not measured")
