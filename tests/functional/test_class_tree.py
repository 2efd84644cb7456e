"""The hierarchy of classes, against a naive average linkage."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_stiffness.errors import StiffnessError
from lightning_stiffness.functional import class_tree
from tests.unchecked import unchecked_types


def naive_merges(matrix):
    """Merges the two clusters with the highest mean entry between them, again and again."""
    clusters, heights = [(k,) for k in range(len(matrix))], []
    while len(clusters) > 1:
        means = {
            (a, b): torch.stack([matrix[i, j] for i in a for j in b]).mean().item()
            for a, b in itertools.combinations(clusters, 2)
        }
        pair = max(means, key=means.__getitem__)
        heights.append(means[pair])
        clusters = [cluster for cluster in clusters if cluster not in pair] + [tuple(sorted(pair[0] + pair[1]))]
    return heights


@given(st.integers(0, 1000), st.integers(2, 9))
def test_it_is_average_linkage(seed, classes):
    matrix = torch.rand(classes, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    matrix = (matrix + matrix.T) / 2
    tree = class_tree(matrix)
    assert [merge.stiffness for merge in tree.merges] == pytest.approx(naive_merges(matrix), abs=1e-5)
    assert sorted(tree.order) == list(range(classes))
    made = [entry for merge in tree.merges for entry in (merge.first, merge.second)]
    assert sorted(made) == list(range(2 * classes - 2))


@given(st.integers(0, 100))
def test_the_order_of_the_classes_does_not_matter(seed):
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.rand(6, 6, generator=generator, dtype=torch.float64)
    order = torch.randperm(6, generator=generator)
    heights = [merge.stiffness for merge in class_tree(matrix).merges]
    assert [merge.stiffness for merge in class_tree(matrix[order][:, order]).merges] == pytest.approx(heights)


def test_blocks_become_neighbours():
    groups = torch.tensor([0, 1, 0, 1, 2, 2])
    matrix = (groups[:, None] == groups).double()
    ordered = [groups[k].item() for k in class_tree(matrix).order]
    assert len([key for key, _ in itertools.groupby(ordered)]) == 3


def test_undefined_entries_count_as_the_lowest():
    matrix = torch.tensor([[1.0, 0.5, 0.1], [0.5, 1.0, torch.nan], [0.1, torch.nan, 1.0]])
    assert [merge.stiffness for merge in class_tree(matrix).merges] == pytest.approx([0.5, 0.1])
    assert class_tree(torch.full((3, 3), torch.nan)).order != ()


def test_one_class_has_no_merges():
    assert class_tree(torch.ones(1, 1)).order == (0,)


def test_a_thousand_classes():
    matrix = torch.rand(1000, 1000, generator=torch.Generator().manual_seed(0))
    assert len(class_tree(matrix).merges) == 999


def test_it_must_be_square():
    with unchecked_types(), pytest.raises(StiffnessError, match="square"):
        class_tree(torch.zeros(2, 3))
