"""How much memory a measurement may take when the user does not say."""

import os

import torch

from lightning_stiffness.gram.workspace import BLOCK_BYTES

MOST = 4 << 30  # more makes no measurement faster that was measured
UNKNOWN = 1 << 30
SHARE = 4


def default_budget(device: torch.device) -> int:
    """A quarter of the device's memory, at most 4 GiB; 1 GiB where that is not known.

    It is the memory that the device has, not what is free: the same run goes through the same chunks each time.
    """
    return min(MOST, _total(device) // SHARE)


def scratch_of(budget: int) -> int:
    """What blocks of explicit gradients may take, once for those and once for thin ones that wait for a product."""
    return min(BLOCK_BYTES, budget // 16)


def is_out_of_memory(cause: BaseException) -> bool:
    """Whether an exception says that there is no memory left: on the CPU torch raises a plain RuntimeError then.

    Example:
        >>> is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."))
        True
    """
    if isinstance(cause, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(cause, RuntimeError) and "allocate memory" in str(cause)


def _total(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # not on this system
        return UNKNOWN * SHARE
