"""Class means and shifts against loops over single samples."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_stiffness.callbacks.balancing_statistics import ClassStatistics, absorption

COUNTS = torch.tensor([40.0, 20.0, 5.0])


def made(seed=0, n=6, batches=3):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(batches):
        labels = torch.randint(0, 3, (n,), generator=generator)
        yield torch.randn(n, 4, generator=generator), 2 * torch.randn(n, 3, generator=generator), labels


def filled(seed=0):
    statistics = ClassStatistics(3, 4)
    for batch in made(seed):
        statistics.update(*batch)
    return statistics


@given(st.integers(0, 50))
def test_means_of_few_samples_are_those_of_all(seed):
    batches = list(made(seed))
    features, logits, labels = (torch.cat(part) for part in zip(*batches, strict=True))
    statistics = filled(seed)
    for label in labels.unique().tolist():
        assert torch.allclose(statistics.features[label], features[labels == label].mean(0), atol=1e-5)
        assert torch.allclose(statistics.probabilities[label], logits.softmax(1)[labels == label].mean(0), atol=1e-5)
    assert statistics.seen.tolist() == torch.bincount(labels, minlength=3).tolist()


def test_means_follow():
    statistics = ClassStatistics(2, 1)
    for value, times in ((0.0, 40), (1.0, 6)):
        for _ in range(times):
            statistics.update(torch.full((10, 1), value), torch.zeros(10, 2), torch.zeros(10, dtype=torch.long))
    assert float(statistics.features[0]) == pytest.approx(1 - (2 / 3) ** 6)  # ten new samples against twenty


def test_overflows_are_left_out():
    statistics = ClassStatistics(2, 1)
    features = torch.tensor([[1.0], [torch.inf], [3.0]])
    statistics.update(features, torch.tensor([[0.0, 0], [0, 0], [torch.nan, 0]]), torch.tensor([0, 0, 0]))
    assert statistics.features.tolist() == [[1], [0]]
    assert statistics.seen.tolist() == [1, 0]


@given(st.integers(0, 50))
def test_absorption_is_that_of_plain_loops(seed):
    p = torch.randn(4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).softmax(1)
    found = absorption(p)
    for a in range(4):
        lost = 1 - float(p[a, a])
        for b in range(4):
            expected = 0.0 if a == b else max(0.0, float(p[a, b]) / lost - 1 / 3)
            assert float(found[a, b]) == pytest.approx(expected, abs=1e-12)


def test_nothing_is_absorbed_where_nothing_is_lost():
    assert not absorption(torch.eye(3)).any()
    assert not absorption(torch.zeros(3, 3)).any()


@pytest.mark.parametrize("absorbers", [True, False])
def test_shifts_are_those_of_plain_loops(absorbers):
    statistics = filled()
    taken = absorption(statistics.probabilities) if absorbers else torch.ones(3, 3)
    labels = torch.tensor([2] * 200 + [1] * 200 + [0] * 200)
    chances = torch.rand(600, 2)
    found = statistics.shift(labels, COUNTS, chances, absorbers)
    for label in range(3):
        weights = [
            min(1.0, 4 * float(taken[label, b])) * max(0.0, 1 - float(COUNTS[label] / COUNTS[b])) for b in range(3)
        ]
        total, partners = sum(weights), [b for b in range(3) if weights[b] > 0]
        for i in (labels == label).nonzero().flatten().tolist():
            if not partners:
                assert not found[i].any()
                continue
            mark = float(chances[i, 0]) * total
            b = next(b for b in range(3) if sum(weights[: b + 1]) > mark)
            length = 0.5 * float(chances[i, 1]) * (1 - float(COUNTS[label] / COUNTS[b]))
            expected = length * (statistics.features[b] - statistics.features[label])
            assert torch.allclose(found[i], expected, atol=1e-5)
    assert not found[labels == 0].any()  # the biggest class


def test_classes_that_were_not_seen_play_no_part():
    statistics = ClassStatistics(3, 1)
    statistics.update(torch.ones(2, 1), torch.zeros(2, 3), torch.tensor([2, 2]))
    assert not statistics.shift(torch.tensor([2, 1]), COUNTS, torch.rand(2, 2)).any()


def test_states_are_taken_up_again():
    statistics = filled()
    again = ClassStatistics.from_state_dict(statistics.state_dict())
    for name, value in statistics.state_dict().items():
        assert torch.equal(getattr(again, name), value)


def test_processes_pool_their_means():
    first, second = filled(0), filled(1)
    means = [statistics.features.clone() for statistics in (first, second)]
    seen = [statistics.seen.clone() for statistics in (first, second)]
    others = iter([seen[1], seen[1][:, None] * means[1], seen[1][:, None] * second.probabilities, seen[1]])
    first.pool(lambda values: values + next(others))
    expected = (seen[0][:, None] * means[0] + seen[1][:, None] * means[1]) / (seen[0] + seen[1])[:, None]
    assert torch.allclose(first.features, expected)
    assert torch.equal(first.seen, seen[0] + seen[1])
