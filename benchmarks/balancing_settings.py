"""The settings of the benchmark of imbalanced classes, and the recipes that trainings of each follow."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

RECIPES = Path(__file__).with_name("balancing_cells.json")
TUNING_SEEDS = (100, 101)  # reporting seeds count from 0
REFERENCE = "adjusted"

Kind = Literal["images", "synthetic", "tables", "limits"]


@dataclass(frozen=True)
class Setting:
    """Data, network, and how unequal the classes are.

    Attributes:
        name: For files and the command line.
        title: For tables.
        kind: What it is pooled with. "limits" are outside of all averages.
        data: "mnist", "cifar10", "digits", "look-alike", "iris", "wine" or "breast_cancer".
        network: "mlp" or "cnn".
        largest: Training samples of the biggest class.
        imbalance: Biggest class over smallest one.
        seeds: How many seeds are reported.
        seconds: What one training takes, about, for the bar of progress.
        rates: Learning rates to choose from; so are `decays` and `epochs`.
        batch: Training samples in a batch.
        profile: "long tail": sizes fall geometrically, classes in random order. "pairs": one class of 4/9, 3/5 and 7/1
            is small, the others are large.
        schedule: "cosine" to 0, or "constant".
        like: The setting whose recipe it takes; its own if empty.
        methods: Names of the methods that are compared; all if empty.
    """

    name: str
    title: str
    kind: Kind
    data: str
    network: str
    largest: int
    imbalance: float
    seeds: int
    seconds: float
    rates: tuple[float, ...] = (0.03, 0.1, 0.2)
    decays: tuple[float, ...] = (5e-4, 5e-3, 1e-2)
    epochs: tuple[int, ...] = (15, 30)
    batch: int = 128
    profile: Literal["long tail", "pairs"] = "long tail"
    schedule: Literal["cosine", "constant"] = "cosine"
    like: str = ""
    methods: tuple[str, ...] = ()


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: SGD with momentum .9."""

    rate: float
    epochs: int
    weight_decay: float


SMALL: dict[str, Any] = {"epochs": (20, 40), "batch": 32}
TABLE: dict[str, Any] = {"epochs": (20, 40), "batch": 16}
LIMITED = ("plain", "adjusted", "root", "ours", "shifted")
SETTINGS = (
    Setting("iris-10", "iris, 10", "tables", "iris", "mlp", 30, 10, 20, 0.5, **TABLE),
    Setting("wine-10", "wine, 10", "tables", "wine", "mlp", 28, 10, 20, 0.5, **TABLE),
    Setting("cancer-20", "breast cancer, 20", "tables", "breast_cancer", "mlp", 130, 20, 20, 0.8, **TABLE),
    Setting("digits-10", "digits, 10", "images", "digits", "mlp", 100, 10, 10, 1.2, **SMALL),
    Setting("digits-20", "digits, 20", "images", "digits", "mlp", 100, 20, 10, 1.0, **SMALL),
    Setting("digits-50", "digits, 50", "images", "digits", "mlp", 100, 50, 10, 0.9, **SMALL),
    Setting(
        "look-alike-50", "30 look-alike classes, 50", "synthetic", "look-alike", "mlp", 200, 50, 8, 2.0, batch=64,
        epochs=(20, 40),
    ),
    Setting(
        "confusable", "MNIST, confusable minorities, 12", "images", "mnist", "mlp", 300, 12, 10, 2.3, profile="pairs"
    ),
    Setting("mnist-100", "MNIST, 100", "images", "mnist", "mlp", 1000, 100, 10, 3.0),
    Setting("mnist-10", "MNIST, 10", "images", "mnist", "mlp", 1000, 10, 5, 5.0),
    Setting(
        "digits-20-constant", "digits, 20, constant rate", "limits", "digits", "mlp", 100, 20, 10, 1.0,
        batch=32, schedule="constant", like="digits-20", methods=LIMITED,
    ),
    Setting(
        "mnist-100-constant", "MNIST, 100, constant rate", "limits", "mnist", "mlp", 1000, 100, 5, 3.0,
        schedule="constant", like="mnist-100", methods=LIMITED,
    ),
    Setting(
        "mnist-100-cnn", "MNIST, 100, CNN", "images", "mnist", "cnn", 1000, 100, 5, 7.0, batch=64, epochs=(15, 25)
    ),
    Setting(
        "cifar10-100-cnn", "CIFAR-10, 100, CNN", "images", "cifar10", "cnn", 800, 100, 5, 15.0, batch=64, epochs=(25,),
        rates=(0.02, 0.05), decays=(5e-4, 5e-3),
    ),
)  # fmt: skip
BY_NAME = {setting.name: setting for setting in SETTINGS}
NEEDS_DATA = ("mnist", "cifar10")
QUICK = ("iris-10", "wine-10", "cancer-20", "digits-20")
QUICK_SEEDS = 2


def candidates(setting: Setting) -> list[Recipe]:
    """The recipes that a setting chooses from."""
    return [Recipe(*values) for values in product(setting.rates, setting.epochs, setting.decays)]


def read_recipes(path: Path = RECIPES) -> dict[str, Recipe]:
    """The recipe of each setting, chosen on the tuning seeds."""
    chosen = {name: Recipe(**row["recipe"]) for name, row in json.loads(path.read_text()).items()}
    return {one.name: chosen[one.like or one.name] for one in SETTINGS if (one.like or one.name) in chosen}


def write_recipes(scores: dict[str, Sequence[tuple[Recipe, float]]], path: Path) -> None:
    """The best recipe of each setting, with what all of them scored; settings that are not named keep theirs.

    Args:
        scores: Of each setting: candidates and the reference's mean balanced accuracy, in per cent.
        path: The file.
    """
    kept = json.loads(path.read_text()) if path.exists() else {}
    for name, tried in scores.items():
        best = max(tried, key=lambda one: one[1])[0]
        rows = [{**asdict(recipe), "balanced_accuracy": round(score, 2)} for recipe, score in tried]
        kept[name] = {"recipe": asdict(best), "tuning_seeds": TUNING_SEEDS, "judged_by": REFERENCE, "tried": rows}
    ordered = {setting.name: kept[setting.name] for setting in SETTINGS if setting.name in kept}
    path.write_text(json.dumps(ordered, indent=1) + "\n")
