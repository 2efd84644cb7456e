import json
import math
from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_stiffness.errors import StiffnessError
from lightning_stiffness.history import History
from lightning_stiffness.stopping import Decision, StiffnessDrop
from tests.toy_history import Toy, overfitting_history, spreading_history, stops, toy_probe, toy_reading

TOY = Toy(num_classes=2, per_class=5, standard_error=1e-4)
RAW = StiffnessDrop(smoothing=0.0, warmup=0.0, warmup_factor=0.0)


def history_of(within, losses=None, toy=TOY, spread=0.2):
    return spreading_history(within, losses, toy, spread)


def first_stop(rule, history):
    return next(iter(stops(rule, history)), None)


# Readings 0, 1, 2 ... one an epoch. Learning shows at epoch 1 (the first reading is at chance).


def test_the_third_reading_below_stops_with_one_an_epoch():
    history = history_of([0.9, 0.5, 0.6, 0.5, 0.5, 0.5, 0.5])
    assert stops(RAW, history) == [5.0, 6.0]


def test_a_reading_that_is_not_below_begins_the_count_anew():
    history = history_of([0.9, 0.6, 0.5, 0.5, 0.6, 0.5, 0.5, 0.5])
    assert stops(RAW, history) == [7.0]


def test_the_stop_does_not_latch():
    history = history_of([0.9, 0.6, 0.5, 0.5, 0.5, 0.65, 0.5])
    assert stops(RAW, history) == [4.0]


def test_twelve_readings_below_stop_with_four_an_epoch():
    toy = replace(TOY, checks_per_epoch=4)
    history = history_of([0.9, 0.6, *[0.5] * 14], toy=toy)
    assert stops(RAW, history)[0] == 13 / 4  # the readings 2 to 13
    assert first_stop(replace(RAW, patience=0.5), history) == 3 / 4


@pytest.mark.parametrize("checks_per_epoch", [1, 3, 4, 7, 10])
@pytest.mark.slow
def test_patience_is_in_epochs_however_often_it_looks(checks_per_epoch):
    toy = replace(TOY, checks_per_epoch=checks_per_epoch)
    history = history_of([0.9, 0.6, *[0.5] * 60], toy=toy)
    last_at_peak = 1 / checks_per_epoch
    assert first_stop(RAW, history) == pytest.approx(last_at_peak + 3)


def test_a_long_gap_counts_for_one_epoch_only():
    toy = replace(TOY, checks_per_epoch=0.2)
    history = history_of([0.9, 0.6, 0.5, 0.5], toy=toy)
    assert stops(RAW, history) == [15.0]  # below at 10, which is one epoch, and at 15, which is six


def test_the_drop_has_to_be_larger_than_allowed():
    history = history_of([0.9, 1.0, *[0.91] * 9])
    assert stops(replace(RAW, drop=0.1), history) == []
    assert stops(replace(RAW, drop=0.08), history)


def test_the_average_keeps_the_same_share_over_an_epoch_however_often_it_looks():
    signals = []
    for checks in (1, 4):
        toy = replace(TOY, checks_per_epoch=checks)
        history = history_of([0.9, 0.8] + [0.4] * (3 * checks), toy=toy)
        rule = StiffnessDrop(warmup=0.0, warmup_factor=0.0, smoothing=0.3)
        signals.append(rule(history).signal)
    assert signals == pytest.approx([0.4 + 0.4 * 0.3**3] * 2)


def test_the_average_begins_with_the_first_reading_that_counts():
    history = history_of([0.1, 0.1, 0.1, 0.8, 0.4])
    decision = StiffnessDrop(warmup=2.0, smoothing=0.5)(history)
    assert decision.best == 0.8
    assert decision.signal == pytest.approx(0.6)
    assert decision.threshold == pytest.approx(0.95 * 0.8)


def test_a_drop_within_two_standard_errors_is_no_drop():
    """The replicates of toy readings are independent, so the error of a change is 1.4 times that of a reading."""
    within = [0.9, 0.6, *[0.5] * 8]
    decision = RAW(history_of(within, toy=replace(TOY, standard_error=0.06)))
    assert not decision.stop
    assert "is more than 5 % below its peak 0.600 (epoch 1), but the drop is only 1." in decision.reason
    assert RAW(history_of(within, toy=replace(TOY, standard_error=0.02))).stop


def test_an_unknown_error_does_not_keep_from_stopping():
    history = history_of([0.9, 0.6, 0.5, 0.5, 0.5])
    blind = []
    for reading in history:
        replicates = torch.full_like(reading.cosine.within_replicates, math.nan)
        blind.append(replace(reading, loss_se=math.nan, cosine=replace(reading.cosine, within_replicates=replicates)))
    decision = RAW(History(history.probe, blind))
    assert decision.stop
    assert decision.reason.endswith("for 3 epochs; the drop is of unknown standard error")


@pytest.mark.parametrize("peak", [0.0, -0.2])
def test_a_peak_that_is_not_positive_says_nothing(peak):
    decision = RAW(history_of([0.9, peak, *[peak - 0.5] * 9]))
    assert not decision.stop
    assert f"has no positive peak (highest {peak:.3f})" in decision.reason


def test_readings_without_a_value_are_passed_over():
    history = history_of([0.9, 0.6, 0.5, math.nan, 0.5, 0.5, math.nan])
    decision = RAW(history)
    assert decision.stop  # from 1 to 5
    assert decision.reason.endswith("(2 readings without a within-class value are skipped)")
    assert decision.epoch == 6.0
    assert first_stop(RAW, history) == 4.0


def test_only_readings_without_a_value():
    decision = RAW(history_of([math.nan] * 5))
    assert not decision.stop
    assert decision.reason.endswith("(4 readings without a within-class value are skipped)")


def test_epochs_that_stand_still_do_no_harm():
    """The length of an epoch may be unknown."""
    toy = replace(TOY, checks_per_epoch=1e12)
    assert stops(StiffnessDrop(), history_of([0.9, 0.6, *[0.1] * 9], toy=toy)) == []


@pytest.mark.parametrize(
    ("within", "reason"),
    [
        ([], "no readings yet"),
        ([0.9, 0.6, 0.7], "within-class stiffness 0.700 is at its peak"),
        ([0.9, 0.7, 0.693], "within-class stiffness 0.693 is 1 % below its peak 0.700 (epoch 1); 5 % are allowed"),
        (
            [0.9, 0.7, 0.7, 0.5],
            "within-class stiffness 0.500 has been more than 5 % below its peak 0.700 (epoch 1) for 1 of 3 epochs; ",
        ),
        (
            [0.9, 0.7, 0.5, 0.5, 0.41],
            "within-class stiffness 0.410 has been more than 5 % below its peak 0.700 (epoch 1) for 3 epochs; ",
        ),
    ],
)
def test_reasons_are_plain(within, reason):
    decision = RAW(history_of(within))
    assert decision.reason.startswith(reason)
    assert decision.stop is reason.endswith("for 3 epochs; ")


def test_the_drop_is_given_in_standard_errors():
    history = history_of([0.9, 0.6, 0.5, 0.5, 0.5], toy=replace(TOY, standard_error=0.01))
    change = history.within_change(1, 4)
    assert RAW(history).reason.endswith(f"the drop is {0.1 / change.se:.1f} standard errors")


def test_a_usual_run_is_stopped_after_its_peak_and_well_before_its_end():
    history = overfitting_history(40, Toy(num_classes=10, per_class=10))
    spreading = History(history.probe, [replace(reading, loss_se=0.07 * reading.loss) for reading in history])
    epoch = first_stop(StiffnessDrop(), spreading)
    assert epoch is not None
    assert 4 < epoch < 12


@given(st.lists(st.floats(-1, 1) | st.just(math.nan), max_size=25), st.floats(0.05, 0.9), st.integers(0, 3))
def test_the_decision_agrees_with_a_plain_walk(within, smoothing, warmup):
    """The rule once more, as one loop over readings an epoch apart."""
    rule = StiffnessDrop(smoothing=smoothing, warmup=warmup, warmup_factor=0.0, patience=2.0)
    history = history_of(within)
    signal = peak = peak_at = None
    streak = last_epoch = not_below = 0
    for reading in history:
        value, epoch = reading.cosine.within, reading.epoch
        if epoch < 1 + warmup or math.isnan(value):
            continue
        kept = smoothing ** (epoch - last_epoch)
        signal = value if signal is None else kept * signal + (1 - kept) * value
        last_epoch = epoch
        if peak is None or signal > peak:
            peak, peak_at = signal, reading
        noise = 2 * History(history.probe, [peak_at]).within_change(0, 0).se
        if reading is not peak_at:
            pair = History(history.probe, [peak_at, reading])
            noise = 2 * pair.within_change(0, 1).se
        below = peak > 0 and signal < (1 - rule.drop) * peak and peak_at.cosine.within - value > noise
        if not below:
            streak, not_below = 0, epoch
        elif streak == 0:
            streak, begun = min(epoch - not_below, 1), epoch
        else:
            streak = min(begun - not_below, 1) + epoch - begun
    decision = rule(history)
    assert decision.stop == (streak >= 2)
    if signal is not None:
        assert decision.signal == pytest.approx(signal, nan_ok=True)
        assert decision.best == pytest.approx(peak)


@pytest.mark.parametrize(
    "settings_",
    [
        {"drop": 0.0},
        {"drop": 1.0},
        {"drop": math.nan},
        {"patience": 0.0},
        {"patience": math.inf},
        {"warmup": -1.0},
        {"smoothing": 1.0},
        {"smoothing": -0.1},
        {"spread": -1.0},
        {"spread": math.nan},
        {"warmup_factor": math.inf},
        {"chance_loss": math.nan},
        {"chance_loss": math.inf},
    ],
)
def test_settings_out_of_range_are_refused(settings_):
    ((name, value),) = settings_.items()
    with pytest.raises(StiffnessError, match=f"^{name} must be .*, but is {value!r}"):
        StiffnessDrop(**settings_)


def test_a_decision_is_json_with_null_for_nan():
    history = history_of([0.9, 0.6, 0.5])
    for decision in (StiffnessDrop()(history), RAW(history), Decision(True, "why")):
        plain = json.loads(json.dumps(decision.as_dict(), allow_nan=False))
        assert list(plain) == [field.name for field in fields(Decision)]
    assert plain == {"stop": True, "reason": "why", **dict.fromkeys(list(plain)[2:])}
    assert RAW(history).as_dict()["signal"] == 0.5


def test_it_needs_no_state_of_its_own(tmp_path):
    """The decision from a file is the decision at run time."""
    history = history_of([0.9, 0.6, 0.5, 0.5, 0.5], toy=replace(TOY, standard_error=0.01))
    history.save(tmp_path / "file")
    loaded = RAW(History.load(tmp_path / "file"))
    # Arrays are saved in single precision, and only the error is made from arrays.
    assert loaded.error == pytest.approx(RAW(history).error, rel=1e-4)
    assert replace(loaded, error=RAW(history).error) == RAW(history)
    assert RAW(History.from_state_dict(history.state_dict())) == RAW(history)


def test_the_toys_agree_with_each_other():
    assert history_of([0.5]).probe == toy_probe(TOY)
    assert toy_reading(3, 0.5, toy=replace(TOY, checks_per_epoch=2)).epoch == 1.5
