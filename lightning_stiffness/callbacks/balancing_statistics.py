"""What a classifier says of each class while it trains: who takes its probability, and where its features lie."""

from typing import Any, Final

import torch
from jaxtyping import Float, Int
from torch import Tensor

_WINDOW: Final = 20  # samples of a class that its running means look back: longer, and they lag behind the network
_STRENGTH: Final = 0.5  # the longest shift, as a share of the way to the other class
_STEEPNESS: Final = 4.0  # a class that takes a quarter of what is lost beyond an even split has the full weight


class ClassStatistics:
    """Running means of the features and of the predicted probabilities of each class.

    A mean looks back about 20 samples of the class, so that it follows the network.

    Args:
        num_classes: Number c of classes.
        width: Number d of features.

    Attributes:
        features: Mean input of the classifier for each class, [c, d]; 0 until a sample was seen.
        probabilities: Mean predicted probabilities of the samples of class a in row a, [c, c]; 0 until then.
        seen: Samples of each class, [c].

    Source: ours.
    """

    def __init__(self, num_classes: int, width: int) -> None:
        self.features = torch.zeros(num_classes, width)
        self.probabilities = torch.zeros(num_classes, num_classes)
        self.seen = torch.zeros(num_classes)

    def to(self, device: torch.device) -> None:
        """Moves the means."""
        if self.seen.device != device:
            self.features, self.probabilities = self.features.to(device), self.probabilities.to(device)
            self.seen = self.seen.to(device)

    @torch.no_grad()
    def update(self, features: Float[Tensor, "n d"], logits: Float[Tensor, "n c"], labels: Int[Tensor, "n"]) -> None:
        """Adds a batch. Samples with numbers that are not finite (an overflow of half precision) are left out."""
        values = torch.cat([features.float(), logits.float().softmax(1)], 1)
        kept = values.isfinite().all(1)
        values = torch.where(kept[:, None], values, 0)
        counts = torch.zeros_like(self.seen).index_add_(0, labels, kept.to(self.seen))
        sums = values.new_zeros(len(counts), values.shape[1]).index_add_(0, labels, values)
        pace = counts / (counts + self.seen.clamp(max=_WINDOW)).clamp(min=1)
        change = pace[:, None] * (
            sums / counts.clamp(min=1)[:, None] - torch.cat([self.features, self.probabilities], 1)
        )
        self.features += change[:, : self.features.shape[1]]
        self.probabilities += change[:, self.features.shape[1] :]
        self.seen += counts

    def pool(self, reduce: Any) -> None:
        """The same means on all processes: those of each, by how many samples they rest on.

        Args:
            reduce: Tensor -> the sum over the processes.
        """
        weight = self.seen.clamp(max=_WINDOW)
        total = reduce(weight.clone()).clamp(min=1e-12)[:, None]
        self.features = reduce(weight[:, None] * self.features) / total
        self.probabilities = reduce(weight[:, None] * self.probabilities) / total
        self.seen = reduce(self.seen.clone())

    def shift(
        self,
        labels: Int[Tensor, "n"],
        counts: Float[Tensor, "c"],
        chances: Float[Tensor, "n 2"],
        absorbers: bool = True,
    ) -> Float[Tensor, "n d"]:
        """By how much features of small classes are moved toward bigger classes that take their probability.

        Args:
            labels: Class a of each sample.
            counts: Samples of each class in the data.
            chances: Two even random numbers for each sample: for the other class b, and for the length of the way.
            absorbers: Whether b is drawn by absorption. Otherwise min(1, 4 * absorption[a, b]) is left out.

        Returns:
            .5 * u * (1 - n_a / n_b) * (mu_b - mu_a) with b drawn in proportion to min(1, 4 * absorption[a, b]) * (1 -
            n_a / n_b) from the classes with n_b > n_a; 0 for a sample of a class without such b.

        Source: ours.
        """
        gaps = (1 - counts[:, None] / counts.clamp(min=1)).clamp(min=0) * (self.seen > 0) * (self.seen > 0)[:, None]
        weights = (_STEEPNESS * absorption(self.probabilities)).clamp(max=1) * gaps if absorbers else gaps
        steps = weights.cumsum(1)[labels]
        partners = torch.searchsorted(steps, chances[:, :1] * steps[:, -1:], right=True).squeeze(1)
        partners = partners.clamp(max=len(counts) - 1)
        lengths = torch.where(steps[:, -1] > 0, _STRENGTH * chances[:, 1] * gaps[labels, partners], 0)
        return lengths[:, None] * (self.features[partners] - self.features[labels])

    def state_dict(self) -> dict[str, Tensor]:
        """The means, on the CPU."""
        return {name: getattr(self, name).cpu().clone() for name in ("features", "probabilities", "seen")}

    @classmethod
    def from_state_dict(cls, state_dict: dict[str, Tensor]) -> "ClassStatistics":
        """The statistics as they were saved."""
        found = cls(len(state_dict["seen"]), state_dict["features"].shape[1])
        for name, value in state_dict.items():
            setattr(found, name, value.clone())
        return found


def absorption(probabilities: Float[Tensor, "c c"]) -> Float[Tensor, "c c"]:
    """Who takes the probability that the samples of a class lose.

    Args:
        probabilities: Mean predicted probabilities of the samples of class a in row a.

    Returns:
        In row a and column b the share of what class a loses that goes to b, beyond an even split among the other
        classes: 0 where b gets no more than that, at most (c - 2) / (c - 1). 0 for a class that loses nothing, and on
        the diagonal.

    Source: ours.

    >>> absorption(torch.tensor([[0.6, 0.4, 0.0], [0.1, 0.8, 0.1], [0.0, 0.0, 1.0]])).round(decimals=2)
    tensor([[0.0000, 0.5000, 0.0000],
            [0.0000, 0.0000, 0.0000],
            [0.0000, 0.0000, 0.0000]])
    """
    lost = probabilities.clone().fill_diagonal_(0)
    total = lost.sum(1, keepdim=True)
    shares = torch.where(total > 0, lost / total.clamp(min=torch.finfo(lost.dtype).tiny), 0)
    return (shares - 1 / max(len(lost) - 1, 1)).clamp(min=0)
