"""The pairs of several training batches, pooled until a reading is due."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_stiffness.functional import (
    Stiffness,
    Tally,
    cosine_pairs,
    pair_rows,
    sign_pairs,
    summarise_rows,
)
from lightning_stiffness.history import Reading


@dataclass(frozen=True, eq=False)
class BatchPool:
    """Samples of several batches, each with the sum and number of its pairs within its own batch: these add up.

    Attributes:
        targets: Class of each sample.
        cosine: Sums of each sample's cosines with the samples of each class.
        sign: The same of signs.
        count: The number of these pairs.
        losses: Loss of each batch.
        sizes: Samples of each batch.
        zeros: Samples whose gradient is exactly zero.
        seconds: Time that reading the batches took.
    """

    targets: Int[Tensor, "n"]
    cosine: Float[Tensor, "n c"]
    sign: Float[Tensor, "n c"]
    count: Float[Tensor, "n c"]
    losses: Float[Tensor, "b"] = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    sizes: Float[Tensor, "b"] = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    zeros: int = 0
    seconds: float = 0.0

    @classmethod
    def empty(cls, num_classes: int) -> "BatchPool":
        """Without any batch."""
        none = torch.zeros(0, num_classes, dtype=torch.float64)
        return cls(torch.zeros(0, dtype=torch.long), none, none, none)

    @classmethod
    def of(cls, gram: Float[Tensor, "n n"], targets: Int[Tensor, "n"], loss: float, num_classes: int) -> "BatchPool":
        """Of one batch.

        Raises:
            StiffnessError: `gram` is not finite, or the targets do not fit the number of classes.
        """
        rows = [pair_rows(pairs, targets, num_classes) for pairs in (cosine_pairs(gram), sign_pairs(gram))]
        cosine, sign = (one.map(lambda values: values.cpu().double()) for one in rows)
        zeros = int((gram.diagonal() == 0).sum())
        batch = torch.tensor([loss], dtype=torch.float64), torch.tensor([float(len(gram))], dtype=torch.float64)
        return cls(targets.cpu().long(), cosine.total, sign.total, cosine.count, *batch, zeros)

    @property
    def bytes(self) -> int:
        """Its size in memory."""
        return sum(value.numel() * value.element_size() for value in self._tensors.values())

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self.count.shape[1]

    def joined(self, others: Iterable["BatchPool"]) -> "BatchPool":
        """With all batches of other pools behind its own."""
        pools = [self, *others]
        tensors = {name: torch.cat([getattr(pool, name) for pool in pools]) for name in self._tensors}
        zeros, seconds = sum(pool.zeros for pool in pools), sum(pool.seconds for pool in pools)
        return replace(self, **tensors, zeros=zeros, seconds=seconds)

    def reading(self, step: int, epoch: float) -> Reading:
        """What all these batches say together; there must be one.

        Only pairs within a batch count, and errors leave out one sample at a time (see `summarise_rows`). They are
        kept without the replicates, which belong to samples that the next reading will not have.
        """
        share = self.sizes / self.sizes.sum()
        loss, others = float((share * self.losses).sum()), len(self.losses) - 1
        variance = (share * (self.losses - loss).square()).sum() / others if others else torch.tensor(torch.nan)
        return Reading(
            step=step,
            epoch=epoch,
            cosine=self._stiffness(self.cosine),
            sign=self._stiffness(self.sign),
            loss=loss,
            loss_se=float(variance.sqrt()),
            zero_fraction=self.zeros / float(self.sizes.sum()),
            seconds=self.seconds,
        )

    def _stiffness(self, sums: Tensor) -> Stiffness:
        stiffness = summarise_rows(Tally(sums, self.count), self.targets, self.num_classes)
        none = torch.zeros(0, dtype=torch.float64)
        return replace(stiffness, within_replicates=none, between_replicates=none)

    @property
    def _tensors(self) -> dict[str, Tensor]:
        return {name: value for name, value in self.state_dict().items() if isinstance(value, Tensor)}

    def state_dict(self) -> dict[str, Any]:
        """The fields by name, as ``torch.load(weights_only=True)`` accepts them."""
        return {one.name: getattr(self, one.name) for one in fields(self)}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> "BatchPool":
        """The pool that gave this `state_dict`."""
        return cls(**state)
