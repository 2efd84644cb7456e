"""What a benchmark ran on: the facts that its numbers depend on and no setting says."""

import json
import os
import platform
import subprocess
import sys
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

CELL = Path(__file__).with_name("gram_cell.py")
DISTRIBUTIONS = ("torch", "numpy", "lightning-stiffness", "opacus", "backpack-for-pytorch", "torchjd")


def environment(threads: tuple[int, ...], device: str) -> dict[str, Any]:
    """Date, processor, versions, and the measured peak of each number of threads."""
    versions = {name: version(name) for name in DISTRIBUTIONS}
    facts = {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "processor": processor_name() if device == "cpu" else torch.cuda.get_device_name(device),
        "cores": os.cpu_count(),
        "memory_gigabytes": round(free_gigabytes(), 1),
        "versions": versions,
        "python": platform.python_version(),
        "system": platform.platform(),
    }
    return facts | {"peak_gflops": {str(count): peak_gflops(count) for count in threads} if device == "cpu" else {}}


def version(distribution: str) -> str | None:
    """Installed version, None where there is none."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def processor_name() -> str:
    """The model of the processor as the system names it."""
    information = Path("/proc/cpuinfo")
    if information.exists():
        names = [line.split(":", 1)[1].strip() for line in information.read_text().splitlines() if "model name" in line]
        return names[0] if names else platform.machine()
    return platform.processor() or platform.machine()


def free_gigabytes() -> float:
    """Memory that can be had without swapping, or half of all where the system does not say."""
    information = Path("/proc/meminfo")
    if information.exists():
        line = next(line for line in information.read_text().splitlines() if line.startswith("MemAvailable"))
        return int(line.split()[1]) / 2**20
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**31


def variables(threads: int) -> dict[str, str]:
    """The environment of a process that measures."""
    count = str(threads)
    return os.environ | {"OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count, "PYTHONWARNINGS": "ignore"}


def peak_gflops(threads: int) -> float:
    """GFLOP/s of a large product of float32 matrices, measured in a process of its own."""
    command = [sys.executable, str(CELL), "peak", json.dumps({"threads": threads})]
    done = subprocess.run(command, env=variables(threads), capture_output=True, text=True, check=True)
    return float(done.stdout)
