"""Groups of classes that are look-alike by construction are found from training data, and none before there are any."""

import functools
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_stiffness.errors import StiffnessError
from lightning_stiffness.functional.class_tree import class_tree
from lightning_stiffness.functional.stiffness import class_matrix, cosine_pairs
from lightning_stiffness.gram import GramEngine
from lightning_stiffness.grouping import ClassGroups, _excess_of_merges, agreement, class_groups, stability
from lightning_stiffness.levels import StiffnessLevels, chance_gram, classifier_gram, measure_levels

TRUE = [0, 1, 2, 3] * 3  # classes a, a + 4 and a + 8 look alike


def losses(module, batch):
    return F.cross_entropy(module(batch[0]), batch[1], reduction="none")


def look_alikes(n, apart=3.0, within=0.45):
    generator = torch.Generator().manual_seed(7)
    groups, classes = (torch.randn(k, 10, generator=generator) for k in (4, 12))
    y = torch.arange(n) % 12
    centres = apart * groups[torch.tensor(TRUE)] + within * classes
    return centres[y] + torch.randn(n, 10, generator=torch.Generator().manual_seed(0)), y


def trained(steps):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 12))
    optimizer = torch.optim.Adam(module.parameters(), 3e-3)
    x, y = look_alikes(1200)
    for step in range(steps):
        chosen = torch.arange(step * 60, step * 60 + 60) % 1200
        optimizer.zero_grad()
        losses(module, (x[chosen], y[chosen])).mean().backward()
        optimizer.step()
    return module


@functools.cache
def measured(steps):
    module, batch = trained(steps), look_alikes(240)
    return measure_levels(GramEngine(module, losses), losses, batch, batch[1], module[2])


def test_look_alikes_are_grouped():
    readings = [class_groups(measured(steps)) for steps in (100, 200)]
    assert agreement(readings[-1].assignment, TRUE) > 0.9
    assert stability(readings) > 0.8
    assert len(readings[-1].excess) == len(readings[-1].errors) == 12 - len(set(readings[-1].assignment))
    assert "merges fight beyond chance" in readings[-1].reason
    assert sorted(readings[-1].order) == list(range(12))


def test_an_untrained_network_has_no_groups_and_says_so():
    found = class_groups(measured(0))
    assert found.groups == ()
    assert found.assignment == tuple(range(12))
    assert "does not tell the classes apart yet" in found.reason


def test_look_alikes_fight_more_than_others():
    levels = measured(100)
    same = torch.tensor(TRUE)[:, None] == torch.tensor(TRUE)
    fights = levels.classifier_matrix
    assert float(fights[~same].mean()) > -0.2
    assert float(fights[same & ~torch.eye(12, dtype=torch.bool)].mean()) < -0.3


def test_classes_that_are_confused_evenly_have_no_groups():
    """Only chance is left: a wrong merge in one of twenty draws of samples is what the error rate allows."""
    wrong = 0
    for seed in range(10):
        wrong += bool(class_groups(even(seed), draws=40).groups)
    assert wrong <= 2


def even(seed, classes=8, each=15):
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(classes * each) % classes
    logits = torch.randn(len(targets), classes, generator=generator)
    logits[torch.arange(len(targets)), targets] += 1.5
    features = torch.randn(len(targets), 6, generator=generator).abs()
    return levels_of(logits.softmax(1), targets, features)


def levels_of(probabilities, targets, features):
    return StiffnessLevels(
        cosine_pairs(classifier_gram(probabilities, targets, features)),
        cosine_pairs(chance_gram(probabilities, targets, features)),
        None,
        targets,
        probabilities.shape[1],
        separation=0.3,
    )


def test_the_excess_of_a_merge_is_the_mean_over_its_pairs():
    levels = measured(100)
    found = class_groups(levels)
    difference = class_matrix(levels.chance - levels.classifier, levels.targets, levels.targets, 12)
    strongest = max(itertools.combinations(range(12), 2), key=lambda pair: -float(levels.classifier_matrix[pair]))
    assert found.excess[0] == pytest.approx(float(difference[strongest]), abs=1e-5)


@settings(max_examples=12)
@given(st.integers(0, 10_000))
@pytest.mark.slow
def test_excess_and_errors_are_those_of_loops_over_pairs(seed):
    """Some samples have no gradient, one class no sample, and classes differ in size."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.cat([torch.arange(5), torch.randint(0, 5, (13,), generator=generator)])
    cosines, chance = (torch.rand(18, 18, generator=generator, dtype=torch.float64) for _ in range(2))
    cosines, chance = ((values + values.T) / 2 for values in (cosines, chance))
    silent = torch.rand(18, generator=generator) < 0.2
    for values in (cosines, chance):
        values.fill_diagonal_(torch.nan)[silent] = torch.nan
        values[:, silent] = torch.nan
    levels = StiffnessLevels(cosines, chance, None, targets, 6, separation=0.5)
    tree = class_tree(-levels.classifier_matrix)
    counts = torch.randint(0, 3, (3, 18), generator=generator).double() * ~silent
    found = _excess_of_merges(tree, (chance - cosines).nan_to_num(0), counts, levels)
    clusters = [[k] for k in range(6)]
    for number, merge in enumerate(tree.merges):
        first, second = clusters[merge.first], clusters[merge.second]
        clusters.append([*first, *second])
        for row, weights in enumerate(counts):
            means = [mean_over(a, b, chance - cosines, weights, targets) for a in first for b in second]
            defined = [mean for mean in means if mean is not None]
            expected = sum(defined) / len(defined) if defined else float("nan")
            assert float(found[row, number]) == pytest.approx(expected, abs=1e-12, nan_ok=True)


def mean_over(a, b, excess, weights, targets):
    """Of one pair of classes; a sample that is paired with itself counts with nothing."""
    pairs = [
        (float(weights[i] * weights[j]), float(excess[i, j].nan_to_num(0)))
        for i in range(len(targets))
        for j in range(len(targets))
        if targets[i] == a and targets[j] == b
    ]
    total = sum(weight for weight, _ in pairs)
    return sum(weight * value for weight, value in pairs) / total if total else None


def test_classes_without_samples_stay_alone():
    levels = measured(100)
    kept = levels.targets != 3
    pairs = [getattr(levels, name)[kept][:, kept] for name in ("classifier", "chance")]
    found = class_groups(StiffnessLevels(*pairs, None, levels.targets[kept], 12, levels.separation))
    assert found.assignment.count(found.assignment[3]) == 1
    assert found.groups


def test_the_bootstrap_is_seeded():
    levels = measured(100)
    before = torch.get_rng_state()
    assert class_groups(levels, seed=1) == class_groups(levels, seed=1)
    assert class_groups(levels, seed=1).errors != class_groups(levels, seed=2).errors
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.slow
def test_a_thousand_classes():
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(3000) % 1000
    logits = 0.5 * torch.randn(3000, 1000, generator=generator)
    twins = targets ^ 1
    logits[torch.arange(3000), targets] += 9
    logits[torch.arange(3000), twins] += 8
    features = torch.randn(500, 16, generator=generator)[targets // 2] + torch.randn(3000, 16, generator=generator)
    levels = levels_of(logits.softmax(1), targets, features.abs())
    found = class_groups(levels, draws=20)
    assert agreement(found.assignment, (torch.arange(1000) // 2).tolist()) > 0.8


@pytest.mark.parametrize("options", [{"draws": 1}, {"error_rate": 0}, {"error_rate": 1}])
def test_settings_that_are_none(options):
    with pytest.raises(StiffnessError, match="draws must be at least 2 and error_rate"):
        class_groups(even(0), **options)


@given(st.lists(st.integers(0, 3), min_size=2, max_size=8), st.integers(0, 100))
def test_agreement_is_that_of_a_loop_over_pairs(first, seed):
    second = torch.randint(0, 3, (len(first),), generator=torch.Generator().manual_seed(seed)).tolist()
    pairs = list(itertools.combinations(range(len(first)), 2))
    together = [[groups[a] == groups[b] for a, b in pairs] for groups in (first, second)]
    both, one, other = sum(map(min, zip(*together, strict=True))), *map(sum, together)
    expected, largest = one * other / len(pairs), (one + other) / 2
    assert agreement(first, second) == pytest.approx(
        1 if largest == expected else (both - expected) / (largest - expected)
    )


def test_agreement_needs_the_same_classes():
    with pytest.raises(StiffnessError, match="found 2 and 3"):
        agreement([0, 1], [0, 1, 1])


def test_groups_of_one_reading_have_no_stability():
    assert math.isnan(stability([ClassGroups((0, 1), (0, 1), (), (), "none")]))
