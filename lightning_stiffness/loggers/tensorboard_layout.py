"""Which charts TensorBoard draws of a run's numbers."""

import re
from collections.abc import Collection

from lightning_stiffness.loggers.board import RunCard

Charts = dict[str, tuple[str, list[str]]]


def charts(prefix: str, run: RunCard, signals: Collection[str], most_classes: int) -> Charts:
    """Kind and tags of each chart by its title, as `SummaryWriter.add_custom_scalars` has it.

    Margin charts have plain tags, all others regular expressions that have to match the beginning of a tag.

    Args:
        prefix: First part of all tags, with its slash.
        run: What is known of the run.
        signals: Names of what else is measured.
        most_classes: Of more than so many classes there are no curves.
    """
    group, name = prefix.removesuffix("/"), re.escape(prefix)
    shown: Charts = {
        "within classes, with 2 standard errors": _band(group, "within"),
        "between classes, with 2 standard errors": _band(group, "between"),
        "within and between": _lines(f"{name}(within|between)$"),
        "sign of the products, within and between": _lines(f"{name}(within|between)_sign$"),
    }
    if run.probe.mode == "cross":
        shown["training samples among themselves (train_within), and with validation samples (within)"] = _lines(
            f"{name}train_within$", f"{name}within$"
        )
    shown["loss beside within"] = _lines(f"{name}(within|loss)$", f"(?!{name})(?!.*_step$).*[lL]oss")
    if any(signal.startswith("leave_one_out") for signal in signals):
        shown["leave-one-out: loss and error as if unseen"] = _lines(f"{name}leave_one_out_")
    if run.probe.num_classes <= most_classes:
        shown["within each class"] = _lines(f"{re.escape(group)}_class/")
    shown["cost: seconds of each reading"] = _lines(f"{name}seconds$")
    return shown


def _band(group: str, name: str) -> tuple[str, list[str]]:
    return "Margin", [f"{group}/{name}", f"{group}_band/{name}_low", f"{group}_band/{name}_high"]


def _lines(*tags: str) -> tuple[str, list[str]]:
    return "Multiline", list(tags)
