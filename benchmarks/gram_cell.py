"""One cell of the benchmark (a model, a method, a number of samples), measured in a process of its own.

`gram_speed.py` starts this file once a cell, so that no method inherits memory, caches or hooks from another one:
`python gram_cell.py prepare JSON` writes a model's fixture, `python gram_cell.py measure JSON` measures on it.
"""

import copy
import importlib.util
import json
import resource
import sys
import textwrap
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from models import MODELS, NUM_CLASSES, Samples, build_fixture, sample_losses
from peers import METHODS, Method, Run, Task, floor
from torch import Tensor

REFERENCE_SAMPLES = 128
TIE = 1e-5  # a pair whose cosine is smaller has no sign that single precision could get right
SHARE_OF_TIME = 0.8  # of the time limit that repeats may fill
LEAST_SECONDS, MOST_REPEATS = 0.5, 50  # of quick calls
MEGABYTE = 2**20

Status = Literal["measured", "raises", "timeout", "out of memory", "not installed"]


@dataclass(frozen=True)
class FixtureOrder:
    """What `prepare` makes: a trained model, its probe and the reference K, in one file."""

    model: str
    samples: int
    steps: int
    seed: int
    archives: tuple[str, ...]
    threads: int
    path: str


@dataclass(frozen=True)
class CellOrder:
    """What `measure` measures; the outcome goes to the file `result`."""

    model: str
    method: str
    samples: int
    threads: int
    repeats: int
    time_limit: float
    memory_limit: int
    fixture: str
    result: str


@dataclass(frozen=True)
class Outcome:
    """What came of a cell. Seconds have one entry a repeat; numbers are None where nothing was measured.

    `extra_megabytes` is the highest resident memory of the process during the calls above what it held before them.
    """

    status: Status
    reason: str = ""
    seconds: tuple[float, ...] = ()
    processor_seconds: tuple[float, ...] = ()
    first_seconds: float | None = None
    first_processor_seconds: float | None = None
    extra_megabytes: float | None = None
    relative_error: float | None = None
    sign_agreement: float | None = None
    ties: int | None = None


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
    """Distance of an answer from the reference."""

    relative_error: float
    sign_agreement: float
    ties: int


def accuracy(answer: Tensor, reference: Tensor, cosines: Tensor) -> Accuracy:
    """Error in the Frobenius norm, and agreement of signs where the reference's cosine is finite and no tie."""
    counted = reference.isfinite()
    difference = (answer.double() - reference)[counted].norm() / reference[counted].norm()
    finite = cosines.isfinite()
    decided = finite & (cosines.abs() > TIE)
    agreement = (answer.sign() == reference.sign())[decided].double().mean()
    return Accuracy(difference.item(), agreement.item(), int(finite.sum() - decided.sum()))


def peak_memory() -> int:
    """Highest resident memory of this process so far, in bytes.

    ru_maxrss is only the second choice: a child starts with the high-water mark of its parent, and it cannot be reset.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def forget_peak() -> None:
    """Lower the high-water mark to the memory in use, where the system can."""
    marks = Path("/proc/self/clear_refs")
    if marks.exists():
        marks.write_text("5")


@dataclass(frozen=True)
class Call:
    """One timed call and what it returned."""

    answer: Tensor
    seconds: float
    processor_seconds: float


def call(run: Run) -> Call:
    """Time one call."""
    wall, processor = time.perf_counter(), time.process_time()
    answer = run()
    return Call(answer, time.perf_counter() - wall, time.process_time() - processor)


def measure(method: Method, task: Task, order: CellOrder) -> tuple[Outcome, Tensor]:
    """Prepare, call once for warm-up, then repeat as long as the time limit allows."""
    started = time.perf_counter()
    floor(Task(task.module, task.samples[:2]))()  # loads what torch loads at the first call
    task.module.zero_grad()
    run = method.prepare(task)
    forget_peak()
    before = peak_memory()
    latest = call(run)
    first_seconds, first_processor_seconds = latest.seconds, latest.processor_seconds
    seconds: list[float] = []
    processor_seconds: list[float] = []
    while wants_more(seconds, order) and fits(time.perf_counter() - started, first_seconds, order):
        del latest  # the answer of the last call is no part of what the next one needs
        latest = call(run)
        seconds.append(latest.seconds)
        processor_seconds.append(latest.processor_seconds)
    outcome = Outcome(
        "measured",
        seconds=tuple(seconds) or (first_seconds,),
        processor_seconds=tuple(processor_seconds) or (first_processor_seconds,),
        first_seconds=first_seconds,
        first_processor_seconds=first_processor_seconds,
        extra_megabytes=(peak_memory() - before) / MEGABYTE,
    )
    return outcome, latest.answer


def wants_more(seconds: list[float], order: CellOrder) -> bool:
    """Whether repeats are missing; calls of a few milliseconds get more of them, or one interruption would be seen."""
    return len(seconds) < order.repeats or (sum(seconds) < LEAST_SECONDS and len(seconds) < MOST_REPEATS)


def fits(spent: float, expected: float, order: CellOrder) -> bool:
    """Whether one more call will end within the time limit."""
    return spent + expected < SHARE_OF_TIME * order.time_limit


def judged(outcome: Outcome, answer: Tensor, method: Method, task: Task, reference: Tensor) -> Outcome:
    """The outcome with its accuracy on the first samples, those of the reference."""
    size = min(len(reference), len(task.samples))
    reference = reference[:size, :size]
    cosines = pair_cosines(reference)
    if method.answer == "nothing":
        return outcome
    if method.answer == "class_cosine":
        answer = method.prepare(Task(task.module, task.samples[:size]))()
        reference = cosines = class_means(cosines, task.samples.targets[:size])
    else:
        answer = answer[:size, :size]
    return replace(outcome, **asdict(accuracy(answer, reference, cosines)))


def failure(error: BaseException) -> Outcome:
    """The outcome that stands for an exception."""
    message = " ".join(f"{type(error).__name__}: {error}".split())
    is_memory = isinstance(error, MemoryError) or "can't allocate memory" in message
    return Outcome("out of memory" if is_memory else "raises", textwrap.shorten(message, 200, placeholder=" ..."))


def prepare(order: FixtureOrder) -> None:
    """Train the model and write the fixture file."""
    torch.set_num_threads(order.threads)
    archives = [Path(path) for path in order.archives]
    fixture = build_fixture(order.model, order.samples, order.steps, order.seed, archives)
    probe = fixture.probe
    with torch.no_grad():
        losses = sample_losses(fixture.module, (probe.inputs, probe.targets))
    contents = {
        "weights": fixture.module.state_dict(),
        "inputs": probe.inputs,
        "targets": probe.targets,
        "losses": losses,
        "reference": reference_gram(Task(fixture.module, probe[:REFERENCE_SAMPLES])),
    }
    torch.save(contents, order.path)


def measure_cell(order: CellOrder) -> Outcome:
    """Load the fixture and measure; whatever a method raises is an outcome."""
    method = METHODS[order.method]
    if importlib.util.find_spec(method.package) is None:
        return Outcome("not installed", f"no module named {method.package}")
    torch.set_num_threads(order.threads)
    contents = torch.load(order.fixture)
    module = MODELS[order.model].build().eval()
    module.load_state_dict(contents["weights"])
    samples = Samples(contents["inputs"], contents["targets"])[: order.samples]
    task = Task(module, Samples(samples.inputs.clone(), samples.targets.clone()))
    reference = contents.pop("reference")
    contents.clear()
    resource.setrlimit(resource.RLIMIT_DATA, (order.memory_limit, order.memory_limit))
    try:
        outcome, answer = measure(method, task, order)
        return judged(outcome, answer, method, task, reference)
    except Exception as error:  # a tool that raises, in whatever way, is a row of the table
        return failure(error)


def main(command: str, order: str) -> None:
    """Run one command; `order` is the JSON of its order."""
    if command == "prepare":
        prepare(FixtureOrder(**json.loads(order)))
        return
    cell = CellOrder(**json.loads(order))
    Path(cell.result).write_text(json.dumps(asdict(measure_cell(cell))))


if __name__ == "__main__":
    main(*sys.argv[1:])
