"""Against loops over samples and pairs."""

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_stiffness.functional import class_alignment, own_class_alignment, pair_detail, pair_histograms


def scene(seed, n=9, classes=4):
    generator = torch.Generator().manual_seed(seed)
    pairs = 2 * torch.rand(n, n, generator=generator, dtype=torch.float64) - 1
    pairs = ((pairs + pairs.T) / 2).fill_diagonal_(torch.nan)
    targets = torch.randint(classes, (n,), generator=generator)
    pairs[0, :] = pairs[:, 0] = torch.nan  # a sample without a gradient
    return pairs, targets


def naive_alignment(pairs, targets, sample, label):
    values = [
        pairs[sample, j].item() for j in range(len(targets)) if targets[j] == label and not pairs[sample, j].isnan()
    ]
    return sum(values) / len(values) if values else math.nan


@given(st.integers(0, 1000))
def test_alignment_is_the_mean_over_the_pairs_of_a_class(seed):
    pairs, targets = scene(seed)
    expected = [[naive_alignment(pairs, targets, i, label) for label in range(4)] for i in range(len(targets))]
    torch.testing.assert_close(
        class_alignment(pairs, targets, targets, 4), torch.tensor(expected, dtype=torch.float64), equal_nan=True
    )


@given(st.integers(0, 1000))
def test_own_and_rival(seed):
    pairs, targets = scene(seed)
    detail = pair_detail(pairs, targets, targets, 4)
    torch.testing.assert_close(detail.own, own_class_alignment(pairs, targets), equal_nan=True)
    for i, label in enumerate(targets.tolist()):
        others = {k: naive_alignment(pairs, targets, i, k) for k in range(4) if k != label}
        known = {k: value for k, value in others.items() if not math.isnan(value)}
        if known:
            best = max(known, key=known.__getitem__)
            assert detail.opposed_class[i] == min(known, key=known.__getitem__)
            assert (detail.rival_class[i].item(), round(detail.rival[i].item(), 9)) == (best, round(known[best], 9))
        else:
            assert detail.rival_class[i] == detail.opposed_class[i] == -1
            assert detail.rival[i].isnan()


@given(st.integers(0, 1000), st.integers(1, 50))
def test_histograms_hold_every_counted_pair_once(seed, bins):
    pairs, targets = scene(seed)
    within, between = pair_histograms(pairs, targets, targets, bins)
    same = targets[:, None] == targets
    assert within.sum() == (same & ~pairs.isnan()).sum()
    assert between.sum() == (~same & ~pairs.isnan()).sum()
    chosen = pairs[~same & ~pairs.isnan()]
    expected = torch.histc(chosen, bins, -1, 1) if len(chosen) else torch.zeros(bins)
    torch.testing.assert_close(between.double(), expected.double())


def test_the_ends_of_the_range_are_in_the_outer_bins():
    pairs = torch.tensor([[1.0, -1.0]])
    within, _ = pair_histograms(pairs, torch.tensor([0]), torch.tensor([0, 0]), bins=4)
    assert within.tolist() == [1, 0, 0, 1]


def test_rows_and_columns_may_differ_and_have_distances():
    pairs, targets = scene(3)
    distances = torch.rand(4, 5, generator=torch.Generator().manual_seed(0))
    detail = pair_detail(pairs[:4, 4:], targets[:4], targets[4:], 4, distances)
    assert detail.own.shape == (4,)
    assert detail.distance.means.shape == (12,)
