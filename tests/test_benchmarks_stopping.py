import importlib
import json
import math
import multiprocessing
import os
import shutil
import signal
import time
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_stiffness.history import History
from lightning_stiffness.stopping import Decision, StiffnessDrop
from tests.toy_history import toy_history

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def _path_of_the_scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def module(name: str) -> Any:
    return importlib.import_module(name)


def setting(**values: Any) -> Any:
    return module("stopping_grid").Setting(**values)


TINY = {"n": 120, "epochs": 2, "net": "mlp_shallow", "rate": 0.05}


# The table


def test_the_table_on_file_is_the_one_that_the_code_draws():
    grid = module("stopping_grid")
    assert grid.read_table() == grid.grid()
    on_file = json.loads((BENCHMARKS / "early_stopping_cells.json").read_text())
    assert [(row["name"], row["split"]) for row in on_file] == [(c.name, c.setting.split) for c in grid.grid()]


def test_the_table_has_both_halves_with_all_that_is_hard_in_each():
    grid = module("stopping_grid")
    cells = grid.grid()
    names = {half: [c for c in cells if c.setting.split == half] for half in ("tune", "report")}
    assert len({c.name for c in cells}) == len(cells) == 120
    assert 40 <= len(names["tune"]) < len(names["report"])
    assert cells == names["tune"] + names["report"]
    for half in names.values():
        assert {c.kind for c in half} == {"drawn", *grid.HARD}
        assert {c.setting.data for c in half} == {"digits", "mnist", "cifar10"}
        assert {c.setting.noise for c in half} == {0.0, 0.1, 0.2, 0.4}


def test_the_name_tells_every_field():
    other = {
        "data": "mnist", "n": 601, "noise": 0.1, "wrong": "asymmetric", "net": "cnn_gn", "optimizer": "adamw",
        "rate": 0.021, "schedule": "cosine", "weight_decay": 0.1, "dropout": 0.2, "augment": True, "batch": 32,
        "epochs": 61, "seed": 1,
    }  # fmt: skip
    assert set(other) == {entry.name for entry in fields(module("stopping_grid").Setting)}
    names = [setting(**{key: value}).name for key, value in other.items()]
    assert len({setting().name, *names}) == 1 + len(other)


def test_a_quick_run_needs_no_download_and_has_both_halves():
    grid = module("stopping_grid")
    chosen = grid.quick(grid.read_table())
    assert {c.setting.data for c in chosen} == {"digits"}
    assert {c.setting.split for c in chosen} == {"tune", "report"}
    assert sum(c.setting.seconds for c in chosen) <= 2 * grid.QUICK_SECONDS


# The data


def test_what_is_held_back_comes_from_the_same_draw_with_the_same_wrong_labels():
    data = module("stopping_data")
    whole, part = (data.parts_of(setting(), None, share) for share in (0.0, 0.1))
    assert (len(whole.train), len(part.train), len(part.held), len(whole.held)) == (600, 540, 60, 0)
    assert torch.equal(torch.cat([part.held.inputs, part.train.inputs]), whole.train.inputs)
    assert torch.equal(torch.cat([part.held.targets, part.train.targets]), whole.train.targets)
    assert torch.equal(part.test.inputs, whole.test.inputs)


def test_test_images_are_others_and_have_their_true_labels():
    parts = module("stopping_data").parts_of(setting(noise=0.4), None, 0.0)
    everything = module("stopping_data").digits()
    assert len(parts.train) + len(parts.test) == len(everything) == 1797
    order = torch.randperm(1797, generator=torch.Generator().manual_seed(0))
    assert torch.equal(parts.test.targets, everything.targets[order[600:]])
    raw = everything.inputs[order[:600]]
    assert torch.allclose(parts.test.inputs, (everything.inputs[order[600:]] - raw.mean()) / raw.std(), atol=1e-5)


@pytest.mark.parametrize("wrong", ["symmetric", "asymmetric"])
def test_wrong_labels_are_as_many_and_of_the_kind_that_was_asked_for(wrong):
    data = module("stopping_data")
    true = torch.arange(10).repeat(1000)
    given = data.with_noise(true, setting(noise=0.2, wrong=wrong), torch.Generator().manual_seed(3))
    steps = (given - true) % 10
    share = (steps != 0).float().mean().item()
    assert share == pytest.approx(0.2, abs=4 * math.sqrt(0.2 * 0.8 / 10_000))
    assert set(steps.tolist()) == ({0, 1} if wrong == "asymmetric" else set(range(10)))
    clean = data.with_noise(true, setting(noise=0.0, wrong=wrong), torch.Generator().manual_seed(3))
    assert torch.equal(clean, true)


def test_augmentation_shifts_without_the_global_generator_and_only_where_asked_for():
    data = module("stopping_data")
    image = torch.zeros(1, 8, 8)
    image[0, 3, 4] = 1.0
    images = data.Images(image[None], torch.tensor([7]))
    state = torch.get_rng_state()
    moved = data.TrainingSet(images, setting(augment=True))
    places = {tuple(moved[0][0].nonzero()[0].tolist()) for _ in range(200)}
    assert torch.equal(torch.get_rng_state(), state)
    assert places == {(0, row, column) for row in (2, 3, 4) for column in (3, 4, 5)}
    assert moved[0][1] == 7
    assert data.TrainingSet(images, setting())[0][0] is not None
    assert torch.equal(data.TrainingSet(images, setting())[0][0], image)


def test_images_of_an_archive_and_what_is_said_without_one(tmp_path):
    data = module("stopping_data")
    generator = np.random.default_rng(0)
    arrays = {f"x_{part}": generator.integers(0, 256, (50, 6, 6, 3), dtype=np.uint8) for part in ("train", "test")}
    labels = {f"y_{part}": generator.integers(0, 10, (50, 1)) for part in ("train", "test")}
    np.savez(tmp_path / "cifar10-small.npz", **arrays, **labels)
    parts = data.parts_of(setting(data="cifar10", n=40), tmp_path, 0.0)
    assert parts.train.inputs.shape == (40, 3, 6, 6)
    first = torch.from_numpy(arrays["x_test"][0]).permute(2, 0, 1).float()
    assert torch.corrcoef(torch.stack([parts.test.inputs[0].flatten(), first.flatten()]))[0, 1] > 0.99999
    with pytest.raises(SystemExit, match="--data DIR"):
        data.parts_of(setting(data="mnist"), None, 0.0)
    with pytest.raises(SystemExit, match=r"there is no .*mnist\.npz"):
        data.parts_of(setting(data="mnist"), tmp_path, 0.0)


# Training


@pytest.mark.parametrize("net", ["mlp_shallow", "mlp", "mlp_deep", "cnn_gn", "cnn_bn", "transformer"])
@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32)])
def test_every_network_takes_every_kind_of_image(net, shape):
    made = module("stopping_networks").network(setting(net=net, dropout=0.3), shape)
    assert made(torch.randn(5, *shape)).shape == (5, 10)
    assert any(isinstance(layer, nn.Dropout) for layer in made.modules())
    assert any(isinstance(layer, nn.BatchNorm2d) for layer in made.modules()) == (net == "cnn_bn")


@pytest.mark.parametrize(
    ("schedule", "done", "expected"),
    [
        ("constant", 0.9, 1.0), ("cosine", 0.0, 1.0), ("cosine", 0.5, 0.5), ("cosine", 1.0, 0.0),
        ("step", 0.39, 1.0), ("step", 0.4, 0.1), ("step", 0.7, 0.01), ("warmup", 0.05, 0.5), ("warmup", 0.5, 1.0),
        ("warmup_cosine", 0.05, 0.5), ("warmup_cosine", 0.1, 1.0), ("warmup_cosine", 0.55, 0.5),
    ],
)  # fmt: skip
def test_schedules(schedule, done, expected):
    assert module("stopping_training").factor(schedule, done) == pytest.approx(expected)


def test_test_scores_are_those_of_eval_mode_and_leave_no_trace():
    training, data = module("stopping_training"), module("stopping_data")
    torch.manual_seed(0)
    classifier = training.Classifier(setting(net="cnn_bn", dropout=0.5), (1, 8, 8))
    classifier.network[1].eval()
    images = data.Images(torch.randn(450, 1, 8, 8), torch.randint(0, 10, (450,)))
    modes = [part.training for part in classifier.modules()]
    buffers = [buffer.clone() for buffer in classifier.buffers()]
    state = torch.get_rng_state()
    trainer = SimpleNamespace(callback_metrics={})
    training.TestScores(images).on_train_epoch_end(trainer, classifier)
    assert torch.equal(torch.get_rng_state(), state)
    assert [part.training for part in classifier.modules()] == modes
    assert all(torch.equal(a, b) for a, b in zip(classifier.buffers(), buffers, strict=True))
    with torch.no_grad():
        logits = classifier.eval().network(images.inputs)
    losses = [-torch.log_softmax(row, 0)[label] for row, label in zip(logits.double(), images.targets, strict=True)]
    hits = [row.argmax() == label for row, label in zip(logits, images.targets, strict=True)]
    assert float(trainer.callback_metrics["test_loss"]) == pytest.approx(float(sum(losses)) / 450, rel=1e-5)
    assert float(trainer.callback_metrics["test_acc"]) == pytest.approx(float(sum(hits)) / 450)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A store with a tiny cell that was really trained, both ways."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        workers = module("stopping_workers")
        store = workers.Store(tmp_path_factory.mktemp("trained"))
        threads, state = torch.get_num_threads(), torch.get_rng_state()
        for part in ("full", "held"):
            order = store.order(setting(**TINY), part)
            store.keep(order, workers.attempt(order))
        torch.set_num_threads(threads)
        torch.set_rng_state(state)
        return store


@pytest.mark.slow
def test_a_training_leaves_a_history_with_all_that_rules_look_at(trained):
    for part in ("full", "held"):
        assert trained.find(setting(**TINY), part).error == ""
        history = History.load(trained.history(setting(**TINY), part))
        assert [reading.epoch for reading in history] == [0.0, 1.0, 2.0]
        assert all({"test_loss", "test_acc"} <= set(reading.logged) for reading in history)
        assert {"train_loss", "train_acc"} <= set(history[-1].logged)
        assert ("val_loss" in history[-1].logged) == ("val_acc" in history[-1].logged) == (part == "held")
        judged = module("stopping_rules").judge(history, part)
        assert set(judged) == {rule.name for rule in module("stopping_rules").RULES if rule.part == part}


def test_the_evidence_is_measured_on_small_perceptrons_only():
    signals_of = module("stopping_training").signals_of
    assert "evidence" in signals_of(setting(n=300))
    assert "evidence" not in signals_of(setting(n=1000))
    assert "evidence" not in signals_of(setting(data="mnist"))
    assert "evidence" not in signals_of(setting(net="cnn_bn"))
    assert set(module("stopping_training").SIGNALS) <= set(signals_of(setting(data="mnist")))


def test_both_trainings_begin_with_the_same_weights(trained):
    first = [History.load(trained.history(setting(**TINY), part))[0].logged for part in ("full", "held")]
    assert first[0]["test_loss"] == first[1]["test_loss"]


def test_costs_are_parts_of_the_whole(trained):
    costs = trained.find(setting(**TINY), "full").costs
    assert 0 < costs["monitor_seconds"] + costs["evaluation_seconds"] < costs["seconds"]
    history = History.load(trained.history(setting(**TINY), "full"))
    assert costs["monitor_seconds"] == pytest.approx(sum(reading.seconds for reading in history))


def test_a_training_that_diverged_or_lacks_readings_is_an_error():
    checked = module("stopping_training").checked
    history = with_test(toy_history([0.5, 0.6, 0.5]), [1.0, 0.5, 0.6], [0.1, 0.8, 0.7])
    assert checked(history, setting(epochs=2)) is history
    with pytest.raises(RuntimeError, match="expected 4 readings, found 3"):
        checked(history, setting(epochs=3))
    with pytest.raises(RuntimeError, match="expected 3 readings, found 0"):
        checked(None, setting(epochs=2))
    lost = with_test(history, [1.0, math.inf, math.nan], [0.1, 0.1, 0.1])
    with pytest.raises(RuntimeError, match="not finite after epoch 1"):
        checked(lost, setting(epochs=2))


# Workers and what is kept


def test_an_error_is_an_outcome(tmp_path):
    workers = module("stopping_workers")
    store = workers.Store(tmp_path)
    outcome = workers.attempt(store.order(setting(data="mnist"), "full"))
    assert outcome.costs is None
    assert outcome.error.startswith("SystemExit: mnist-n600")


def test_a_process_that_dies_is_an_outcome():
    workers = module("stopping_workers")
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=os._exit, args=(3,), daemon=True)
    process.start()
    there.close()
    worker = workers.Worker(process, here)
    assert worker.receive().error == "the process of the training ended with exit code 3"
    worker.end()


def test_a_process_is_ended_even_if_it_does_not_listen():
    workers = module("stopping_workers")
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # the new process inherits it
    try:
        process = context.Process(target=time.sleep, args=(100_000,), daemon=True)
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    there.close()
    workers.Worker(process, here).end()
    assert process.exitcode == -signal.SIGKILL


def test_a_worker_ends_with_the_one_who_asked():
    workers = module("stopping_workers")
    here, there = multiprocessing.Pipe()
    handler = signal.getsignal(signal.SIGINT)
    here.close()
    try:
        workers.serve(there)
    finally:
        signal.signal(signal.SIGINT, handler)
        there.close()


@pytest.mark.slow
def test_workers_train_all_whatever_fails(tmp_path):
    workers = module("stopping_workers")
    store = workers.Store(tmp_path)
    wanted = [setting(data="mnist"), setting(**TINY), setting(data="cifar10"), setting(**TINY, seed=1)]
    orders = [store.order(one, "held") for one in wanted]
    done = {order.setting.name: outcome for order, outcome in workers.run_all(orders, jobs=2)}
    assert [bool(done[one.name].error) for one in wanted] == [True, False, True, False]
    assert store.history(setting(**TINY), "held").exists()
    assert not multiprocessing.active_children()


def test_only_finished_trainings_of_the_same_kind_count(tmp_path, monkeypatch):
    workers = module("stopping_workers")
    store, one = workers.Store(tmp_path), setting()
    assert store.find(one, "full") is None
    store.keep(store.order(one, "full"), workers.Outcome("no memory"))
    assert store.find(one, "full").error == "no memory"
    assert not store.is_finished(one, "full")
    store.keep(store.order(one, "full"), workers.Outcome(costs={"seconds": 1.0}))
    assert store.is_finished(one, "full")
    assert not store.is_finished(one, "held")
    assert not store.is_finished(replace(one, seed=1), "full")
    monkeypatch.setattr(workers, "SIGNALS", ("another",))
    assert store.find(one, "full") is None


# Scores


def curve(losses: list[float], accuracies: list[float]) -> Any:
    epochs = np.arange(len(losses), dtype=float)
    return module("stopping_scores").Curve(epochs, np.array(losses), np.array(accuracies))


def choice(stop: int | None, kept: int) -> Any:
    return module("stopping_scores").Choice(stop, kept)


def test_a_score_by_hand():
    found = module("stopping_scores").score(curve([2.0, 1.0, 0.5, 0.7, 0.9], [0.1, 0.5, 0.7, 0.8, 0.6]), choice(3, 2))
    assert found.accuracy_regret == pytest.approx(10.0)
    assert found.loss_regret == 0.0
    assert found.budget == 0.75
    assert (found.accuracy, found.loss, found.stop_epoch, found.kept_epoch) == (pytest.approx(70.0), 0.5, 3.0, 2.0)
    flags = (found.premature_90, found.premature_95, found.missed_accuracy, found.missed_loss)
    assert flags == (False,) * 4


@pytest.mark.parametrize(
    ("reached", "premature"), [(0.89, (True, True)), (0.91, (False, True)), (0.96, (False, False))]
)
def test_a_stop_is_premature_by_what_was_reached_until_then_not_by_what_is_kept(reached, premature):
    scores = module("stopping_scores")
    found = scores.score(curve([2.0, 1.0, 1.0, 1.0], [0.1, reached, 0.2, 1.0]), choice(2, 0))
    assert (found.premature_90, found.premature_95) == premature
    never = scores.score(curve([2.0, 1.0, 1.0, 1.0], [0.1, reached, 0.2, 1.0]), choice(None, 0))
    assert (never.premature_90, never.premature_95) == (False, False)


@pytest.mark.parametrize(
    ("loss", "accuracy", "missed"),
    [(0.54, 0.795, (False, False)), (0.56, 0.795, (False, True)), (0.54, 0.785, (True, False))],
)
def test_a_stop_is_missed_where_the_end_is_clearly_worse(loss, accuracy, missed):
    scores = module("stopping_scores")
    course = curve([2.0, 0.5, loss], [0.1, 0.8, accuracy])
    found = scores.score(course, choice(None, 1))
    assert (found.missed_accuracy, found.missed_loss, found.budget) == (*missed, 1.0)
    assert found.stop_epoch is None
    stopped = scores.score(course, choice(2, 2))
    assert (stopped.missed_accuracy, stopped.missed_loss) == (False, False)


@given(st.lists(st.tuples(st.floats(0, 5), st.floats(0, 1)), min_size=2, max_size=20), st.data())
def test_no_regret_is_negative_and_the_best_epoch_has_none(points, data):
    scores = module("stopping_scores")
    course = curve([loss for loss, _ in points], [accuracy for _, accuracy in points])
    kept = data.draw(st.integers(0, len(points) - 1))
    found = scores.score(course, choice(None, kept))
    assert found.accuracy_regret >= 0
    assert found.loss_regret >= 0
    assert scores.score(course, choice(None, int(np.argmax(course.accuracies)))).accuracy_regret == 0


def test_a_spread():
    found = module("stopping_scores").spread([5.0, *range(10)])
    assert (found.mean, found.median, found.high, found.worst) == (pytest.approx(50 / 11), 5.0, 8.0, 9.0)


def test_an_interval_is_that_of_the_normal_law_where_there_are_many_cells():
    generator = np.random.default_rng(1)
    theirs, noise = generator.normal(50, 20, 200), generator.normal(0.4, 1.0, 200)
    found = module("stopping_scores").difference(theirs + noise, theirs)
    half = 1.96 * noise.std(ddof=1) / math.sqrt(200)
    assert found.mean == pytest.approx(noise.mean())
    assert (found.low, found.high) == pytest.approx((noise.mean() - half, noise.mean() + half), abs=0.1 * half)
    assert found.is_sure == (noise.mean() > half)
    assert found.count == 200


@settings(max_examples=20)
@given(st.lists(st.floats(-10, 10), min_size=6, max_size=30))
def test_an_interval_holds_its_mean_and_turns_with_the_sign(values):
    difference = module("stopping_scores").difference
    zeros = [0.0] * len(values)
    there, back = difference(values, zeros), difference(zeros, values)
    assert there.low - 1e-9 <= there.mean <= there.high + 1e-9
    assert (back.mean, back.low, back.high) == pytest.approx((-there.mean, -there.high, -there.low), abs=1e-9)


def test_a_handful_of_cells_has_no_interval():
    found = module("stopping_scores").difference([2.0] * 5, [1.0] * 5)
    assert (found.mean, found.count, found.is_sure) == (1.0, 5, False)
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    assert module("stopping_scores").difference([2.0] * 6, [1.0] * 6).is_sure


# Rules


def with_test(history: History, losses: list[float], accuracies: list[float]) -> History:
    """The history with these test scores."""
    rows = zip(history, losses, accuracies, strict=True)
    return History(history.probe, [replace(r, logged={"test_loss": a, "test_acc": b}) for r, a, b in rows])


def at(step: int, best: int | None) -> Any:
    """A criterion that stops at a step and holds the weights of another."""

    def criterion(history: History) -> Decision:
        return Decision(bool(history) and history[-1].step >= step, "", best_step=best if history else None)

    return criterion


def test_a_choice_is_the_stop_or_the_best_by_how_the_rule_is_used():
    rules = module("stopping_rules")
    listed = [
        rules.Rule("stop", "", "ours", at(30, 10)),
        rules.Rule("best", "", "ours", at(30, 10), restored=True),
        rules.Rule("no best", "", "ours", at(30, None), restored=True),
        rules.Rule("never", "", "ours", at(99, 20), restored=True),
        rules.Rule("never, last", "", "ours", at(99, 20)),
        rules.Rule("last", "", "nothing"),
        rules.Rule("elsewhere", "", "validation", at(30, 10), part="held"),
    ]
    found = rules.judge(toy_history([0.5, 0.9, 0.8, 0.7, 0.6]), "full", listed)
    assert found == {
        "stop": choice(3, 3), "best": choice(3, 1), "no best": choice(3, 3), "never": choice(None, 2),
        "never, last": choice(None, 4), "last": choice(None, 4),
    }  # fmt: skip


def test_a_rule_whose_numbers_were_not_measured_is_left_out_and_not_taken_for_one_that_never_stops():
    rules = module("stopping_rules")
    history = toy_history([0.5, 0.9, 0.8])
    assert set(rules.judge(history, "full")) == {"drop", "last"}
    measured = History(history.probe, [replace(r, signals={"evidence": 1.0}) for r in history])
    assert set(rules.judge(measured, "full")) == {"drop", "last", "evidence"}
    assert "gap" not in rules.judge(history, "held")
    crossed = History(history.probe, [replace(r, signals={"train_within": 0.5}) for r in history])
    assert "gap" in rules.judge(crossed, "held")


def test_the_names_of_rules_are_their_own_and_those_that_are_spoken_of_exist():
    rules = module("stopping_rules")
    assert len(rules.BY_NAME) == len(rules.RULES) == len({rule.title for rule in rules.RULES})
    assert {rules.REFERENCE, *rules.FOCUS, *module("stopping_picture").MARKS} <= set(rules.BY_NAME)
    assert all(rule.part == "held" for rule in rules.RULES if rule.family == "validation")
    assert rules.BY_NAME["drop"].criterion == StiffnessDrop()


# Results, report, picture


def judged(cell_setting: Any, scores: dict[str, tuple[float, float]], kind: str = "drawn") -> Any:
    """A judged cell whose rules keep weights of these accuracies (percent) and losses."""
    results, made = module("stopping_results"), module("stopping_scores")
    course = curve([2.0, 0.4, 1.0], [0.1, 0.9, 0.6])
    found = {
        name: made.Score(90 - accuracy, loss - 0.4, 0.5, False, False, False, False, accuracy, loss, 1.0, 1.0)
        for name, (accuracy, loss) in scores.items()
    }
    costs = {"seconds": 10.0, "processor_seconds": 9.0, "monitor_seconds": 3.0, "evaluation_seconds": 1.0}
    parts = dict.fromkeys(("full", "held"), course)
    choices = {name: choice(2, 1) for name in scores}
    return results.Judged(
        module("stopping_grid").Cell(cell_setting, kind), parts, choices, found, dict.fromkeys(parts, costs)
    )


def settings_of(split: str, count: int, **values: Any) -> list[Any]:
    found = (setting(seed=seed, **values) for seed in range(1000))
    return [one for one in found if one.split == split][:count]


def some_results() -> Any:
    """Seven clean cells where ours wins by 2 points, seven noisy ones where it loses 1, and one where it is absent."""
    reference = module("stopping_rules").REFERENCE
    clean = [
        judged(one, {"leave_one_out": (82.0, 0.5), reference: (80.0, 0.6)})
        for one in settings_of("report", 7, noise=0.0)
    ]
    noisy = [
        judged(one, {"leave_one_out": (79.0, 0.7), reference: (80.0, 0.6)}, "high learning rate")
        for one in settings_of("report", 7, noise=0.4, wrong="asymmetric")
    ]
    alone = [judged(one, {reference: (10.0, 9.0)}) for one in settings_of("report", 1, noise=0.1)]
    errors = {"a cell full": "MemoryError: no"}
    return module("stopping_results").Results((*clean, *noisy, *alone), errors, 2, {"date": "2026-01-01"})


def test_rules_are_compared_on_the_cells_of_both():
    found = some_results().against("leave_one_out", "accuracy")
    assert (found.mean, found.count) == (pytest.approx(0.5), 14)
    assert some_results().against("drop", "accuracy") is None


def test_regimes_have_the_losing_ones_first():
    found = module("stopping_results").regimes(some_results(), "leave_one_out")
    means = {one.name: one.accuracy.mean for one in found}
    assert list(means.values()) == sorted(means.values())
    assert means["40 % wrong labels"] == means["asymmetric noise"] == means["hard by design"] == -1
    assert means["clean labels"] == means["drawn at random"] == 2
    assert means["digits"] == pytest.approx(0.5)
    assert "10 % wrong labels" not in means
    assert "symmetric noise" not in means
    regret = {one.name: one.regret for one in found}
    assert regret["clean labels"] == pytest.approx(8.0)


def test_the_report_shows_all_and_keeps_the_halves_apart():
    results = some_results()
    text = module("stopping_report").markdown(results)
    assert "## Cells that no rule was tuned on (15)" in text
    assert "Cells that rules may be tuned on" not in text
    assert "15 cells to judge by and 0 to tune on; 2 are not finished, 1 trainings failed" in text
    assert "| `a cell full` | MemoryError: no |" in text
    assert "| clean labels | 7 | **+2.00 (+2.00 to +2.00)** | **-0.100 (-0.100 to -0.100)** | 8.00 | 0 % |" in text
    row = "| leave-one-out, for accuracy, best weights | no held-back data (ours) | 14 | 9.50 / 9.50 / 11.0 / 11.0 |"
    assert row in text
    assert "| digits, mlp | 15 | 100 | 50 | 0.50 |" in text
    tuned = replace(results, judged=tuple(judged(one, {"last": (1.0, 1.0)}) for one in settings_of("tune", 2)))
    assert "## Cells that rules may be tuned on (2)" in module("stopping_report").markdown(tuned)


def test_the_numbers_are_json_without_nan():
    results = some_results()
    contents = json.loads(json.dumps(module("stopping_results").as_json(results), allow_nan=False))
    assert contents["splits"]["report"]["rules"]["leave_one_out"]["against_reference"]["accuracy"]["mean"] == 0.5
    assert contents["splits"]["tune"]["cells"] == 0
    assert len(contents["cells"]) == 15
    assert contents["cells"][0]["scores"]["leave_one_out"]["accuracy"] == 82.0
    assert module("stopping_results").cleaned({"a": [math.nan, math.inf, 1.0]}) == {"a": [None, None, 1.0]}


def test_the_picture_has_a_line_for_each_rule_and_a_panel_for_each_example():
    figure = module("stopping_picture").draw(some_results())
    regrets, examples = figure.subfigs
    titles = [label.get_text() for label in regrets.axes[0].get_yticklabels()]
    assert titles == ["leave-one-out, for accuracy, best weights", "validation loss, patience 5, best weights"]
    assert sum(axes.get_visible() for axes in examples.axes) == 8
    assert all("high learning rate" in axes.get_title() for axes in examples.axes[:7])


def test_nothing_finished_is_a_report_that_says_so(tmp_path):
    results = module("stopping_results").Results((), {}, 3)
    text = module("early_stopping").write(results, tmp_path)
    assert "0 cells to judge by and 0 to tune on; 3 are not finished" in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["early_stopping.json", "early_stopping.md"]


# The command line


def parsed(*arguments: str) -> Any:
    return module("early_stopping").parse(["--output", "somewhere", *arguments])


def test_what_is_asked_for():
    assert {c.setting.data for c in parsed().cells} == {"digits"}
    assert len(parsed("--full", "--data", "x").cells) == 120
    assert {c.setting.split for c in parsed("--split", "tune").cells} == {"tune"}
    assert {c.kind for c in parsed("--only", "high learning", "--data", "x").cells} == {"high learning rate"}
    assert len(parsed("--quick").cells) < len(parsed().cells)
    assert len(parsed("--report-only").cells) == 120


@pytest.mark.parametrize("arguments", [["--only", "nothing like it"], ["--jobs", "0"], ["--quick", "--full"]])
def test_what_cannot_be_asked_for(arguments, capsys):
    with pytest.raises(SystemExit):
        parsed(*arguments)
    capsys.readouterr()


@pytest.mark.slow
def test_a_run_goes_on_where_it_was(trained, tmp_path, monkeypatch, capsys):
    script, grid = module("early_stopping"), module("stopping_grid")
    cells = [grid.Cell(setting(**TINY)), grid.Cell(setting(**TINY, seed=1))]
    monkeypatch.setattr(script, "read_table", lambda: cells)
    shutil.copytree(trained.folder, tmp_path / "trajectories")
    asked: list[Any] = []

    def run_all(orders, jobs):
        asked.extend((order.setting.seed, order.part) for order in orders)
        yield from ((order, module("stopping_workers").Outcome("MemoryError: no")) for order in orders)

    monkeypatch.setattr(script, "run_all", run_all)
    script.main(["--output", str(tmp_path)])
    assert asked == [(1, "full"), (1, "held")]
    assert "2 cells, 4 trainings, 2 of them finished before" in capsys.readouterr().err
    contents = json.loads((tmp_path / "early_stopping.json").read_text())
    assert [cell["name"] for cell in contents["cells"]] == [cells[0].name]
    assert set(contents["errors"].values()) == {"MemoryError: no"}
    assert (tmp_path / "early_stopping.png").stat().st_size > 10_000
    asked.clear()
    script.main(["--output", str(tmp_path), "--report-only"])
    assert asked == []


@pytest.mark.slow
def test_an_interrupted_run_still_judges_what_there_is(trained, tmp_path, monkeypatch, capsys):
    script = module("early_stopping")
    monkeypatch.setattr(script, "read_table", lambda: [module("stopping_grid").Cell(setting(**TINY))])
    shutil.copytree(trained.folder, tmp_path / "trajectories")

    def interrupted(job, console):
        raise KeyboardInterrupt

    monkeypatch.setattr(script, "train_missing", interrupted)
    script.main(["--output", str(tmp_path)])
    assert "interrupted" in capsys.readouterr().err
    assert (tmp_path / "early_stopping.md").exists()
