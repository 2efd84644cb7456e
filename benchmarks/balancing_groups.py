"""What are measured class groups good for in training? Ideas, each against the same idea with its groups at random.

Small perceptrons on imbalanced classes. All sample classes by the square root of their sizes and add log q_c to the
logits of the loss, q_c being how often a label comes, after smoothing; an idea is added to that. Groups are measured by
`class_groups` a third of the way through such a training, on training samples alone. The seeds of a setting are trained
at once, as one batched network in plain torch.
"""

import json
from collections.abc import Sequence
from typing import Any

import torch
from balancing_batched import (
    Change,
    Idea,
    Problem,
    asked,
    balanced_accuracy,
    command_line,
    features,
    logits,
    train,
)
from balancing_report import emphasised
from balancing_scores import Estimate
from balancing_settings import BY_NAME, Recipe
from gram_report import table
from torch import Generator, Tensor
from torch.nn.functional import one_hot

from lightning_stiffness.grouping import class_groups
from lightning_stiffness.levels import levels_of

EPILOG = """examples:
  python benchmarks/balancing_groups.py --output results
      digits and look-alike classes, ten seeds, a few minutes on one core
  python benchmarks/balancing_groups.py --data DIR --output results
      confusable minorities of MNIST too (DIR/mnist.npz)

Written to --output: balancing_groups.json and .md.
"""
SETTINGS = ("look-alike-50", "digits-20", "confusable")
MEASURED_AT = 1 / 3
OF_A_CLASS = 40  # training samples that groups are measured on
EPSILON = 0.1  # of all label smoothing


@torch.no_grad()
def measured_groups(problem: Problem, weights: Sequence[Tensor]) -> Tensor:
    """The groups of each seed, [S, c], on at most 40 training samples of each class."""
    found = []
    for seed in range(len(problem.seeds)):
        labels = problem.labels[seed]
        kept = torch.cat([(labels == k).nonzero()[:OF_A_CLASS, 0] for k in range(problem.classes)])
        own = [tensor[seed : seed + 1] for tensor in weights]
        inputs, targets = problem.inputs[seed : seed + 1, kept], labels[kept]
        seen = features(own, inputs)[0]
        found.append(class_groups(levels_of(seen, logits(own, inputs)[0], targets, None)).assignment)
    return torch.tensor(found)


def shuffled(groups: Tensor) -> Tensor:
    """Groups of the same sizes, at random."""
    generator = Generator().manual_seed(7)
    return torch.stack([row[torch.randperm(len(row), generator=generator)] for row in groups])


def alike(groups: Tensor) -> Tensor:
    """1 for each pair of different classes in one group, [S, c, c]."""
    return (groups[:, :, None] == groups[:, None]).double() - torch.eye(groups.shape[1], dtype=torch.double)


def smoothed(wanted: Tensor) -> Tensor:
    """Targets that give a tenth to the wanted classes in equal parts; a class that wants none keeps all."""
    size = wanted.shape[1]
    others = EPSILON * wanted / wanted.sum(2, keepdim=True).clamp(min=1)
    return others + torch.eye(size, dtype=torch.double) * (1 - others.sum(2, keepdim=True))


def partnered(problem: Problem, partners: Tensor, rates: Tensor, mix: bool) -> Change:
    """Samples of small classes change toward those of a bigger partner class; others stay.

    Args:
        problem: Where the samples are.
        partners: Weight of each class b as partner of a, [S, c, c].
        rates: How often a sample of each class changes, [S, c].
        mix: Up to half of a sample of b is mixed in. Otherwise the sample becomes one of b, moved by the difference of
            the class means, so that a gets the variation of b.
    """
    order = problem.labels.argsort(dim=1, stable=True)
    starts = problem.counts.cumsum(1) - problem.counts
    members = one_hot(problem.labels, problem.classes).float()
    means = (members.transpose(1, 2) @ problem.inputs) / problem.counts[..., None]

    def change(inputs: Tensor, labels: Tensor, generator: Generator) -> Tensor:
        rows = problem.rows
        weights = partners[rows, labels]
        other = torch.multinomial(weights.flatten(0, 1) + 1e-12, 1, generator=generator).view_as(labels)
        place = torch.rand(labels.shape, generator=generator) * problem.counts[rows, other]
        found = problem.inputs[rows, order[rows, starts[rows, other] + place.long()]]
        share = torch.rand(labels.shape, generator=generator)[..., None] / 2
        moved = found + means[rows, labels] - means[rows, other]
        is_used = torch.rand(labels.shape, generator=generator) < rates[rows, labels]
        return torch.where(is_used[..., None], (1 - share) * inputs + share * found if mix else moved, inputs)

    return change


def pairs_of_ideas(problem: Problem, groups: Tensor) -> dict[str, tuple[Idea, Idea]]:
    """Each idea with the measured groups, and its control."""
    random, bigger = shuffled(groups), problem.smaller()
    in_group, at_random = alike(groups), alike(random)
    others = 1 - torch.eye(problem.classes, dtype=torch.double)
    inside = bigger * in_group
    anyone = bigger * (inside.sum(2, keepdim=True) > 0)  # the same small classes, any bigger partner
    return {
        "variation of a bigger class of the group": partner_pair(problem, inside, anyone, mix=False),
        "mixing with a bigger class of the group": partner_pair(problem, inside, anyone, mix=True),
        "label smoothing inside the group": (Idea(smoothed(in_group)), Idea(smoothed(at_random))),
        "label smoothing outside the group": (Idea(smoothed(others - in_group)), Idea(smoothed(others - at_random))),
        "a second loss for the group": (Idea(groups=groups), Idea(groups=random)),
    }


def partner_pair(problem: Problem, measured: Tensor, control: Tensor, mix: bool) -> tuple[Idea, Idea]:
    """The two ideas that differ by the partner, and in nothing else."""
    rates = measured.amax(2)
    return Idea(change=partnered(problem, measured, rates, mix)), Idea(change=partnered(problem, control, rates, mix))


def judge(problem: Problem) -> dict[str, Any]:
    """Balanced accuracies of all ideas, and of what needs no groups."""
    base = balanced_accuracy(problem, train(problem, Idea()))
    groups = measured_groups(problem, train(problem, Idea(), MEASURED_AT))
    every = smoothed((1 - torch.eye(problem.classes, dtype=torch.double)).expand(len(problem.seeds), -1, -1))
    rows: dict[str, Any] = {
        "logit adjustment alone": {"measured": balanced_accuracy(problem, train(problem, Idea(), sampling=1.0))},
        "logit adjustment alone, label smoothing": {
            "measured": balanced_accuracy(problem, train(problem, Idea(every), sampling=1.0))
        },
        "label smoothing, no groups": {"measured": balanced_accuracy(problem, train(problem, Idea(every)))},
    }
    for title, pair in pairs_of_ideas(problem, groups).items():
        found = [balanced_accuracy(problem, train(problem, idea)) for idea in pair]
        rows[title] = dict(zip(("measured", "random"), found, strict=True))
    return {"seeds": list(problem.seeds), "base": base, "groups": groups.tolist(), "ideas": rows}


def less(first: Sequence[float], second: Sequence[float]) -> str:
    """The mean paired difference; bold beyond two standard errors."""
    return emphasised(Estimate.of([a - b for a, b in zip(first, second, strict=True)]))


def markdown(results: dict[str, Any]) -> str:
    """The report."""
    parts = ["# Uses of measured class groups", " ".join(__doc__.split("\n\n")[1].split())]
    parts.append(
        "Points of balanced accuracy, paired by seed, with standard errors over the seeds; **bold** beyond two of them."
    )
    for name, found in results.items():
        setting, recipe = BY_NAME[name], Recipe(**found["recipe"])
        lines = [
            [
                title,
                less(row["measured"], found["base"]),
                less(row["random"], found["base"]) if "random" in row else "",
                less(row["measured"], row["random"]) if "random" in row else "",
                less(row["measured"], found["ideas"]["label smoothing, no groups"]["measured"]),
            ]
            for title, row in found["ideas"].items()
        ]
        base = Estimate.of(found["base"]).text()
        parts += [
            f"## {setting.title}: base {base} %, {len(found['seeds'])} seeds, rate {recipe.rate:g}",
            table(["", "less base", "random, less base", "measured less random", "less plain smoothing"], lines),
        ]
    return "\n\n".join(parts) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains, judges, writes."""
    parser = command_line(__doc__, EPILOG, SETTINGS)
    parser.add_argument("--first-seed", type=int, default=0, metavar="K", help="the first (%(default)s)")
    options = parser.parse_args(arguments)
    results: dict[str, Any] = {}
    for name in asked(options):
        problem = Problem(name, range(options.first_seed, options.first_seed + options.seeds), options.data)
        results[name] = {"recipe": vars(problem.recipe), **judge(problem)}
        (options.output / "balancing_groups.json").write_text(json.dumps(results, indent=1) + "\n")
        (options.output / "balancing_groups.md").write_text(markdown(results))


if __name__ == "__main__":
    main()
