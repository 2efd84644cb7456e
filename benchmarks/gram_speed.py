"""Time and memory of the exact Gram matrix K of per-sample loss gradients: this package, its peers, and the floor.

K_ij is the inner product of the loss gradients of samples i and j with respect to all parameters. The floor is one
forward and one backward of the same batch: what a training step costs anyway. Every (model, method, n) is measured in a
process of its own, after one warm-up call, in evaluation mode, and compared with a loop of backwards in double
precision. A tool that raises, is not installed, takes too long or needs too much memory is a row that says so.
"""

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from gram_cell import CellOrder, FixtureOrder, Outcome
from gram_report import Clock, Results, Row, ratio_text, write
from models import MODELS
from peers import METHODS

CELL = Path(__file__).with_name("gram_cell.py")
DISTRIBUTIONS = ("torch", "lightning-stiffness", "opacus", "backpack-for-pytorch", "torchjd")
SHARE_OF_MEMORY = 0.75  # of the memory that is free at the start; a method that wants more is out of memory
QUICK_SAMPLES, QUICK_REPEATS, QUICK_STEPS = 16, 2, 3

EPILOG = """models:
{models}

methods (the floor is always measured):
{methods}

examples:
  python benchmarks/gram_speed.py --output results
      everything; about an hour on one core
  python benchmarks/gram_speed.py --models mlp cnn --methods ours vmap loop --samples 500 --output results
  python benchmarks/gram_speed.py --data mnist.npz cifar10.npz --output results
      real images for the models whose image shape an archive has
  python benchmarks/gram_speed.py --quick --output results
      does everything run? The numbers mean nothing.

written to --output: results.json (every number), results.md (the tables that are printed), results.png
"""


@dataclass(frozen=True)
class Settings:
    """What the command line asks for."""

    models: tuple[str, ...]
    methods: tuple[str, ...]
    samples: tuple[int, ...]
    threads: int
    repeats: int
    timeout: float
    memory: float
    steps: int
    seed: int
    clock: Clock
    data: tuple[str, ...]


def parse(arguments: list[str] | None = None) -> tuple[Settings, Path]:
    """Settings and the output folder."""
    options = vars(parser().parse_args(arguments))
    output = options.pop("output")
    if options.pop("quick"):
        options |= {"samples": [QUICK_SAMPLES], "repeats": QUICK_REPEATS, "steps": QUICK_STEPS}
    methods = [name for name in METHODS if name == "floor" or name in options["methods"]]
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in options.items()
    }
    return Settings(**values | {"methods": tuple(methods)}), output


def parser() -> argparse.ArgumentParser:
    """The command line, with all that can be asked for."""
    listing = {
        "models": "\n".join(f"  {name:<13}{model.description}" for name, model in MODELS.items()),
        "methods": "\n".join(f"  {name:<13}{method.title}" for name, method in METHODS.items()),
    }
    epilog = EPILOG.format(**listing)
    made = argparse.ArgumentParser(
        description=__doc__, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = made.add_argument
    add("--output", type=Path, required=True, metavar="DIR", help="folder for the results")
    add("--models", nargs="+", choices=MODELS, default=list(MODELS), metavar="NAME", help="models, see below (all)")
    add("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="NAME", help="methods, see below (all)")
    add("--samples", nargs="+", type=positive, default=[128, 500], metavar="N", help="sizes of the batch (128 500)")
    add("--threads", type=positive, default=1, help="threads of each measurement (1)")
    add(
        "--repeats",
        type=positive,
        default=5,
        help="timed calls after the warm-up; more of quick ones, fewer if time is short (5)",
    )
    add("--timeout", type=float, default=300.0, metavar="SECONDS", help="limit of one measurement (300)")
    add(
        "--memory",
        type=float,
        default=free_gigabytes() * SHARE_OF_MEMORY,
        metavar="GB",
        help="limit of one measurement (3/4 of what is free)",
    )
    add("--steps", type=int, default=60, help="training steps before measuring (60)")
    add("--seed", type=int, default=0, help="of the weights, the data and their order (0)")
    add(
        "--clock",
        choices=["wall", "processor"],
        default="wall",
        help="what tables show; processor time is steadier on a busy machine (wall)",
    )
    add(
        "--data",
        nargs="*",
        default=[],
        metavar="NPZ",
        help="archives with x_train, y_train, as Keras ships mnist.npz (synthetic data)",
    )
    add(
        "--quick",
        action="store_true",
        help=f"n = {QUICK_SAMPLES}, {QUICK_REPEATS} repeats, {QUICK_STEPS} training steps",
    )
    return made


def positive(text: str) -> int:
    """A whole number above zero."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, found {value}")
    return value


def free_gigabytes() -> float:
    """Memory that can be had without swapping, or half of all where the system does not say."""
    information = Path("/proc/meminfo")
    if information.exists():
        line = next(line for line in information.read_text().splitlines() if line.startswith("MemAvailable"))
        return int(line.split()[1]) / 2**20
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**31


def environment() -> dict[str, object]:
    """What the numbers depend on and no setting says."""
    versions = {name: version(name) for name in DISTRIBUTIONS}
    facts = {"date": datetime.now(timezone.utc).date().isoformat(), "processor": processor_name(), "versions": versions}
    return facts | {"cores": os.cpu_count(), "python": platform.python_version(), "system": platform.platform()}


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


def run_cell_process(
    command: str, order: FixtureOrder | CellOrder, timeout: float | None
) -> subprocess.CompletedProcess[str]:
    """Run gram_cell.py in a process of its own."""
    threads = str(order.threads)
    variables = os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "PYTHONWARNINGS": "ignore"}
    arguments = [sys.executable, str(CELL), command, json.dumps(asdict(order))]
    return subprocess.run(arguments, env=variables, capture_output=True, text=True, timeout=timeout, check=False)


def make_fixture(model: str, settings: Settings, folder: Path) -> Path:
    """Train a model and keep it with its probe and reference in a file."""
    path = folder / f"{model}.pt"
    archives = tuple(str(Path(name).resolve()) for name in settings.data)
    order = FixtureOrder(
        model, max(settings.samples), settings.steps, settings.seed, archives, settings.threads, str(path)
    )
    done = run_cell_process("prepare", order, None)
    if done.returncode:
        raise SystemExit(f"The model {model} could not be prepared:\n{done.stderr.strip()[-2000:]}")
    return path


def describe_fixture(path: Path) -> dict[str, float]:
    """Size of the model and losses of its probe: tiny losses would make every float32 gradient noise."""
    contents = torch.load(path)
    parameters = sum(weights.numel() for weights in contents["weights"].values() if weights.is_floating_point())
    losses = contents["losses"]
    return {"values": parameters, "mean_loss": losses.mean().item(), "smallest_loss": losses.min().item()}


def measure_cell(model: str, method: str, samples: int, settings: Settings, fixture: Path) -> Outcome:
    """Measure one cell; the process may also die or be ended by the time limit."""
    result = fixture.with_name("result.json")
    result.unlink(missing_ok=True)
    limit = int(settings.memory * 2**30)
    order = CellOrder(
        model, method, samples, settings.threads, settings.repeats, settings.timeout, limit, str(fixture), str(result)
    )
    try:
        done = run_cell_process("measure", order, settings.timeout)
    except subprocess.TimeoutExpired:
        return Outcome("timeout", f"longer than {settings.timeout:g} s")
    if result.exists():
        return Outcome(**json.loads(result.read_text()))
    if done.returncode == -signal.SIGKILL:
        return Outcome("out of memory", "ended by the system")
    last_line = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
    return Outcome("raises", last_line[:200])


def measure_all(settings: Settings, folder: Path, fixtures: dict[str, dict[str, float]]) -> Iterator[Row]:
    """One row a cell, model by model; what is known of the fixtures is added to `fixtures`."""
    for model in settings.models:
        print(f"preparing {model}: {settings.steps} training steps and the reference in double precision", flush=True)
        fixture = make_fixture(model, settings, folder)
        fixtures[model] = describe_fixture(fixture)
        for samples in settings.samples:
            for method in settings.methods:
                load = os.getloadavg()[0]
                yield Row(model, method, samples, measure_cell(model, method, samples, settings, fixture), load)
        fixture.unlink()


def progress(results: Results, total: int) -> str:
    """One line on the cell that has just been finished."""
    row = results.rows[-1]
    label = f"[{len(results.rows):>3}/{total}] {row.model} {row.method} n={row.samples}: "
    if not row.is_measured:
        return f"{label}{row.outcome.status} ({row.outcome.reason})"
    times = results.times(row)
    error = row.outcome.relative_error
    tail = "" if error is None else f", error {error:.0e}"
    cost = f"{statistics.median(times):.4g} s, {ratio_text(results, row)} x floor"
    return f"{label}{cost}, +{row.outcome.extra_megabytes:.0f} MB{tail}"


def main(arguments: list[str] | None = None) -> None:
    """Measure, print and write."""
    settings, output = parse(arguments)
    rows: list[Row] = []
    fixtures: dict[str, dict[str, float]] = {}
    results = Results(rows, settings.clock, environment(), asdict(settings), fixtures)
    total = len(settings.models) * len(settings.samples) * len(settings.methods)
    with tempfile.TemporaryDirectory() as folder:
        try:
            for row in measure_all(settings, Path(folder), fixtures):
                rows.append(row)
                print(progress(results, total), flush=True)
        except KeyboardInterrupt:
            print("interrupted: writing what there is")
    if rows:
        print("\n" + write(results, output))
        print(f"written to {output}: results.json, results.md, results.png")


if __name__ == "__main__":
    main()
