"""Positions without a gradient add nothing."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_stiffness.gram.factors import Explicit
from lightning_stiffness.gram.outer import Outer
from lightning_stiffness.gram.trimming import trimmed


@given(
    samples=st.integers(1, 5),
    positions=st.integers(1, 9),
    wide=st.booleans(),
    alike=st.booleans(),
    seed=st.integers(0, 99),
)
def test_the_gradients_stay_the_same(samples, positions, wide, alike, seed):
    generator = torch.Generator().manual_seed(seed)
    left = torch.randn(samples, positions, 3, generator=generator)
    right = torch.randn(samples, positions, 40 if wide else 2, generator=generator)
    mask = torch.rand(1 if alike else samples, positions, generator=generator) < 0.3
    entries = torch.rand(right.shape, generator=generator) < 0.2  # a position that is reached need not be so everywhere
    whole = Outer(left, right * mask[:, :, None] * entries, bias=True)
    found = trimmed(whole)
    assert torch.allclose(found.joined_blocks(), whole.joined_blocks(), atol=1e-6)
    most = max(1, int(whole.right.any(2).sum(1).max()))
    assert found.positions == (most if most <= 0.75 * positions else positions)


def test_one_position_is_left_of_a_class_token():
    right = torch.zeros(4, 6, 5)
    right[:, 2] = 1
    found = trimmed(Outer(torch.randn(4, 6, 3), right))
    assert found.positions == 1
    assert found.route == "product of two Gram matrices"


def test_other_forms_stay_as_they_are():
    explicit = Explicit(torch.zeros(2, 3))
    assert trimmed(explicit) is explicit
    full = Outer(torch.randn(4, 6, 3), torch.randn(4, 6, 5))
    assert trimmed(full) is full


def test_what_is_not_finite_is_not_left_out():
    right = torch.zeros(2, 6, 5)
    right[1, 3, 4] = torch.nan
    assert trimmed(Outer(torch.randn(2, 6, 3), right)).joined_blocks().isnan().any()
