"""Results of the Gram benchmark and what they are held against."""

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from cells import Cell, Outcome
from models import ALL_MODELS
from peers import METHODS

Clock = Literal["wall", "processor"]
Verdict = Literal["met", "missed", "not measured"]
WRONG = 1e-3  # relative error from which an answer is called wrong
TARGET_SAMPLES = 500
CLASS_COSINE_TARGET = 1.2
SAME_MEMORY = 1.25  # how much more counts as memory that does not grow with n
WHY_MISSED = """Why rows are missed:

- *K.* The bound beside a row is what an exact K would cost if its products ran at the processor's measured peak,
  after the forward pass and the backward pass that every way needs ("What is possible", below). A target under the
  bound is out of reach on this processor, and so is a factor over a peer that is larger than the one "at the bound".
  What lies between the bound and us, on one thread of an AMD EPYC on a day when it reached 88 GFLOP/s: symmetric
  products of 500 rows run at 70 at best and those of 128 rows at 35, and the explicit gradients of attention layers
  are formed by batched products over some 64 positions, at about 40. In a perceptron some milliseconds are Python.
- *n = 2,000.* The products grow with n^2 and outweigh the rest. Where what is kept of all samples does not fit the
  budget, as for transformers, each group of parameters takes a forward and a backward pass of its own:
  `GramEngine(budget=...)` trades memory for time.
- *Class cosine.* The norm of a sample's gradient takes that gradient, formed at those 40 GFLOP/s, where the floor
  sums over samples at the peak; and the sums of c x p entries have to be written, which counts beside a perceptron's
  forward pass of milliseconds.
- *Memory.* Our chunks hold some 64 samples and a block of 64 MB; a loop holds one sample, and takes about twice the
  time."""


@dataclass(frozen=True)
class Target:
    """What K may cost at n = 500 as a multiple of the floor, and how many times faster than all peers it must be."""

    floors: float
    faster: float


RESIDUAL, ATTENTION = Target(1.5, 1.5), Target(1.7, 2.0)
TARGETS = {
    "mlp": Target(0.8, 50.0),
    "cnn": Target(1.1, 3.0),
    "resnet20_bn": RESIDUAL,
    "resnet20_gn": RESIDUAL,
    "transformer": ATTENTION,
    "vit": ATTENTION,
    "gpt": ATTENTION,
}


@dataclass(frozen=True)
class Results:
    """All cells of a run, the clock its tables go by, and what it ran on."""

    outcomes: dict[Cell, Outcome]
    clock: Clock
    environment: dict[str, Any]
    settings: dict[str, Any]
    fixtures: dict[str, dict[str, float]]

    @property
    def threads(self) -> list[int]:
        """Numbers of threads, as they were asked for."""
        return list(dict.fromkeys(cell.threads for cell in self.outcomes))

    @property
    def sizes(self) -> list[int]:
        """Numbers of samples for which more than class cosines were asked for, ascending."""
        return sorted({cell.samples for cell in self.outcomes if cell.method not in ("floor", "class_cosine")})

    def named(self, registry: Iterable[str], attribute: str) -> list[str]:
        """The registry's names that occur in the cells, in the order of the registry."""
        present = {getattr(cell, attribute) for cell in self.outcomes}
        return [name for name in registry if name in present]

    def find(self, model: str, method: str, samples: int, threads: int | None = None) -> Outcome | None:
        """The outcome of a cell, None where it was not asked for; with the first number of threads by default."""
        return self.outcomes.get(Cell(model, method, samples, threads or self.threads[0]))

    def times(self, outcome: Outcome) -> tuple[float, ...]:
        """Seconds of each call by the clock of the run."""
        return outcome.seconds if self.clock == "wall" else outcome.processor_seconds

    def seconds(self, outcome: Outcome | None) -> float:
        """Median; nan without a time."""
        if outcome is None or not outcome.is_measured:
            return math.nan
        return statistics.median(self.times(outcome))

    def ratio(self, outcome: Outcome | None, of: Callable[[Sequence[float]], float] = statistics.median) -> float:
        """Time over the floor's of the same session; nan where one of them is missing."""
        floor = self._floor_times(outcome)
        if outcome is None or not outcome.is_measured or not floor:
            return math.nan
        return of(self.times(outcome)) / of(floor)

    def least_ratio(self, outcome: Outcome) -> float:
        """What a skipped call would at least take over the floor; nan where that is not known."""
        floor = self._floor_times(outcome)
        if outcome.expected_seconds is None or not floor:
            return math.nan
        return outcome.expected_seconds / statistics.median(floor)

    def _floor_times(self, outcome: Outcome | None) -> tuple[float, ...]:
        if outcome is None:
            return ()
        return outcome.floor_seconds if self.clock == "wall" else outcome.floor_processor_seconds


def is_wrong(outcome: Outcome) -> bool:
    """Whether the answer is far from the reference; one that is not finite is."""
    error = outcome.relative_error
    return error is not None and not error < WRONG


@dataclass(frozen=True)
class Bound:
    """What an exact K costs at least, as multiples of the floor: what comes before the products, and the products."""

    before: float
    products: float

    @property
    def total(self) -> float:
        """Both."""
        return self.before + self.products


def bound_of(results: Results, model: str, samples: int) -> Bound | None:
    """The bound of a group; None where it was not measured."""
    outcome = results.find(model, "bound", samples)
    peak = results.environment["peak_gflops"].get(str(results.threads[0]))
    if outcome is None or outcome.product_flops is None or peak is None or math.isnan(results.ratio(outcome)):
        return None
    floor = results.seconds(outcome) / results.ratio(outcome)
    return Bound(results.ratio(outcome), outcome.product_flops / (1e9 * peak) / floor)


@dataclass(frozen=True)
class Check:
    """One target, what was reached, and a remark."""

    what: str
    target: str
    reached: str
    verdict: Verdict
    remark: str = ""


def checks(results: Results) -> list[Check]:
    """All targets that concern what was asked for, missed ones and those that could not be measured included."""
    models = [name for name in TARGETS if any(cell.model == name for cell in results.outcomes)]
    found = [cost_check(results, model) for model in models if results.find(model, "ours", TARGET_SAMPLES)]
    for model in models:
        sizes = [n for n in results.sizes if results.find(model, "ours", n)]
        found += [speed_check(results, model, n) for n in sizes if peers_of(results, model, n)]
    for model in models:
        sizes = [n for n in results.sizes if results.find(model, "ours", n)]
        found += [memory_check(results, model, n) for n in sizes if peers_of(results, model, n)]
    for model in models:
        found += class_cosine_checks(results, model)
    return found + thread_checks(results)


def _verdict(value: float, is_met: bool) -> Verdict:
    if math.isnan(value):
        return "not measured"
    return "met" if is_met else "missed"


def _label(model: str, samples: int) -> str:
    return f"{ALL_MODELS[model].title}, n = {samples}"


def cost_check(results: Results, model: str) -> Check:
    """K at n = 500 against its share of the floor."""
    outcome = results.find(model, "ours", TARGET_SAMPLES)
    assert outcome is not None
    ratio, target = results.ratio(outcome), TARGETS[model].floors
    what = f"K, {_label(model, TARGET_SAMPLES)}"
    verdict = "missed" if is_wrong(outcome) else _verdict(ratio, ratio <= target)
    bound, remark = bound_of(results, model, TARGET_SAMPLES), remark_on(results, outcome)
    if bound is not None:
        remark += f"; bound: {number(bound.total, ' x')}"
    return Check(what, f"<= {target:g} x floor", number(ratio, " x"), verdict, remark)


def remark_on(results: Results, outcome: Outcome) -> str:
    """The ratio of the fastest calls, which interruptions disturb least; or why there is no time."""
    if not outcome.is_measured:
        return f"{outcome.status}: {outcome.reason}"
    wrong = "wrong answer; " if is_wrong(outcome) else ""
    return f"{wrong}fastest calls: {number(results.ratio(outcome, min), ' x')}"


def remark_on_peer(results: Results, model: str, samples: int, peer: str, is_least: bool) -> str:
    """Which peer it is, and how many times faster than it an exact K could be at its bound."""
    outcome, bound = results.find(model, peer, samples), bound_of(results, model, samples)
    ratio = math.nan if outcome is None else results.least_ratio(outcome) if is_least else results.ratio(outcome)
    remark = METHODS[peer].title + (" (not measured: its least time)" if is_least else "")
    return remark if bound is None else f"{remark}; at the bound: {number(ratio / bound.total, ' x')}"


def peers_of(results: Results, model: str, samples: int) -> dict[str, Outcome]:
    """The outcomes of all peers in a group."""
    found = {name: results.find(model, name, samples) for name, method in METHODS.items() if method.kind == "peer"}
    return {name: outcome for name, outcome in found.items() if outcome is not None}


def speed_check(results: Results, model: str, samples: int) -> Check:
    """How many times faster than the best peer with a right answer; a skipped peer counts with its least time."""
    ours, target = results.find(model, "ours", samples), TARGETS[model].faster
    times: dict[str, float] = {}  # over the floor of the same session, for a peer's cell may be of another one
    bounds: set[str] = set()
    for name, outcome in peers_of(results, model, samples).items():
        if outcome.is_measured and not is_wrong(outcome):
            times[name] = results.ratio(outcome)
        elif not math.isnan(results.least_ratio(outcome)):
            times[name] = results.least_ratio(outcome)
            bounds.add(name)
    what, wanted = f"speed, {_label(model, samples)}", f">= {target:g} x the best peer"
    if not times:
        return Check(what, wanted, "", "not measured", "no peer has a time and a right answer")
    best = min(times, key=lambda name: times[name])
    factor = times[best] / results.ratio(ours)
    remark = remark_on_peer(results, model, samples, best, best in bounds)
    verdict = _verdict(factor, factor >= target)
    if best in bounds and verdict == "missed":
        verdict = "not measured"
    return Check(what, wanted, number(factor, " x"), verdict, remark)


def memory_check(results: Results, model: str, samples: int) -> Check:
    """Extra memory beside that of the leanest peer that takes no more than twice our time."""
    ours, peers = results.find(model, "ours", samples), peers_of(results, model, samples)
    limit = 2 * results.ratio(ours)
    rivals = {
        name: outcome.extra_megabytes
        for name, outcome in peers.items()
        if outcome.is_measured
        and outcome.extra_megabytes is not None
        and not is_wrong(outcome)
        and results.ratio(outcome) <= limit
    }
    unknown = [METHODS[name].title for name, outcome in peers.items() if results.least_ratio(outcome) <= limit]
    what = f"memory, {_label(model, samples)}"
    own = math.nan if ours is None or ours.extra_megabytes is None else ours.extra_megabytes
    if math.isnan(own):
        return Check(what, "<= leanest rival", "", "not measured", "" if ours is None else ours.reason)
    if not rivals and unknown:
        return Check(what, "<= leanest rival", f"{own:.0f} MB", "not measured", f"left out: {', '.join(unknown)}")
    if not rivals:
        return Check(what, "<= leanest rival", f"{own:.0f} MB", "met", "no peer is within twice our time")
    leanest = min(rivals, key=lambda name: rivals[name])
    target = rivals[leanest]
    return Check(what, f"<= {target:.0f} MB", f"{own:.0f} MB", _verdict(own, own <= target), METHODS[leanest].title)


def class_cosine_checks(results: Results, model: str) -> list[Check]:
    """Class cosine: its share of the floor with each n, and its memory with the two largest."""
    wanted = ((n, results.find(model, "class_cosine", n)) for n in class_sizes(results))
    cells = [(n, outcome) for n, outcome in wanted if outcome is not None]
    found = []
    for samples, outcome in cells:
        ratio = results.ratio(outcome)
        verdict = "missed" if is_wrong(outcome) else _verdict(ratio, ratio <= CLASS_COSINE_TARGET)
        what = f"class cosine, {_label(model, samples)}"
        reached = number(ratio, " x")
        found.append(Check(what, f"<= {CLASS_COSINE_TARGET:g} x floor", reached, verdict, remark_on(results, outcome)))
    sized = [(n, outcome.extra_megabytes) for n, outcome in cells if outcome.extra_megabytes is not None]
    if len(sized) > 1:
        (smaller, before), (larger, after) = sized[-2:]
        assert before is not None
        assert after is not None
        what = f"class cosine's memory, {_label(model, larger)}"
        target = f"<= {SAME_MEMORY:g} x that with n = {smaller}"
        is_met = after <= SAME_MEMORY * before
        found.append(Check(what, target, f"{after:.0f} MB", _verdict(after, is_met), f"{before:.0f} MB before"))
    return found


def class_sizes(results: Results) -> list[int]:
    """Numbers of samples of class cosines, ascending."""
    return sorted({cell.samples for cell in results.outcomes if cell.method == "class_cosine"})


def thread_checks(results: Results) -> list[Check]:
    """Whether more threads are faster than the first number of them; always by the clock on the wall."""
    found = []
    for cell, outcome in results.outcomes.items():
        one = results.find(cell.model, cell.method, cell.samples)
        if cell.threads == results.threads[0] or METHODS[cell.method].kind != "own" or one is None:
            continue
        factor = math.nan
        if one.is_measured and outcome.is_measured:
            factor = statistics.median(one.seconds) / statistics.median(outcome.seconds)
        name = "K" if cell.method == "ours" else "class cosine"
        what = f"{cell.threads} threads, {name}, {_label(cell.model, cell.samples)}"
        found.append(Check(what, "> 1 x as fast", number(factor, " x"), _verdict(factor, factor > 1)))
    return found


def as_json(results: Results) -> dict[str, Any]:
    """Every number of the run; what is not a finite number becomes None."""
    cells = []
    for cell, outcome in results.outcomes.items():
        numbers = asdict(cell) | asdict(outcome) | {"ratio_to_floor": results.ratio(outcome)}
        cells.append({name: finite(value) for name, value in numbers.items()})
    head = {"environment": results.environment, "settings": results.settings, "clock": results.clock}
    targets = [asdict(check) for check in checks(results)]
    return head | {"fixtures": results.fixtures, "targets": targets, "cells": cells}


def finite(value: Any) -> Any:
    """None for nan and infinity, which JSON does not know."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def number(value: float, unit: str = "") -> str:
    """Two decimals, none from ten on; a dash for nan."""
    if math.isnan(value):
        return "-"
    return (f"{value:.2f}" if value < 10 else f"{value:.0f}") + unit
