"""One cell of the benchmark (a model, a method, a number of samples), measured in a process of its own.

`sessions.py` starts this file once a cell, so that no method inherits memory, caches or hooks from another one:
`python gram_cell.py prepare JSON` writes a model's fixture; `python gram_cell.py measure JSON` loads it, says that it
is ready, and then makes calls or finishes as it is told on its standard input, a line a command, an answer a line;
`python gram_cell.py peak JSON` prints how many GFLOP/s a large product of float32 matrices reaches.
"""

import contextlib
import copy
import importlib.util
import json
import os
import resource
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TextIO

import torch
from cells import REFERENCE_SAMPLES, Cell, CellOrder, FixtureOrder, Outcome
from models import ALL_MODELS, build_fixture, sample_losses
from peers import METHODS, Method, Run, Task, floor, product_flops
from samples import NUM_CLASSES, Samples
from torch import Tensor

TIE = 1e-5  # a pair whose cosine is smaller has no sign that single precision could get right
BURST_SECONDS, BURST_CALLS = 0.15, 20  # quick calls are made in bursts, or the first after a pause would weigh much
MEGABYTE = 2**20


def reference_gram(task: Task) -> Tensor:
    """K [n n] by a loop of backwards in double precision."""
    module = copy.deepcopy(task.module).double()
    inputs, targets = task.batch
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    rows = []
    for index in range(len(targets)):
        losses = sample_losses(module, (inputs[index : index + 1], targets[index : index + 1]))
        parts = torch.autograd.grad(losses[0], list(module.parameters()))
        rows.append(torch.cat([part.reshape(-1) for part in parts]))
    gradients = torch.stack(rows)
    return gradients @ gradients.T


def pair_cosines(gram: Tensor) -> Tensor:
    """Cosines of different samples [n n], nan on the diagonal."""
    norms = gram.diagonal().sqrt()
    return (gram / torch.outer(norms, norms)).fill_diagonal_(torch.nan)


def class_means(pairs: Tensor, targets: Tensor) -> Tensor:
    """Mean over the pairs of two classes [c c], nan pairs left out; nan where there are none."""
    members = torch.nn.functional.one_hot(targets, NUM_CLASSES).to(pairs.dtype)
    counted = pairs.isfinite().to(pairs.dtype)
    return (members.T @ pairs.nan_to_num(nan=0.0) @ members) / (members.T @ counted @ members)


@dataclass(frozen=True)
class Accuracy:
    """Distance of an answer from the reference; see `Outcome`."""

    relative_error: float
    largest_error: float
    sign_agreement: float
    ties: int


@dataclass(frozen=True)
class Reference:
    """What an answer is compared with: entries that count are finite; the cosines of pairs; a scale for each entry."""

    matrix: Tensor
    cosines: Tensor
    scale: Tensor


def gram_reference(gram: Tensor) -> Reference:
    """A Gram matrix; its scale is |g_i| |g_j|."""
    norms = gram.diagonal().sqrt()
    return Reference(gram, pair_cosines(gram), torch.outer(norms, norms))


def accuracy(answer: Tensor, reference: Reference) -> Accuracy:
    """Errors where the reference is finite, and agreement of signs where its cosine is finite and no tie."""
    counted = reference.matrix.isfinite()
    expected, found = reference.matrix[counted], answer.double()[counted]
    difference = found - expected
    largest = (difference.abs() / reference.scale[counted]).max()
    cosines = reference.cosines[counted]
    decided = cosines.isfinite() & (cosines.abs() > TIE)
    agreement = (found.sign() == expected.sign())[decided].double().mean()
    ties = cosines.isfinite().sum() - decided.sum()
    return Accuracy((difference.norm() / expected.norm()).item(), largest.item(), agreement.item(), int(ties))


def reference_places(samples: int, references: int) -> Tensor:
    """Where in a batch the samples of the reference stand: evenly spread, so that no part of it goes unchecked."""
    return torch.linspace(0, samples - 1, min(samples, references)).round().long()


def arranged(probe: Samples, samples: int, references: int) -> Samples:
    """The first n samples of the probe, those of the reference (the first of all) at `reference_places`."""
    places = reference_places(samples, references)
    order = torch.empty(samples, dtype=torch.long)
    others = torch.ones(samples, dtype=torch.bool)
    others[places] = False
    order[places] = torch.arange(len(places))
    order[others] = torch.arange(len(places), samples)
    return probe[order]


@dataclass(frozen=True)
class Meter:
    """Clocks and memory of a device."""

    device: torch.device

    def synchronise(self) -> None:
        """Waits until the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def peak_memory(self) -> int:
        """Highest memory so far in bytes: of the device, or resident memory of this process.

        ru_maxrss is only the second choice: a child starts with the high-water mark of its parent, and it cannot be
        reset.
        """
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        status = Path("/proc/self/status")
        if status.exists():
            return status_bytes("VmHWM")
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

    def forget_peak(self) -> None:
        """Lowers the high-water mark to the memory in use, where the system can."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            return
        marks = Path("/proc/self/clear_refs")
        if marks.exists():
            marks.write_text("5")

    def call(self, run: Run) -> "Call":
        """Times one call."""
        self.synchronise()
        wall, processor = time.perf_counter(), time.process_time()
        answer = run()
        self.synchronise()
        return Call(answer, time.perf_counter() - wall, time.process_time() - processor)


@dataclass(frozen=True)
class Call:
    """One timed call and what it returned."""

    answer: Tensor
    seconds: float
    processor_seconds: float


def status_bytes(entry: str) -> int:
    """An entry of /proc/self/status."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(entry))
    return int(line.split()[1]) * 1024


@dataclass(frozen=True)
class Bench:
    """What a cell works on; `order` may differ from the task only in what the limits ask."""

    order: CellOrder
    method: Method
    task: Task
    reference: Tensor
    meter: Meter


def set_up(order: CellOrder) -> Bench:
    """Loads the fixture; its file is mapped, so that a small cell does not read the samples of a large one."""
    cell = order.cell
    torch.set_num_threads(cell.threads)
    device = torch.device(order.device)
    contents = torch.load(order.fixture, mmap=True)
    module = ALL_MODELS[cell.model].build().eval()
    module.load_state_dict(contents["weights"])
    reference = contents["reference"].clone()
    samples = arranged(Samples(contents["inputs"], contents["targets"]), cell.samples, len(reference))
    task = Task(module.to(device), samples.to(device), order.budget)
    return Bench(order, METHODS[cell.method], task, reference, Meter(device))


def limit(order: CellOrder) -> None:
    """Limits the memory of this process."""
    if order.memory_limit:
        resource.setrlimit(resource.RLIMIT_DATA, (order.memory_limit, order.memory_limit))
    if order.extra_limit:
        whole = status_bytes("VmSize") + order.extra_limit
        resource.setrlimit(resource.RLIMIT_AS, (whole, whole))


def calls(bench: Bench, commands: Iterator[str]) -> Iterator[dict[str, Any]]:
    """Answers the commands: one call first, a burst of calls for each `call`, the outcome for `finish`."""
    floor(Task(bench.task.module, bench.task.samples[:2]))()  # loads what torch loads at the first call
    bench.task.module.zero_grad()
    run = bench.method.prepare(bench.task)
    yield {"kind": "ready"}
    limit(bench.order)
    bench.meter.forget_peak()
    before = bench.meter.peak_memory()
    peaks: list[int] = []
    latest: Call | None = None
    for command in commands:
        if latest is not None and not peaks:
            peaks.append(bench.meter.peak_memory())
            bench.meter.forget_peak()
        if command == "finish":
            break
        seconds: list[float] = []
        processor_seconds: list[float] = []
        is_first = latest is None
        while not seconds or (not is_first and sum(seconds) < BURST_SECONDS and len(seconds) < BURST_CALLS):
            latest = None  # the answer of the last call is no part of what the next one needs
            latest = bench.meter.call(run)
            seconds.append(latest.seconds)
            processor_seconds.append(latest.processor_seconds)
        yield {"kind": "called", "seconds": seconds, "processor_seconds": processor_seconds}
    assert latest is not None
    later = (bench.meter.peak_memory() - before) / MEGABYTE
    extra = max(later, (peaks[0] - before) / MEGABYTE)
    outcome = Outcome("measured", extra_megabytes=extra, later_megabytes=later)
    yield {"kind": "outcome"} | asdict(judged(outcome, latest.answer, bench))


def judged(outcome: Outcome, answer: Tensor, bench: Bench) -> Outcome:
    """The outcome with its accuracy on the samples of the reference."""
    method, task = bench.method, bench.task
    if bench.order.cell.method == "bound":
        for parameter in task.module.parameters():
            parameter.requires_grad_(True)
        return replace(outcome, product_flops=product_flops(task))
    if method.answer == "nothing" or not len(bench.reference):
        return outcome
    places = reference_places(len(task.samples), len(bench.reference))
    reference = gram_reference(bench.reference[: len(places), : len(places)])
    subset = task.samples[places.to(task.samples.targets.device)]
    targets = subset.targets.cpu()
    if method.answer == "class_cosine":
        answer = method.prepare(Task(task.module, subset, task.budget))().cpu()
        means = class_means(reference.cosines, targets)
        reference = Reference(means, means, torch.ones_like(means))
    else:
        answer = answer.cpu()[places[:, None], places]
    if method.answer == "gram within classes":
        is_within = targets[:, None] == targets
        reference = replace(reference, matrix=torch.where(is_within, reference.matrix, torch.nan))
    return replace(outcome, **asdict(accuracy(answer, reference)))


def failure(error: BaseException) -> Outcome:
    """The outcome that stands for an exception."""
    message = " ".join(f"{type(error).__name__}: {error}".split())
    is_memory = isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in message
    return Outcome("out of memory" if is_memory else "raises", textwrap.shorten(message, 200, placeholder=" ..."))


def answers(order: CellOrder, commands: Iterator[str]) -> Iterator[dict[str, Any]]:
    """The answers of a cell; whatever a method raises is an outcome."""
    package = METHODS[order.cell.method].package
    if importlib.util.find_spec(package) is None:
        yield {"kind": "outcome"} | asdict(Outcome("not installed", f"no module named {package}"))
        return
    try:
        yield from calls(set_up(order), commands)
    except Exception as error:  # a tool that raises, in whatever way, is a row of the table
        yield {"kind": "outcome"} | asdict(failure(error))


def prepare(order: FixtureOrder) -> None:
    """Trains the model and writes the fixture file."""
    torch.set_num_threads(order.threads)
    archives = [Path(path) for path in order.archives]
    fixture = build_fixture(order.model, order.samples, order.steps, order.seed, archives)
    probe = fixture.probe[: min(order.samples, REFERENCE_SAMPLES)]
    with torch.no_grad():
        losses = sample_losses(fixture.module, (probe.inputs, probe.targets))
    count = min(order.references, order.samples)
    reference = reference_gram(Task(fixture.module, fixture.probe[:count])) if count else torch.empty(0, 0)
    contents = {
        "weights": fixture.module.state_dict(),
        "inputs": fixture.probe.inputs.clone(),
        "targets": fixture.probe.targets.clone(),
        "losses": losses,
        "reference": reference,
        "seconds_per_sample": fixture.seconds_per_sample,
        "parameters": sum(parameter.numel() for parameter in fixture.module.parameters()),
    }
    torch.save(contents, order.path)


def peak_gflops(size: int = 2048, repeats: int = 10) -> float:
    """GFLOP/s of the fastest of some products of two float32 matrices of the given size."""
    matrix = torch.randn(size, size)
    result = torch.empty_like(matrix)
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        torch.mm(matrix, matrix, out=result)
        seconds.append(time.perf_counter() - start)
    return 2e-9 * size**3 / min(seconds)


def reserved_output() -> TextIO:
    """The standard output, kept for answers: what tools print goes to standard error."""
    output = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return output


def measure(values: dict[str, Any]) -> None:
    """Answers until it is told to finish."""
    order = CellOrder(**values | {"cell": Cell(**values["cell"])})
    output = reserved_output()
    with contextlib.suppress(BrokenPipeError):  # whoever asked has gone
        for answer in answers(order, (line.strip() for line in sys.stdin)):
            output.write(json.dumps(answer) + "\n")


def peak(values: dict[str, Any]) -> None:
    """Prints the peak."""
    torch.set_num_threads(values["threads"])
    print(peak_gflops())


COMMANDS: dict[str, Callable[[dict[str, Any]], None]] = {
    "prepare": lambda values: prepare(FixtureOrder(**values)),
    "measure": measure,
    "peak": peak,
}

if __name__ == "__main__":
    COMMANDS[sys.argv[1]](json.loads(sys.argv[2]))
