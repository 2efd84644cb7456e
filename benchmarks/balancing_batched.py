"""Small perceptrons on imbalanced classes, all seeds of a setting at once: one batched network in plain torch.

All sample classes by a power of their sizes and add log q_c to the logits of the loss, q_c being how often a label
comes, after smoothing; an idea is added to that.
"""

import argparse
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from balancing_data import Split, split_of
from balancing_networks import network
from balancing_settings import BY_NAME, NEEDS_DATA, read_recipes
from torch import Generator, Tensor, nn
from torch.nn.functional import one_hot, pad

Change = Callable[[Tensor, Tensor, Generator], Tensor]


class Problem:
    """S seeds of a setting: inputs [S, n, d], labels [S, n], class sizes [S, c], test labels padded by -1."""

    def __init__(self, name: str, seeds: Sequence[int], folder: Path | None) -> None:
        """Draws the samples of each seed."""
        self.setting, self.seeds, self.recipe = BY_NAME[name], seeds, read_recipes()[name]
        splits = [split_of(self.setting, seed, folder) for seed in seeds]
        self.shape = tuple(splits[0].train.inputs.shape[1:])
        self.inputs = torch.stack([split.train.inputs.flatten(1) for split in splits])
        self.labels = torch.stack([split.train.targets for split in splits])
        self.counts = torch.stack([split.counts for split in splits])
        self.test_inputs, self.test_labels = padded(splits)
        self.classes = self.counts.shape[1]
        self.rows = torch.arange(len(splits))[:, None]

    def weights(self) -> list[Tensor]:
        """The first weights of each seed, layer by layer: [S, in, out] and [S, 1, out]."""
        nets = []
        for seed in self.seeds:
            torch.manual_seed(seed)
            net: Any = network("mlp", self.setting.data, self.shape, self.classes)
            nets.append([layer for layer in net if isinstance(layer, nn.Linear)])
        stacked = []
        for layers in zip(*nets, strict=True):
            stacked.append(torch.stack([layer.weight.detach().T for layer in layers]))
            stacked.append(torch.stack([layer.bias.detach() for layer in layers])[:, None])
        return [tensor.clone().requires_grad_() for tensor in stacked]

    def smaller(self) -> Tensor:
        """1 - n_a / n_b for each pair of classes, 0 where b is not bigger: [S, c, c]."""
        sizes = self.counts.double()
        return (1 - sizes[:, :, None] / sizes[:, None]).clamp(min=0)


def padded(splits: Sequence[Split]) -> tuple[Tensor, Tensor]:
    """Test samples of all seeds as one tensor."""
    most = max(len(split.test) for split in splits)
    inputs = [pad(split.test.inputs.flatten(1), (0, 0, 0, most - len(split.test))) for split in splits]
    labels = [pad(split.test.targets, (0, most - len(split.test)), value=-1) for split in splits]
    return torch.stack(inputs), torch.stack(labels)


@dataclass(frozen=True)
class Idea:
    """What is added to a training.

    Attributes:
        targets: Probabilities that stand for each class in the loss, [S, c, c]; none: the class alone.
        change: (inputs, labels, generator) -> other inputs.
        groups: Groups [S, c] whose summed probability has a loss of its own, of equal weight.
        features: (what the last layer is given, labels, generator) -> other features.
        logits: (logits, labels, generator) -> other logits, for the loss.
        mixing: Samples of a batch are mixed in pairs, and so are their losses, in shares from Beta(mixing, mixing).
        mixes: What is mixed.
    """

    targets: Tensor | None = None
    change: Change | None = None
    groups: Tensor | None = None
    features: Change | None = None
    logits: Change | None = None
    mixing: float = 0.0
    mixes: Literal["inputs", "features"] = "features"


def features(weights: Sequence[Tensor], inputs: Tensor) -> Tensor:
    """What the last layer is given."""
    for k in range(0, len(weights) - 2, 2):
        inputs = torch.baddbmm(weights[k + 1], inputs, weights[k]).relu()
    return inputs


def logits(weights: Sequence[Tensor], inputs: Tensor) -> Tensor:
    """Of all seeds."""
    return torch.baddbmm(weights[-1], features(weights, inputs), weights[-2])


def train(problem: Problem, idea: Idea, stop: float = 1.0, sampling: float = 0.5) -> list[Tensor]:
    """The weights after a share of the training; all ideas see the same batches, as far as they leave them alone."""
    recipe, batch = problem.recipe, problem.setting.batch
    steps = recipe.epochs * math.ceil(problem.labels.shape[1] / batch)
    generator, chances = Generator().manual_seed(1), Generator().manual_seed(2)
    rates = problem.counts.double() ** sampling
    rates = rates / rates.sum(1, keepdim=True)
    labelled = rates[:, None] if idea.targets is None else rates[:, None] @ idea.targets  # how often, after smoothing
    offsets = labelled.log().float()
    chosen = (rates / problem.counts).gather(1, problem.labels)
    weights = problem.weights()
    optimizer = torch.optim.SGD(weights, recipe.rate, momentum=0.9, weight_decay=recipe.weight_decay)
    for step in range(round(stop * steps)):
        optimizer.param_groups[0]["lr"] = recipe.rate * (1 + math.cos(math.pi * step / steps)) / 2
        drawn = torch.multinomial(chosen, batch, replacement=True, generator=generator)
        inputs, labels = problem.inputs[problem.rows, drawn], problem.labels[problem.rows, drawn]
        loss = loss_of(problem, weights, inputs, labels, offsets, idea, chances)
        optimizer.zero_grad()
        loss.mean(1).sum().backward()
        clip(weights)
        optimizer.step()
    return [tensor.detach() for tensor in weights]


def loss_of(  # noqa: PLR0913  # a training step
    problem: Problem,
    weights: Sequence[Tensor],
    inputs: Tensor,
    labels: Tensor,
    offsets: Tensor,
    idea: Idea,
    chances: Generator,
) -> Tensor:
    """The losses of a batch, [S, n], with what the idea does on the way."""
    if idea.change is not None:
        inputs = idea.change(inputs, labels, chances)
    share, other = mixed_pairs(idea, labels.shape[1], chances)
    if idea.mixing and idea.mixes == "inputs":
        inputs = share * inputs + (1 - share) * inputs[:, other]
    seen = features(weights, inputs)
    if idea.features is not None:
        seen = idea.features(seen, labels, chances)
    if idea.mixing and idea.mixes == "features":
        seen = share * seen + (1 - share) * seen[:, other]
    found = torch.baddbmm(weights[-1], seen, weights[-2])
    if idea.logits is not None:
        found = idea.logits(found, labels, chances)
    own = losses(problem, found + offsets, labels, idea)
    return own if share == 1 else share * own + (1 - share) * losses(problem, found + offsets, labels[:, other], idea)


def mixed_pairs(idea: Idea, batch: int, chances: Generator) -> tuple[float, Tensor]:
    """The share of the first of each pair, and the places of the second ones."""
    if not idea.mixing:
        return 1.0, torch.arange(batch)
    draws = torch._standard_gamma(torch.full((2,), idea.mixing), generator=chances)
    return float(draws[0] / draws.sum()), torch.randperm(batch, generator=chances)


def losses(problem: Problem, adjusted: Tensor, labels: Tensor, idea: Idea) -> Tensor:
    """Of each sample, [S, n]."""
    logs = adjusted.log_softmax(2)
    if idea.targets is None:
        found = -logs.gather(2, labels[..., None]).squeeze(2)
    else:
        found = -(idea.targets.float()[problem.rows, labels] * logs).sum(2)
    if idea.groups is None:
        return found
    members = one_hot(idea.groups).float()
    of_groups = (logs.exp() @ members).clamp(min=1e-12).log()
    return (found - of_groups.gather(2, idea.groups.gather(1, labels)[..., None]).squeeze(2)) / 2


def clip(weights: Sequence[Tensor], norm: float = 1.0) -> None:
    """The gradients of each seed to a norm of at most 1, as the Trainer of the other benchmark does."""
    gradients = [tensor.grad for tensor in weights if tensor.grad is not None]
    squares = sum(gradient.flatten(1).square().sum(1) for gradient in gradients)
    factor = (norm / (torch.as_tensor(squares).sqrt() + 1e-6)).clamp(max=1)
    for gradient in gradients:
        gradient.mul_(factor[:, None, None])


@torch.no_grad()
def balanced_accuracy(problem: Problem, weights: Sequence[Tensor]) -> list[float]:
    """Per cent, of each seed."""
    right = logits(weights, problem.test_inputs).argmax(2) == problem.test_labels
    members = (problem.test_labels[..., None] == torch.arange(problem.classes)).double()
    recalls = (members * right[..., None]).sum(1) / members.sum(1)
    found: list[float] = (100 * recalls.mean(1)).tolist()
    return found


def command_line(text: str | None, epilog: str, settings: Sequence[str]) -> argparse.ArgumentParser:
    """What every script on such problems asks for."""
    made = argparse.ArgumentParser(
        description=text, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for the results")
    made.add_argument("--data", type=Path, metavar="DIR", help="folder of mnist.npz (none: not it)")
    made.add_argument("--only", nargs="+", choices=settings, default=settings, help="settings (all)")
    made.add_argument("--seeds", type=int, default=10, metavar="K", help="how many (%(default)s)")
    return made


def asked(options: argparse.Namespace) -> Iterator[str]:
    """The names of the settings whose data are there, each said to be done when the next one is asked for."""
    torch.set_num_threads(1)
    options.output.mkdir(parents=True, exist_ok=True)
    for name in options.only:
        if options.data is None and BY_NAME[name].data in NEEDS_DATA:
            print(f"{name} is left out: it needs --data")
            continue
        yield name
        print(f"{name}: done", flush=True)
