"""Can early stopping be lifted where it is weak? Ideas beside the present estimate, on cells that may be tuned on.

The weak regimes of early_stopping.py: high learning rates, AdamW on few samples, convolutional networks with batch
normalisation, augmentation. Each cell is trained once, and what every idea needs is recorded. Judged afterwards: the
default rule, ConfirmedDrop(), with the four numbers of the leave-one-out signal found in another way, against the
signal as it is. Cells that judge the rules of early_stopping.py are never looked at.
"""

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import processor_name, version
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from stopping_grid import Setting, read_table
from stopping_rules import Rule, curve_of, judge
from stopping_scores import score
from stopping_training import HISTORY
from stopping_weak_evidence import IDEAS, NUMBERS, PRESENT, Evidence, Record
from stopping_weak_training import RECORD, train

from lightning_stiffness.history import History
from lightning_stiffness.stopping import ConfirmedDrop

EPILOG = """examples:
  python benchmarks/stopping_weak_regimes.py --quick --output results
      two short trainings on scikit-learn's digits, about a minute; the numbers mean nothing
  python benchmarks/stopping_weak_regimes.py --data DIR --output results
      all cells; DIR has mnist.npz and cifar10-small.npz with x_train, y_train, x_test, y_test
  python benchmarks/stopping_weak_regimes.py --report-only --output results
      the table again from what is there

An interrupted run goes on where it was: each cell has a folder below OUTPUT/weak_regimes.
Written to --output: stopping_weak_regimes.json and .md.
"""
RULE = Rule("default", "", "ours", ConfirmedDrop(), restored=True)
MEASURES = ("accuracy_regret", "loss_regret")
CELLS: dict[str, tuple[str, ...]] = {
    "weak": (
        "mnist-n500-sym0.4-mlp-sgd0.1-constant-b64-e60-s0",
        "mnist-n300-sym0.2-mlp-adamw0.003-constant-b64-e60-s2",
        "digits-n600-sym0.4-mlp-adamw0.0021-constant-b64-e80-s553",
        "digits-n1000-sym0.4-mlp_deep-sgd0.053-constant-wd0.001-do0.3-b128-e60-s245",
        "cifar10-n500-sym0.1-cnn_bn-adamw0.00068-step-b64-e30-s273",
        "digits-n300-sym0.4-mlp_deep-adamw0.00066-constant-aug-b64-e100-s962",
        "cifar10-n500-sym0.2-cnn_bn-adamw0.00078-warmup-wd0.05-b32-e30-s472",
        "cifar10-n1000-asym0.2-mlp-sgd0.038-constant-do0.3-aug-b128-e60-s888",
        "mnist-n300-sym0.2-cnn_gn-sgd0.044-cosine-b32-e30-s827",
        "mnist-n1000-sym0.2-mlp_shallow-adamw0.0022-constant-wd0.05-aug-b32-e60-s925",
        "cifar10-n1000-sym0.2-cnn_bn-sgd0.02-constant-b64-e30-s1",
        "cifar10-n500-asym0.1-cnn_gn-adamw0.0033-step-wd0.05-b32-e30-s183",
        "cifar10-n1000-sym0.2-cnn_gn-sgd0.02-constant-aug-b64-e40-s1",
    ),
    "ordinary": (
        "digits-n600-sym0.2-mlp-sgd0.01-cosine-do0.3-b64-e80-s239",
        "mnist-n2000-sym0.2-mlp-adamw0.00071-constant-wd0.05-b64-e40-s59",
        "digits-n1000-asym0.2-mlp-sgd0.0072-constant-wd0.001-b32-e60-s248",
        "mnist-n500-clean-mlp_shallow-adamw0.0003-cosine-b32-e80-s770",
        "mnist-n1000-clean-mlp-sgd0.02-constant-b64-e60-s0",
        "cifar10-n2000-asym0.1-mlp-sgd0.0031-cosine-b64-e40-s515",
    ),
}
QUICK = {
    "weak": Setting(n=150, epochs=6, rate=0.1, net="mlp_shallow"),
    "ordinary": Setting(n=150, epochs=6, net="mlp_shallow"),
}


def chosen(options: argparse.Namespace) -> dict[str, list[Setting]]:
    """The settings by their kind.

    Raises:
        ValueError: One is not for tuning.
    """
    if options.quick:
        return {kind: [setting] for kind, setting in QUICK.items()}
    table = {cell.name: cell.setting for cell in read_table()}
    found = {kind: [table[name] for name in names] for kind, names in CELLS.items()}
    if any(setting.split != "tune" for settings in found.values() for setting in settings):
        raise ValueError("only cells that may be tuned on can be looked at here")
    return found


def with_evidence(history: History, evidence: Evidence) -> History:
    """The readings with other numbers of the leave-one-out signal."""
    pairs = zip(history, evidence, strict=True)
    changed = [replace(one, signals={**one.signals, **dict(zip(NUMBERS, row, strict=True))}) for one, row in pairs]
    return History(history.probe, changed)


def judged(folder: Path, noise: float, wrong: str) -> dict[str, dict[str, float]]:
    """The scores of all ideas on a recorded training."""
    record = Record(**torch.load(folder / RECORD, weights_only=False))
    history = History.load(folder / f"{HISTORY}.jsonl")
    curve, gap = curve_of(history), true_gap(record, noise, wrong)
    found = {}
    for name, idea in IDEAS.items():
        evidence = idea(record)
        outcome = score(curve, judge(with_evidence(history, evidence), "full", [RULE])[RULE.name])
        kept = {measure: getattr(outcome, measure) for measure in (*MEASURES, "budget", "premature_95")}
        found[name] = {**kept, "gap": gap_ratio(evidence, gap)}
    return found


def true_gap(record: Record, noise: float, wrong: str) -> np.ndarray:
    """By how much the loss on unseen samples with as many wrong labels exceeds that on all training samples."""
    targets = record.targets["test"]
    losses = -record.logits["test"].double().log_softmax(2)
    right = losses.gather(2, targets.expand(len(losses), -1)[:, :, None])[:, :, 0]
    others = (losses.sum(2) - right) / (losses.shape[2] - 1)
    if wrong == "asymmetric":
        others = losses.gather(2, ((targets + 1) % losses.shape[2]).expand(len(losses), -1)[:, :, None])[:, :, 0]
    train = record.logits["train"].double().log_softmax(2)
    own = -train.gather(2, record.targets["train"].expand(len(train), -1)[:, :, None])
    return ((1 - noise) * right + noise * others).mean(1).numpy() - own.mean((1, 2)).numpy()


def gap_ratio(evidence: Evidence, gap: np.ndarray) -> float:
    """The gap that the evidence tells over the true one: the median over the epochs where that is above 0.1 nats."""
    rows = np.asarray(evidence)
    told = (rows[:, 0] - rows[:, 3])[gap > 0.1] / gap[gap > 0.1]
    told = told[np.isfinite(told)]
    return float(np.median(told)) if len(told) else math.nan


def run(
    cells: Mapping[str, Sequence[Setting]], data: Path | None, output: Path, console: Console, trains: bool
) -> list[dict[str, Any]]:
    """All cells: trained and judged, or from their files."""
    rows = []
    orders = [(kind, setting) for kind, settings in cells.items() for setting in settings]
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task("", total=len(orders))
        for kind, setting in orders:
            bar.update(task, description=setting.name)
            folder = output / "weak_regimes" / setting.name
            if trains and not (folder / RECORD).exists():
                folder.mkdir(parents=True, exist_ok=True)
                train(setting, data, folder)
            if (folder / RECORD).exists():
                rows.append({"name": setting.name, "kind": kind, "ideas": scores_of(folder, setting)})
            bar.advance(task)
    return rows


def scores_of(folder: Path, setting: Setting) -> dict[str, dict[str, float]]:
    """The scores of a cell: from its file, if that has all ideas."""
    file = folder / "scores.json"
    found: dict[str, dict[str, float]] = json.loads(file.read_text()) if file.exists() else {}
    if list(found) != list(IDEAS):
        found = judged(folder, setting.noise, setting.wrong)
        file.write_text(json.dumps(found))
    return found


def differences(rows: Sequence[Mapping[str, Any]], idea: str, measure: str) -> tuple[float, float]:
    """The mean of the paired differences to the present estimate and its standard error; nan for a single cell."""
    paired = np.array([row["ideas"][idea][measure] - row["ideas"][PRESENT][measure] for row in rows])
    error = float(paired.std(ddof=1) / math.sqrt(len(paired))) if len(paired) > 1 else math.nan
    return float(paired.mean()), error


def markdown(rows: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]) -> str:
    """The table of all ideas."""
    kinds = {kind: [row for row in rows if row["kind"] == kind] for kind in CELLS}
    kinds = {kind: part for kind, part in kinds.items() if part}
    head = ["| idea |", "| --- |"]
    for kind, part in kinds.items():
        head[0] += f" {kind} ({len(part)}): accuracy, points | difference | loss, nats | difference |"
        head[1] += " ---: |" * 4
    head = [head[0] + " gap told / true |", head[1] + " ---: |"]
    lines = [line(kinds, rows, idea) for idea in IDEAS]
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    about = (
        f"{facts['processor']}; {versions}. Regret of the weights that the default rule keeps against the best epoch; "
        "mean paired differences to the present estimate ± their standard errors; below zero is better."
    )
    return "\n".join(["# Early stopping where it is weak", "", about, "", *head, *lines, ""])


def line(kinds: Mapping[str, Sequence[Mapping[str, Any]]], rows: Sequence[Mapping[str, Any]], idea: str) -> str:
    """The row of an idea."""
    cells = [idea]
    for part in kinds.values():
        for measure, digits in zip(MEASURES, (2, 3), strict=True):
            mean = np.mean([row["ideas"][idea][measure] for row in part])
            difference, error = differences(part, idea, measure)
            cells += [f"{mean:.{digits}f}", f"{difference:+.{digits}f} ± {error:.{digits}f}"]
    gaps = np.array([row["ideas"][idea]["gap"] for row in rows])
    cells.append(f"{np.median(gaps[np.isfinite(gaps)]):.2f}" if np.isfinite(gaps).any() else "")
    return "| " + " | ".join(cells) + " |"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for trainings and results")
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder of mnist.npz and cifar10-small.npz")
    parser.add_argument("--quick", action="store_true", help="two short trainings on digits")
    parser.add_argument("--report-only", action="store_true", help="train nothing, judge what is there")
    options = parser.parse_args(arguments)
    if options.data is None and not (options.quick or options.report_only):
        parser.error("--data is needed: the folder of mnist.npz and cifar10-small.npz")
    console = Console(stderr=True)
    rows = run(chosen(options), options.data, options.output, console, trains=not options.report_only)
    if not rows:
        console.print("No finished cells there.")
        return 1
    facts = {"processor": processor_name(), "versions": {name: version(name) for name in ("torch", "numpy")}}
    text = markdown(rows, facts)
    (options.output / "stopping_weak_regimes.json").write_text(json.dumps({"facts": facts, "cells": rows}, indent=1))
    (options.output / "stopping_weak_regimes.md").write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
