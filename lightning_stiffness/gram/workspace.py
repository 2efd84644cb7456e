"""Memory that explicit gradients are written to again and again: fresh pages cost as much as the arithmetic on them."""

import math
from collections.abc import Sequence

from torch import Tensor

BLOCK_BYTES = 64 << 20  # explicit gradients are formed in blocks of this size: larger ones are no faster (measured)


class Workspace:
    """One buffer, lent to one block at a time.

    Attributes:
        block_bytes: The size of a block that its user should aim at.
    """

    def __init__(self, block_bytes: int = BLOCK_BYTES, reused: bool = True) -> None:
        """Holds nothing until the first block; if not ``reused``, each block has memory of its own."""
        self.block_bytes = block_bytes
        self._reused = reused
        self._buffer: Tensor | None = None

    def block(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """An uninitialised contiguous tensor of the dtype and device of ``like``; the block lent before is gone."""
        if not self._reused:
            return like.new_empty(*shape)
        entries = math.prod(shape)
        buffer = self._buffer
        if buffer is None or buffer.numel() < entries or buffer.dtype != like.dtype or buffer.device != like.device:
            self._buffer = None  # freed before the larger one is made
            buffer = self._buffer = like.new_empty(entries)
        return buffer[:entries].view(*shape)


class Arena(Workspace):
    """One buffer, lent to several blocks at a time, side by side; what does not fit has memory of its own.

    Args:
        entries: How many it holds.
    """

    def __init__(self, entries: int) -> None:
        """Nothing is lent."""
        super().__init__()
        self._entries, self._lent = entries, 0

    def block(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """An uninitialised contiguous tensor of the dtype and device of ``like``, until ``take_back``."""
        start, stop = self._lent, self._lent + math.prod(shape)
        buffer = self._buffer
        if buffer is None:
            buffer = self._buffer = like.new_empty(self._entries)
        if stop > len(buffer) or (buffer.dtype, buffer.device) != (like.dtype, like.device):
            return like.new_empty(*shape)
        self._lent = stop
        return buffer[start:stop].view(*shape)

    def take_back(self) -> None:
        """All blocks that were lent are gone."""
        self._lent = 0


FRESH = Workspace(reused=False)
