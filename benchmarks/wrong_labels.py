"""Which labels are wrong? Our score beside the loss and cleanlab, on digits and MNIST with flipped labels.

In each cell 5, 10 or 20 % of the labels are flipped to another class, each alike. A network is trained on them for a
fixed number of epochs, and once more until StiffnessEarlyStopping stops it. Every method then ranks the samples by what
this network says of them; cleanlab also by what five networks say that were trained without the sample (cross
validation, as its documentation recommends, at the price of five more trainings). The formula was chosen on other seeds
(100 to 105) of the same data sets.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from machine import processor_name, version
from matplotlib.backends.backend_agg import FigureCanvasAgg
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from wrong_labels_picture import draw
from wrong_labels_report import markdown
from wrong_labels_training import Setting, measured

EPILOG = """examples:
  python benchmarks/wrong_labels.py --quick --output results
      one small cell on scikit-learn's digits, under a minute; the numbers mean nothing
  python benchmarks/wrong_labels.py --output results
      all cells on digits
  python benchmarks/wrong_labels.py --data mnist.npz --output results
      the same and MNIST; the archive has x_train and y_train, as Keras ships it
  python benchmarks/wrong_labels.py --report-only --output results
      the tables and the picture again from what is there

An interrupted run goes on where it was: each finished cell is a file below OUTPUT/progress.
Written to --output: wrong_labels.json, .md, .png.
"""
SHARES = (0.05, 0.1, 0.2)
DISTRIBUTIONS = ("torch", "lightning", "cleanlab", "scikit-learn", "lightning-stiffness")


def grid(data: Path | None) -> list[Setting]:
    """All cells, seed by seed."""
    cells = []
    for seed in range(5):
        for share in SHARES:
            cells.append(Setting("digits", "perceptron", share, seed, 1000, (5, 10, 20, 40, 80), folds=seed < 2))
            if data is not None and seed < 3:
                cells.append(Setting("mnist", "perceptron", share, seed, 3000, (2, 5, 10, 20), folds=seed < 1))
        if seed < 3:
            cells.append(Setting("digits", "CNN", SHARES[-1], seed, 1000, (5, 10, 20, 40), folds=False))
    return cells


def quick() -> list[Setting]:
    """One small cell."""
    return [Setting("digits", "perceptron", 0.2, 0, 200, (2, 4))]


def run(cells: Sequence[Setting], data: Path | None, output: Path, console: Console) -> list[dict[str, Any]]:
    """All cells: from their files, or measured and kept."""
    folder = output / "progress"
    folder.mkdir(parents=True, exist_ok=True)
    done = []
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task("", total=len(cells))
        for cell in cells:
            bar.update(task, description=cell.name)
            file = folder / f"{cell.name}.json"
            if not file.exists():
                file.write_text(json.dumps(measured(cell, data)))
            done.append(json.loads(file.read_text()))
            bar.advance(task)
    return done


def finished(output: Path, cells: Sequence[Setting]) -> list[dict[str, Any]]:
    """The cells that are there."""
    files = [output / "progress" / f"{cell.name}.json" for cell in cells]
    return [json.loads(file.read_text()) for file in files if file.exists()]


def facts() -> dict[str, Any]:
    """What the numbers depend on and no setting says."""
    return {"processor": processor_name(), "versions": {name: version(name) for name in DISTRIBUTIONS}}


def write(results: dict[str, Any], output: Path) -> str:
    """The three files; returns the Markdown."""
    text = markdown(results)
    (output / "wrong_labels.json").write_text(json.dumps(results, indent=1) + "\n")
    (output / "wrong_labels.md").write_text(text)
    figure = draw(results["cells"])
    FigureCanvasAgg(figure)
    figure.savefig(output / "wrong_labels.png", dpi=110)
    return text


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for the results")
    parser.add_argument("--data", type=Path, metavar="FILE", help="mnist.npz (none: only digits)")
    parser.add_argument("--quick", action="store_true", help="one small cell")
    parser.add_argument("--only", nargs="+", default=[""], metavar="WORD", help="cells whose name holds one of these")
    parser.add_argument("--report-only", action="store_true", help="from the cells that are there")
    options = parser.parse_args(arguments)
    if options.data is not None and not options.data.is_file():
        parser.error(f"--data must be a file such as mnist.npz; {options.data} is none")
    cells = quick() if options.quick else grid(options.data)
    cells = [cell for cell in cells if any(word in cell.name for word in options.only)]
    console = Console(stderr=True)
    done = finished(options.output, cells) if options.report_only else run(cells, options.data, options.output, console)
    if not done:
        console.print("No finished cells there.")
        return 1
    print(write({"facts": facts(), "cells": done}, options.output))
    return 0


if __name__ == "__main__":
    sys.exit(main())
