"""Against loops over pairs."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_stiffness.errors import StiffnessError
from lightning_stiffness.functional import distance_curve, input_distances
from tests.unchecked import unchecked_types


def scene(seed, n=12, m=9, classes=3):
    generator = torch.Generator().manual_seed(seed)
    rows, columns = torch.randn(n, 5, generator=generator), torch.randn(m, 5, generator=generator)
    pairs = 2 * torch.rand(n, m, generator=generator, dtype=torch.float64) - 1
    labels = [torch.randint(classes, (size,), generator=generator) for size in (n, m)]
    return rows, columns, pairs, *labels


@given(st.integers(0, 1000))
def test_distances_are_one_minus_the_cosine(seed):
    rows, columns, *_ = scene(seed)
    expected = [[1 - torch.cosine_similarity(a, b, dim=0).item() for b in columns] for a in rows]
    torch.testing.assert_close(input_distances(rows, columns), torch.tensor(expected), atol=1e-6, rtol=0)


def test_an_input_of_zeros_has_no_distance():
    assert input_distances(torch.zeros(1, 2), torch.ones(1, 2)).isnan().all()


@given(st.integers(0, 1000), st.integers(1, 6))
def test_the_curve_is_the_mean_of_the_pairs_of_each_bin(seed, bins):
    rows, columns, pairs, row_targets, column_targets = scene(seed)
    pairs[0, 0] = torch.nan
    distances = input_distances(rows, columns).double()
    curve = distance_curve(pairs, distances, row_targets, column_targets, bins)
    found = [
        (distances[i, j].item(), pairs[i, j].item())
        for i in range(len(rows))
        for j in range(len(columns))
        if row_targets[i] == column_targets[j] and (i, j) != (0, 0)
    ]
    assert curve.counts.sum() == len(found)
    total = (curve.means.nan_to_num() * curve.counts).sum().item()
    assert total == pytest.approx(sum(value for _, value in found), abs=1e-9)
    if found:
        assert curve.edges[0].item() == pytest.approx(min(found)[0])
        assert curve.edges[-1].item() == pytest.approx(max(found)[0])
        edges = curve.edges.tolist()
        first = [value for length, value in found if length < edges[1]] if bins > 1 else [value for _, value in found]
        assert curve.counts[0] == len(first)


def line(slope, intercept, lengths):
    """Two samples of one class for each distance; all other pairs are of different classes."""
    n = len(lengths)
    pairs = torch.full((n, n), torch.nan, dtype=torch.float64)
    distances = torch.zeros(n, n, dtype=torch.float64)
    for k, length in enumerate(lengths):
        pairs[k, k], distances[k, k] = intercept + slope * length, length
    classes = torch.arange(n)
    return distance_curve(pairs, distances, classes, classes, bins=2)


def test_the_critical_length_is_where_the_line_is_zero():
    curve = line(-0.5, 0.3, [0.2, 0.4, 0.6, 0.8])
    assert (curve.slope, curve.intercept) == (pytest.approx(-0.5), pytest.approx(0.3))
    assert curve.critical_length == pytest.approx(0.6)


@pytest.mark.parametrize(("slope", "intercept"), [(-0.5, 0.9), (-0.5, 0.05), (0.5, -0.3), (0.0, 0.3)])
def test_there_is_no_critical_length_beyond_the_data_or_on_a_rising_line(slope, intercept):
    assert math.isnan(line(slope, intercept, [0.2, 0.4, 0.6, 0.8]).critical_length)


def test_without_pairs_all_is_undefined():
    curve = distance_curve(torch.full((2, 2), torch.nan), torch.zeros(2, 2), torch.arange(2), torch.arange(2))
    assert curve.means.isnan().all()
    assert curve.counts.sum() == 0
    assert math.isnan(curve.critical_length)


@unchecked_types()
def test_shapes_must_fit():
    same = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(StiffnessError, match="shape"):
        distance_curve(torch.zeros(2, 2), torch.zeros(2, 3), same, same)
    with pytest.raises(StiffnessError, match="at least 1"):
        distance_curve(torch.zeros(2, 2), torch.zeros(2, 2), same, same, bins=0)
    with pytest.raises(StiffnessError, match="of one size"):
        input_distances(torch.zeros(2, 2), torch.zeros(2, 3))
