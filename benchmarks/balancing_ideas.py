"""What else could be done about imbalance? Ideas of others and our own, each added to what ClassGroupingBalancer does.

The base is the balancer's default: classes are sampled by the power 3/4 of their sizes, log q_c is added to the logits
of the loss, q_c being how often a smoothed label is one of class c, and a tenth of each label is smoothed. Small
perceptrons; the seeds of a setting are trained at once, as one batched network in plain torch. They are none of those
that the benchmark of the balancer reports: this is where its defaults were chosen.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

import torch
from balancing_batched import Idea, Problem, asked, balanced_accuracy, command_line, train
from balancing_report import emphasised
from balancing_scores import Estimate
from balancing_settings import BY_NAME
from gram_report import table
from torch import Generator, Tensor
from torch.nn.functional import one_hot

EPILOG = """examples:
  python benchmarks/balancing_ideas.py --output results
      tables, digits and look-alike classes, a few minutes on one core
  python benchmarks/balancing_ideas.py --data DIR --output results
      MNIST too (DIR/mnist.npz): a quarter of an hour

Written to --output: balancing_ideas.json and .md. A setting that is finished there is not trained again.
"""
SETTINGS = ("iris-10", "wine-10", "cancer-20", "digits-20", "digits-50", "look-alike-50", "confusable", "mnist-100")
SMOOTHING, POWER = 0.1, 0.75
FIRST_SEED = 300
LOOKS_BACK = 20  # samples of a class that its running mean rests on

Made = Callable[[Problem], tuple[Idea, float]]
"""Problem -> the idea, and the power of the class sizes by which classes are sampled."""


def targets(problem: Problem, smoothing: Tensor | float) -> Tensor:
    """Smoothed labels, [S, c, c], by one number or by one for each class [S, c]."""
    size = problem.classes
    share = torch.as_tensor(smoothing, dtype=torch.double).expand(len(problem.seeds), size)[..., None]
    return (1 - share) * torch.eye(size, dtype=torch.double) + share / size


def largeness(problem: Problem) -> Tensor:
    """0 for the smallest and 1 for the biggest class, by log size, [S, c]."""
    logs = problem.counts.double().log()
    low, high = logs.amin(1, keepdim=True), logs.amax(1, keepdim=True)
    return (logs - low) / (high - low)


def plain(power: float = POWER, smoothing: float = SMOOTHING, **parts: Any) -> Made:
    """The base with other numbers, or with other parts."""
    return lambda problem: (Idea(targets(problem, smoothing), **parts), power)


def smoothed_by_size(least: float, most: float) -> Made:
    """More smoothing for bigger classes (label-aware smoothing: Zhong et al., arXiv:2104.00466)."""
    return lambda problem: (Idea(targets(problem, least + (most - least) * largeness(problem))), POWER)


def scaled(gamma: float) -> Made:
    """Logits of the loss by (n_c / n_max)^gamma (vector scaling: Kini et al., arXiv:2103.01550)."""

    def made(problem: Problem) -> tuple[Idea, float]:
        sizes = problem.counts.float()
        scale = ((sizes / sizes.amax(1, keepdim=True)) ** gamma)[:, None]
        return Idea(targets(problem, SMOOTHING), logits=lambda logits, labels, generator: logits * scale), POWER

    return made


def clouded(most: float) -> Made:
    """Logits of the loss less |normal noise|, at most 1, larger for smaller classes (Li, Cheung & Lu, CVPR 2022)."""

    def made(problem: Problem) -> tuple[Idea, float]:
        size = most * (1 - largeness(problem)).float()[:, None]

        def change(logits: Tensor, labels: Tensor, generator: Generator) -> Tensor:
            return logits - size * torch.randn(logits.shape, generator=generator).abs().clamp(max=1)

        return Idea(targets(problem, SMOOTHING), logits=change), POWER

    return made


def dropout(features: Tensor, labels: Tensor, generator: Generator) -> Tensor:
    """Three features of ten are left out."""
    return features * (torch.rand(features.shape, generator=generator) > 0.3) / 0.7


def noise(features: Tensor, labels: Tensor, generator: Generator) -> Tensor:
    """Each feature by 1 +- .3."""
    return features * (1 + 0.3 * torch.randn(features.shape, generator=generator))


def varied(problem: Problem) -> tuple[Idea, float]:
    """Features of a small class vary as those of a bigger one do, too (after Yin et al., CVPR 2019)."""
    return Idea(targets(problem, SMOOTHING), features=Variation(problem)), POWER


class Variation:
    """Adds the deviation of another sample from the running mean of its class, where that class is bigger."""

    def __init__(self, problem: Problem) -> None:
        """No means yet."""
        self._problem, self._means, self._seen = problem, torch.zeros(0), problem.counts * 0.0

    def __call__(self, features: Tensor, labels: Tensor, generator: Generator) -> Tensor:
        """Features that have more variation; where they come from has no gradient."""
        rows, seen = self._problem.rows, features.detach()
        members = one_hot(labels, self._problem.classes).float()
        counts, sums = members.sum(1), members.transpose(1, 2) @ seen
        if not len(self._means):
            self._means = torch.zeros_like(sums)
        pace = counts / (counts + self._seen.clamp(max=LOOKS_BACK)).clamp(min=1)
        self._means = self._means + pace[..., None] * (sums / counts.clamp(min=1)[..., None] - self._means)
        self._seen = self._seen + counts
        donors = torch.randperm(labels.shape[1], generator=generator)
        deviation = seen[:, donors] - self._means[rows, labels[:, donors]]
        share = self._problem.smaller().float()[rows, labels, labels[:, donors]]
        return features + (share * torch.rand(labels.shape, generator=generator))[..., None] * deviation


IDEAS: dict[str, Made] = {
    "logit adjustment alone": lambda problem: (Idea(), 1.0),
    "no smoothing": plain(smoothing=0.0),
    "smoothing .05": plain(smoothing=0.05),
    "smoothing .2": plain(smoothing=0.2),
    "smoothing 0 to .2, more for bigger classes": smoothed_by_size(0.0, 0.2),
    "smoothing .05 to .15, more for bigger classes": smoothed_by_size(0.05, 0.15),
    "no sampling": plain(power=1.0),
    "sampling by the square root": plain(power=0.5),
    "logits scaled, gamma .05": scaled(0.05),
    "logits scaled, gamma .15": scaled(0.15),
    "noise on logits, up to .5": clouded(0.5),
    "noise on logits, up to 1": clouded(1.0),
    "inputs mixed, Beta(.2, .2)": plain(mixing=0.2, mixes="inputs"),
    "features mixed, Beta(.2, .2)": plain(mixing=0.2),
    "features mixed, Beta(1, 1)": plain(mixing=1.0),
    "features: dropout .3": plain(features=dropout),
    "features: noise .3": plain(features=noise),
    "features vary as those of bigger classes": varied,
}


def judge(problem: Problem) -> dict[str, list[float]]:
    """The balanced accuracy of each seed, by idea; the base first."""
    found = {}
    for name, make in {"base": plain(), **IDEAS}.items():
        idea, power = make(problem)
        found[name] = balanced_accuracy(problem, train(problem, idea, sampling=power))
    return found


def differences(found: dict[str, list[float]], name: str) -> Estimate:
    """An idea less the base, over the seeds."""
    return Estimate.of([a - b for a, b in zip(found[name], found["base"], strict=True)])


def markdown(results: dict[str, Any]) -> str:
    """The report."""
    first = next(iter(results.values()))
    seeds = f"{first['seeds'][0]} to {first['seeds'][-1]}"
    parts = [
        "# Ideas beside the balancer",
        " ".join(__doc__.split("\n\n")[1].split()),
        f"Points of balanced accuracy less that of the base, paired by seed ({seeds}), with standard errors; **bold** "
        "beyond two of them. With so many ideas a few will be by chance.",
    ]
    bases = ["the base, per cent", *(Estimate.of(row["accuracies"]["base"]).text() for row in results.values()), ""]
    lines = [bases]
    for name in IDEAS:
        found = [differences(row["accuracies"], name) for row in results.values()]
        lines.append([name, *map(emphasised, found), emphasised(Estimate.pooled(found))])
    parts.append(table(["", *(BY_NAME[name].title for name in results), "mean"], lines))
    return "\n\n".join(parts) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains, judges, writes."""
    options = command_line(__doc__, EPILOG, SETTINGS).parse_args(arguments)
    path = options.output / "balancing_ideas.json"
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    seeds = list(range(FIRST_SEED, FIRST_SEED + options.seeds))
    for name in asked(options):
        known = results.get(name, {"seeds": [], "accuracies": {}})
        if known["seeds"] != seeds or known["accuracies"].keys() != {"base", *IDEAS}:
            results[name] = {"seeds": seeds, "accuracies": judge(Problem(name, seeds, options.data))}
        ordered = {key: results[key] for key in SETTINGS if key in results}
        path.write_text(json.dumps(ordered, indent=1) + "\n")
        path.with_suffix(".md").write_text(markdown(ordered))


if __name__ == "__main__":
    main()
