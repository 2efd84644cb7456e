"""Imbalanced classes: is ClassGroupingBalancer better than what one line would do?

Small classifiers are trained on classes of very different sizes by an ordinary Trainer, each with every method from the
same samples and the same first weights, and judged on test sets in which each class is as frequent. Learning rate,
length and weight decay of a setting were chosen for logit adjustment, our strongest simple rival, on other seeds; all
methods use them. The learning rate falls to 0.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from balancing_picture import draw
from balancing_report import markdown
from balancing_running import Store, reporting_orders, run_all, tuning_orders
from balancing_scores import balanced_accuracy, collect, dump
from balancing_settings import NEEDS_DATA, QUICK, QUICK_SEEDS, SETTINGS, Setting, read_recipes, write_recipes
from balancing_training import Order
from machine import processor_name, version
from matplotlib.backends.backend_agg import FigureCanvasAgg
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

EPILOG = """examples:
  python benchmarks/balancing.py --quick --output results
      small tables and digits that come with scikit-learn, two seeds, two minutes on one core; far too few to tell
  python benchmarks/balancing.py --full --data DIR --jobs 2 --output results
      everything, about an hour on one core; DIR has mnist.npz and cifar10-small.npz, each with x_train, y_train, x_test
      and y_test
  python benchmarks/balancing.py --full --output results
      what needs no archive
  python benchmarks/balancing.py --only digits --seeds 3 --output results
      settings whose name contains this, three seeds each
  python benchmarks/balancing.py --report-only --output results
      the tables again from what is there
  python benchmarks/balancing.py --tune --data DIR --output results
      choose learning rates, lengths and weight decays anew: they are written to OUTPUT/balancing_cells.json, and count
      once they lie beside this script

An interrupted run goes on where it was: each finished training is a file below OUTPUT/progress. Those that failed are
tried again. Seeds are the outer loop, so that a part of them is a smaller benchmark.
Written to --output: balancing.json, .md, .png.
"""
DISTRIBUTIONS = ("torch", "lightning", "scikit-learn", "lightning-stiffness")


@dataclass(frozen=True)
class Job:
    """A run: which settings, how many seeds of each, with which data, by how many processes, and where to."""

    settings: tuple[Setting, ...]
    seeds: int | None
    data: str | None
    output: Path
    jobs: int
    tune: bool
    report_only: bool

    @property
    def store(self) -> Store:
        """The folder of finished trainings."""
        return Store(self.output / "progress")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = made.add_argument
    add("--output", type=Path, required=True, metavar="DIR", help="folder for trainings and results")
    add("--data", type=Path, metavar="DIR", help="folder of mnist.npz and cifar10-small.npz (none: not these)")
    size = made.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="a fixed few settings, two seeds")
    size.add_argument("--full", action="store_true", help="all settings and seeds (default)")
    add("--only", nargs="+", metavar="NAME", help="settings whose name contains one of these")
    add("--seeds", type=positive, metavar="K", help="at most so many seeds of each setting")
    add("--jobs", type=positive, default=1, metavar="K", help="processes, of one thread each (%(default)s)")
    add("--tune", action="store_true", help="choose the recipes, on seeds that are not reported")
    add("--report-only", action="store_true", help="train nothing, judge what is there")
    return made


def positive(text: str) -> int:
    """A whole number above zero."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, found {value}")
    return value


def parse(arguments: Sequence[str] | None = None) -> Job:
    """The job that the command line describes.

    Raises:
        SystemExit: an archive is missing, or no setting is asked for.
    """
    made = parser()
    options = made.parse_args(arguments)
    if options.data is not None and not options.data.is_dir():
        made.error(f"--data must be a folder with mnist.npz and cifar10-small.npz; {options.data} is none")
    seeds = QUICK_SEEDS if options.quick and options.seeds is None else options.seeds
    data = None if options.data is None else str(options.data.resolve())
    job = Job(selected(options), seeds, data, options.output, options.jobs, options.tune, options.report_only)
    if not job.settings:
        made.error("no setting is asked for: see --only, and --data for mnist and cifar10")
    return job


def selected(options: argparse.Namespace) -> tuple[Setting, ...]:
    """The settings that are asked for."""
    return tuple(
        setting
        for setting in SETTINGS
        if (not options.quick or setting.name in QUICK)
        and (options.data is not None or options.report_only or setting.data not in NEEDS_DATA)
        and (not options.only or any(text in setting.name for text in options.only))
    )


def train_missing(job: Job, orders: Sequence[Order], console: Console) -> None:
    """Trains what is not finished, with a bar that knows how long trainings take."""
    missing = [order for order in orders if not job.store.is_finished(order)]
    console.print(f"{len(orders)} trainings, {len(orders) - len(missing)} of them finished before")
    expected = {setting.name: setting.seconds for setting in job.settings}
    with bar(console) as progress:
        task = progress.add_task("", total=sum(expected[order.setting] for order in missing), count="0")
        for number, (order, outcome) in enumerate(run_all(missing, job.jobs), start=1):
            job.store.keep(order, outcome)
            progress.update(task, advance=expected[order.setting], count=f"{number}/{len(missing)} {order.name}")
            if "error" in outcome:
                progress.console.print(f"[red]{order.name}: {outcome['error']}[/red]", highlight=False, soft_wrap=True)


def bar(console: Console) -> Progress:
    """Trainings done, and the time to go by what they were expected to take."""
    columns: list[Any] = [TextColumn("{task.fields[count]}"), BarColumn(), TimeElapsedColumn()]
    return Progress(*columns, TextColumn("so far,"), TimeRemainingColumn(), TextColumn("to go"), console=console)


def tune(job: Job, console: Console) -> None:
    """Chooses the recipe of each setting by the reference's balanced accuracy on the seeds for tuning."""
    orders = tuning_orders(job.settings, job.data)
    train_missing(job, orders, console)
    scores: dict[str, dict[Any, list[float]]] = {}
    for order in orders:
        found = job.store.find(order)
        if found is not None and "error" not in found:
            score = 100 * balanced_accuracy(found["results"][order.method])
            scores.setdefault(order.setting, {}).setdefault(order.recipe, []).append(score)
    means = {name: [(recipe, sum(v) / len(v)) for recipe, v in tried.items()] for name, tried in scores.items()}
    path = job.output / "balancing_cells.json"
    write_recipes(means, path)
    console.print(f"written: {path}", highlight=False, soft_wrap=True)


def facts() -> dict[str, Any]:
    """What the numbers depend on and no setting says."""
    return {"processor": processor_name(), "versions": {name: version(name) for name in DISTRIBUTIONS}}


def write(results: dict[str, Any], folder: Path) -> str:
    """Writes balancing.json, .md and .png; returns the Markdown."""
    folder.mkdir(parents=True, exist_ok=True)
    dump(results, folder / "balancing.json")
    text = markdown(results)
    (folder / "balancing.md").write_text(text)
    figure = draw(results)
    FigureCanvasAgg(figure)
    figure.savefig(folder / "balancing.png", dpi=110)
    return text


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, judge, write."""
    job = parse(arguments)
    os.environ.update({"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"})  # of the workers
    console = Console(file=sys.stderr)
    if job.tune:
        tune(job, console)
        return 0
    orders = reporting_orders(job.settings, read_recipes(), job.data, job.seeds)
    if not job.report_only:
        try:
            train_missing(job, orders, console)
        except KeyboardInterrupt:
            console.print("interrupted: judging what there is; the same command goes on from here")
    results = collect(job.settings, orders, job.store, facts())
    if not results["settings"]:
        console.print("No finished trainings there.")
        return 1
    print(write(results, job.output))
    console.print(f"written to {job.output}: balancing.json, .md, .png", highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
