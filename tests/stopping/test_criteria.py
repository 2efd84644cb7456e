"""What holds for every criterion, whichever it is."""

import inspect
import json
import math
from collections.abc import Sequence
from dataclasses import FrozenInstanceError, fields, is_dataclass, replace
from functools import cache

import pytest

from lightning_stiffness import stopping
from lightning_stiffness.errors import StiffnessError
from lightning_stiffness.history import History
from lightning_stiffness.stopping import (
    All,
    Any,
    ConfirmedDrop,
    EvidenceBased,
    GeneralizationLoss,
    GradientDisparity,
    GradientWeightAlignment,
    LabelWave,
    LearningGuard,
    LeaveOneOut,
    ProgressQuotient,
    StiffnessDrop,
    StiffnessGap,
    ValidationPatience,
    ValidationScore,
    needs_of,
    shadow,
    signal_path,
    wishes_of,
)
from tests.toy_history import OVERFITTING, Toy, complete_history, measured_history, stops, toy_history

TOY = Toy(num_classes=10, standard_error=1e-3)
RULES = [
    StiffnessDrop(),
    StiffnessDrop(chance_loss=2.5, patience=2.0),
    ConfirmedDrop(),
    StiffnessGap(),
    StiffnessGap(guard=LearningGuard(warmup=1.0)),
    LeaveOneOut(),
    LeaveOneOut.for_loss(),
    ValidationScore(),
    ValidationPatience(),
    ValidationPatience("val_acc", mode="max"),
    GeneralizationLoss(),
    ProgressQuotient(alpha=0.1),
    GradientDisparity(),
    EvidenceBased(),
    LabelWave(),
    GradientWeightAlignment(),
    Any(ValidationPatience(), LeaveOneOut()),
    All(StiffnessDrop(), LeaveOneOut()),
    Any(All(StiffnessDrop(), GradientDisparity()), EvidenceBased()),
]
# These wait for evidence of learning or memorisation; the published ones take a plateau for the end.
GUARDED = [
    rule
    for rule in RULES
    if isinstance(rule, StiffnessDrop | ConfirmedDrop | StiffnessGap | LeaveOneOut | ValidationScore | All)
]
every_rule = pytest.mark.parametrize("rule", RULES, ids=repr)


def exported():
    entries = [getattr(stopping, name) for name in stopping.__all__]
    classes = [entry for entry in entries if inspect.isclass(entry) and is_dataclass(entry)]
    return {entry for entry in classes if "__call__" in vars(entry)}


def usual(**settings):
    return complete_history(30, replace(TOY, **settings))


def with_holes(history):
    """Every third reading measured and logged nothing."""
    holes = [
        replace(
            reading,
            cosine=replace(reading.cosine, within=math.nan),
            signals=dict.fromkeys(reading.signals, math.nan),
            logged=dict.fromkeys(reading.logged, math.nan),
        )
        if index % 3 == 2
        else reading
        for index, reading in enumerate(history)
    ]
    return History(history.probe, holes)


HISTORIES = {
    "over-fitting": usual(),
    "plateau": complete_history(75, TOY, plateau=20, speed=0.25),
    "constant": complete_history(30, TOY, speed=0.0),
    "holes": with_holes(usual()),
    "four an epoch": complete_history(22, replace(TOY, checks_per_epoch=4)),
    "one in two epochs": usual(checks_per_epoch=0.5),
}
every_history = pytest.mark.parametrize("kind", HISTORIES)


@cache
def path(rule, kind):
    return signal_path(HISTORIES[kind], rule)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Each history from a file, and from a state."""
    folder = tmp_path_factory.mktemp("histories")
    for name, history in HISTORIES.items():
        history.save(folder / name)
    return {
        name: (History.load(folder / name), History.from_state_dict(history.state_dict()))
        for name, history in HISTORIES.items()
    }


def found_stops(rule, kind):
    return [decision.epoch for decision in path(rule, kind) if decision.stop]


def test_each_exported_criterion_is_tried_here():
    assert {type(rule) for rule in RULES} == exported()


@every_rule
def test_it_is_frozen_and_equal_to_its_like(rule):
    with pytest.raises(FrozenInstanceError):
        setattr(rule, fields(rule)[0].name if fields(rule) else "patience", 1)
    twin = eval(repr(rule), dict(vars(stopping)))
    assert twin == rule
    assert hash(twin) == hash(rule)
    assert twin is not rule


@every_rule
@every_history
def test_it_is_a_pure_function_whose_decision_is_json(rule, kind):
    history = HISTORIES[kind]
    before = [(dict(reading.signals), dict(reading.logged)) for reading in history]
    decisions, twin = path(rule, kind), eval(repr(rule), dict(vars(stopping)))
    for count in (len(history) // 2, len(history)):
        assert twin(history[:count]).as_dict() == decisions[count - 1].as_dict()
    after = [(reading.signals, reading.logged) for reading in history]
    assert repr(after) == repr(before)  # nan is not equal to itself
    for decision, reading in zip(decisions, history, strict=True):
        assert decision.epoch == reading.epoch
        assert decision.reason
        # JSON knows no infinity either: the quotient of no progress at all is one.
        record = {name: value for name, value in decision.as_dict().items() if value != math.inf}
        assert json.loads(json.dumps(record, allow_nan=False)) == record


@every_rule
@every_history
def test_its_numbers_fit_each_other(rule, kind):
    steps = [reading.step for reading in HISTORIES[kind]]
    for decision in path(rule, kind):
        assert not decision.stop or not math.isnan(decision.signal)
        assert math.isnan(decision.signal) == (decision.watched is None)
        assert decision.best_step is None or decision.best_step in steps
        assert math.isnan(decision.since) or decision.since <= decision.epoch


@every_rule
def test_there_is_no_stop_on_short_histories(rule):
    nothing = rule(History(HISTORIES["over-fitting"].probe))
    assert (nothing.stop, "no readings yet" in nothing.reason) == (False, True)
    assert math.isnan(nothing.epoch)
    for kind in HISTORIES:
        assert [decision.stop for decision in path(rule, kind)[:2]] == [False] * 2


@every_rule
def test_over_fitting_is_stopped_and_a_constant_with_a_guard_is_not(rule):
    assert found_stops(rule, "over-fitting")
    assert found_stops(rule, "holes")
    if rule in GUARDED:
        assert found_stops(rule, "constant") == []


@pytest.mark.parametrize("rule", GUARDED, ids=repr)
def test_a_plateau_before_learning_is_not_the_end(rule):
    found = found_stops(rule, "plateau")
    assert found
    assert found[0] > 20 + 3


@every_rule
def test_patience_is_in_epochs_however_often_it_looks(rule):
    often, usually = found_stops(rule, "four an epoch")[0], found_stops(rule, "over-fitting")[0]
    assert often == pytest.approx(usually, abs=1.25)
    assert usually == pytest.approx(found_stops(rule, "one in two epochs")[0], abs=4.1)


@every_rule
@every_history
def test_a_saved_history_gives_the_same_decision(rule, kind, saved):
    loaded, restored = saved[kind]
    expected, found = rule(HISTORIES[kind]), rule(loaded)
    # Arrays are saved in single precision, and only the error is made from arrays.
    assert found.error == pytest.approx(expected.error, rel=1e-3, nan_ok=True)
    assert replace(found, error=0.0).as_dict() == replace(expected, error=0.0).as_dict()
    assert rule(restored).as_dict() == expected.as_dict()


@every_rule
def test_what_is_not_there_is_said_and_not_raised(rule):
    """A history of stiffness alone, as of a monitor without further signals in a run without validation."""
    plain = toy_history([0.9, 0.8, 0.7])
    decision = rule(plain)
    assert not decision.stop
    if isinstance(rule, StiffnessDrop | ConfirmedDrop | All | Any):
        return
    missing = "is not logged: log it in validation_step" if not needs_of(rule) else "is not measured: "
    assert missing in decision.reason or isinstance(rule, StiffnessGap)
    assert decision.epoch == 2.0


@every_rule
def test_only_what_it_names_is_read(rule):
    """With the signals that it needs and no others it decides as with all of them."""
    read = needs_of(rule) + wishes_of(rule)
    kept = {name for need in read for name in OVERFITTING if name.startswith(need)}
    assert bool(kept) == bool(read)
    history = HISTORIES["over-fitting"]
    bare = [
        replace(reading, signals={name: x for name, x in reading.signals.items() if name in {*kept, "train_within"}})
        for reading in history
    ]
    assert rule(History(history.probe, bare)).as_dict() == rule(history).as_dict()


@every_rule
def test_readings_that_are_all_empty_never_stop(rule):
    names = {name: [math.nan] * 9 for name in OVERFITTING if name not in ("within", "loss", "val_loss", "val_acc")}
    logged = {"val_loss": [math.nan] * 9, "val_acc": [math.nan] * 9}
    history = measured_history(names, logged, [math.nan] * 9)
    assert stops(rule, history) == []
    assert rule(history).reason


SETTINGS: Sequence[tuple[type, dict[str, object]]] = [
    (LeaveOneOut, {"doubt_weight": -1.0}),
    (LeaveOneOut, {"patience": 0.0}),
    (LeaveOneOut, {"warmup": -1.0}),
    (LeaveOneOut, {"smoothing": 1.0}),
    (LeaveOneOut, {"guard": -0.1}),
    (LeaveOneOut, {"guard": math.nan}),
    (ValidationScore, {"patience": math.inf}),
    (ValidationScore, {"warmup": math.nan}),
    (ValidationScore, {"guard": math.inf}),
    (ValidationPatience, {"mode": "high"}),
    (ValidationPatience, {"patience": -1.0}),
    (ValidationPatience, {"min_delta": -0.1}),
    (GeneralizationLoss, {"alpha": 0.0}),
    (ProgressQuotient, {"alpha": math.nan}),
    (ProgressQuotient, {"strip": 0.5}),
    (GradientDisparity, {"epochs": 0.0}),
    (LabelWave, {"window": 0.0}),
    (LabelWave, {"patience": math.nan}),
    (GradientWeightAlignment, {"patience": 0.0}),
    (StiffnessGap, {"fall": 0.0}),
    (StiffnessGap, {"growth": 1.0}),
    (StiffnessGap, {"collapse": math.nan}),
    (StiffnessGap, {"patience": 0.0}),
    (StiffnessGap, {"smoothing": -0.1}),
    (StiffnessGap, {"guard": 2.0}),
    (LearningGuard, {"warmup": math.inf}),
    (LearningGuard, {"warmup_factor": -1.0}),
    (LearningGuard, {"spread": math.nan}),
    (LearningGuard, {"chance_loss": math.inf}),
]


@pytest.mark.parametrize(("kind", "settings"), SETTINGS)
def test_settings_out_of_range_are_refused(kind, settings):
    ((name, value),) = settings.items()
    with pytest.raises(StiffnessError, match=rf"^{name} must be .*, but is {value!r}\."):
        kind(**settings)


def test_the_path_and_the_shadow_tell_the_same_of_every_rule():
    history = HISTORIES["over-fitting"]
    for stop in shadow(history, {repr(rule): rule for rule in RULES}, ["val_loss"]):
        rule = eval(stop.name, dict(vars(stopping)))
        assert stop.epoch == found_stops(rule, "over-fitting")[0]
