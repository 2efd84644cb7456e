"""StiffnessMonitor(probe="batch"): what it reads from training steps, which stay as they are, and what it refuses."""

import json
import warnings

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from lightning_stiffness import (
    History,
    MixedSamplesError,
    StiffnessDrop,
    StiffnessEarlyStopping,
    StiffnessError,
    StiffnessMonitor,
    figures,
)
from lightning_stiffness.callbacks.batch_pool import BatchPool
from lightning_stiffness.callbacks.batch_reading import loss_factor
from lightning_stiffness.gram import rules
from tests.callbacks import distributed_fit
from tests.callbacks.modules import CLASSES, QUIET, Classifier, Memoriser, Rich, blobs, loader, mislabelled, trainer
from tests.callbacks.test_failures import Contrastive, Manual, TwoOptimizers
from tests.callbacks.test_monitor import assert_same, cross_entropies, points
from tests.callbacks.test_monitor_neutrality import assert_neutral
from tests.oracle import loop_gram
from tests.processes import seen_by_both
from tests.unchecked import unchecked_types

pytestmark = [*QUIET, pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before")]


def monitor(**options) -> StiffnessMonitor:
    return StiffnessMonitor(**{"probe": "batch", "every_n_batches": 1, **options})


def fit(module=None, data=None, callbacks=(), settings=None, **options) -> StiffnessMonitor:
    measures = monitor(**options)
    trainer([measures, *callbacks], **(settings or {})).fit(module or Classifier(), data or loader(shuffle=False))
    return measures


# Values


class Looped(Callback):
    """The same by one backward pass a sample, in float64, with the weights of each step."""

    def __init__(self, every=1):
        self.every, self.pools = every, []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx % self.every == 0:
            gram = loop_gram(pl_module, cross_entropies, batch)[0]
            loss = float(cross_entropies(pl_module, batch).mean().detach())
            self.pools.append(BatchPool.of(gram, batch[1], loss, CLASSES))


@pytest.mark.slow
@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize("settings", [{}, {"accumulate_grad_batches": 3}])
def test_a_reading_is_of_all_pairs_within_the_batches_of_the_epoch(every, settings):
    looped = Looped(every)
    history = fit(callbacks=[looped], settings=settings, every_n_batches=every).history
    assert [reading.epoch for reading in history] == [1, 2]
    half = len(looped.pools) // 2
    for reading, pools in zip(history, (looped.pools[:half], looped.pools[half:]), strict=True):
        expected = BatchPool.empty(CLASSES).joined(pools).reading(reading.step, reading.epoch)
        for key, value in expected.metrics().items():
            if key != "seconds":
                assert reading.metrics()[key] == pytest.approx(value, abs=1e-5), key
        torch.testing.assert_close(reading.cosine.matrix, expected.cosine.matrix, rtol=0, atol=1e-5)
        assert reading.seconds > 0


@pytest.mark.slow
def test_the_schedule_is_that_of_a_probe_but_for_the_start():
    assert points(fit(every_n_steps=4).history) == pytest.approx(
        [pytest.approx(point) for point in [(4, 4 / 6), (6, 1.0), (8, 8 / 6), (12, 2.0)]]
    )
    assert points(fit(every_n_epochs=2).history) == [(12, 2.0)]


def test_a_step_without_a_batch_that_was_read_has_no_reading():
    assert points(fit(every_n_epochs=0, every_n_steps=1, every_n_batches=3, settings={"max_epochs": 1}).history) == [
        (1, pytest.approx(1 / 6)),
        (4, pytest.approx(4 / 6)),
    ]


@pytest.mark.slow
def test_what_is_known_of_the_samples():
    probe = fit(class_names=["a", "b", "c"]).history.probe
    assert (probe.mode, probe.num_classes, probe.strata, probe.class_names) == ("batch", 3, (), ("a", "b", "c"))
    assert probe.label_entropy == pytest.approx(torch.tensor(3.0).log().item())


def test_the_loss_is_the_one_of_the_training_step():
    run = trainer(accumulate_grad_batches=3)

    class Scaler:
        def get_scale(self):
            return 8.0

    run.precision_plugin.scaler = Scaler()
    assert loss_factor(run) == 3 / 8


@pytest.mark.slow
def test_reduced_precision():
    history = fit(settings={"precision": "bf16-mixed"}).history
    expected = fit().history
    torch.testing.assert_close(history.series("within"), expected.series("within"), rtol=0, atol=0.05)


@pytest.mark.slow
def test_closures_that_run_several_times_are_read_once():
    class Line(Classifier):
        def configure_optimizers(self):
            return torch.optim.LBFGS(self.parameters(), lr=0.05, max_iter=3)

    history = fit(Line()).history
    looped = Looped()
    fit(Line(), callbacks=[looped])
    first = BatchPool.empty(CLASSES).joined(looped.pools[:6]).reading(0, 0.0)
    assert history[0].cosine.within == pytest.approx(first.cosine.within, abs=1e-5)


# Training is unchanged


# The type checker of the tests draws from Python's random numbers, to look at one item of a list.
@unchecked_types()
@pytest.mark.parametrize("options", [{}, {"every_n_batches": 3}, {"every_n_steps": 1}])
@pytest.mark.slow
def test_training_is_unchanged(options, tmp_path):
    assert_neutral([monitor(num_classes=3, **options)], tmp_path)


@pytest.mark.slow
@unchecked_types()
def test_training_is_unchanged_where_a_rule_fails(monkeypatch, tmp_path):
    def broken(*_):
        raise RuntimeError("no")

    class Breaks(Callback):
        def on_before_backward(self, *_):
            monkeypatch.setitem(rules.RULES, "AddmmBackward0", broken)

    with pytest.warns(UserWarning, match="could not be measured at step 0 .*RuntimeError|Declined"):
        assert_neutral([monitor(num_classes=3), Breaks()], tmp_path)


class Counted(Classifier):
    def __init__(self):
        super().__init__()
        self.sizes = []
        self.net[0].register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0])))


sizes = []


@pytest.mark.slow
def test_no_sample_goes_forward_twice_after_the_rehearsal():
    sizes.clear()
    fit(Counted())
    assert sizes.count(10) == 12  # twelve batches
    assert max(size for size in sizes if size != 10) <= 5  # the rehearsal's
    assert sizes.index(10) == len(sizes) - 12


def test_no_hook_is_left_when_a_step_fails():
    class Fails(Classifier):
        def on_after_backward(self):
            raise RuntimeError("the user's")

    measures = monitor()
    with pytest.raises(RuntimeError, match="the user's"):
        trainer([measures]).fit(Fails(), loader())
    assert measures._reader is None or measures._reader._read is None


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
def test_batch_norm_is_named_as_an_approximation(caplog):
    with caplog.at_level("INFO"):
        fit(Rich(), every_n_batches=2)
    assert caplog.text.count("is an approximation") == 1
    caplog.clear()
    with caplog.at_level("INFO"):
        fit()
    assert "approximation" not in caplog.text


# Resuming, several processes


@pytest.mark.slow
@pytest.mark.parametrize("step", [2, 5, 6, 8, 12])
def test_a_resumed_run_goes_on_with_the_batches_that_were_read(step, tmp_path):
    def run(name, resume=None):
        measures, saves = monitor(), ModelCheckpoint(tmp_path / "saved", "{step}", save_top_k=-1, every_n_train_steps=1)
        run = trainer([measures, saves], enable_checkpointing=True, max_epochs=3)
        run.fit(Classifier(), loader(shuffle=False), ckpt_path=resume)
        return measures, run

    whole, _ = run("whole")
    path = tmp_path / f"saved/step={step}.ckpt"
    saved = next(value for key, value in torch.load(path)["callbacks"].items() if "StiffnessMonitor" in key)
    assert len(saved["pooled"]["losses"]) == step % 6 or step % 6 == 0
    resumed, _ = run("resumed", path)
    assert points(resumed.history) == points(whole.history)
    if step % 6 == 0:  # Lightning begins an epoch that was broken off with its first batch again
        assert_same(resumed.history, whole.history)
    else:
        assert resumed.history[step // 6].cosine.within != whole.history[step // 6].cosine.within
        assert_same(resumed.history[: step // 6], whole.history[: step // 6])


@pytest.mark.slow
def test_two_processes_pool_their_batches(tmp_path):
    first, second = seen_by_both(distributed_fit.main, "batches", folder=tmp_path)
    assert first == second
    history = History.load(next(tmp_path.rglob("stiffness.jsonl")))
    assert [reading.step for reading in history] == [1, 2, 3, 4, 5, 6]
    looped = Looped()  # the first step of both, by hand: with the same weights
    for rank in range(2):
        x, y = json.loads((tmp_path / f"batch{rank}.json").read_text())
        looped.on_train_batch_start(None, Classifier(), (torch.tensor(x), torch.tensor(y)), 0)
    expected = BatchPool.empty(CLASSES).joined(looped.pools).reading(0, 0.0)
    assert first["readings"][0][2] == pytest.approx(expected.cosine.within, abs=1e-5)


# What comes after


@pytest.mark.slow
def test_files_loggers_and_figures(tmp_path):
    measures = fit(settings={"logger": CSVLogger(tmp_path, "logs")})
    loaded = History.load(next(tmp_path.rglob("stiffness.jsonl")))
    assert_same(loaded, measures.history, 1e-6)
    assert_same(History.from_state_dict(measures.history.state_dict()), measures.history)
    assert "stiffness/within" in next(tmp_path.rglob("metrics.csv")).read_text()
    figures.within_and_between(loaded)
    figures.class_matrices(loaded)


def test_changes_have_unpaired_errors():
    history = fit().history
    change = history.within_change(0, 1)
    first, last = history[0].cosine, history[1].cosine
    assert change.value == pytest.approx(last.within - first.within)
    assert change.se == pytest.approx((first.within_se**2 + last.within_se**2) ** 0.5)


@pytest.mark.slow
def test_a_stopper_asks_for_a_probe_or_for_a_rule_without_the_spread():
    with pytest.raises(StiffnessError, match=r"spread=0"):
        trainer([monitor(), StiffnessEarlyStopping()]).fit(Classifier(), loader())
    decision = StiffnessDrop()(fit().history)
    assert not decision.stop
    assert "nothing learned" in decision.reason or "spread" in decision.reason


@pytest.mark.slow
@pytest.mark.parametrize("is_driven", [True, False])
def test_a_stopper_without_that_guard_stops(is_driven):
    measures = monitor()
    stopper = StiffnessEarlyStopping(source=measures, criterion=StiffnessDrop(spread=0))
    run = trainer([stopper] if is_driven else [measures, stopper], max_epochs=60)
    run.fit(Memoriser(), mislabelled())
    assert 4 <= run.current_epoch < 60
    assert len(measures.history) == run.current_epoch


# What is refused


class Penalised(Classifier):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) + 0.1 * self.net[0].weight.square().sum()


class Compiled(Classifier):
    def __init__(self):
        super().__init__()
        self.net = torch.compile(self.net, backend="eager")


class Odd(Classifier):
    def __init__(self):
        super().__init__()
        self.power = nn.Parameter(torch.ones(CLASSES))

    def forward(self, x):
        return torch.atan2(self.net(x), self.power)


X, Y = blobs()
REFUSED = {
    "manual": (Manual, {}, "manually"),
    "two optimizers": (TwoOptimizers, {}, "several optimizers"),
    "compiled": (Compiled, {}, r"torch\.compile on net"),
    "penalty": (Penalised, {}, "does not hold the samples' gradients"),
    "no rule": (Odd, {}, r"power \(no rule"),
    "contrastive": (Contrastive, {}, "contrastive"),
    "too few classes": (Classifier, {"num_classes": 2}, r"\[0, 2\), found 0 to 2"),
    "classes not known": (Classifier, {"targets": lambda batch: batch[1]}, "num_classes="),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_work_is_said_before_the_first_step(case):
    kind, options, message = REFUSED[case]
    module = kind()
    before = [parameter.detach().clone() for parameter in module.parameters()]
    with pytest.raises(StiffnessError, match=message) as caught:
        fit(module, loader(shuffle=False), **options)
    assert len(str(caught.value)) < 600
    assert all(torch.equal(*pair) for pair in zip(module.parameters(), before, strict=True))


def test_a_loss_that_mixes_samples_has_an_error_of_its_own():
    with pytest.raises(MixedSamplesError):
        fit(Contrastive())


def test_batches_of_one_sample():
    with pytest.raises(StiffnessError, match="two samples to compare"):
        fit(data=loader(batch_size=1))


@pytest.mark.parametrize("options", [{"probe": "batches"}, {"probe": "batch", "mode": "val"}])
def test_arguments(options):
    with pytest.raises(StiffnessError, match='probe must be samples or "batch"'):
        StiffnessMonitor(**options)
    with pytest.raises(StiffnessError, match="every_n_batches must be at least 1"):
        StiffnessMonitor(every_n_batches=0)


@pytest.mark.slow
def test_a_penalty_is_passed_over_where_the_losses_are_given_without_it():
    looped = Looped()
    history = fit(Penalised(), callbacks=[looped], loss=cross_entropies).history
    expected = BatchPool.empty(CLASSES).joined(looped.pools[:6]).reading(0, 0.0)
    assert history[0].cosine.within == pytest.approx(expected.cosine.within, abs=1e-5)


class Checkpointed(Classifier):
    """Recomputes activations, in training only."""

    def forward(self, x):
        return checkpoint(self.net, x, use_reentrant=False) if self.training else self.net(x)


class Shaky(Classifier):
    """Leaves a layer out at random."""

    def __init__(self):
        super().__init__()
        self.extra = nn.Linear(8, 8)

    def forward(self, x):
        return self.net(x if self.training and self.global_step % 2 else self.extra(x))


def test_checkpointed_activations_are_not_touched():
    with pytest.warns(UserWarning, match="activation checkpointing"):
        history = fit(Checkpointed()).history
    assert len(history) == 0
    with pytest.raises(StiffnessError, match="activation checkpointing"):
        fit(Checkpointed(), strict=True)


@pytest.mark.slow
def test_a_step_with_another_graph_is_left_out_and_said_once():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        history = fit(Shaky()).history
    assert len([one for one in caught if "as it does in eval mode" in str(one.message)]) == 1
    assert len(history) == 2


@pytest.mark.slow
def test_layers_that_are_unfrozen_are_read_from_then_on():
    class Frozen(Classifier):
        def on_train_epoch_start(self):
            self.net[0].requires_grad_(self.current_epoch > 0)

    looped = Looped()
    history = fit(Frozen(), callbacks=[looped]).history
    for reading, pools in zip(history, (looped.pools[:6], looped.pools[6:]), strict=True):
        expected = BatchPool.empty(CLASSES).joined(pools).reading(0, 0.0)
        assert reading.cosine.within == pytest.approx(expected.cosine.within, abs=1e-5)


def test_a_full_budget_leaves_batches_out_and_says_so():
    with pytest.warns(UserWarning, match="take more than the budget"):
        history = fit(budget=4000, settings={"max_epochs": 1}).history
    assert len(history) == 1


def test_a_last_batch_of_one_sample_is_passed_over():
    data = DataLoader(TensorDataset(X[:31], Y[:31]), batch_size=10)
    assert len(fit(data=data).history) == 2


@pytest.mark.slow
def test_targets_and_batches_of_other_makes():
    class Named(Classifier):
        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self(batch["x"]), batch.pop("kind"))  # changes the batch

    samples = [{"x": x, "kind": y} for x, y in zip(X, Y, strict=True)]
    history = fit(
        Named(), DataLoader(samples, batch_size=10), targets=lambda batch: batch["kind"], num_classes=3
    ).history
    assert history[0].cosine.within == pytest.approx(fit().history[0].cosine.within, abs=1e-6)
