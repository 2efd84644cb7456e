"""What is found in chunks of samples, kept for all of them: each number is in memory once."""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import final

from torch.nn.functional import pad

from lightning_stiffness.gram.collect import Found
from lightning_stiffness.gram.factors import Explicit, Factors
from lightning_stiffness.gram.outer import Outer
from lightning_stiffness.gram.slicing import form_of, small, write, zeros_like


@final
class Kept:
    """What is found of some parameters; memory for all samples is taken when the first chunk comes.

    Args:
        sizes: How many samples each chunk has.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        """Holds nothing."""
        ends = accumulate(sizes)
        self._rows = [slice(end - size, end) for size, end in zip(sizes, ends, strict=True)]
        self._stored: dict[Hashable, _Stored] = {}

    def add(self, chunk: int, found: Found) -> None:
        """Takes what was found in the chunk with this number; zero where a chunk does not use a parameter."""
        factors = small(found.factors)
        if found.identity not in self._stored:
            self._stored[found.identity] = _Stored(found, zeros_like(factors, self._rows[-1].stop))
        self._stored[found.identity].write(self._rows[chunk], factors)

    def take(self) -> Iterator[Found]:
        """All that was found, for all samples together; each is let go before the next one comes."""
        while self._stored:
            stored = self._stored.pop(next(iter(self._stored)))
            yield replace(stored.found, factors=stored.factors)


@dataclass
class _Stored:
    """The factors of all samples, as far as they have come, and whose they are."""

    found: Found
    factors: Factors

    def write(self, rows: slice, factors: Factors) -> None:
        """Takes those of some samples; chunks of sequences may differ in length, and then even in form."""
        if form_of(self.factors) != form_of(factors):
            self.factors, factors = _alike(self.factors, factors)
        write(self.factors, rows, factors)


def _alike(first: Factors, second: Factors) -> tuple[Factors, Factors]:
    """The same in one form: as many positions in both, or explicit."""
    if isinstance(first, Outer) and isinstance(second, Outer):
        longest = max(first.positions, second.positions)
        return _lengthened(first, longest), _lengthened(second, longest)
    return Explicit(first.joined_blocks()), Explicit(second.joined_blocks())


def _lengthened(factors: Outer, positions: int) -> Outer:
    more = positions - factors.positions
    return (
        Outer(pad(factors.left, (0, 0, 0, more)), pad(factors.right, (0, 0, 0, more)), factors.bias)
        if more
        else factors
    )
