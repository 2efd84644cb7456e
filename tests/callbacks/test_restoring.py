"""Which weights a run ends with, and that copies of them do no harm."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback, strategies
from lightning.pytorch import callbacks as lightning_callbacks
from lightning.pytorch.callbacks import ModelCheckpoint, StochasticWeightAveraging
from lightning.pytorch.loggers import CSVLogger
from torch import nn

from lightning_stiffness import Decision, History, StiffnessEarlyStopping, StiffnessError, StiffnessMonitor
from lightning_stiffness.callbacks.restoring import (
    AVERAGING,
    SHARDING,
    WeightCopies,
    require_whole_weights,
    wanted_steps,
)
from lightning_stiffness.stopping import All, Any, StiffnessDrop
from tests.callbacks.modules import QUIET, Classifier, Memoriser, Rich, loader, mislabelled, trainer
from tests.toy_history import toy_history

pytestmark = [*QUIET, pytest.mark.filterwarnings("ignore:You defined a `validation_step`")]


@dataclass(frozen=True)
class Holds:
    """Says stop at a number of readings, and holds the reading of a number for the best from then on."""

    best: int | None
    stop: int = 99

    def __call__(self, history: History) -> Decision:
        count = len(history)
        held = None if self.best is None else history[min(self.best, count) - 1].step
        return Decision(count >= self.stop, f"{count} readings", 0.5, 0.4, 0.6, held, epoch=history[-1].epoch)


class Weights(Callback):
    """Notes the weights after each epoch, independently of what is tested, and the state of the random numbers."""

    def __init__(self) -> None:
        self.at: list[dict[str, torch.Tensor]] = []
        self.random: list[torch.Tensor] = []

    def on_train_epoch_end(self, trainer, pl_module):
        self.at.append({name: value.clone() for name, value in pl_module.state_dict().items()})
        self.random.append(torch.get_rng_state())


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def fitted(criterion, module=None, restore="best", callbacks=(), epochs=5, data=None, **options):
    """A stopped run with one reading after each epoch and one before: reading number k is that of epoch k - 1."""
    stopper = StiffnessEarlyStopping(criterion=criterion, source=StiffnessMonitor(probe_size=15), restore=restore)
    seen, module = Weights(), module or Classifier()
    run = trainer([stopper, seen, *callbacks], max_epochs=epochs, **options)
    torch.manual_seed(0)
    run.fit(module, data or loader(shuffle=False))
    return SimpleNamespace(stopper=stopper, run=run, weights=module.state_dict(), at=seen.at, random=seen.random)


# Copies


def linear(value: float) -> nn.Linear:
    module = nn.Linear(2, 1)
    nn.init.constant_(module.weight, value)
    return module


def test_only_wanted_steps_are_kept_and_only_once():
    copies, module = WeightCopies(), linear(1.0)
    copies.keep(10, module, {10})
    nn.init.constant_(module.weight, 2.0)
    copies.keep(10, module, {10})
    copies.keep(20, module, {10})
    assert copies.steps == (10,)
    copies.keep(30, module, {10, 30})
    assert copies.steps == (10, 30)
    copies.restore(10, module)
    assert module.weight.tolist() == [[1.0, 1.0]]
    copies.keep(40, module, {30})
    assert copies.steps == (30,)
    copies.clear()
    assert copies.steps == ()
    with pytest.raises(KeyError):
        copies.restore(30, module)


def test_a_copy_is_put_back_in_place_and_in_the_dtype_of_the_module():
    copies, module = WeightCopies(), linear(1.25)
    copies.keep(1, module, {1})
    module.bfloat16()
    weight = module.weight
    nn.init.zeros_(weight)
    copies.restore(1, module)
    assert module.weight is weight
    assert weight.dtype is torch.bfloat16
    assert weight.tolist() == [[1.25, 1.25]]


def test_copies_are_whole_and_draw_no_random_numbers():
    class Extra(nn.BatchNorm1d):
        notes: list[int]

        def get_extra_state(self):
            return self.notes

        def set_extra_state(self, state):
            self.notes = state

    module = Extra(3)
    module.notes, before = [1], torch.get_rng_state()
    copies = WeightCopies()
    copies.keep(5, module, {5})
    module.notes.append(2)
    module(torch.ones(4, 3))
    assert torch.equal(torch.get_rng_state(), before)
    copies.restore(5, module)
    assert module.notes == [1]
    assert module.num_batches_tracked == 0
    assert module.running_mean.tolist() == [0.0] * 3


def test_copies_go_through_a_checkpoint(tmp_path):
    copies, loaded, module = WeightCopies(), WeightCopies(), linear(3.0)
    copies.keep(7, module, {7})
    torch.save(copies.state_dict(), tmp_path / "copies")
    loaded.load_state_dict(torch.load(tmp_path / "copies", weights_only=True))
    nn.init.zeros_(module.weight)
    loaded.restore(7, module)
    assert module.weight.tolist() == [[3.0, 3.0]]


def test_what_any_part_of_a_rule_may_ask_for_is_wanted():
    history = toy_history([0.5, 0.6, 0.7, 0.8])
    rule = Any(Holds(2), All(Holds(3), Holds(None), Any(Holds(4))), StiffnessDrop())
    assert wanted_steps(rule, history, rule(history)) == {10, 20, 30}
    assert wanted_steps(Holds(None), history, Holds(None)(history)) == set()


@pytest.mark.parametrize("name", SHARDING)
def test_sharded_weights_are_refused_before_training(name):
    kind = type("Special", (getattr(strategies, name),), {"__init__": lambda self: None})
    with pytest.raises(StiffnessError, match=f"all weights, but found {name}.*save_top_k=-1"):
        require_whole_weights(SimpleNamespace(strategy=kind()))


@pytest.mark.parametrize("restore", ["best", "stop"])
def test_the_stopper_refuses_them_only_if_it_is_to_restore(restore, monkeypatch):
    monkeypatch.setattr("lightning_stiffness.callbacks.restoring.SHARDING", ("SingleDeviceStrategy",))
    if restore == "stop":
        assert fitted(Holds(2), restore=restore, epochs=1).run.current_epoch == 1
        return
    with pytest.raises(StiffnessError, match="SingleDeviceStrategy"):
        fitted(Holds(2), restore=restore)


# Runs


def test_a_stopped_run_ends_with_the_best_weights_and_says_so(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        found = fitted(Holds(3, stop=5), epochs=9, logger=CSVLogger(tmp_path))
    assert found.run.current_epoch == 4
    assert_equal(found.weights, found.at[1])
    assert not torch.equal(found.at[1]["net.0.weight"], found.at[3]["net.0.weight"])
    assert "Restored the weights of epoch 2 (step 12)" in caplog.text
    written = json.loads((Path(found.run.logger.log_dir) / "stiffness_decision.json").read_text())
    assert (written["restored_step"], written["restored_epoch"], written["stopped"]) == (12, 2.0, True)
    assert (written["best_step"], written["step"]) == (12, 24)
    assert found.stopper.restored_step == 12


def test_so_does_one_that_max_epochs_end():
    found = fitted(Holds(3), epochs=4)
    assert found.run.current_epoch == 4
    assert_equal(found.weights, found.at[1])
    assert found.stopper.restored_step == 12


@pytest.mark.slow
@pytest.mark.parametrize(("criterion", "restore"), [(Holds(3, stop=5), "stop"), (Holds(None, stop=5), "best")])
def test_without_a_wish_or_a_best_the_last_weights_stay(criterion, restore):
    found = fitted(criterion, restore=restore)
    assert_equal(found.weights, found.at[3])
    assert found.stopper.restored_step is None


def test_the_weights_before_training_can_be_the_best():
    found = fitted(Holds(1, stop=4))
    assert found.stopper.restored_step == 0
    assert_equal(found.weights, Classifier().state_dict())


@pytest.mark.slow
def test_each_part_of_a_combination_gets_its_own_weights():
    parts = Holds(2, stop=5), Holds(4, stop=4)
    assert_equal((first := fitted(Any(*parts))).weights, first.at[2])  # the second part says stop
    assert_equal((both := fitted(All(*parts))).weights, both.at[2])  # the last one with a best
    assert_equal((swapped := fitted(All(*reversed(parts)))).weights, swapped.at[0])
    assert both.run.current_epoch == swapped.run.current_epoch == 4


def test_readings_within_an_epoch_keep_the_weights_of_their_step():
    class AtStep(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == 4:
                self.weights = {name: value.clone() for name, value in pl_module.state_dict().items()}

    seen = AtStep()
    monitor = StiffnessMonitor(probe_size=15, every_n_steps=2)
    stopper = StiffnessEarlyStopping(criterion=Holds(3, stop=5), source=monitor, restore="best")
    module = Classifier()
    trainer([stopper, seen]).fit(module, loader())
    assert [reading.step for reading in monitor.history[:3]] == [0, 2, 4]
    assert_equal(module.state_dict(), seen.weights)


def test_a_reading_of_earlier_weights_is_not_mistaken_for_one_of_now():
    """At the end of an epoch the rule is asked again, although there is no new reading."""

    def late(history):
        late.asked += 1
        held = history[-1].step if late.asked > 2 else None
        return Decision(False, "", best_step=held, epoch=history[-1].epoch)

    late.asked = 0
    monitor = StiffnessMonitor(probe_size=15, every_n_steps=4, every_n_epochs=0)
    stopper = StiffnessEarlyStopping(criterion=late, source=monitor, restore="best")
    module = Classifier()
    with pytest.warns(UserWarning, match="step 4.*were not kept"):
        trainer([stopper], max_epochs=1).fit(module, loader(70))
    assert stopper.restored_step is None


def rich():
    torch.manual_seed(0)
    return Rich()


@pytest.mark.slow
def test_a_module_with_buffers_and_an_optimizer_that_goes_on():
    found = fitted(Holds(3, stop=5), module=rich())
    assert_equal(found.weights, found.at[1])
    parameters = {id(parameter) for parameter in found.run.lightning_module.parameters()}
    assert {id(p) for group in found.run.optimizers[0].param_groups for p in group["params"]} <= parameters


@pytest.mark.slow
def test_copying_changes_nothing():
    every, none = fitted(Holds(99), module=rich()), fitted(Holds(99), module=rich(), restore="stop")
    assert every.stopper.restored_step is None  # those of its last step
    assert_equal(every.weights, none.weights)
    assert all(map(torch.equal, every.random, none.random))


def test_fast_dev_run_and_validation_restore_nothing():
    found = fitted(Holds(1), fast_dev_run=2)
    assert found.stopper.restored_step is None
    assert_equal(found.weights, found.at[0])


def test_a_checkpoint_of_the_run_holds_the_weights_of_its_time(tmp_path):
    checkpoints = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    found = fitted(Holds(2, stop=4), callbacks=[checkpoints], enable_checkpointing=True)
    for epoch, expected in enumerate(found.at):
        assert_equal(torch.load(tmp_path / f"epoch={epoch}.ckpt", weights_only=True)["state_dict"], expected)


# Resumed runs


def resumable(folder, resume=None, restore="best", epochs=60, listed=False, patience=5.0):
    """A run of a rule that holds its lowest loss on the first samples for the best, and stops by stiffness."""

    def lowest(history):
        losses = history.series("within").tolist()
        verdict = StiffnessDrop()(history)
        best = history[max(range(len(losses)), key=losses.__getitem__)].step
        return Decision(verdict.stop, verdict.reason, verdict.signal, best_step=best, epoch=verdict.epoch)

    monitor = StiffnessMonitor(probe_size=60)
    stopper = StiffnessEarlyStopping(criterion=lowest, source=None if listed else monitor, restore=restore)
    checkpoints = ModelCheckpoint(folder, "{epoch}", save_top_k=-1)
    module = Memoriser()
    callbacks = [stopper, *([monitor] if listed else []), checkpoints]
    run = trainer(callbacks, enable_checkpointing=True, max_epochs=epochs)
    run.fit(module, mislabelled(), ckpt_path=resume)
    return SimpleNamespace(run=run, stopper=stopper, weights=module.state_dict())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before")
@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("epochs", [60, 8])
def test_a_run_resumed_at_any_epoch_ends_at_the_same_one_with_the_same_weights(listed, epochs, tmp_path):
    whole = resumable(tmp_path, epochs=epochs, listed=listed)
    end = whole.run.current_epoch
    assert (end == 8) if epochs == 8 else (8 < end < 30)
    assert whole.stopper.restored_step is not None
    assert whole.stopper.restored_step < whole.run.global_step
    for epoch in range(0, end, 1 if listed else 4):
        resumed = resumable(tmp_path, tmp_path / f"epoch={epoch}.ckpt", epochs=epochs, listed=listed)
        assert resumed.run.current_epoch == end, epoch
        assert resumed.stopper.restored_step == whole.stopper.restored_step, epoch
        assert resumed.stopper.stopping_reason_message == whole.stopper.stopping_reason_message, epoch
        assert_equal(resumed.weights, whole.weights)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before")
def test_copies_that_a_checkpoint_lacks_are_missed_aloud(tmp_path):
    first = resumable(tmp_path, restore="stop", epochs=6)
    assert first.stopper.restored_step is None
    with pytest.warns(UserWarning, match="were not kept: the last weights stay"):
        resumed = resumable(tmp_path, tmp_path / "epoch=5.ckpt", epochs=7)
    assert resumed.stopper.restored_step is None
    assert resumed.run.current_epoch == 7


def test_copies_of_another_run_are_forgotten():
    """Those of the same step would be taken for the right ones: here the weights before training."""
    stopper = StiffnessEarlyStopping(criterion=Holds(1), source=StiffnessMonitor(probe_size=15), restore="best")
    for scale in (1.0, 0.5):
        module = Classifier()
        with torch.no_grad():
            module.net[0].weight.mul_(scale)
        before = {name: value.clone() for name, value in module.state_dict().items()}
        trainer([stopper], max_epochs=1).fit(module, loader(shuffle=False))
        assert_equal(module.state_dict(), before)


def test_averaged_weights_and_the_best_ones_cannot_both_be_the_last():
    averaging = StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=1)
    with pytest.raises(
        StiffnessError, match=r'restore="best" decides .*so does StochasticWeightAveraging.* restore="stop"'
    ):
        fitted(Holds(2), callbacks=[averaging])


def test_averaging_callbacks_have_these_names():
    assert set(AVERAGING) <= set(dir(lightning_callbacks)) or not hasattr(lightning_callbacks, "WeightAveraging")


class Adapted(Classifier):
    """Keeps the weights of its last layer alone."""

    def state_dict(self, *arguments, **options):
        state = super().state_dict(*arguments, **options)
        return {name: value for name, value in state.items() if name in list(state)[-2:]}


def test_weights_that_the_module_leaves_out_stay_as_they_are():
    module, copies = Adapted(), WeightCopies()
    before = [parameter.detach().clone() for parameter in module.parameters()]
    copies.keep(10, module, wanted={10})
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(7.0)
    copies.restore(10, module)
    now = list(module.parameters())
    assert all(map(torch.equal, now[-2:], before[-2:]))
    assert all(bool((parameter == 7.0).all()) for parameter in now[:-2])
