"""What TensorBoard says in words, as Markdown."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from lightning_stiffness.loggers.board import RunCard

HOW_TO_READ: Final = """### How to read this

**Within** is the mean cosine of the loss gradients of two samples of the same class. Near 1, a step that helps one
sample helps its whole class: what is learned is shared. **When it falls while the training loss goes on falling,
samples are being learned one by one**, and memorising begins; its peak comes long before the best epoch, so a first
fall is no reason to stop. **Between** is the same for samples of different classes: below 0 while the network tells
them apart, about 0 when they no longer touch each other, above 0 where it lumps them together. Bands are two standard
errors, that is how far another choice of samples could have moved a value; another run can move it further.

- **Custom Scalars**, {name}: the curves with their bands, loss beside stiffness, each class by itself.
- **Images**, class_matrix: row and column are classes, red pairs help each other, blue pairs harm each other.
- **Images**, pair_cosines, and **Histograms**, pairs_within: a second hump near 0 or below are samples that are learned
  against their own class, such as those with wrong labels.
- TensorBoard keeps ten pictures a run; start it with `--samples_per_plugin images=200` to see all.
"""
WHAT_NEXT: Final = """### What to do next

- Judge the weights on data that training has not seen. The run ends with those that the rule held for the best, unless
  the stopper was told `restore="stop"`.
- **Images**, pair_cosines: a second hump within classes speaks for wrong labels; mend those before training longer.
- Too early? Let a run go on with `ShadowStopping([ConfirmedDrop(), ValidationPatience()])` instead of the stopper. It
  never stops, and tells at the end where each rule would have, and what that would have been worth.
- A rule that waits longer: `StiffnessEarlyStopping(patience=5)`, or `grace_epochs` before any verdict.
"""


def about_card(name: str, run: RunCard) -> str:
    """How to read the dashboard, and the settings of the run.

    Args:
        name: First part of all names that are logged.
        run: What is known of the run.
    """
    return f"{HOW_TO_READ.format(name=name)}\n### This run\n\n{_table(('setting', 'value'), run.settings.items())}"


def stopped_card(verdict: Mapping[str, Any], text: str) -> str:
    """That training is stopped, why, and what to do next.

    Args:
        verdict: The decision as data.
        text: The same in a few lines.
    """
    heading, _, rest = text.partition(". ")
    why = "\n".join(f"- {line}" for line in rest.splitlines())
    numbers = [
        ("what is judged", verdict.get("watched")),
        ("now", verdict.get("signal")),
        ("at its best", verdict.get("best")),
        ("step of the best weights", verdict.get("best_step")),
        ("standard error of the change", verdict.get("error")),
        ("worse since epoch", verdict.get("since")),
        ("rule", verdict.get("criterion")),
    ]
    known = [(key, entry) for key, entry in numbers if entry is not None]
    return f"### {heading}\n\n{why}\n\n{WHAT_NEXT}\n### In numbers\n\n{_table(('verdict', ''), known)}"


def _table(head: tuple[str, str], rows: Iterable[tuple[str, Any]]) -> str:
    lines = [head, ("---", "---"), *((key, _cell(entry)) for key, entry in rows)]
    return "\n".join(f"| {first} | {second} |" for first, second in lines)


def _cell(entry: Any) -> str:
    text = f"{entry:.4g}" if isinstance(entry, float) else str(entry)
    return " ".join(text.replace("|", "\\|").split())
