"""What the page says of one run, ready to be set: nothing is computed in the template."""

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from lightning_stiffness.history import History
from lightning_stiffness.report.advice import Advice, advice
from lightning_stiffness.report.balancing import BalanceSection, balance_section
from lightning_stiffness.report.drawing import Spec
from lightning_stiffness.report.figures import (
    Figure,
    class_figure,
    curve_figures,
    distance_figure,
    pair_figures,
    signal_figures,
)
from lightning_stiffness.report.matrix import ClassPair, Frames, class_pairs, frames, tree_of
from lightning_stiffness.report.matrix_chart import matrix_chart
from lightning_stiffness.report.samples import Suspect, suspects
from lightning_stiffness.report.words import (
    DASH,
    count,
    duration,
    headline,
    number,
    overhead,
    peak,
    percent,
    readings_of,
    reasons,
    short,
    with_error,
)
from lightning_stiffness.run_files import RunFiles
from lightning_stiffness.saved_runs import CRITERIA, judgeable
from lightning_stiffness.stopping import Criterion
from lightning_stiffness.verdicts import verdicts

MOST_PAIRS: Final = 8
MOST_METRICS: Final = 3
CLASSES_WITH_NAMES: Final = 40


@dataclass(frozen=True)
class Tile:
    """A number that counts."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class MatrixFigure:
    """The class matrix with what its controls need.

    Attributes:
        spec: the chart.
        words: what the slider says at each of its places.
        orders: orders of the classes that can be chosen, by their words.
        limit: both ends of the colours.
        notes: what is left out.
    """

    spec: Spec
    words: tuple[str, ...]
    orders: dict[str, str]
    limit: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Candidate:
    """A sample that stands out, in words; its picture as a data URI."""

    suspect: Suspect
    picture: str | None

    @property
    def place(self) -> str:
        """Where it is found in the dataset."""
        known = self.suspect.position
        return f"sample {self.suspect.row} of the probe" if known is None else f"position {known} in the dataset"


@dataclass(frozen=True)
class VerdictTable:
    """When criteria would have stopped."""

    title: str
    note: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    reasons: dict[str, str]


@dataclass(frozen=True)
class RunSection:
    """All that the page says of a run; what is empty is left out."""

    key: str
    name: str
    headline: str
    described: str
    reasons: tuple[str, ...]
    tiles: tuple[Tile, ...] = ()
    advice: tuple[Advice, ...] = ()
    curves: tuple[Figure, ...] = ()
    matrix: MatrixFigure | None = None
    stiffest: tuple[ClassPair, ...] = ()
    least_stiff: tuple[ClassPair, ...] = ()
    by_class: Figure | None = None
    candidates: tuple[Candidate, ...] = ()
    pairs: tuple[Figure, ...] = ()
    distance: Figure | None = None
    signals: tuple[Figure, ...] = ()
    balance: BalanceSection | None = None
    verdicts: tuple[VerdictTable, ...] = ()
    readings: tuple[tuple[str, ...], ...] = ()
    settings: tuple[tuple[str, str], ...] = ()

    @property
    def figures(self) -> tuple[Figure, ...]:
        """All charts but the matrix."""
        single = [figure for figure in (self.by_class, self.distance) if figure is not None]
        balance = self.balance.figures if self.balance is not None else ()
        return (*self.curves, *single, *self.pairs, *self.signals, *balance)


def run_section(run: RunFiles, key: str, name: str, asked: Mapping[str, Criterion] | None = None) -> RunSection:
    """What the page says of a run.

    Args:
        run: its files.
        key: of its elements on the page.
        name: of the run.
        asked: criteria to judge it by; None for all of the package that find a signal.
    """
    history, found = run.history, advice(run.history)
    settings = tuple((str(label), _in_words(value)) for label, value in run.settings.items())
    balance = balance_section(run.balance)
    if not history:
        described, found = (balance.described, []) if balance is not None else (readings_of(history), found)
        return RunSection(
            key, name, headline(run), described, (), advice=tuple(found), balance=balance, settings=settings
        )
    stiffest = class_pairs(history, slice(MOST_PAIRS))
    least_stiff = [pair for pair in class_pairs(history, slice(-MOST_PAIRS, None)) if pair not in stiffest]
    return RunSection(
        key=key,
        name=name,
        headline=headline(run),
        described=readings_of(history),
        reasons=tuple(reasons(run)),
        tiles=tuple(tiles(history)),
        advice=tuple(found),
        curves=tuple(curve_figures(run)),
        matrix=matrix_figure(history),
        stiffest=tuple(stiffest),
        least_stiff=tuple(reversed(least_stiff)),
        by_class=class_figure(history),
        candidates=tuple(_candidate(run, suspect) for suspect in suspects(history)),
        pairs=tuple(pair_figures(history)),
        distance=distance_figure(history),
        signals=tuple(signal_figures(run)),
        balance=balance,
        verdicts=tuple(verdict_tables(run, asked)),
        readings=tuple(_reading_rows(history)),
        settings=(*settings, *cost_of(history)),
    )


def tiles(history: History) -> list[Tile]:
    """The numbers that count."""
    first, last, top, share = history[0], history[-1], peak(history), overhead(history)
    within, between = last.cosine.within, last.cosine.between
    found = [Tile("within classes, now", number(within), _plus_minus(last.cosine.within_se))]
    if top is not None:
        found.append(Tile("at its highest", number(top.cosine.within), f"epoch {short(top.epoch)}"))
    found.append(Tile("between classes, now", number(between), _plus_minus(last.cosine.between_se)))
    found.append(Tile("loss of the probe", short(last.loss), f"was {short(first.loss)}"))
    amount, end = f"{len(history)}", f"{short(history[-1].epoch)} epochs"
    found.append(Tile("reading" if len(history) == 1 else "readings", amount, end))
    spent = sum(reading.seconds for reading in history)
    known = math.isfinite(share)
    value, note = (percent(share), f"{duration(spent)} of measuring") if known else (duration(spent), "in all")
    return [*found, Tile("overhead" if known else "measuring took", value, note)]


def matrix_figure(history: History) -> MatrixFigure | None:
    """The class matrix over time; None where no pair was ever measured."""
    shown = frames(history)
    if all(entry is None for entries in shown.entries for entry in entries):
        return None
    words = tuple(
        f"epoch {short(history[index].epoch)}, within {number(history[index].cosine.within, 2)}, between "
        f"{number(history[index].cosine.between, 2)}"
        for index in shown.readings
    )
    names = {"tree": "by similarity", "given": "as given"}
    if history.probe.superclasses is not None:
        names["super"] = "by super-class"
    spec = matrix_chart(history, shown, tree_of(history, shown.classes))
    return MatrixFigure(spec, words, names, number(shown.limit, 2), tuple(_notes(history, shown)))


def verdict_tables(run: RunFiles, asked: Mapping[str, Criterion] | None) -> list[VerdictTable]:
    """What ShadowStopping saved, and what the criteria say of the history as it is."""
    tables = []
    if run.shadow and run.shadow.get("criteria"):
        note = "Judged while the run went on, by ShadowStopping."
        tables.append(_verdict_table("Shadow stopping", note, run.shadow))
    chosen = dict(asked) if asked is not None else judgeable(run.history, CRITERIA)[0]
    if chosen:
        end = short(run.history[-1].epoch)
        is_cut = bool(run.decision and run.decision.get("stopped"))
        note = f"Judged now, from the readings up to epoch {end}, each rule as if it alone had been in charge."
        note += " The run was stopped there, so later stops cannot be seen." if is_cut else ""
        found = verdicts(run.history, chosen).as_dict()
        tables.append(_verdict_table("When each rule would have stopped", note, found))
    return tables


def cost_of(history: History) -> list[tuple[str, str]]:
    """What the readings cost."""
    spent, elapsed = sum(reading.seconds for reading in history), history[-1].elapsed
    each = f"{duration(spent / len(history))} a reading, {duration(spent)} for all {count(len(history), 'reading')}"
    share = overhead(history)
    whole = f"{percent(share)} of the {duration(elapsed)} from the start of training to the last reading"
    return [("cost of readings", f"{each}: {whole}" if math.isfinite(share) else each)]


def _verdict_table(title: str, note: str, record: Mapping[str, Any]) -> VerdictTable:
    metrics = list(record.get("best") or {})[:MOST_METRICS]
    stops = [stop for stop in record.get("criteria", ()) if isinstance(stop, Mapping)]
    headings = ("rule", "would stop", "weights of", *(f"{metric} with those weights" for metric in metrics))
    rows = [
        (
            str(stop.get("name")),
            "never" if stop.get("epoch") is None else f"epoch {short(stop['epoch'])}",
            DASH if stop.get("restored_epoch") is None else f"epoch {short(stop['restored_epoch'])}",
            *(short((stop.get("at_restored") or {}).get(metric)) for metric in metrics),
        )
        for stop in stops
    ]
    reasons_of = {str(stop.get("name")): str(stop.get("reason", "")) for stop in stops}
    return VerdictTable(title, note, headings, tuple(rows), reasons_of)


def _notes(history: History, shown: Frames) -> list[str]:
    total, classes = len(history), history.probe.num_classes
    notes = []
    if len(shown.classes) < classes:
        notes.append(
            f"Of {classes:,} classes the {len(shown.classes)} that are stiffest to another one are drawn; the table of "
            "pairs knows all."
        )
    if len(shown.readings) < total:
        notes.append(
            f"{len(shown.readings)} of {total} readings are in this page, at equal distances, to keep it small."
        )
    if len(shown.classes) > CLASSES_WITH_NAMES:
        notes.append("Names stand where there is room; point at a cell for both of its classes.")
    if any(entry is None for entry in shown.entries[-1]):
        notes.append("Grey: no pair of samples to measure.")
    return notes


def _candidate(run: RunFiles, suspect: Suspect) -> Candidate:
    has_picture = suspect.row < len(run.thumbnails)
    code = base64.b64encode(run.thumbnails[suspect.row]).decode() if has_picture else ""
    return Candidate(suspect, f"data:image/png;base64,{code}" if code else None)


def _reading_rows(history: History) -> Sequence[tuple[str, ...]]:
    return [
        (
            short(reading.epoch),
            f"{reading.step:,}",
            with_error(reading.cosine.within, reading.cosine.within_se),
            with_error(reading.cosine.between, reading.cosine.between_se),
            short(reading.loss),
            duration(reading.seconds),
        )
        for reading in history
    ]


def _plus_minus(error: float) -> str:
    return f"± {number(2 * error)}" if math.isfinite(error) else "error not known"


def _in_words(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
