"""What is kept of chunks is what was found in them."""

import pytest
import torch

from lightning_stiffness.gram.collect import Found
from lightning_stiffness.gram.factors import Explicit
from lightning_stiffness.gram.kept import Kept
from lightning_stiffness.gram.outer import Outer
from tests.gram.test_slicing import outer

SIZES = (3, 2, 4)


def found(factors):
    return Found((0,), (0, 1), "Addmm", factors)


def taken(kept):
    (one,) = kept.take()
    return one.factors


def test_chunks_make_the_whole():
    parts = [outer(size) for size in SIZES]
    kept = Kept(SIZES)
    for number in (2, 0, 1):
        kept.add(number, found(parts[number]))
    whole = taken(kept)
    assert isinstance(whole, Outer)
    assert torch.equal(whole.joined_blocks(), torch.cat([part.joined_blocks() for part in parts]))
    assert not list(kept.take())


def test_a_chunk_that_does_not_use_a_parameter_has_zero_gradients():
    kept, part = Kept(SIZES), outer(2)
    kept.add(1, found(part))
    whole = taken(kept).joined_blocks()
    assert torch.equal(whole[3:5], part.joined_blocks())
    assert not whole[:3].any()
    assert not whole[5:].any()


@pytest.mark.parametrize(
    ("lengths", "form"), [((1, 2, 1), Outer), ((1, 9, 2), Explicit)], ids=["filled up", "forms differ"]
)
def test_sequences_of_different_lengths(lengths, form):
    parts = [outer(size, positions) for size, positions in zip(SIZES, lengths, strict=True)]
    kept = Kept(SIZES)
    for number, part in enumerate(parts):
        kept.add(number, found(part))
    whole = taken(kept)
    assert isinstance(whole, form)
    assert torch.allclose(whole.joined_blocks(), torch.cat([part.joined_blocks() for part in parts]))


def test_each_form_is_let_go_before_the_next():
    kept = Kept((2, 2))
    for key in range(3):
        for chunk in range(2):
            kept.add(chunk, Found((key,), (key,), "Addmm", outer(2)))
    assert [one.key for one in kept.take()] == [(0,), (1,), (2,)]
