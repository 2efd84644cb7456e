"""How far an optimizer moves each parameter per unit of its gradient."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_stiffness.gram.sharding import whole_tensor

ADAPTIVE = "exp_avg_sq"  # torch's name for Adam's running mean of squared gradients


@dataclass(frozen=True)
class StepSizes:
    """Step sizes relative to the learning rates of the optimizers' parameter groups.

    Attributes:
        scales: For each parameter, by its name, the mean step per unit of gradient at learning rate 1, gradients
            weighted by their squares: 1 / (1 - momentum) for SGD, sum sqrt(v) / sum v for Adam and its kin.
        groups: For each parameter the number of its group, over all optimizers.
        energy: For each parameter the sum of its squared gradients, or its number of entries where that is not known.
    """

    scales: Mapping[str, float]
    groups: Mapping[str, int]
    energy: Mapping[str, float]

    def mean(self, learning_rates: Sequence[float]) -> float:
        """The mean step per unit of gradient at these learning rates of the groups."""
        total = sum(self.energy.values())
        if not total > 0:
            return 0.0
        parts = (self.energy[name] * scale * learning_rates[self.groups[name]] for name, scale in self.scales.items())
        return sum(parts) / total

    def rates(self, learning_rates: Sequence[float]) -> dict[str, float]:
        """How much each parameter counts, relative to the mean."""
        mean = self.mean(learning_rates)
        if not mean > 0:
            return dict.fromkeys(self.scales, 1.0)
        return {name: scale * learning_rates[self.groups[name]] / mean for name, scale in self.scales.items()}


def learning_rates(optimizers: Sequence[Optimizer]) -> list[float]:
    """The learning rate of each parameter group of all optimizers."""
    return [float(group["lr"]) for optimizer in optimizers for group in optimizer.param_groups]


@torch.no_grad()
def step_sizes(optimizers: Sequence[Optimizer], names: Mapping[str, nn.Parameter]) -> StepSizes:
    """The step sizes as the optimizers' states have them now.

    Known are SGD (with momentum), and all optimizers that keep Adam's running mean of squared gradients (Adam, AdamW,
    NAdam, RAdam ...) or RMSprop's. Any other one counts as SGD with its momentum: an approximation.

    Args:
        optimizers: Of the run.
        names: The trainable parameters by name.

    Example:
        >>> layer = nn.Linear(1, 1)
        >>> optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
        >>> sizes = step_sizes([optimizer], dict(layer.named_parameters()))
        >>> round(sizes.mean(learning_rates([optimizer])), 3)
        1.0
    """
    by_id = {id(parameter): name for name, parameter in names.items()}
    found = _Found()
    number = 0
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if id(parameter) in by_id:
                    found.add(by_id[id(parameter)], parameter, group, optimizer.state.get(parameter, {}), number)
            number += 1
    return StepSizes(found.scales, found.groups, found.energy)


@dataclass
class _Found:
    scales: dict[str, float] = field(default_factory=dict)
    groups: dict[str, int] = field(default_factory=dict)
    energy: dict[str, float] = field(default_factory=dict)

    def add(
        self, name: str, parameter: Tensor, group: Mapping[str, object], state: Mapping[str, Tensor], number: int
    ) -> None:
        momentum = float(group.get("momentum", 0.0) or 0.0)  # type: ignore[arg-type]
        root = _root_mean_square(parameter, group, state)
        self.groups[name] = number
        if root is None:
            self.scales[name], self.energy[name] = 1 / max(1 - momentum, 1e-3), float(parameter.numel())
            return
        square = float(root.square().sum())
        self.scales[name] = float(root.sum()) / max(square, 1e-30) / max(1 - momentum, 1e-3)
        self.energy[name] = square


def _root_mean_square(parameter: Tensor, group: Mapping[str, object], state: Mapping[str, Tensor]) -> Tensor | None:
    """What an adaptive optimizer divides a gradient by, entry by entry; None for one that does not."""
    epsilon = float(group.get("eps", 1e-8))  # type: ignore[arg-type]
    squares = state.get(ADAPTIVE, state.get("square_avg"))
    if squares is None or squares.shape != parameter.shape:
        return None
    mean: Tensor = whole_tensor(squares).double()
    if ADAPTIVE in state and "step" in state:
        decay = float(group["betas"][1])  # type: ignore[index]
        mean = mean / max(1 - decay ** float(state["step"]), 1e-12)
    return mean.sqrt() + epsilon
