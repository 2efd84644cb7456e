import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_stiffness.history import History
from lightning_stiffness.stopping import (
    GeneralizationLoss,
    ProgressQuotient,
    ValidationPatience,
    ValidationScore,
    signal_path,
)
from tests.toy_history import Toy, measured_history, stops

positive = st.floats(0.1, 3.0)
exact = st.integers(0, 64).map(lambda count: count / 64)  # whose differences are not rounded


def history_of(val_losses, accuracies=None, losses=None, checks_per_epoch=1.0):
    """One reading before training and validation, then these."""
    logged = {
        "val_loss": [None, *val_losses],
        "val_acc": [None, *(accuracies or [0.5] * len(val_losses))],
    }
    losses = [1.0] * len(val_losses) if losses is None else losses
    return measured_history(None, logged, [2.0, *losses], Toy(checks_per_epoch=checks_per_epoch))


def test_the_score_is_error_plus_bounded_loss():
    decision = ValidationScore(smoothing=0.0, warmup=0.0)(history_of([0.8], [0.7]))
    assert decision.signal == pytest.approx(0.3 + 1 - math.exp(-0.24))
    assert decision.watched == "validation score"


def test_the_score_waits_for_memorisation():
    val_losses, accuracies = [0.9, 0.8, *[0.85] * 10], [0.5, 0.8, *[0.7] * 10]
    for loss, expected in ((0.85 / 1.15, []), (0.85 / 1.25, [7.0])):
        history = history_of(val_losses, accuracies, [loss] * 12)
        assert stops(ValidationScore(smoothing=0.0), history)[:1] == expected
    decision = ValidationScore(smoothing=0.0)(history)
    assert (decision.best_step, decision.since) == (20, 2.0)


@given(st.lists(st.tuples(positive, st.floats(0, 1), positive), min_size=2, max_size=25))
def test_the_score_agrees_with_a_plain_loop(rows):
    val_losses, accuracies, losses = (list(column) for column in zip(*rows, strict=True))
    total = weight = largest = 0.0
    best, best_epoch, count, stop = math.inf, None, 0, None
    for epoch, (val_loss, accuracy, loss) in enumerate(rows, start=1):
        score = (1 - accuracy) + (1 - math.exp(-0.3 * val_loss))
        total, weight = 0.3 * total + 0.7 * score, 0.3 * weight + 0.7
        largest = max(largest, total / weight)
        if epoch == 1 or stop:
            continue
        if total / weight < best - 1e-12 * largest:
            best, best_epoch, count = total / weight, epoch, 0
        elif val_loss / loss - 1 > 0.2:
            count += 1
            stop = epoch if count == 5 else None
    path = signal_path(history_of(val_losses, accuracies, losses), ValidationScore())
    found = next((decision for decision in path if decision.stop), None)
    assert (None if found is None else found.epoch) == stop
    assert (found or path[-1]).best_step == 10 * best_epoch


def test_a_probe_of_validation_data_has_no_training_loss():
    history = history_of([0.9] * 12)
    probed = History(replace(history.probe, mode="val"), history)
    for rule in (ValidationScore(), ProgressQuotient()):
        assert "probe training samples" in rule(probed).reason
        assert math.isnan(rule(probed).signal)
    assert stops(ValidationScore(guard=None), probed)


def test_names_are_those_of_the_run():
    history = measured_history(None, {"valid/loss": [None, 0.5, 0.4], "acc": [None, 0.5, 0.6]})
    assert ValidationScore()(history).reason == "val_loss is not logged: log it in validation_step"
    assert ValidationScore(loss="valid/loss")(history).reason.startswith("val_acc is not logged")
    assert ValidationScore(loss="valid/loss", accuracy="acc")(history).best_step == 20
    assert ValidationPatience("acc", mode="max")(history).best == 0.6
    for rule in (ValidationPatience(), GeneralizationLoss(), ProgressQuotient()):
        assert rule(history).reason.startswith("val_loss is not logged")


@given(st.lists(exact, min_size=1, max_size=20), st.integers(1, 4), st.sampled_from(["min", "max"]))
def test_patience_is_that_of_lightning_with_one_reading_an_epoch(values, patience, mode):
    """As Lightning's EarlyStopping counts: better than the best by more than min_delta, or one more without."""
    sign, waited, best, stop = (1 if mode == "max" else -1), 0, -math.inf, None
    for epoch, value in enumerate(values, start=1):
        if sign * value - 3 / 64 > best:
            best, waited = sign * value, 0
        else:
            waited += 1
            stop = epoch if stop is None and waited >= patience else stop
    rule = ValidationPatience("val_loss", mode, patience, 3 / 64)
    assert next(iter(stops(rule, history_of(values))), None) == stop


def test_patience_holds_the_best():
    decision = ValidationPatience()(history_of([0.5, 0.4, 0.6, 0.6, 0.7]))
    assert decision.stop
    assert (decision.best_step, decision.best, decision.signal) == (20, 0.4, 0.7)
    assert decision.reason == "val_loss 0.7 has not been below its lowest 0.4 (epoch 2) for 3 epochs"


def test_between_two_validations_the_last_value_stands():
    values = [value for value in (0.5, 0.4, 0.6, 0.6, 0.7, 0.7) for _ in range(4)]
    history = history_of([0.5, 0.5, 0.5, *values], checks_per_epoch=4)
    assert stops(ValidationPatience(), history)[0] == 5.0  # 0.4 was first seen at epoch 2


def test_generalization_loss_is_the_rise_above_the_lowest():
    rule = GeneralizationLoss(alpha=10.0)
    history = history_of([0.9, 0.5, 0.54, 0.56, 0.4, 0.6])
    path = signal_path(history, rule)
    assert [decision.stop for decision in path] == [False, False, False, False, True, False, True]
    fourth = path[4]
    assert (fourth.best, fourth.best_step, fourth.signal, fourth.since) == (0.5, 20, 0.56, 3.0)
    assert fourth.threshold == pytest.approx(0.55)
    assert fourth.reason == "val_loss 0.56 is 12 % above its lowest 0.5 (epoch 2); 10 % are allowed"
    assert path[-1].since == 5.0
    assert math.isnan(path[3].since)


def test_a_rise_of_just_what_is_allowed_is_allowed():
    assert stops(GeneralizationLoss(alpha=50.0), history_of([1.0, 1.5])) == []
    assert stops(GeneralizationLoss(alpha=49.9), history_of([1.0, 1.5])) == [2.0]


@pytest.mark.parametrize("rule", [GeneralizationLoss(), ProgressQuotient(strip=1.0)])
def test_a_loss_that_is_not_positive_has_no_relative_rise(rule):
    assert "no positive lowest value" in rule(history_of([0.5, -0.1, 0.5])).reason
    assert rule(history_of([math.nan, math.nan])).reason == "there is no val_loss yet"


@given(st.lists(st.tuples(positive, positive), min_size=1, max_size=23), st.integers(1, 6))
def test_the_quotient_agrees_with_its_formula(rows, strip):
    """Prechelt's class PQ: judged at the ends of strips; the first end with GL / P above alpha stops."""
    val_losses, losses = (list(column) for column in zip(*rows, strict=True))
    expected = None
    for end in range(strip, len(rows) + 1, strip):
        rise = 100 * (val_losses[end - 1] / min(val_losses[:end]) - 1)
        window = losses[end - strip : end]
        progress = 1000 * (sum(window) / (strip * min(window)) - 1)
        quotient = rise / progress if progress > 1e-9 else (math.inf if rise > 0 else 0.0)
        if quotient > 0.2 and expected is None:
            expected = end, quotient, val_losses.index(min(val_losses[:end])) + 1
    path = signal_path(history_of(val_losses, None, losses), ProgressQuotient(alpha=0.2, strip=strip))
    found = next((decision for decision in path if decision.stop), None)
    assert (found is None) == (expected is None)
    if found is not None:
        assert (found.epoch, found.best_step) == (expected[0], 10 * expected[2])
        assert found.signal == pytest.approx(expected[1]) or found.signal > 1e6


def test_between_two_ends_the_verdict_of_the_earlier_one_stands():
    history = history_of([0.5, 0.8, 0.5, 0.5, 0.4], None, [0.9, 0.8, 0.7, 0.6, 0.5])
    path = signal_path(history, ProgressQuotient(strip=2.0, alpha=0.5))
    assert [decision.stop for decision in path] == [False, False, True, True, False, False]
    assert path[3].since == 2.0
    assert path[3].reason == (
        "val_loss 0.8 is 60 % above its lowest 0.5 (epoch 1), 0.96 times the progress of training in the 2 epochs up "
        "to epoch 2; 0.5 are allowed"
    )
    assert (path[5].best_step, path[5].best) == (50, 0.0)
    assert path[1].reason == "no strip of 2 epochs is over yet"


def test_a_strip_is_in_epochs_however_often_it_looks():
    val_losses, losses = [0.5] + [0.6] * 39, [2.0 - 0.01 * check for check in range(40)]
    history = history_of(val_losses, None, losses, checks_per_epoch=4)
    decision = ProgressQuotient(alpha=0.1)(history)
    window = losses[20:40]  # of the readings after epoch 5 up to 10
    assert decision.signal == pytest.approx(20 / (1000 * (sum(window) / (20 * min(window)) - 1)))
    assert stops(ProgressQuotient(alpha=0.1), history)[0] == 5.0


def test_without_progress_any_rise_is_infinitely_faster():
    rule = ProgressQuotient(strip=2.0)
    assert rule(history_of([0.5, 0.6], None, [0.7, 0.7])).signal == math.inf
    assert rule(history_of([0.6, 0.5], None, [0.7, 0.7])).signal == 0.0
    silent = rule(history_of([0.5, 0.6], None, [0.7, -0.1]))
    assert math.isnan(silent.signal)
    assert not silent.stop
    assert silent.reason.startswith("the training loss is not positive everywhere")
