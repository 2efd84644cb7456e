import importlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from lightning_stiffness.functional.class_rates import power_rates
from lightning_stiffness.functional.logit_offsets import training_logit_adjustment

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def _path_of_the_scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.fixture
def ideas():
    return importlib.import_module("balancing_ideas")


@pytest.fixture
def problem():
    found = importlib.import_module("balancing_batched").Problem("iris-10", [300, 301], None)
    found.recipe = replace(found.recipe, epochs=1)
    return found


def first_batch(problem, idea, power):
    """The losses of one batch of the first weights, with the labels and what is added to the logits."""
    batched = importlib.import_module("balancing_batched")
    rates = problem.counts.double() ** power
    rates = rates / rates.sum(1, keepdim=True)
    offsets = (rates[:, None] @ idea.targets).log().float()
    inputs, labels = problem.inputs[:, :8], problem.labels[:, :8]
    weights = problem.weights()
    found = batched.loss_of(problem, weights, inputs, labels, offsets, idea, torch.Generator().manual_seed(0))
    return found, batched.logits(weights, inputs), labels, offsets


def test_the_base_is_what_the_balancer_does(ideas, problem):
    found, logits, labels, offsets = first_batch(problem, *ideas.plain()(problem))
    for seed in range(2):
        expected = training_logit_adjustment(power_rates(problem.counts[seed]), smoothing=0.1).float()
        assert torch.allclose(offsets[seed, 0], expected, atol=1e-6)
        losses = F.cross_entropy(logits[seed] + expected, labels[seed], label_smoothing=0.1, reduction="none")
        assert torch.allclose(found[seed], losses, atol=1e-5)


def test_a_loss_is_mixed_as_its_features_are(ideas, problem):
    idea, power = ideas.plain(mixing=1.0)(problem)
    share, other = importlib.import_module("balancing_batched").mixed_pairs(idea, 8, torch.Generator().manual_seed(0))
    assert 0 < share < 1
    found, logits, labels, offsets = first_batch(problem, idea, power)
    mixed = share * logits + (1 - share) * logits[:, other] + offsets  # the last layer is linear
    first, second = (
        torch.stack(
            [F.cross_entropy(z, y, label_smoothing=0.1, reduction="none") for z, y in zip(mixed, those, strict=True)]
        )
        for those in (labels, labels[:, other])
    )
    assert torch.allclose(found, share * first + (1 - share) * second, atol=1e-5)


def test_label_aware_smoothing_is_more_for_bigger_classes(ideas, problem):
    idea, _ = ideas.smoothed_by_size(0.0, 0.2)(problem)
    for seed in range(2):
        smallest, biggest = int(problem.counts[seed].argmin()), int(problem.counts[seed].argmax())
        assert float(idea.targets[seed, smallest, smallest]) == pytest.approx(1.0)
        assert float(idea.targets[seed, biggest, biggest]) == pytest.approx(0.8 + 0.2 / 3)


def test_every_idea_changes_training(ideas, problem):
    batched = importlib.import_module("balancing_batched")
    problem.recipe = replace(problem.recipe, epochs=2)
    ends = {}
    for name, make in {"base": ideas.plain(), **ideas.IDEAS}.items():
        idea, power = make(problem)
        weights = batched.train(problem, idea, sampling=power)
        assert all(bool(tensor.isfinite().all()) for tensor in weights), name
        ends[name] = float(sum(tensor.double().abs().sum() for tensor in weights))
    assert len(set(ends.values())) == len(ends)


def test_the_script_writes_a_table_and_goes_on(ideas, problem, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ideas, "IDEAS", {"no smoothing": ideas.IDEAS["no smoothing"]})
    monkeypatch.setattr(ideas, "Problem", lambda name, seeds, folder: problem)
    arguments = ["--output", str(tmp_path), "--only", "iris-10", "mnist-100", "--seeds", "2"]
    ideas.main(arguments)
    assert "mnist-100 is left out" in capsys.readouterr().out
    found = json.loads((tmp_path / "balancing_ideas.json").read_text())["iris-10"]["accuracies"]
    assert all(0 <= value <= 100 for row in found.values() for value in row)
    assert "| no smoothing |" in (tmp_path / "balancing_ideas.md").read_text()
    monkeypatch.setattr(ideas, "judge", None)  # it is not trained again
    ideas.main(arguments)
