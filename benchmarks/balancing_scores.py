"""What trainings on imbalanced classes are judged by, and how methods are compared: paired, seed by seed."""

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from balancing_methods import TITLES
from balancing_running import Store
from balancing_settings import REFERENCE, Setting
from balancing_training import CORRECTED, NATURAL, Order

SCORES = {
    "balanced_accuracy": "balanced accuracy",
    "worst": "worst class",
    "tail": "tail recall",
    "head": "head recall",
    "f1": "macro-F1",
}
NAMES = (*TITLES, *(name + NATURAL for name in CORRECTED))
Results = dict[str, Any]


@dataclass(frozen=True)
class Estimate:
    """A mean with its standard error, nan for a single value, and how many values (seeds or settings) it rests on."""

    mean: float
    error: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Estimate":
        """Of the mean over seeds."""
        error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else math.nan
        return cls(statistics.fmean(values), error, len(values))

    @classmethod
    def pooled(cls, estimates: Sequence["Estimate"]) -> "Estimate":
        """Of the mean over settings, each of which counts alike."""
        error = math.sqrt(sum(one.error**2 for one in estimates)) / len(estimates)
        return cls(statistics.fmean(one.mean for one in estimates), error, len(estimates))

    def text(self, signed: bool = False) -> str:
        """Mean +- error, with one digit; two where the mean is a difference."""
        if math.isnan(self.error):
            return format(self.mean, "+.1f" if signed else ".1f")
        return f"{self.mean:+.2f} +- {self.error:.2f}" if signed else f"{self.mean:.1f} +- {self.error:.1f}"


def balanced_accuracy(run: dict[str, Any]) -> float:
    """Mean recall of the classes."""
    return statistics.fmean(recalls(run))


def recalls(run: dict[str, Any]) -> list[float]:
    """Share of each class's test samples that were predicted rightly."""
    return [right / tested for right, tested in zip(run["right"], run["tested"], strict=True)]


def scores(run: dict[str, Any], counts: Sequence[int]) -> dict[str, float]:
    """All scores of a network in per cent, the loss in nats.

    The tail are the classes that are no bigger than the last of the smallest third, the head likewise: equal sizes stay
    together.

    Args:
        run: What it says of the test set, class by class.
        counts: Training samples of each class.
    """
    found, order = recalls(run), sorted(counts)
    third = max(1, round(len(counts) / 3))
    tail = [recall for recall, count in zip(found, counts, strict=True) if count <= order[third - 1]]
    head = [recall for recall, count in zip(found, counts, strict=True) if count >= order[-third]]
    parts = zip(run["right"], run["tested"], run["predicted"], strict=True)
    harmonic = [2 * right / max(tested + predicted, 1) for right, tested, predicted in parts]
    per_cent = {
        "balanced_accuracy": statistics.fmean(found),
        "worst": min(found),
        "tail": statistics.fmean(tail),
        "head": statistics.fmean(head),
        "f1": statistics.fmean(harmonic),
        "natural_accuracy": weighted(found, counts),
    }
    return {name: 100 * value for name, value in per_cent.items()} | {"natural_loss": weighted(run["loss"], counts)}


def weighted(values: Sequence[float], counts: Sequence[int]) -> float:
    """The mean where classes are as frequent as in training."""
    return sum(value * count for value, count in zip(values, counts, strict=True)) / sum(counts)


def collect(settings: Sequence[Setting], orders: Iterable[Order], store: Store, facts: dict[str, Any]) -> Results:
    """Everything that is finished, by setting and method, with the failures."""
    found: dict[str, dict[str, Any]] = {}
    for order in orders:
        outcome = store.find(order)
        if outcome is None:
            continue
        row = found.setdefault(order.setting, {"recipe": asdict(order.recipe), "failed": {}, "counts": {}, "runs": {}})
        if "error" in outcome:
            row["failed"][f"{order.method}, seed {order.seed}"] = outcome["error"]
            continue
        row["counts"][str(order.seed)] = outcome["counts"]
        row.setdefault("seconds", {}).setdefault(order.method, []).append(round(outcome["seconds"], 2))
        for name, run in outcome["results"].items():
            row["runs"].setdefault(name, {})[str(order.seed)] = run
    keys = ("name", "title", "kind", "schedule", "largest", "imbalance")
    described = [{key: getattr(one, key) for key in keys} | found[one.name] for one in settings if one.name in found]
    return {"facts": facts, "settings": [row for row in described if row["runs"]]}


def values(row: dict[str, Any], name: str, score: str) -> dict[str, float]:
    """The score of a method, by seed."""
    return {seed: scores(run, row["counts"][seed])[score] for seed, run in row["runs"].get(name, {}).items()}


def mean(row: dict[str, Any], name: str, score: str) -> Estimate | None:
    """The score of a method in a setting; None if there is none."""
    found = list(values(row, name, score).values())
    return Estimate.of(found) if found else None


def difference(
    row: dict[str, Any], name: str, score: str = "balanced_accuracy", other: str = REFERENCE
) -> Estimate | None:
    """How much higher a method scores than another one, over the seeds that both have; None if there are none."""
    ours, theirs = values(row, name, score), values(row, other, score)
    pairs = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
    return Estimate.of(pairs) if pairs else None


def pooled(
    rows: Sequence[dict[str, Any]], name: str, score: str = "balanced_accuracy", other: str = REFERENCE
) -> Estimate | None:
    """The mean difference over settings that have both."""
    found = [one for row in rows if (one := difference(row, name, score, other)) is not None]
    return Estimate.pooled(found) if found else None


def of_kind(results: Results, *kinds: str) -> list[dict[str, Any]]:
    """The settings of these kinds."""
    return [row for row in results["settings"] if row["kind"] in kinds]


def judged(results: Results) -> list[dict[str, Any]]:
    """The settings that count: all but the limits."""
    return of_kind(results, "images", "synthetic", "tables")


def dump(results: Results, path: Path) -> None:
    """Writes all runs, and the scores and differences that follow from them."""
    rows = [{**row, "scores": _table(row)} for row in results["settings"]]
    text = json.dumps({**results, "settings": rows}, allow_nan=False)
    path.write_text(text.replace('{"name"', '\n{"name"') + "\n")


def _table(row: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in (one for one in NAMES if one in row["runs"]):
        found[name] = {}
        for score in (*SCORES, "natural_accuracy", "natural_loss"):
            whole, less = mean(row, name, score), difference(row, name, score)
            found[name][score] = _finite(whole) | {"against_logit_adjustment": _finite(less)}
    return found


def _finite(estimate: Estimate | None) -> dict[str, Any]:
    if estimate is None:
        return {}
    error = None if math.isnan(estimate.error) else round(estimate.error, 4)
    return {"mean": round(estimate.mean, 4), "standard_error": error, "count": estimate.count}
