import importlib
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import SequentialSampler

from lightning_stiffness.functional.logit_offsets import balanced_softmax_loss
from lightning_stiffness.labels import labels_of

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def _path_of_the_scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def module(name: str) -> Any:
    return importlib.import_module(name)


def setting(name: str, **changed: Any) -> Any:
    return replace(module("balancing_settings").BY_NAME[name], **changed)


def order(method: str, seed: int = 0, name: str = "iris-10", epochs: int = 1, **values: Any) -> Any:
    recipe = module("balancing_settings").Recipe(0.05, epochs, 0.0)
    return module("balancing_training").Order(name, method, seed, recipe, **values)


# Settings and recipes


def test_the_recipes_on_file_are_the_best_of_those_tried_for_the_rival_on_seeds_that_are_not_reported():
    settings = module("balancing_settings")
    on_file = json.loads(settings.RECIPES.read_text())
    assert set(on_file) == {one.name for one in settings.SETTINGS if not one.like}
    for name, row in on_file.items():
        tried = {tuple(one[key] for key in ("rate", "epochs", "weight_decay")) for one in row["tried"]}
        known = settings.candidates(settings.BY_NAME[name])
        assert tried == {(one.rate, one.epochs, one.weight_decay) for one in known}
        best = max(row["tried"], key=lambda one: one["balanced_accuracy"])
        assert {key: best[key] for key in row["recipe"]} == row["recipe"]
        assert row["judged_by"] == "adjusted"
        assert min(row["tuning_seeds"]) >= max(one.seeds for one in settings.SETTINGS)
    assert set(settings.read_recipes()) == set(settings.BY_NAME)


def test_recipes_of_settings_that_are_not_tuned_again_are_kept(tmp_path):
    settings = module("balancing_settings")
    path = tmp_path / "cells.json"
    low, high = settings.Recipe(0.1, 1, 0.0), settings.Recipe(0.2, 1, 0.0)
    settings.write_recipes({"digits-20": [(low, 50.0), (high, 60.0)]}, path)
    settings.write_recipes({"iris-10": [(low, 50.0)]}, path)
    assert settings.read_recipes(path) == {"digits-20": high, "digits-20-constant": high, "iris-10": low}


# Data


def test_classes_are_unequal_to_train_on_and_equal_to_test_on():
    data = module("balancing_data")
    digits = setting("digits-20")
    split = data.split_of(digits, 3, None)
    assert torch.equal(torch.bincount(split.train.targets), split.counts)
    assert (int(split.counts.max()), int(split.counts.min())) == (100, 5)
    tested = torch.bincount(split.test.targets)
    assert tested.unique().numel() == 1
    assert int(tested[0]) > 50
    both = torch.cat([split.train.inputs, split.test.inputs]).flatten(1)
    assert len(both.unique(dim=0)) == len(both)  # no image on both sides
    again = data.split_of(digits, 3, None)
    assert torch.equal(again.train.inputs, split.train.inputs)
    assert not torch.equal(data.split_of(digits, 4, None).counts, split.counts)


def test_one_of_each_pair_is_small():
    data = module("balancing_data")
    sizes = data.class_sizes(setting("confusable"), 10, torch.Generator().manual_seed(0)).tolist()
    assert sorted(sizes) == [25] * 3 + [300] * 7
    assert all(sorted((sizes[a], sizes[b])) == [25, 300] for a, b in data.PAIRS)


def test_look_alike_classes_are_near_their_twins():
    data = module("balancing_data")
    images = data.look_alike(20, torch.Generator().manual_seed(0))
    assert torch.bincount(images.targets).tolist() == [20] * 30
    means = torch.stack([images.inputs[images.targets == label].mean(0) for label in range(30)])
    distances = torch.cdist(means, means) + 1e9 * torch.eye(30)
    assert ((distances.argmin(1) // 3) == torch.arange(30) // 3).float().mean() > 0.8


def test_a_class_with_too_few_samples_is_told():
    with pytest.raises(SystemExit, match="class 0 has 2 samples, fewer than 5"):
        module("balancing_data").drawn(torch.tensor([0, 0, 1]), torch.tensor([5, 1]), torch.Generator())
    with pytest.raises(SystemExit, match="pass its folder by --data DIR"):
        module("balancing_data").split_of(setting("mnist-100"), 0, None)


def test_batches_are_whole_and_labels_are_readable():
    data = module("balancing_data")
    train = data.split_of(setting("iris-10"), 0, None).train
    loader = data.loader(train, 16, 0)
    assert torch.equal(labels_of(loader.dataset), train.targets)
    assert torch.equal(torch.cat([y for _, y in loader]).bincount(), train.targets.bincount())
    assert torch.equal(loader.dataset[1][0], train.inputs[1])


# Methods


def test_every_method_is_reported_under_a_title_of_its_own():
    methods = module("balancing_methods")
    assert set(methods.TITLES) == {*methods.METHOD, "posthoc"}
    assert len(set(methods.TITLES.values())) == len(methods.TITLES)
    assert {*methods.RIVALS, *methods.CONTROLS, *methods.OURS} == set(methods.TITLES)
    report = module("balancing_report")
    assert {name for _, *pair in report.PARTS for name in pair} <= set(methods.TITLES)
    assert {name for pair in report.COMPARED for name in pair} <= set(methods.TITLES)
    assert set(module("balancing_picture").DRAWN) <= set(methods.TITLES)


def test_logit_adjustment_and_balanced_softmax_have_the_same_gradient():
    counts, targets = torch.tensor([90, 10, 3]), torch.tensor([0, 1, 2, 2])
    logits = torch.randn(4, 3, requires_grad=True)
    offsets = module("balancing_methods").METHOD["adjusted"].offsets(counts)
    ours = torch.autograd.grad(torch.nn.functional.cross_entropy(logits + offsets, targets), logits)[0]
    theirs = torch.autograd.grad(balanced_softmax_loss(logits, targets, counts).mean(), logits)[0]
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_weights_are_those_of_the_literature():
    method, counts = module("balancing_methods").METHOD, torch.tensor([90, 10])
    assert method["plain"].loss_weights(counts, 0, 10) is None
    deferred = [method["deferred"].loss_weights(counts, epoch, 10).tolist() for epoch in (7, 8)]
    assert deferred[0] == [1, 1]
    assert deferred[1] == pytest.approx([1 / 1.8, 5])
    effective = [(1 - 0.999**n) / 0.001 for n in (90, 10)]
    found = method["class_balanced"].loss_weights(counts, 0, 10).tolist()
    assert found[1] / found[0] == pytest.approx(effective[0] / effective[1], rel=1e-5)


def test_samplers_are_the_ones_that_are_named():
    data, methods = module("balancing_data"), module("balancing_methods").METHOD
    plain = data.loader(data.split_of(setting("iris-10"), 0, None).train, 16, 0)
    assert methods["plain"].loader(plain, 0) is plain
    drawn = torch.cat([y for _, y in methods["inverse"].loader(plain, 0)]).bincount()
    assert drawn.tolist() == [14, 14, 14]
    assert not isinstance(plain.sampler, SequentialSampler)


# Trainings


def test_a_training_is_judged_under_each_name_of_its_method():
    train = module("balancing_training").train
    found = {name: train(order(name)) for name in ("plain", "ours")}
    assert set(found["plain"]["results"]) == {"plain", "posthoc"}
    assert set(found["ours"]["results"]) == {"ours", "ours_natural"}
    assert found["ours"]["counts"] == found["plain"]["counts"]
    run = found["ours"]["results"]["ours"]
    assert run["tested"] == [20, 20, 20]
    assert sum(run["predicted"]) == 60
    assert all(right <= tested for right, tested in zip(run["right"], run["tested"], strict=True))


def test_methods_start_from_the_same_weights_and_samples_and_end_elsewhere():
    training, data = module("balancing_training"), module("balancing_data")
    split = data.split_of(setting("iris-10"), 0, None)
    weights = {
        name: training.Classifier(order(name), split).network[1].weight for name in ("plain", "ours", "adjusted")
    }
    assert torch.equal(weights["plain"], weights["ours"])
    assert torch.equal(weights["plain"], weights["adjusted"])
    ends = [training.train(order(name, epochs=3))["results"][name]["loss"] for name in ("ours", "random", "adjusted")]
    assert len({tuple(loss) for loss in ends}) == 3


def test_a_training_that_diverges_tells_no_classes_apart_and_is_named():
    wild = replace(order("plain"), recipe=module("balancing_settings").Recipe(1e30, 4, 0.0))
    run = module("balancing_running").attempt(wild)["results"]["plain"]
    assert sorted(run["predicted"]) == [0, 0, 60]
    results = some_results()
    results["settings"][0]["runs"]["plain"]["0"] = run
    assert "- digits-20: plain training, seed 0 (33 %)" in module("balancing_report").markdown(results)


def test_a_training_that_fails_is_an_outcome():
    assert "needs mnist.npz" in module("balancing_running").attempt(order("plain", name="mnist-100"))["error"]


def test_finished_trainings_count_as_long_as_nothing_they_depend_on_changes(tmp_path, monkeypatch):
    running, training = module("balancing_running"), module("balancing_training")
    store, one = running.Store(tmp_path), order("plain")
    assert store.find(one) is None
    store.keep(one, {"seconds": 1.0})
    assert store.is_finished(one)
    assert store.is_finished(replace(one, data="elsewhere"))
    assert not store.is_finished(order("plain", seed=1))
    store.keep(one, {"error": "no"})
    assert store.find(one) == {"error": "no"}
    assert not store.is_finished(one)
    monkeypatch.setattr(training, "VERSION", "0")
    assert store.find(one) is None


def test_seeds_are_the_outer_loop_and_tuning_uses_other_ones():
    running, settings = module("balancing_running"), module("balancing_settings")
    recipes, methods = settings.read_recipes(), len(module("balancing_methods").METHODS)
    orders = running.reporting_orders(settings.SETTINGS, recipes, None, None)
    assert [one.seed for one in orders] == sorted(one.seed for one in orders)
    per_setting = {one.name: sum(o.setting == one.name for o in orders) for one in settings.SETTINGS}
    assert all(per_setting[one.name] == one.seeds * (len(one.methods) or methods) for one in settings.SETTINGS)
    assert all(one.seeds >= 5 for one in settings.SETTINGS)
    tuned = running.tuning_orders(settings.SETTINGS, None)
    assert {one.method for one in tuned} == {"adjusted"}
    assert not {one.seed for one in tuned} & {one.seed for one in orders}
    assert len({one.name for one in [*orders, *tuned]}) == len(orders) + len(tuned)


# Scores


def run(right: list[int], tested: int = 10, predicted: list[int] | None = None) -> dict[str, Any]:
    return {
        "tested": [tested] * len(right),
        "right": right,
        "predicted": predicted or [tested] * len(right),
        "loss": [0.5, *(1.0 for _ in right[1:])],
    }


def test_scores_by_hand():
    found = module("balancing_scores").scores(run([9, 6, 3], predicted=[16, 10, 4]), [60, 30, 10])
    f1 = (18 / 26 + 12 / 20 + 6 / 14) / 3
    assert found == {
        "balanced_accuracy": pytest.approx(60), "worst": pytest.approx(30), "tail": pytest.approx(30),
        "head": pytest.approx(90), "f1": pytest.approx(100 * f1),
        "natural_accuracy": pytest.approx(54 + 18 + 3), "natural_loss": pytest.approx(0.7),
    }  # fmt: skip


def test_classes_of_equal_size_stay_together():
    found = module("balancing_scores").scores(run([10, 10, 5, 0]), [50, 50, 50, 5])
    assert found["tail"] == 0
    assert found["head"] == pytest.approx(100 * 25 / 30)


def some_results(gain: int = 1, name: str = "digits-20") -> dict[str, Any]:
    """Two seeds of a setting in which ours is right in `gain` and `gain` + 1 more of 30 test samples."""
    runs = {
        "plain": {"0": run([10, 5, 0]), "1": run([10, 5, 0])},
        "adjusted": {"0": run([8, 6, 4]), "1": run([8, 6, 5])},
        "adjusted_natural": {"0": run([8, 6, 4]), "1": run([8, 6, 5])},
        "ours": {"0": run([8, 6, 4 + gain]), "1": run([8, 6, 6 + gain])},
        "shifted": {"0": run([8, 6, 5]), "1": run([8, 6, 5])},
    }
    row = {
        "name": name, "title": name, "kind": "images", "schedule": "cosine", "largest": 60, "imbalance": 6,
        "recipe": {"rate": 0.1, "epochs": 2, "weight_decay": 0.0}, "failed": {}, "runs": runs,
        "counts": {"0": [60, 30, 10], "1": [60, 30, 10]}, "seconds": {"adjusted": [1.0], "ours": [2.0, 4.0]},
    }  # fmt: skip
    return {"facts": {"processor": "P", "versions": {"torch": "2"}}, "settings": [row]}


def test_differences_are_paired_by_seed_and_pooled_over_settings():
    scores = module("balancing_scores")
    row = some_results()["settings"][0]
    found = scores.difference(row, "ours")
    assert (found.mean, found.error, found.count) == (pytest.approx(5.0), pytest.approx(5 / 3), 2)
    less = some_results(-1)["settings"][0]
    both = scores.pooled([row, less], "ours")
    assert (both.mean, both.count) == (pytest.approx((5 - 5 / 3) / 2), 2)
    assert both.error == pytest.approx(math.hypot(5 / 3, 5 / 3) / 2)
    del row["runs"]["ours"]["0"]
    alone = scores.difference(row, "ours")
    assert (alone.count, alone.text(signed=True)) == (1, "+6.7")
    assert math.isnan(alone.error)
    assert scores.difference(row, "posthoc") is None


# Report and picture


def test_the_report_has_aims_and_losses_first():
    report = module("balancing_report")
    text = report.markdown(some_results(-2, "mnist-100"))
    aims, losses = text.index("## Aims"), text.index("## Where ours loses")
    assert aims < losses < text.index("## What was compared")
    assert "| **missed** |" in text[aims:losses]
    assert "| mnist-100 | **ours** | logit adjustment, tau 1 = balanced softmax | -5.00 +- 1.67 |" in text[losses:]
    won = report.markdown(some_results(3, "mnist-100"))
    assert "missed" not in won
    assert "Where ours loses" not in won
    assert "| **ours** | +11.67 +- 1.67 |" in won


def test_few_values_are_never_called_sure():
    estimate, sure = module("balancing_scores").Estimate, module("balancing_report").is_sure
    assert sure(estimate(1.0, 0.4, 5))
    assert not sure(estimate(1.0, 0.6, 5))
    assert not sure(estimate(1.0, 0.0, 2))
    assert not sure(estimate(1.0, math.nan, 8))


def test_failures_are_named():
    results = some_results()
    results["settings"][0]["failed"] = {"ours, seed 7": "RuntimeError: the training diverged"}
    assert "| digits-20 | ours, seed 7 | RuntimeError: the training diverged |" in module("balancing_report").markdown(
        results
    )


def test_the_numbers_are_json_without_nan(tmp_path):
    results = some_results()
    del results["settings"][0]["runs"]["ours"]["0"]
    module("balancing_scores").dump(results, tmp_path / "b.json")
    contents = json.loads((tmp_path / "b.json").read_text())
    found = contents["settings"][0]["scores"]["ours"]["balanced_accuracy"]
    assert found["against_logit_adjustment"] == {"mean": pytest.approx(6.6667), "standard_error": None, "count": 1}
    assert "NaN" not in (tmp_path / "b.json").read_text()


def test_the_picture_has_a_line_for_each_setting_and_each_mean():
    figure = module("balancing_picture").draw(some_results())
    axes = figure.subfigs[0].axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["digits-20", "mean of images", "mean of all"]
    curves = figure.subfigs[1].axes[0].lines
    assert [line.get_label() for line in curves] == ["plain training", "logit adjustment", "ours"]
    assert list(curves[0].get_ydata()) == [100, 50, 0]


# The command line


def parsed(*arguments: str) -> Any:
    return module("balancing").parse(["--output", "somewhere", *arguments])


def test_what_is_asked_for(tmp_path):
    needs = module("balancing_settings").NEEDS_DATA
    assert not any(one.data in needs for one in parsed().settings)
    assert len(parsed("--data", str(tmp_path)).settings) == len(module("balancing_settings").SETTINGS)
    assert {one.name for one in parsed("--only", "digits-5", "iris").settings} == {"iris-10", "digits-50"}
    quick = parsed("--quick")
    assert (len(quick.settings), quick.seeds) == (4, 2)
    assert parsed("--quick", "--seeds", "1").seeds == 1


@pytest.mark.parametrize(
    "arguments",
    [["--only", "nothing like it"], ["--jobs", "0"], ["--quick", "--full"], ["--data", "nowhere"], ["--seeds", "0"]],
)
def test_what_cannot_be_asked_for(arguments, capsys):
    with pytest.raises(SystemExit):
        parsed(*arguments)
    capsys.readouterr()


@pytest.mark.slow
def test_a_run_goes_on_where_it_was_and_is_judged(tmp_path, monkeypatch, capsys):
    script = module("balancing")
    asked: list[str] = []

    def train(one):
        asked.append(one.name)
        runs = some_results()["settings"][0]["runs"]
        return {
            "counts": [60, 30, 10],
            "seconds": 1.0,
            "results": {one.method: runs.get(one.method, runs["plain"])["0"]},
        }

    monkeypatch.setattr(module("balancing_running"), "train", train)
    arguments = ["--output", str(tmp_path), "--only", "iris", "--seeds", "1"]
    assert script.main(arguments) == 0
    count = len(module("balancing_methods").METHODS)
    assert len(asked) == count
    assert script.main(arguments) == 0
    assert len(asked) == count
    assert f"{count} trainings, {count} of them finished before" in capsys.readouterr().err
    assert (tmp_path / "balancing.png").stat().st_size > 10_000
    assert json.loads((tmp_path / "balancing.json").read_text())["settings"][0]["name"] == "iris-10"
    assert script.main(["--output", str(tmp_path / "empty"), "--report-only"]) == 1
    assert script.main([*arguments[:4], "--tune"]) == 0
    assert set(json.loads((tmp_path / "balancing_cells.json").read_text())) == {"iris-10"}


@pytest.mark.slow
def test_the_quick_run(tmp_path, capsys):
    assert module("balancing").main(["--quick", "--only", "iris", "--seeds", "1", "--output", str(tmp_path)]) == 0
    assert "| **ours** |" in capsys.readouterr().out
