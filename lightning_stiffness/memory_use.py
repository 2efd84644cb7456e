"""How much memory a piece of work takes beside what was there before."""

import os
import sys
import threading
import time
from pathlib import Path
from types import TracebackType

import torch

_SYSTEM = Path("/proc/meminfo")
_RESIDENT = Path("/proc/self/statm")
_PAUSE = 1e-3  # seconds between two looks


class MemoryUse:
    """The highest memory within this context above that at its start, in MB (2^20 bytes).

    On CUDA devices it is that of torch's allocator. Elsewhere it is the memory of the process that is resident, looked
    at a thousand times a second; memory that the process has freed and not given back is used again, and not counted.

    Args:
        device: Where the work is done.

    >>> with MemoryUse(torch.device("cpu")) as use:
    ...     tensor = torch.ones(64 << 20)
    >>> 200 < use.megabytes < 400
    True
    """

    def __init__(self, device: torch.device) -> None:
        """See the class."""
        self._device = device
        self._done = threading.Event()
        self._before = self._peak = 0
        self.megabytes = 0.0

    def __enter__(self) -> "MemoryUse":
        """Remembers what is there."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            self._before = torch.cuda.memory_allocated(self._device)
            return self
        self._before = self._peak = _resident()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stops looking."""
        if self._device.type == "cuda":
            self._peak = torch.cuda.max_memory_allocated(self._device)
        else:
            self._done.set()
            self._thread.join()
            self._peak = max(self._peak, _resident())
        self.megabytes = max(0, self._peak - self._before) / 2.0**20

    def _look(self) -> None:
        while not self._done.is_set():
            self._peak = max(self._peak, _resident())
            time.sleep(_PAUSE)


def free_megabytes(device: torch.device) -> int:
    """Memory that can still be had on a device, in MB; where the system does not tell, more than there is.

    >>> free_megabytes(torch.device("cpu")) > 0
    True
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] >> 20
    lines = _SYSTEM.read_text().splitlines() if _SYSTEM.exists() else []
    found = [int(line.split()[1]) >> 10 for line in lines if line.startswith("MemAvailable")]
    return found[0] if found else 1 << 40


def _resident() -> int:
    """Bytes; where the system does not tell what is resident, the most that ever was."""
    if _RESIDENT.exists():
        return int(_RESIDENT.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    import resource  # noqa: PLC0415 (not on Windows)

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
