"""Runs trainings that are not finished, in this process or in several, and keeps what comes of them."""

import json
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from balancing_methods import METHODS
from balancing_settings import REFERENCE, TUNING_SEEDS, Recipe, Setting, candidates
from balancing_training import Order, train


@dataclass(frozen=True)
class Store:
    """The folder of finished trainings: a file for each."""

    folder: Path

    def find(self, order: Order) -> dict[str, Any] | None:
        """What came of it; None if it is not finished, or was made by other settings."""
        path = self.folder / f"{order.name}.json"
        contents = json.loads(path.read_text()) if path.exists() else {}
        return contents["outcome"] if contents.get("fingerprint") == order.fingerprint else None

    def is_finished(self, order: Order) -> bool:
        """Whether there is something to judge."""
        found = self.find(order)
        return found is not None and "error" not in found

    def keep(self, order: Order, outcome: dict[str, Any]) -> None:
        """Writes it."""
        path = self.folder / f"{order.name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(json.dumps({"fingerprint": order.fingerprint, "outcome": outcome}))
        part.replace(path)


def reporting_orders(
    settings: Sequence[Setting], recipes: dict[str, Recipe], data: str | None, most_seeds: int | None
) -> list[Order]:
    """Every method on every setting, seed by seed, so that what there is can be judged at any time."""
    seeds = {one.name: min(one.seeds, most_seeds or one.seeds) for one in settings}
    return [
        Order(setting.name, method.name, seed, recipes[setting.name], data)
        for seed in range(max(seeds.values(), default=0))
        for setting in settings
        if seed < seeds[setting.name]
        for method in METHODS
        if not setting.methods or method.name in setting.methods
    ]


def tuning_orders(settings: Sequence[Setting], data: str | None) -> list[Order]:
    """The reference on the seeds for tuning, for each recipe that a setting may choose."""
    return [
        Order(setting.name, REFERENCE, seed, recipe, data, is_tuning=True)
        for setting in settings
        if not setting.like
        for recipe in candidates(setting)
        for seed in TUNING_SEEDS
    ]


def run_all(orders: Sequence[Order], jobs: int) -> Iterator[tuple[Order, dict[str, Any]]]:
    """Trains all, `jobs` at a time; each with its outcome when it has one."""
    if jobs == 1:
        yield from ((order, attempt(order)) for order in orders)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(jobs, mp_context=context)
    try:
        waiting = {pool.submit(attempt, order): order for order in orders}
        for done in as_completed(waiting):
            yield waiting[done], done.result()
    finally:
        pool.shutdown(cancel_futures=True)


def attempt(order: Order) -> dict[str, Any]:
    """Trains; an error becomes an outcome."""
    try:
        return train(order)
    except (Exception, SystemExit) as error:
        return {"error": f"{type(error).__name__}: {error}"}
