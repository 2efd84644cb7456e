"""What the readings of a balancer say, in plain words: captions of the pictures, each class in a line, what to do."""

import math
from collections.abc import Sequence
from typing import Final

from lightning_stiffness.balance import BalanceReading

LONGEST_NAME: Final = 16
MOST_LISTED: Final = 6
MOST_TAKERS: Final = 3
MOST_WORDS: Final = 30  # classes in words
MOST_CLASSES: Final = 100  # in a picture of a matrix
CHOSEN: Final = 60  # of more


def class_names(reading: BalanceReading) -> list[str]:
    """A name for each class, short enough for a picture; its number where there is none."""
    names = reading.class_names or tuple(map(str, range(len(reading.counts))))
    return [
        name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}\N{HORIZONTAL ELLIPSIS}" for name in names
    ]


def class_labels(reading: BalanceReading) -> list[str]:
    """A name for each class with the number of its samples.

    >>> import torch
    >>> flat = torch.tensor([3.0, 1])
    >>> class_labels(BalanceReading(1, 1.0, flat, flat, (0, 1), (0, 1), "", math.nan, flat, flat, flat))
    ['0 (n=3)', '1 (n=1)']
    """
    names = class_names(reading)
    return [f"{name} (n={int(count):,})" for name, count in zip(names, reading.counts.tolist(), strict=True)]


def shown_classes(reading: BalanceReading) -> tuple[int, ...]:
    """The classes of a picture of a matrix, in cluster order: all, or of too many those in groups and the smallest."""
    if len(reading.order) <= MOST_CLASSES:
        return reading.order
    grouped = {label for group in reading.members for label in group}
    counts = reading.counts.tolist()
    ranked = sorted(reading.order, key=lambda label: (label not in grouped, counts[label]))
    chosen = set(ranked[:CHOSEN])
    return tuple(label for label in reading.order if label in chosen)


def takers(reading: BalanceReading, label: int) -> list[tuple[int, float]]:
    """Who takes the probability that a class loses: classes with more than an even split, and the share each gets."""
    if reading.absorption is None:
        return []
    row = reading.absorption[label].tolist()
    even = 1 / max(len(row) - 1, 1)
    found = [(other, share + even) for other, share in enumerate(row) if share != 0]
    return sorted(found, key=lambda taker: -taker[1])[:MOST_TAKERS]


def groups_words(reading: BalanceReading) -> str:
    """Which classes fight, or why there are no groups."""
    names, groups = class_names(reading), reading.members
    if not groups:
        return f"{reading.reason[:1].upper()}{reading.reason[1:]}."
    shown = "; ".join(", ".join(names[label] for label in group[:MOST_LISTED]) for group in groups[:MOST_LISTED])
    more = " and others" if len(groups) > MOST_LISTED or any(len(group) > MOST_LISTED for group in groups) else ""
    same = (
        "" if math.isnan(reading.agreement) else f" ({reading.agreement:.2f} alike to the reading before; 1: the same)"
    )
    return f"Boxes: classes that fight more than chance explains, so the network confuses them{same}: {shown}{more}."


def matrices_caption(reading: BalanceReading) -> str:
    """How to read the class matrices of both levels."""
    total, shown = len(reading.order), len(shown_classes(reading))
    chosen = f" Shown: {shown} of {total:,} classes, those in groups and the smallest." if shown < total else ""
    return (
        "Left, at the classifier (the last layer). Orange: a step for one class takes probability from the other: they "
        "fight, and classes that fight are confused. Blue (positive) among small classes is no similarity: they have a "
        "common enemy, the big classes. Right, in all layers below: blue classes share what is being learnt. "
        f"{groups_words(reading)}{chosen} What to do: classes that fight on the left and share on the right look alike "
        "to the network. Check the labels between them, and add samples or inputs that tell them apart."
    )


def absorption_caption(reading: BalanceReading) -> str:
    """How to read the bars of the small classes."""
    kind = "training" if reading.recall is None else "validation"
    return (
        "A bar for each small class (fewer samples than three quarters of the mean class): of the probability that its "
        f"{kind} samples give to other classes, who takes how much. Named: up to three classes that take more than an "
        "even split; grey: all others. On the right, how much probability the class loses at all. What to do: collect "
        "samples of the small class that look like the class that takes most, or check the labels between the two."
    )


def recall_caption(reading: BalanceReading) -> str:
    """How to read the recalls."""
    return (
        "Share of the validation samples of each class that are recognised. Ring: the same network, its logits moved "
        "to the natural class frequencies, where a plainly trained classifier would draw the line; this is no other "
        "training. Dot: as the network says it, for equal frequencies. What to do: where big classes lose more than "
        "you can bear, decide by balancer.natural_probabilities instead."
    )


def sacrificed_caption(reading: BalanceReading) -> str:
    """How to read the sacrificed classes."""
    return (
        "A small class is sacrificed where the mean training step raises the loss of other samples of the class, to "
        "first order. Dark orange: by more than two standard errors; pale: it may be chance. Squares: which classes, "
        "at which reading. What to do: a class that stays dark orange is drawn too rarely for what the others do to "
        "it: draw it more often (rates=), or collect samples of it."
    )


def class_words(readings: Sequence[BalanceReading]) -> str:
    """What the last reading says of each class, as a table in Markdown; the smallest of many classes."""
    reading = readings[-1]
    rows = class_rows(reading)[:MOST_WORDS]
    lines = [" | ".join(["", *HEADINGS, ""]).strip(), "|---" * len(HEADINGS) + "|"]
    lines += [" | ".join(["", *(in_words(entry).replace("|", "\\|") for entry in row), ""]).strip() for row in rows]
    left = len(reading.counts) - len(rows)
    more = [f"\n{left:,} larger classes are left out."] if left else []
    return "\n".join([groups_words(reading), "", *lines, *more])


HEADINGS: Final = (*("class", "samples", "group", "lost", "taken by", "share", "progress", "recall", "natural recall"),)


def class_rows(reading: BalanceReading) -> list[list[str | float | None]]:
    """A row for each class, the smallest first; None where there is no value.

    By `HEADINGS`: its name, its samples, the number of its group, the probability that it loses, the class that takes
    most of that and the share it takes, its progress in the mean training step, its recall in validation, and that with
    logits at the natural frequencies.
    """
    names, counts = class_names(reading), reading.counts.tolist()
    grouped = {label: number for number, group in enumerate(reading.members, start=1) for label in group}
    rows: list[list[str | float | None]] = []
    for label in sorted(range(len(counts)), key=lambda label: (counts[label], label)):
        first = next(iter(takers(reading, label)), None)
        rows.append(
            [
                names[label],
                counts[label],
                grouped.get(label),
                _known(reading.lost[label]),
                None if first is None else names[first[0]],
                None if first is None else first[1],
                _known(reading.progress[label]),
                None if reading.recall is None else _known(reading.recall[label]),
                None if reading.natural_recall is None else _known(reading.natural_recall[label]),
            ]
        )
    return rows


def _known(value: object) -> float | None:
    number = float(value)  # type: ignore[arg-type]
    return number if math.isfinite(number) else None


def in_words(value: str | float | None) -> str:
    """An entry of `class_rows`."""
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    return f"{int(value):,}" if value == int(value) else f"{value:.3g}"
