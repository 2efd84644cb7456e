"""When StiffnessEarlyStopping stops a run, when it does not, and what it says."""

import inspect
import json
import logging
import pickle
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from lightning_stiffness import ConfirmedDrop, Decision, History, StiffnessDrop, StiffnessEarlyStopping
from lightning_stiffness import StiffnessMonitor as Monitor
from lightning_stiffness.gram import GramEngine
from lightning_stiffness.stopping import explanation
from tests.callbacks.modules import FEATURES, QUIET, Classifier, Memoriser, Validated, loader, mislabelled, trainer

pytestmark = QUIET


@dataclass
class Says:
    """A criterion that says stop after some numbers of readings, and keeps what it saw."""

    stops: tuple[int, ...] = ()
    seen: list[int] = field(default_factory=list)

    def __call__(self, history: History) -> Decision:
        self.seen.append(len(history))
        return Decision(len(history) in self.stops, f"{len(history)} readings", 0.5, 0.4, 0.6, epoch=history[-1].epoch)


def small() -> Monitor:
    return Monitor(probe_size=15)


def stopped_run(**options):
    """A run of the default rule on data that is memorised."""
    stopper = StiffnessEarlyStopping(source=Monitor(probe_size=60))
    run = trainer([stopper], max_epochs=60, **options)
    run.fit(Memoriser(), mislabelled())
    return stopper, run


# The default rule


@pytest.mark.slow
def test_the_default_rule_stops_a_net_that_memorises_and_says_why(tmp_path, caplog):
    board = TensorBoardLogger(tmp_path, "board")
    with caplog.at_level(logging.INFO):
        stopper, run = stopped_run(logger=[CSVLogger(tmp_path, "csv"), board])
    assert 6 <= run.current_epoch <= 30
    decision = stopper.decision
    assert decision.stop
    assert decision.epoch == run.current_epoch
    assert decision.signal < decision.threshold < decision.best
    message = stopper.stopping_reason_message
    assert message in caplog.text
    lines = message.split("\n")
    assert lines[0].startswith(f"Training stops after {run.current_epoch} epochs. ")
    assert (lines[0].partition("epochs. ")[2], *lines[1:]) == explanation(stopper.history, decision, 60)
    assert f"spares {60 - run.current_epoch} of 60 epochs" in lines[2]
    assert stopper.stopping_reason is EarlyStoppingReason.PATIENCE_EXHAUSTED
    assert stopper.stopped_epoch == run.current_epoch - 1
    assert float(stopper.best_score) == pytest.approx(decision.best)
    written = json.loads((Path(run.logger.log_dir) / "stiffness_decision.json").read_text())
    assert written == {
        **decision.as_dict(), "stopped": True, "step": run.global_step, "criterion": repr(ConfirmedDrop()),
        "explanation": message, "restored_step": decision.best_step, "restored_epoch": decision.best_step / 7,
    }  # fmt: skip
    events = EventAccumulator(board.log_dir)
    events.Reload()
    text = events.Tensors("stiffness/decision/text_summary")[0]
    card = text.tensor_proto.string_val[0].decode()
    assert f"Training stops after {run.current_epoch} epochs" in card
    assert all(line in card for line in lines[1:])
    assert text.step == events.Scalars("stiffness/within")[-1].step


@pytest.mark.slow
def test_the_peak_is_behind_the_best_net_when_labels_are_wrong():
    stopper, run = stopped_run()
    within = stopper.history.series("within")
    assert int(within.argmax()) < run.current_epoch - 3


def test_without_a_stop_the_verdict_is_written_at_the_end(tmp_path):
    stopper = StiffnessEarlyStopping(source=small())
    run = trainer([stopper], logger=CSVLogger(tmp_path), max_epochs=2)
    run.fit(Classifier(), loader())
    written = json.loads((Path(run.logger.log_dir) / "stiffness_decision.json").read_text())
    assert written == {
        **stopper.decision.as_dict(), "stopped": False, "step": 12, "criterion": repr(stopper.criterion),
        "explanation": None, "restored_step": None, "restored_epoch": None,
    }  # fmt: skip
    assert not written["stop"]
    assert stopper.stopping_reason_message is None
    assert stopper.stopping_reason is EarlyStoppingReason.NOT_STOPPED


class Waits(Memoriser):
    """Sits at chance for 20 epochs, and then learns."""

    def training_step(self, batch, batch_idx):
        self.optimizers().param_groups[0]["lr"] = 0.0 if self.current_epoch < 20 else self.rate
        return super().training_step(batch, batch_idx)


@pytest.mark.slow
def test_a_net_at_chance_is_not_stopped_and_is_once_it_memorises():
    stopper = StiffnessEarlyStopping(source=Monitor(probe_size=60), criterion=StiffnessDrop(warmup_factor=0.0))
    run = trainer([stopper], max_epochs=60)
    run.fit(Waits(), mislabelled())
    assert 20 + 6 <= run.current_epoch < 60
    patient = StiffnessEarlyStopping(source=Monitor(probe_size=60))
    run = trainer([patient], max_epochs=25)
    run.fit(Waits(), mislabelled())
    assert run.current_epoch == 25
    assert "still warming up" in patient.decision.reason


class Plateau(Memoriser):
    """A deep net of sigmoids, which gives every sample nearly the same answer for many epochs."""

    def __init__(self):
        super().__init__(rate=2e-3)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            sizes = [2 * FEATURES, 24, 24, 24, 24, 5]
            layers = [part for pair in pairwise(sizes) for part in (nn.Linear(*pair), nn.Sigmoid())]
            self.net = nn.Sequential(*layers[:-1])


@pytest.mark.slow
def test_a_plateau_is_not_taken_for_the_end():
    stopper = StiffnessEarlyStopping(source=Monitor(probe_size=50))
    trainer([stopper], max_epochs=60).fit(Plateau(), mislabelled(share=0.0))
    losses = stopper.history.series("loss")
    assert losses[10] > 1.5, "there is no plateau to test with"
    assert losses[-1] < 0.8


# Other rules, limits and their order


def test_any_function_of_the_history_is_a_criterion():
    says = Says(stops=(4,))
    stopper = StiffnessEarlyStopping(criterion=says, source=small())
    run = trainer([stopper], max_epochs=10)
    run.fit(Classifier(), loader())
    assert run.current_epoch == 3
    assert says.seen == [1, 2, 3, 4]
    assert stopper.stopping_reason_message.startswith("Training stops after 3 epochs. 4 readings.\n")


def test_a_criterion_without_truth_value_is_used_all_the_same():
    class Sized(Says):
        def __len__(self):
            return 0

    says = Sized()
    assert StiffnessEarlyStopping(criterion=says).criterion is says


@pytest.mark.slow
@pytest.mark.parametrize(("stops", "ends"), [((3,), 8), ((3, 6), 5), ((3, 7), 6), ((3, 4, 5, 6, 7), 5), ((6,), 5)])
def test_a_verdict_before_min_epochs_does_not_linger(stops, ends):
    stopper = StiffnessEarlyStopping(criterion=Says(stops=stops), source=small())
    run = trainer([stopper], max_epochs=8, min_epochs=5)
    run.fit(Classifier(), loader())
    assert run.current_epoch == ends
    assert (stopper.stopping_reason_message is None) == (ends == 8)


@pytest.mark.slow
@pytest.mark.parametrize(("min_steps", "ends"), [(12, 2), (13, 3), (30, 6)])
def test_min_steps_are_waited_for(min_steps, ends):
    stopper = StiffnessEarlyStopping(criterion=Says(stops=(3, 4)), source=small())
    run = trainer([stopper], max_epochs=6, min_steps=min_steps)
    run.fit(Classifier(), loader())
    assert run.current_epoch == ends


@pytest.mark.parametrize(
    ("grace", "stops", "ends"),
    [
        ({"grace_epochs": 3}, (2, 3), 6),
        ({"grace_epochs": 3}, (2, 4), 3),
        ({"grace_epochs": 2.5}, (3, 4), 3),
        ({"grace_steps": 18}, (3, 4), 3),
        ({"grace_steps": 19}, (3, 4), 6),
        ({"grace_steps": 19}, (3, 4, 5), 4),
        ({"grace_epochs": 2, "grace_steps": 20}, (3, 4, 5), 4),
        ({"grace_epochs": 4, "grace_steps": 6}, (3, 4, 5), 4),
    ],
)
@pytest.mark.slow
def test_a_verdict_within_the_grace_does_not_act_nor_linger(grace, stops, ends):
    stopper = StiffnessEarlyStopping(criterion=Says(stops=stops), source=small(), **grace)
    run = trainer([stopper], max_epochs=6)
    run.fit(Classifier(), loader())
    assert run.current_epoch == ends
    assert (stopper.stopping_reason_message is None) == (ends == 6)


@pytest.mark.slow
@pytest.mark.parametrize(("grace", "step"), [({"grace_epochs": 0.5}, 4), ({"grace_steps": 3}, 4), ({}, 3)])
def test_the_grace_is_exact_within_an_epoch(grace, step):
    says, monitor = Says(stops=(2, 3, 4, 5)), Monitor(probe_size=15, every_n_steps=2)
    run = trainer([StiffnessEarlyStopping(criterion=says, source=monitor, **grace)], max_epochs=2)
    run.fit(Classifier(), loader())
    assert run.global_step == step + (step == 4)  # the step that was about to be taken is taken


def test_nothing_stops_before_the_first_step():
    stopper = StiffnessEarlyStopping(criterion=Says(stops=(1,)), source=small())
    run = trainer([stopper], max_epochs=2)
    run.fit(Classifier(), loader())
    assert run.current_epoch == 2


@pytest.mark.slow
def test_patience_is_in_epochs_however_often_it_looks():
    ends = []
    for steps in (0, 4):
        monitor = Monitor(probe_size=60, every_n_steps=steps)
        run = trainer([StiffnessEarlyStopping(source=monitor)], max_epochs=60)
        run.fit(Memoriser(), mislabelled())
        assert monitor.history[-1].epoch == pytest.approx(run.global_step / 7)
        ends.append(monitor.history[-1].epoch)
    assert 6 <= ends[0] < 60
    assert abs(ends[0] - ends[1]) <= 3


def test_it_judges_within_the_only_epoch_of_a_stream():
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(loader(60).dataset)

    monitor = Monitor(probe=loader(15, shuffle=False), every_n_steps=2, every_n_epochs=0)
    stopper = StiffnessEarlyStopping(criterion=Says(stops=(3,)), source=monitor)
    run = trainer([stopper], max_epochs=1)
    run.fit(Classifier(), torch.utils.data.DataLoader(Stream(), batch_size=10))
    assert run.global_step == 5
    assert stopper.decision.reason == "3 readings"


def test_max_epochs_come_first():
    stopper = StiffnessEarlyStopping(criterion=Says(stops=(9,)), source=small())
    run = trainer([stopper], max_epochs=2)
    run.fit(Classifier(), loader())
    assert run.current_epoch == 2
    assert not stopper.decision.stop


@pytest.mark.parametrize("stopper_first", [True, False])
def test_steps_are_judged_as_they_are_read_and_can_end_an_epoch(stopper_first):
    says, monitor = Says(stops=(4,)), Monitor(probe_size=15, every_n_steps=2)
    stopper = StiffnessEarlyStopping(criterion=says)
    run = trainer([stopper, monitor] if stopper_first else [monitor, stopper], max_epochs=4)
    run.fit(Classifier(), loader(100))
    assert says.seen == [1, 2, 3, 4]
    assert run.global_step == 7  # the step that was about to be taken is taken
    assert stopper.decision.reason == "4 readings"
    assert stopper.stopping_reason_message.startswith("Training stops after 0.6 epochs")
    assert [reading.step for reading in monitor.history] == [0, 2, 4, 6, 7]
    assert monitor.history[-1].epoch == pytest.approx(0.7)


def test_the_file_of_a_verdict_in_an_epoch_holds_its_step(tmp_path):
    stopper = StiffnessEarlyStopping(criterion=Says(stops=(2,)), source=Monitor(probe_size=15, every_n_steps=2))
    run = trainer([stopper], logger=CSVLogger(tmp_path))
    run.fit(Classifier(), loader())
    written = json.loads((Path(run.logger.log_dir) / "stiffness_decision.json").read_text())
    assert (written["step"], written["epoch"], written["stopped"]) == (2, pytest.approx(2 / 6), True)


def test_callbacks_can_be_pickled_after_a_run():
    stopper = StiffnessEarlyStopping()
    trainer([stopper], max_epochs=1).fit(Classifier(), loader())
    copy = pickle.loads(pickle.dumps(stopper))
    assert len(copy.history) == 2
    assert copy.stopping_reason is EarlyStoppingReason.NOT_STOPPED


@pytest.mark.slow
def test_a_verdict_in_the_last_batch_before_min_epochs_does_not_linger():
    says, monitor = Says(stops=(6,)), Monitor(probe_size=15, every_n_steps=1)
    stopper = StiffnessEarlyStopping(criterion=says, source=monitor)
    run = trainer([stopper], max_epochs=2, min_epochs=1)
    run.fit(Classifier(), loader())
    assert run.current_epoch == 2


# Beside a monitor


@pytest.mark.parametrize("stopper_first", [True, False])
@pytest.mark.parametrize("named", [True, False])
def test_the_readings_of_a_monitor_are_shared(stopper_first, named, monkeypatch):
    calls = []
    original = GramEngine.gram
    monkeypatch.setattr(GramEngine, "gram", lambda *args: calls.append(1) or original(*args))
    monitor, says = Monitor(probe_size=15), Says()
    stopper = StiffnessEarlyStopping(criterion=says, source=monitor if named else None)
    run = trainer([stopper, monitor] if stopper_first else [monitor, stopper], max_epochs=3)
    run.fit(Classifier(), loader())
    assert len(calls) == 4
    assert stopper.history is monitor.history
    assert says.seen == [1, 2, 3, 4]
    assert run.early_stopping_callbacks == [stopper]
    assert run.early_stopping_callback is stopper


def test_it_works_alone_without_validation_data_and_logs_like_a_monitor(tmp_path):
    stopper = StiffnessEarlyStopping(patience=50)
    run = trainer([stopper], logger=CSVLogger(tmp_path))
    run.fit(Classifier(), loader())
    assert len(stopper.history) == 3
    assert float(run.callback_metrics["stiffness/within"]) == pytest.approx(stopper.history[-1].cosine.within)
    assert len(History.load(Path(run.logger.log_dir) / "stiffness.jsonl")) == 3


@pytest.mark.slow
def test_the_monitor_of_its_name_is_taken_of_several():
    monitors = [Monitor(mode="val", name="val_stiffness", probe_size=15), Monitor(probe_size=15)]
    stopper, other = StiffnessEarlyStopping(), StiffnessEarlyStopping("val_stiffness/within")
    run = trainer([*monitors, stopper, other], max_epochs=1)
    run.fit(Validated(), loader(), loader(30, shuffle=False))
    assert stopper.history is monitors[1].history
    assert other.history is monitors[0].history


def test_a_stopper_can_be_used_with_another_trainer():
    stopper = StiffnessEarlyStopping(criterion=Says(stops=(2,)))
    trainer([stopper, Monitor(probe_size=15)], max_epochs=2).fit(Classifier(), loader())
    assert stopper.stopping_reason_message is not None
    stopper.criterion = Says()
    run = trainer([stopper], max_epochs=2)
    run.fit(Classifier(), loader())
    assert run.current_epoch == 2
    assert len(stopper.history.probe.strata) == 60  # of the monitor that it brings
    assert [reading.step for reading in stopper.history] == [0, 6, 12]
    assert stopper.stopping_reason_message is None
    assert stopper.stopping_reason is EarlyStoppingReason.NOT_STOPPED


def test_other_early_stopping_stays_as_it_is():
    other = EarlyStopping("train_loss_epoch", min_delta=100.0, patience=2)
    stopper = StiffnessEarlyStopping(source=small())
    run = trainer([stopper, other], max_epochs=9)
    run.fit(Classifier(), loader())
    assert run.current_epoch == 3
    assert run.early_stopping_callbacks == [stopper, other]
    assert stopper.stopping_reason_message is None


def test_fast_dev_run_gives_no_verdict():
    says = Says(stops=(1, 2))
    stopper = StiffnessEarlyStopping(criterion=says, source=small())
    trainer([stopper], fast_dev_run=3).fit(Classifier(), loader())
    assert says.seen == []
    assert stopper.decision is None
    assert stopper.stopping_reason_message is None


def test_validation_neither_judges_nor_stops():
    says = Says()
    run = trainer([StiffnessEarlyStopping(criterion=says, source=small())], val_check_interval=0.5, max_epochs=2)
    run.fit(Validated(), loader(), loader(30, shuffle=False))
    assert says.seen == [1, 2, 3]


def test_readings_that_fail_leave_the_verdict_to_the_others():
    class Breaks(Classifier):
        def training_step(self, batch, batch_idx):
            if not self.net.training and self.current_epoch >= 1:
                raise RuntimeError("broken")
            return super().training_step(batch, batch_idx)

    says = Says(stops=(3,))
    stopper = StiffnessEarlyStopping(criterion=says, source=small())
    run = trainer([stopper], max_epochs=4)
    with pytest.warns(UserWarning, match="broken"):
        run.fit(Breaks(), loader())
    assert run.current_epoch == 4
    assert says.seen == [1, 2, 2, 2, 2]
    strict = StiffnessEarlyStopping(criterion=says, strict=True)
    with pytest.raises(RuntimeError, match="broken"):
        trainer([strict], max_epochs=4).fit(Breaks(), loader())


def test_verbose_reports_each_verdict(caplog):
    with caplog.at_level(logging.INFO):
        trainer([StiffnessEarlyStopping(criterion=Says(), source=small(), verbose=True)]).fit(Classifier(), loader())
    assert "2 readings" in caplog.text
    assert "3 readings" in caplog.text


# Arguments


def test_the_arguments_are_lightnings_in_its_order_then_ours_by_name():
    theirs = list(inspect.signature(EarlyStopping).parameters.values())
    ours = list(inspect.signature(StiffnessEarlyStopping).parameters.values())
    assert [parameter.name for parameter in ours[: len(theirs)]] == [parameter.name for parameter in theirs]
    assert all(parameter.kind is parameter.POSITIONAL_OR_KEYWORD for parameter in ours[: len(theirs)])
    assert all(parameter.kind is parameter.KEYWORD_ONLY for parameter in ours[len(theirs) :])
    stopper = StiffnessEarlyStopping("a/within", 0.1, 5, True, "max", True, False, None, None, True, True)
    assert stopper.criterion == ConfirmedDrop(StiffnessDrop(0.1, 5, 2.0, 0.5))
    assert (stopper.monitor, stopper.verbose, stopper.strict, stopper.check_finite) == ("a/within", True, True, False)
    assert (stopper.min_delta, stopper.patience, stopper.log_rank_zero_only) == (0.1, 5, True)


def test_the_order_of_hooks_at_the_end_of_an_epoch():
    """A criterion is asked after the module's own hooks, as in Lightning's; before training it was asked once."""
    order = []

    class Ends(Classifier):
        def on_train_epoch_end(self):
            order.append("module")

    class Criterion(Says):
        def __call__(self, history):
            order.append("criterion")
            return super().__call__(history)

    class Other(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            order.append("callback")

    stopper = StiffnessEarlyStopping(criterion=Criterion(), source=small())
    trainer([stopper, Other()], max_epochs=1).fit(Ends(), loader())
    assert order == ["criterion", "callback", "module", "criterion"]
