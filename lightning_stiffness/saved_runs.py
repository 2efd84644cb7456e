"""What the histories of saved runs say: verdicts of all criteria that can be judged, and a picture."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from matplotlib.figure import Figure
from rich.console import Console

from lightning_stiffness import balance, json_lines
from lightning_stiffness.balance import is_balance
from lightning_stiffness.balance_words import groups_words
from lightning_stiffness.errors import StiffnessError
from lightning_stiffness.figures import shadow_summary
from lightning_stiffness.history import FORMAT, History
from lightning_stiffness.run_files import RunFiles
from lightning_stiffness.stopping import (
    ConfirmedDrop,
    Criterion,
    EvidenceBased,
    GeneralizationLoss,
    GradientDisparity,
    GradientWeightAlignment,
    LabelWave,
    LeaveOneOut,
    ProgressQuotient,
    StiffnessDrop,
    StiffnessGap,
    ValidationPatience,
    ValidationScore,
    signal_path,
)
from lightning_stiffness.tables import classes_table
from lightning_stiffness.verdicts import verdicts

FORMATS: Final = (FORMAT, balance.FORMAT)

CRITERIA: dict[str, Criterion] = {
    "ConfirmedDrop": ConfirmedDrop(),
    "StiffnessDrop": StiffnessDrop(),
    "StiffnessGap": StiffnessGap(),
    "LeaveOneOut": LeaveOneOut(),
    "LeaveOneOut.for_loss": LeaveOneOut.for_loss(),
    "ValidationScore": ValidationScore(),
    "ValidationPatience": ValidationPatience(),
    "GeneralizationLoss": GeneralizationLoss(),
    "ProgressQuotient": ProgressQuotient(),
    "GradientDisparity": GradientDisparity(),
    "EvidenceBased": EvidenceBased(),
    "LabelWave": LabelWave(),
    "GradientWeightAlignment": GradientWeightAlignment(),
}
"""The criteria of the package with their default settings, by name."""


def find_histories(places: Iterable[Path]) -> list[Path]:
    """Return the history files among files, and below folders, in the order of their names.

    The file of a balancer, `balancing.jsonl`, counts where there is no history beside it.

    Raises:
        StiffnessError: a place does not exist, a file is no history, or there is none at all.

    Example:
        >>> find_histories([Path("no_such_run")])
        Traceback (most recent call last):
        lightning_stiffness.errors.StiffnessError: There is no file or folder no_such_run.
    """
    found: dict[Path, None] = {}
    for place in places:
        if not place.exists():
            raise StiffnessError(f"There is no file or folder {place}.")
        if place.is_file() and json_lines.format_of(place) not in FORMATS:
            raise StiffnessError(f"{place} is not the history of a run, which begins with a line that says so.")
        files = [place] if place.is_file() else _below(place)
        found.update(dict.fromkeys(files))
    if not found:
        raise StiffnessError(
            "There is no history below the given folders. A StiffnessMonitor writes one, stiffness.jsonl, beside the "
            "logs of a run that has a logger, or into its save_dir; a ClassGroupingBalancer writes balancing.jsonl."
        )
    return list(found)


def chosen_criteria(names: Sequence[str]) -> dict[str, Criterion]:
    """Return criteria by their names, in which capitals, dashes and underscores do not matter.

    Raises:
        StiffnessError: there is none of that name.

    Example:
        >>> list(chosen_criteria(["leave-one-out", "STIFFNESS_DROP"]))
        ['LeaveOneOut', 'StiffnessDrop']
    """
    known = {_bare(name): name for name in CRITERIA}
    unknown = [name for name in names if _bare(name) not in known]
    if unknown:
        raise StiffnessError(f"There is no criterion {', '.join(unknown)}; choose from {', '.join(CRITERIA)}.")
    return {known[_bare(name)]: CRITERIA[known[_bare(name)]] for name in names}


def load_runs(places: Iterable[Path]) -> list[RunFiles]:
    """Return the runs below the given places, with what stands beside their histories.

    Of several histories in one folder, the first has the readings of the balancer there.

    Raises:
        StiffnessError: As `find_histories`, or one is damaged.

    Example:
        >>> load_runs([Path("no_such_run")])
        Traceback (most recent call last):
        lightning_stiffness.errors.StiffnessError: There is no file or folder no_such_run.
    """
    runs = [RunFiles.load(path) for path in find_histories(places)]
    folders = [run.path.parent for run in runs]
    return [replace(run, balance=()) if run.path.parent in folders[:k] else run for k, run in enumerate(runs)]


def judgeable(history: History, criteria: Mapping[str, Criterion]) -> tuple[dict[str, Criterion], dict[str, str]]:
    """Return the criteria that find a signal in a history, and why the others do not.

    A criterion may find none since its signal was not measured or logged, or since the run was too short for it.

    Example:
        >>> from lightning_stiffness.history import ProbeSummary
        >>> empty = History(ProbeSummary("train", 2, (0, 0, 1, 1), 0.69))
        >>> judgeable(empty, {"drop": StiffnessDrop()})
        ({}, {'drop': 'no readings yet'})
    """
    judged, others = {}, {}
    for name, criterion in criteria.items():
        now = criterion(history)
        if math.isfinite(now.signal) or any(math.isfinite(past.signal) for past in signal_path(history, criterion)):
            judged[name] = criterion
        else:
            others[name] = now.reason
    return judged, others


def report_runs(
    places: Sequence[Path],
    names: Sequence[str] | None = None,
    picture: Path | None = None,
    console: Console | None = None,
) -> list[Path]:
    """Prints what each history below the given places says of its run, and draws it.

    Args:
        places: files and folders.
        names: criteria to judge by; not given: all that find a signal in the history.
        picture: file of the picture; with several histories its name gets a number.
        console: where to print; the terminal when not given.

    Returns:
        The pictures that were written.

    Raises:
        StiffnessError: there is no history, one is damaged, a criterion is not known, or the picture is of no kind
            that can be drawn.
    """
    console = console or Console()
    asked = None if names is None else chosen_criteria(names)
    paths = find_histories(places)
    _require_picture(picture)
    pictures = [] if picture is None else _numbered(picture, len(paths))
    for index, path in enumerate(paths):
        _report(path, asked, pictures[index] if pictures else None, console)
    return pictures


def _require_picture(picture: Path | None) -> None:
    known = sorted(Figure().canvas.get_supported_filetypes())
    if picture is not None and picture.suffix.removeprefix(".") not in known:
        raise StiffnessError(f"A picture must end in one of {', '.join(known)}, but is called {picture.name}.")


def _report(path: Path, asked: Mapping[str, Criterion] | None, picture: Path | None, console: Console) -> None:
    run = RunFiles.load(path)
    history = run.history
    console.print(f"\n{path}", style="bold", soft_wrap=True, highlight=False, markup=False)
    if run.balance:
        console.print(classes_table(run.balance), highlight=False)
        console.print(groups_words(run.balance[-1]), highlight=False, markup=False)
    if not is_balance(path):
        console.print(_described(history), highlight=False, markup=False)
    if not history:
        return
    judged, others = (asked, {}) if asked is not None else judgeable(history, CRITERIA)
    found = verdicts(history, judged)
    if judged:
        console.print(found, highlight=False)
    for name, reason in others.items():
        console.print(f"Not judged: {name}: {reason}.", style="dim", highlight=False, markup=False)
    if picture is not None:
        picture.parent.mkdir(parents=True, exist_ok=True)
        shadow_summary(history, found.stops).savefig(picture, dpi=130)
        console.print(f"Picture: {picture}", soft_wrap=True, highlight=False, markup=False)


def _described(history: History) -> str:
    probe = history.probe
    samples = f"{len(probe.strata)} samples" if probe.strata else "samples of the training batches"
    text = f"Probe: {samples}, {probe.num_classes} classes, {probe.mode}. {len(history)} readings"
    if not history:
        return f"{text}."
    first, last = history[0], history[-1]
    return (
        f"{text} from epoch {first.epoch:.4g} to {last.epoch:.4g}: within-class stiffness {first.cosine.within:.3f} to "
        f"{last.cosine.within:.3f}, loss of the probe {first.loss:.3g} to {last.loss:.3g}."
    )


def _below(folder: Path) -> list[Path]:
    formats = {path: json_lines.format_of(path) for path in sorted(folder.rglob("*.jsonl"))}
    folders = {path.parent for path, kind in formats.items() if kind == FORMAT}
    return [
        path for path, kind in formats.items() if kind in FORMATS and (kind == FORMAT or path.parent not in folders)
    ]


def _numbered(picture: Path, count: int) -> list[Path]:
    if count == 1:
        return [picture]
    return [picture.with_name(f"{picture.stem}_{number}{picture.suffix}") for number in range(1, count + 1)]


def _bare(name: str) -> str:
    return "".join(character for character in name.lower() if character.isalnum())
