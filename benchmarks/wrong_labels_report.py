"""Results of the benchmark of wrong labels as Markdown tables."""

import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from gram_report import table

METHODS = {
    "ours": "**ours**",
    "ours_mean": "ours, mean over the readings so far",
    "alignment": "alignment with the own class alone",
    "loss": "small loss; cleanlab's default, in-sample",
    "loss_mean": "loss, mean over the readings so far",
    "margin": "cleanlab, normalized margin, in-sample",
    "folds_confidence": "cleanlab's default, 5 folds out-of-sample",
    "folds_margin": "cleanlab, normalized margin, 5 folds",
}
RIVALS = {name: title for name, title in METHODS.items() if name not in ("ours", "ours_mean")}
FINDERS = {
    "ours": "**ours** (score below 0.5)",
    "cleanlab": "cleanlab find_label_issues, in-sample",
    "folds": "cleanlab find_label_issues, 5 folds",
}
STOPPED = "stopped"
HOW_TO_READ = (
    "A network is trained on data of which a known share of labels was flipped to another class, each alike; every "
    "method ranks the samples by what the same network says of them. **AUC**: ROC-AUC of the ranking, in per cent. "
    "**Hits**: the share of flipped labels among as many of the worst as were flipped, in per cent. +- is the standard "
    "error over seeds. *Stopped*: the weights that StiffnessEarlyStopping restores. *Epoch k*: a training of that "
    "length. cleanlab's default quality (self-confidence) orders in-sample as the loss does, so both are one line. Its "
    "five folds train five more networks, each for as many epochs, and were trained for the first seeds only: compare "
    "them in the paired tables. Our formula was chosen on other seeds (100 to 105) "
    "of the same data sets, with perceptrons of the same shape. Reproduce it with `python benchmarks/wrong_labels.py "
    "--data mnist.npz --output results`."
)


def markdown(results: dict[str, Any]) -> str:
    """The report."""
    facts, cells = results["facts"], results["cells"]
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    parts = ["# Which labels are wrong?", f"{facts['processor']}; {versions}. {len(cells)} cells.", HOW_TO_READ]
    for key, group in grouped(cells).items():
        parts += section(key, group)
    parts += losing_section(cells) + cost_section(cells)
    return "\n\n".join(parts) + "\n"


def grouped(cells: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Cells by data set and network."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for cell in cells:
        setting = cell["setting"]
        data = {"digits": "Digits", "mnist": "MNIST"}[setting["data"]]
        groups.setdefault(f"{data}, {setting['network']}, {setting['samples']} samples", []).append(cell)
    return groups


def section(title: str, cells: Sequence[dict[str, Any]]) -> list[str]:
    """The tables of one data set and network."""
    shares = sorted({cell["setting"]["share"] for cell in cells})
    seeds = {share: sum(cell["setting"]["share"] == share for cell in cells) for share in shares}
    stops = [cell["stop_epoch"] for cell in cells if cell["stop_epoch"]]
    count = f"Seeds: {', '.join(f'{number} at {share:.0%}' for share, number in seeds.items())}. "
    stop = f"Stopped after {min(stops)} to {max(stops)} epochs in {len(stops)} of {len(cells)}." if stops else ""
    parts = [f"## {title}", count + stop]
    for name in (STOPPED, last_reading(cells)):
        parts += [f"### {name[0].upper()}{name[1:]}", ranking_table(cells, name, shares)]
    parts += ["### Our score less the others, same seed", difference_table(cells)]
    return [*parts, "### What is called wrong, without being told how many are", finding_table(cells, shares)]


def last_reading(cells: Sequence[dict[str, Any]]) -> str:
    """The name of the longest fixed training."""
    found: str = [reading["name"] for reading in cells[0]["readings"] if reading["name"] != STOPPED][-1]
    return found


def ranking_table(cells: Sequence[dict[str, Any]], name: str, shares: Sequence[float]) -> str:
    """Methods down, shares of wrong labels across."""
    head = ["", *(f"{share:.0%}: AUC" for share in shares), *(f"{share:.0%}: hits" for share in shares)]
    lines = []
    for method, title in METHODS.items():
        line = [title]
        for measure in ("auc", "precision"):
            line += [with_error(values(cells, name, method, measure, share)) for share in shares]
        if any(cell != "-" for cell in line[1:]):
            lines.append(line)
    return table(head, lines)


def values(
    cells: Sequence[dict[str, Any]], name: str, method: str, measure: str, share: float | None = None
) -> list[float]:
    """One number a cell, in per cent."""
    wanted = [cell for cell in cells if share is None or cell["setting"]["share"] == share]
    found = [reading["rankings"] for cell in wanted for reading in cell["readings"] if reading["name"] == name]
    return [100 * rankings[method][measure] for rankings in found if method in rankings]


def with_error(numbers: Sequence[float], signed: bool = False) -> str:
    """Mean and standard error."""
    if not numbers:
        return "-"
    mean = format(statistics.fmean(numbers), "+.1f" if signed else ".1f")
    return f"{mean} +- {standard_error(numbers):.1f}" if len(numbers) > 1 else mean


def standard_error(numbers: Sequence[float]) -> float:
    """Of the mean; 0 for a single number."""
    return statistics.stdev(numbers) / len(numbers) ** 0.5 if len(numbers) > 1 else 0.0


def difference_table(cells: Sequence[dict[str, Any]]) -> str:
    """Paired by seed, all shares together, after each length of training."""
    names = [reading["name"] for reading in cells[0]["readings"]]
    head = ["points of hits", *names]
    lines = []
    for method, title in RIVALS.items():
        pairs = [differences(cells, name, method, "precision") for name in names]
        if any(pairs):
            lines.append([title, *(with_error(numbers, signed=True) for numbers in pairs)])
    means = [differences(cells, name, "loss_mean", "precision", ours="ours_mean") for name in names]
    lines.append(["means over readings: ours less the loss", *(with_error(numbers, signed=True) for numbers in means)])
    return table(head, lines)


def differences(  # noqa: PLR0913  # what is compared, on which cells
    cells: Sequence[dict[str, Any]],
    name: str,
    method: str,
    measure: str,
    share: float | None = None,
    ours: str = "ours",
) -> list[float]:
    """Ours less the other, in each cell that has both."""
    both = [cell for cell in cells if values([cell], name, method, measure) and values([cell], name, ours, measure)]
    theirs = values(both, name, method, measure, share)
    return [a - b for a, b in zip(values(both, name, ours, measure, share), theirs, strict=True)]


def finding_table(cells: Sequence[dict[str, Any]], shares: Sequence[float]) -> str:
    """Labels called wrong for each that is; how many of them are; how many of those that are were found."""
    head = ["", "reading", *(f"{share:.0%}: called / flipped, precision, recall" for share in shares)]
    lines = []
    for name in (STOPPED, last_reading(cells)):
        for method, title in FINDERS.items():
            found = [called(cells, name, method, share) for share in shares]
            if any(one != "-" for one in found):
                lines.append([title, name, *found])
    return table(head, lines)


def called(cells: Sequence[dict[str, Any]], name: str, method: str, share: float) -> str:
    """Means over seeds."""
    wanted = [cell for cell in cells if cell["setting"]["share"] == share]
    read = [(cell["setting"], reading) for cell in wanted for reading in cell["readings"] if reading["name"] == name]
    found = [reading["found"][method] for _, reading in read if method in reading["found"]]
    if not found:
        return "-"
    flips = [round(setting["share"] * setting["samples"]) for setting, one in read if method in one["found"]]
    ratio = statistics.fmean(one["count"] / flip for one, flip in zip(found, flips, strict=True))
    precision, recall = (100 * statistics.fmean(one[name] for one in found) for name in ("precision", "recall"))
    return f"{ratio:.2f}, {precision:.0f} %, {recall:.0f} %"


def losing_section(cells: Sequence[dict[str, Any]]) -> list[str]:
    """Every setting in which another method finds more, by more than one standard error."""
    lines = list(_losses(cells))
    if not lines:
        return []
    head = ["data", "wrong", "reading", "method", "hits, ours less its", "AUC, ours less its"]
    text = (
        "Every setting in which another method has more hits than ours, by more than one standard error, or on one "
        "seed, where there is no error:"
    )
    return ["## Where it loses", text, table(head, lines)]


def _losses(cells: Sequence[dict[str, Any]]) -> Iterator[list[str]]:
    for key, group in grouped(cells).items():
        shares = sorted({cell["setting"]["share"] for cell in group})
        names = [reading["name"] for reading in group[0]["readings"]]
        for share in shares:
            for name in names:
                for method, title in RIVALS.items():
                    hits = differences(group, name, method, "precision", share)
                    if hits and statistics.fmean(hits) < -standard_error(hits):
                        areas = differences(group, name, method, "auc", share)
                        row = [key, f"{share:.0%}", name, title]
                        yield [*row, with_error(hits, signed=True), with_error(areas, signed=True)]


def cost_section(cells: Sequence[dict[str, Any]]) -> list[str]:
    """Processor seconds of a reading beside those of trainings."""
    lines = []
    for key, group in grouped(cells).items():
        reading = statistics.fmean(one["seconds"] for cell in group for one in cell["readings"])
        taken = [[cell["seconds"][name] for cell in group] for name in group[0]["seconds"]]
        done = [[seconds for seconds in one if seconds > 0.1] for one in taken]  # not every cell has folds
        lines.append([key, f"{reading:.1f}", *(f"{statistics.fmean(one):.1f}" if one else "-" for one in done)])
    head = ["seconds", "our score of all samples", *cells[0]["seconds"]]
    return ["## Cost", "Ours in wall-clock time, trainings in processor time, on a shared machine.", table(head, lines)]
