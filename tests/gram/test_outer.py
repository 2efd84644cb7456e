"""One order of entries: what is kept explicit for some chunks must add up with what is not for others."""

import pytest
import torch

from lightning_stiffness.gram import outer as outer_module
from lightning_stiffness.gram.collect import Found
from lightning_stiffness.gram.embedding import Rows
from lightning_stiffness.gram.factors import Explicit, Run
from lightning_stiffness.gram.kept import Kept
from lightning_stiffness.gram.outer import Outer
from lightning_stiffness.gram.workspace import Arena


def outer(samples, positions, widths, bias):
    generator = torch.Generator().manual_seed(positions)
    left, right = (torch.randn(samples, positions, width, generator=generator) for width in widths)
    return Outer(left, right, bias)


def by_loop(factors):
    weight = torch.einsum("nta,ntb->nab", factors.left, factors.right).flatten(1)
    rows = torch.cat([weight, factors.right.sum(1)], 1) if factors.bias else weight
    return rows @ rows.T


@pytest.mark.parametrize("widths", [(7, 3), (3, 7)])
@pytest.mark.parametrize("bias", [True, False])
def test_class_sums_have_the_order_of_the_blocks(widths, bias):
    factors, weights = outer(6, 2, widths, bias), torch.rand(6)
    sums = torch.zeros(2, factors.columns)
    factors.add_class_sums(sums, weights, [Run(0, 0, 4), Run(1, 4, 6)])
    rows = factors.joined_blocks() * weights[:, None]
    assert torch.allclose(sums, torch.stack([rows[:4].sum(0), rows[4:].sum(0)]), atol=1e-5)


@pytest.mark.parametrize("widths", [(7, 3), (3, 7)])
@pytest.mark.parametrize("bias", [True, False])
def test_chunks_of_different_length_are_stacked_in_one_order(widths, bias):
    short, long = outer(3, 1, widths, bias), outer(2, 20, widths, bias)
    kept = Kept((3, 2))
    for chunk, part in enumerate((short, long)):
        kept.add(chunk, Found((0,), (0, 1), "Addmm", part))
    (one,) = kept.take()
    assert isinstance(one.factors, Explicit)
    found = one.factors.joined_blocks()
    padded = [torch.nn.functional.pad(part, (0, 0, 0, 19)) for part in (short.left, short.right)]
    whole = Outer(torch.cat([padded[0], long.left]), torch.cat([padded[1], long.right]), bias)
    assert torch.allclose(found @ found.T, by_loop(whole), atol=1e-4)


@pytest.mark.parametrize("widths", [(7, 3), (3, 7)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("positions", [1, 3])
@pytest.mark.parametrize("count", [1, 4])
def test_products_with_vectors_have_the_order_of_the_blocks(widths, bias, positions, count):
    factors = outer(6, positions, widths, bias)
    vectors = torch.randn(count, factors.columns)
    expected = factors.joined_blocks() @ vectors.T
    for form in (factors, Explicit(factors.joined_blocks())):
        assert torch.allclose(form.products_with(vectors), expected, atol=1e-4)


def test_products_with_vectors_of_an_embedding():
    rows = Rows(torch.randint(0, 5, (6, 4)), torch.randn(6, 4, 3), 5)
    vectors = torch.randn(2, rows.columns)
    assert torch.allclose(rows.products_with(vectors), rows.joined_blocks() @ vectors.T, atol=1e-5)


@pytest.mark.parametrize("widths", [(7, 3), (3, 7)])
@pytest.mark.parametrize("bias", [True, False])
def test_pieces_hold_each_entry_once(widths, bias):
    factors = outer(6, 2, widths, bias)
    pieces = list(factors.pieces(10))
    assert sum(piece.columns for piece in pieces) == factors.columns
    assert max(piece.columns for piece in pieces) <= 10
    rows = torch.cat([piece.joined_blocks() for piece in pieces], 1)
    assert torch.allclose(rows @ rows.T, by_loop(factors), atol=1e-4)


@pytest.mark.parametrize("widths", [(40, 30), (30, 40), (7, 3)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("positions", [1, 4, 8])
def test_norms_are_those_of_the_blocks(widths, bias, positions, monkeypatch):
    monkeypatch.setattr(outer_module, "GRAM_ENTRIES", 50)  # of a few samples at once
    factors = outer(6, positions, widths, bias)
    assert factors.has_cheap_norms == (positions == 1 or (widths != (7, 3) and 140 * positions <= 1200))
    assert torch.allclose(factors.square_norms(), factors.joined_blocks().square().sum(1), rtol=1e-4)


@pytest.mark.parametrize("widths", [(7, 3), (3, 7)])
@pytest.mark.parametrize("bias", [True, False])
def test_joined_blocks_are_the_blocks_side_by_side(widths, bias):
    factors = outer(6, 2, widths, bias)
    expected = torch.cat(list(factors.blocks()), 1)
    arena = Arena(2 * expected.numel())
    first, second = factors.joined_blocks(arena), factors.joined_blocks(arena)
    for found in (factors.joined_blocks(), first, second):
        assert torch.allclose(found, expected, atol=1e-6)
    assert second.data_ptr() == first.data_ptr() + first.nbytes
