"""What every form of gradients can do: on gradients that are given, and on a form that does nothing better."""

from dataclasses import dataclass

import pytest
import torch

from lightning_stiffness.gram.factors import Explicit, Factors, Run, runs_of
from lightning_stiffness.gram.products import GramAccumulator, whole

GRADIENTS = torch.randn(6, 9, generator=torch.Generator().manual_seed(0))


@dataclass(frozen=True, eq=False)
class InThirds(Factors):
    """The same gradients, three columns at a time."""

    gradients: torch.Tensor
    samples, columns, elements, dtype, route = 6, 9, 9, torch.float32, "thirds"

    def blocks(self, workspace=None):
        yield from self.gradients.split(3, 1)

    def flops(self):
        return 0


@pytest.mark.parametrize("form", [Explicit, InThirds])
def test_all_follows_from_the_blocks(form):
    factors, weights, vectors = form(GRADIENTS), torch.rand(6), torch.randn(2, 9)
    total = GramAccumulator(whole(6), GRADIENTS, 1 << 20)
    factors.add_gram(total)
    assert torch.allclose(total.results()[0], GRADIENTS @ GRADIENTS.T, atol=1e-5)
    assert torch.allclose(factors.square_norms(), GRADIENTS.square().sum(1))
    assert torch.allclose(factors.products_with(vectors), GRADIENTS @ vectors.T, atol=1e-5)
    assert torch.equal(factors.joined_blocks(), GRADIENTS)
    assert [piece.columns for piece in factors.pieces(3)] == [9]
    sums = torch.zeros(3, 9)
    factors.add_class_sums(sums, weights, [Run(2, 0, 4), Run(0, 4, 6)])
    rows = GRADIENTS * weights[:, None]
    assert torch.allclose(sums, torch.stack([rows[4:].sum(0), torch.zeros(9), rows[:4].sum(0)]), atol=1e-5)


def test_runs_are_equal_neighbours():
    assert runs_of([2, 2, 0, 2]) == [Run(2, 0, 2), Run(0, 2, 3), Run(2, 3, 4)]
    assert runs_of([]) == []
