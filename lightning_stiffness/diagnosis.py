"""What the doctor found, and how it is printed."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import RenderableType
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table

_LISTED = 4


@dataclass(frozen=True)
class Share:
    """Parameters that are measured by one route.

    Attributes:
        route: The route; "fallback: why; how" where no rule covers them.
        names: Of the parameters.
        entries: How many numbers they hold.
    """

    route: str
    names: tuple[str, ...]
    entries: int

    @property
    def is_fallback(self) -> bool:
        """Whether no rule covers them."""
        return self.route.startswith("fallback")


@dataclass(frozen=True)
class Diagnosis:
    """What `diagnose` found; print it with rich.

    Attributes:
        model: The class of the module.
        entries: Of its trainable parameters.
        samples: How many were measured.
        losses: Where the losses come from.
        targets: Where the classes come from.
        counts: Samples of each class among those that were measured.
        shares: Parameters by route, fallbacks first.
        seconds: Of one reading of these samples, the first one, which checks itself, left out.
        floor_seconds: Of one forward and backward pass of the same samples.
        megabytes: The highest memory during the first reading above that before.
        epoch_share: What a reading with the recommended probe takes, as a share of the forward and backward passes of
            an epoch; nan where the length of an epoch is not known.
        notes: What else should be known.
        settings: Arguments for `StiffnessMonitor`.
        problem: Why it cannot be measured; empty if it can.
        mixes: Whether the problem is that the loss of a sample depends on others.
    """

    model: str
    entries: int
    samples: int = 0
    losses: str = ""
    targets: str = ""
    counts: tuple[int, ...] = ()
    shares: tuple[Share, ...] = ()
    seconds: float = math.nan
    floor_seconds: float = math.nan
    megabytes: float = math.nan
    epoch_share: float = math.nan
    notes: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""
    mixes: bool = False

    @property
    def is_measurable(self) -> bool:
        """Whether `StiffnessMonitor` will work."""
        return not self.problem

    @property
    def fallback_share(self) -> float:
        """Share of the parameters' entries that no rule covers, in [0, 1]."""
        return sum(share.entries for share in self.shares if share.is_fallback) / max(1, self.entries)

    @property
    def monitor(self) -> str:
        """The callback with the recommended settings, ready to paste."""
        return f"StiffnessMonitor({', '.join(f'{name}={value!r}' for name, value in self.settings.items())})"

    def __rich__(self) -> RenderableType:
        """A panel: green if it can be measured, else red with the reason."""
        return _panel(self)


def _panel(found: Diagnosis) -> Panel:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, text in _lines(found):
        grid.add_row(name, text)
    if found.is_measurable:
        return Panel(grid, title=f"{found.model} can be measured", border_style="green", title_align="left")
    return Panel(grid, title=f"{found.model} cannot be measured", border_style="red", title_align="left")


def _lines(found: Diagnosis) -> Iterator[tuple[str, str]]:
    yield "parameters", f"{found.entries:,} trainable"
    if found.losses:
        yield "losses", found.losses
    if found.targets:
        yield "targets", f"{found.targets}: {_counted(found.counts)}"
    if found.problem:
        if found.mixes:
            yield "samples", "[red]mix: the loss of one depends on the others, so it has no gradient of its own[/red]"
        yield "problem", f"[red]{escape(found.problem)}[/red]"
    else:
        yield "samples", "do not mix: each has a gradient of its own (compared with plain autograd)"
        yield from _measured_lines(found)
    if found.is_measurable:
        for label, note in zip(_once("notes"), found.notes, strict=False):
            yield label, escape(note)
        yield "use", f"[bold green]{escape(found.monitor)}[/bold green]"


def _measured_lines(found: Diagnosis) -> Iterator[tuple[str, str]]:
    for label, share in zip(_once("routes"), found.shares, strict=False):
        text = f"{share.entries / max(1, found.entries):6.1%}  {escape(share.route)}"
        yield label, f"[yellow]{text}: {escape(_named(share.names))}[/yellow]" if share.is_fallback else text
    ratio = found.seconds / found.floor_seconds
    yield (
        "cost",
        f"{_time(found.seconds)} and {found.megabytes:,.0f} MB for a reading of {found.samples} samples, "
        f"{ratio:.1f} times their forward and backward pass ({_time(found.floor_seconds)})",
    )
    if not math.isnan(found.epoch_share):
        yield "", f"about {found.epoch_share:.0%} of what an epoch takes, optimizer not counted"


def _once(label: str) -> Iterator[str]:
    yield label
    while True:
        yield ""


def _counted(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    each = f"{low}" if low == high else f"{low} to {high}"
    return f"{len(counts)} classes with {each} samples each, of {sum(counts)}"


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def _time(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{1000 * seconds:.1f} ms"
