"""Results of the benchmark of imbalanced classes as Markdown: aims and losses first, then everything."""

import statistics
from collections.abc import Sequence
from typing import Any

from balancing_methods import OURS, RIVALS, TITLES
from balancing_scores import SCORES, Estimate, Results, balanced_accuracy, difference, judged, mean, of_kind, pooled
from balancing_settings import REFERENCE
from balancing_training import NATURAL
from gram_report import table

HOW_TO_READ = (
    "Training classes differ in size by the factor in the setting's name (which class is small is drawn anew for "
    "each seed), test classes do not. All methods of a seed share samples and first weights, and the recipe of the "
    "setting: SGD with momentum .9, gradients clipped at norm 1, the learning rate falling to 0 along a cosine; "
    "rate, length and weight decay were chosen **for logit adjustment**, on seeds 100 and 101, which are not "
    "reported. That was done without clipping, which was added for all methods when the first reported seed showed "
    "that others diverge without it at these rates: class-balanced loss in five settings, tau 1.25 in one, and ours "
    "with shifts from the second per cent of training on. Shifts now begin after a quarter of it, and are off by "
    "default (decided by an earlier run of these tables, where they were worth .00 +- .03 points on images). Label "
    "smoothing of .1 and the warm-up were chosen on seeds 200 to 209 of digits, look-alike classes and confusable "
    "minorities; the power 3/4 of the sampling, not 1/2, and the adjustment to smoothed labels on seeds 300 to 319 of "
    "ten settings, without shifts. *Logit "
    "adjustment* with tau 1 and *balanced softmax* are the same loss up to a constant, so they are one training and "
    "one row. Balanced accuracy is the mean recall of the classes. Tail and head: the classes of the smallest and "
    "biggest third. Differences are paired by seed; +- is the standard error over seeds, and that of means over "
    "settings adds up those of the settings. A mean is that of the settings which have both methods. **Bold**: more "
    "than two standard errors from 0, on at least 5 seeds or settings. With 5 seeds a standard error is itself good "
    "to a third. Reproduce it with `python benchmarks/balancing.py --full --data DIR --output results`."
)
PARTS = (
    ("sampling", "ours", "no_sampling"),
    ("logits", "ours", "no_logits"),
    ("smoothing", "ours", "unsmoothed"),
    ("shift, which is off by default", "shifted", "ours"),
    ("its measured partner, not a random one", "shifted", "random"),
)
LEAST = 5  # seeds, or settings, for a difference to be called sure
COMPARED = (("ours", REFERENCE), ("unsmoothed", REFERENCE), ("ours", "adapted"))
LIMITS = "The same recipes with a constant learning rate, which are no part of any average above."
NATURAL_TEXT = (
    "The same networks where classes are as frequent in the test as in training: accuracy in per cent, loss in nats. "
    "*Corrected*: log n_c added to the logits, as `natural_probabilities` does."
)


def markdown(results: Results) -> str:
    """The report."""
    facts = results["facts"]
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    parts = ["# Imbalanced classes: the balancer against one-line remedies"]
    parts += aim_section(results) + losing_section(results)
    parts += ["## What was compared", HOW_TO_READ, f"{facts['processor']}; {versions}."]
    for title, kinds in (("Images", ("images",)), ("Synthetic classes and tables", ("synthetic", "tables"))):
        parts += accuracy_section(title, of_kind(results, *kinds))
    parts += score_section(results) + part_section(results) + natural_section(results) + limit_section(results)
    parts += recipe_section(results) + failure_section(results)
    return "\n\n".join(parts) + "\n"


def emphasised(estimate: Estimate | None) -> str:
    """A difference, bold where it is sure."""
    if estimate is None:
        return "-"
    text = estimate.text(signed=True)
    return f"**{text}**" if is_sure(estimate) else text


def is_sure(estimate: Estimate) -> bool:
    """Whether it is more than two standard errors from 0, which few values do not tell."""
    return estimate.count >= LEAST and abs(estimate.mean) > 2 * estimate.error


def aim_section(results: Results) -> list[str]:
    """What was aimed at, and whether it was reached: with label smoothing on our side, on neither, on both."""
    lines = [line for name, other in COMPARED for line in aims_of(results, name, other)]
    head = ["compared", "aim, points of balanced accuracy", "reached", "verdict"]
    return ["## Aims", table(head, lines)] if lines else []


def aims_of(results: Results, name: str, other: str) -> list[list[str]]:
    """The lines of one comparison; none where it was not made."""
    rows = {row["name"]: row for row in results["settings"]}
    counted = [(row, found) for row in judged(results) if (found := difference(row, name, other=other)) is not None]
    if not counted:
        return []
    lines = []
    if "mnist-100" in rows:
        found = difference(rows["mnist-100"], name, other=other)
        lines.append(aim("MNIST with an imbalance of 100, perceptron: at least +1", found, 1.0))
    images = of_kind(results, "images")
    if images:
        lines.append(
            aim(f"the mean of {len(images)} image settings: at least +.5", pooled(images, name, other=other), 0.5)
        )
    row, worst = min(counted, key=lambda one: one[1].mean)
    lines.append(aim(f"nowhere worse than -.5 (the worst of {len(counted)}: {row['title']})", worst, -0.5))
    return [[f"{TITLES[name]} less {TITLES[other]}", *line] for line in lines]


def aim(text: str, found: Estimate | None, least: float) -> list[str]:
    """One line; the mean decides, whatever its error."""
    if found is None:
        return [text, "-", "not measured"]
    return [text, f"{found.text(signed=True)} ({found.count})", "met" if found.mean >= least else "**missed**"]


def losing_section(results: Results) -> list[str]:
    """Every setting in which another method has the higher balanced accuracy, the largest losses first."""
    found = [
        (loss, row["title"], ours, name)
        for row in results["settings"]
        for ours in OURS
        for name in RIVALS
        if (loss := difference(row, ours, other=name)) is not None and is_behind(loss)
    ]
    if not found:
        return []
    ordered = sorted(found, key=lambda one: one[0].mean)
    lines = [[title, TITLES[ours], TITLES[name], emphasised(loss)] for loss, title, ours, name in ordered]
    text = (
        "Every method that is ahead of ours by more than a standard error (or on one seed, where there is none), the "
        "largest losses first; what our own parts cost is in a table of its own."
    )
    return ["## Where ours loses", text, table(["setting", "ours", "behind", "ours less it"], lines)]


def is_behind(estimate: Estimate) -> bool:
    """Whether a difference is below 0 by more than its standard error."""
    return estimate.mean < 0 and not estimate.mean >= -estimate.error


def accuracy_section(title: str, rows: Sequence[dict[str, Any]]) -> list[str]:
    """Balanced accuracy of all methods, and what it differs from the reference's."""
    if not rows:
        return []
    head = ["", *(f"{row['title']} ({len(row['counts'])})" for row in rows)]
    names = [name for name in TITLES if any(name in row["runs"] for row in rows)]
    whole = [[TITLES[name], *(cell(mean(row, name, "balanced_accuracy")) for row in rows)] for name in names]
    others = [name for name in names if name != REFERENCE]
    less = [
        [TITLES[name], *(emphasised(difference(row, name)) for row in rows), emphasised(pooled(rows, name))]
        for name in others
    ]
    return [
        f"## {title}",
        "Balanced accuracy, per cent (seeds in brackets):",
        table(head, whole),
        "Less that of logit adjustment with tau 1, paired by seed:",
        table([*head, "mean"], less),
    ]


def cell(estimate: Estimate | None) -> str:
    """A mean with its error."""
    return "-" if estimate is None else estimate.text()


def score_section(results: Results) -> list[str]:
    """All scores, as differences to the reference, over all settings that count and over images alone."""
    parts = ["## All scores", "Less those of logit adjustment with tau 1, mean over settings:"]
    for title, rows in (("All settings", judged(results)), ("Images", of_kind(results, "images"))):
        if rows:
            lines = [
                [TITLES[name], *(emphasised(pooled(rows, name, score)) for score in SCORES)]
                for name in TITLES
                if name != REFERENCE
            ]
            parts.append(table([f"{title} ({len(rows)})", *SCORES.values()], lines))
    parts.append("Plain training, logit adjustment, ours, in each setting:")
    lines = [
        [
            row["title"],
            *(" / ".join(short(row, name, score) for name in ("plain", REFERENCE, "ours")) for score in SCORES),
        ]
        for row in judged(results)
    ]
    return [*parts, table(["", *SCORES.values()], lines)]


def short(row: dict[str, Any], name: str, score: str) -> str:
    """A mean without its error."""
    found = mean(row, name, score)
    return "-" if found is None else f"{found.mean:.1f}"


def part_section(results: Results) -> list[str]:
    """What each part of ours is worth: with it less without it."""
    rows = judged(results)
    head = ["", *(title for title, _, _ in PARTS)]
    lines = [
        [row["title"], *(emphasised(difference(row, ours, other=other)) for _, ours, other in PARTS)] for row in rows
    ]
    for title, some in (("**images, mean**", of_kind(results, "images")), ("**all, mean**", rows)):
        if some:
            lines.append([title, *(emphasised(pooled(some, ours, other=other)) for _, ours, other in PARTS)])
    return ["## What each part is worth", "Balanced accuracy with the part less that without it:", table(head, lines)]


def natural_section(results: Results) -> list[str]:
    """Accuracy and loss for the natural frequencies."""
    names = {
        "plain": "plain",
        REFERENCE: "logit adjustment",
        REFERENCE + NATURAL: "the same, corrected",
        "ours": "ours",
        "ours" + NATURAL: "the same, corrected",
    }
    lines = []
    for row in judged(results):
        found = [(mean(row, name, "natural_accuracy"), mean(row, name, "natural_loss")) for name in names]
        cells = ["-" if a is None or b is None else f"{a.mean:.1f} / {b.mean:.3f}" for a, b in found]
        lines.append([row["title"], *cells])
    return ["## Where the natural frequencies count", NATURAL_TEXT, table(["", *names.values()], lines)]


def limit_section(results: Results) -> list[str]:
    """What happens without a falling learning rate."""
    rows = of_kind(results, "limits")
    if not rows:
        return []
    names = [name for name in TITLES if any(name in row["runs"] for row in rows)]
    head = [
        "balanced accuracy; less that of logit adjustment",
        *(f"{row['title']} ({len(row['counts'])})" for row in rows),
    ]
    lines = [
        [
            TITLES[name],
            *(f"{cell(mean(row, name, 'balanced_accuracy'))}; {emphasised(difference(row, name))}" for row in rows),
        ]
        for name in names
    ]
    return ["## Without a falling learning rate", LIMITS, table(head, lines)]


def recipe_section(results: Results) -> list[str]:
    """How each setting was trained, and for how long."""
    head = ["", "training samples", "learning rate", "epochs", "weight decay", "seconds: logit adjustment", "ours"]
    lines = []
    for row in results["settings"]:
        recipe, counts = row["recipe"], row["counts"].values()
        seconds = [row["seconds"].get(name) for name in (REFERENCE, "ours")]
        lines.append([
            row["title"], f"{statistics.fmean(sum(one) for one in counts):.0f}", f"{recipe['rate']:g}",
            str(recipe["epochs"]), f"{recipe['weight_decay']:g}",
            *("-" if one is None else f"{statistics.median(one):.1f}" for one in seconds),
        ])  # fmt: skip
    text = "Processor seconds of one fit on a shared machine, the median."
    return ["## Recipes and cost", text, table(head, lines)]


def failure_section(results: Results) -> list[str]:
    """Trainings that ended without a network that tells classes apart, or without any result."""
    parts = []
    chance = [
        f"{row['title']}: {TITLES[name]}, seed {seed} ({100 * accuracy:.0f} %)"
        for row in results["settings"]
        for name in TITLES
        for seed, run in row["runs"].get(name, {}).items()
        if (accuracy := balanced_accuracy(run)) < 0.1 + 0.9 / len(run["right"])
    ]
    if chance:
        text = "These ended near chance, most of them since the weights diverged. They are in all tables as they are:"
        parts += ["## Trainings that collapsed", text, "\n".join(f"- {one}" for one in chance)]
    lines = [[row["title"], name, error] for row in results["settings"] for name, error in row["failed"].items()]
    if lines:
        text = "These are in no table; what they are paired with counts without them."
        parts += ["## Trainings that failed", text, table(["setting", "training", "error"], lines)]
    return parts
