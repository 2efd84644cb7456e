"""How callbacks that use the readings of a monitor come by it."""

import inspect

import pytest
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_stiffness import Decision, StiffnessEarlyStopping, StiffnessMonitor
from lightning_stiffness.callbacks.following import MonitorFollower
from lightning_stiffness.gram import GramEngine
from tests.callbacks.modules import QUIET, Classifier, loader, trainer

pytestmark = QUIET


class Follows(MonitorFollower):
    """The least that can be built on a follower."""

    def __init__(self, name="stiffness", source=None, needs=()):
        super().__init__()
        self._follow(name, source)
        self.needs = needs

    @property
    def state_key(self):
        return f"Follows {self._followed_name} {self.needs}"

    def _signals(self):
        return self.needs, ()


def hooks(kind):
    """Hooks that a class has of its own, or from a parent that is not Lightning's."""
    return {
        name
        for name, entry in inspect.getmembers(kind, inspect.isfunction)
        if name.startswith(("on_", "setup", "teardown")) and entry is not getattr(Callback, name, None)
    }


def test_every_hook_of_a_monitor_is_passed_on(monkeypatch):
    assert hooks(StiffnessMonitor) <= hooks(MonitorFollower)
    called = []
    follower = Follows()
    follower._watched, follower._is_driven = StiffnessMonitor(), True
    for name in sorted(hooks(MonitorFollower) - {"setup", "on_fit_start"}):
        monkeypatch.setattr(StiffnessMonitor, name, lambda self, *args, name=name: called.append((name, args)))
        places = list(inspect.signature(getattr(Callback, name)).parameters)[1:]
        getattr(follower, name)(*places)
        assert called[-1] == (name, tuple(places)), name
        follower._is_driven = False
        getattr(follower, name)(*places)
        follower._is_driven = True
    assert len(called) == len(hooks(MonitorFollower)) - 2


@pytest.mark.slow
def test_followers_share_one_monitor_which_measures_once(monkeypatch, tmp_path):
    calls = []
    original = GramEngine.gram
    monkeypatch.setattr(GramEngine, "gram", lambda *args: calls.append(1) or original(*args))
    first, second, third = Follows(needs=("a",)), Follows(needs=("b",)), Follows("other")
    monkeypatch.setattr(StiffnessMonitor, "require_signals", lambda *args: None)
    checkpoints = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    run = trainer([first, second, third, checkpoints], max_epochs=2, enable_checkpointing=True)
    run.fit(Classifier(), loader())
    assert first.history is second.history
    assert third.history is not first.history
    assert len(calls) == 2 * len(first.history) == 6
    assert "monitor" in first.state_dict()
    assert "monitor" not in second.state_dict()
    resumed = Follows(needs=("a",)), Follows(needs=("b",)), Follows("other")
    run = trainer([*resumed, ModelCheckpoint(tmp_path)], max_epochs=3, enable_checkpointing=True)
    run.fit(Classifier(), loader(), ckpt_path=tmp_path / "epoch=0.ckpt", weights_only=True)
    assert [reading.step for reading in resumed[1].history] == [0, 6, 12, 18]


@pytest.mark.parametrize("first", [True, False])
def test_a_listed_monitor_is_told_what_is_needed_after_its_setup(first, monkeypatch):
    asked = []
    monkeypatch.setattr(
        StiffnessMonitor, "require_signals", lambda self, names, wished: asked.append((self.name, *names, *wished))
    )
    monitor = StiffnessMonitor(probe_size=15)
    followers = [Follows(needs=("a", "b")), Follows(needs=("c",))]

    class Order(Callback):
        def on_fit_start(self, trainer, pl_module):
            asked.append("fit start")

    callbacks = [*followers, monitor] if first else [monitor, *followers]
    trainer([Order(), *callbacks], max_epochs=1).fit(Classifier(), loader())
    assert asked == ["fit start", ("stiffness", "a", "b"), ("stiffness", "c")]


def test_the_signals_of_a_rule_are_measured_for_it():
    class Wants:
        needs = ("prediction_changes",)

        def __call__(self, history):
            return Decision(False, "", epoch=history[-1].epoch)

    stopper = StiffnessEarlyStopping(criterion=Wants())
    trainer([stopper], max_epochs=2).fit(Classifier(), loader())
    changes = stopper.history.series("prediction_changes")
    assert len(changes) == 3
    assert 0 <= changes[-1] <= 1


def test_a_source_that_others_drive_is_driven_once():
    source = StiffnessMonitor(probe_size=15, every_n_steps=2)
    followers = [Follows(source=source), Follows(needs=(), name="x", source=source)]
    trainer(followers, max_epochs=1).fit(Classifier(), loader())
    assert [follower._is_driven for follower in followers] == [True, False]
    assert [reading.step for reading in source.history] == [0, 2, 4, 6]
