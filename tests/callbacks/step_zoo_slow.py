"""LightningModules whose losses can be had only by running one sample at a time."""

from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule

from tests.callbacks.step_zoo import (
    CLASS_WEIGHTS,
    CLASSES,
    POSITIONS,
    AuxiliaryHead,
    Net,
    Tokens,
    plain_batch,
    token_batch,
)

SLOW: dict[str, tuple[type[LightningModule], Any]] = {}


def one_by_one(batch: Any = plain_batch):
    def add(module: type[LightningModule]) -> type[LightningModule]:
        SLOW[module.__name__] = module, batch
        return module

    return add


@one_by_one()
class Penalty(Net):
    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self(x), y) + 0.1 * sum(p.square().sum() for p in self.parameters())


@one_by_one()
class NormPenalty(Net):
    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self(x), y) + 0.1 * self.head.weight.norm()


@one_by_one()
class Unwatched(Net):
    def training_step(self, batch, batch_idx):
        x, y = batch
        losses = F.cross_entropy(self(x), y, reduction="none")
        return torch.dot(losses, torch.full_like(losses, 1 / len(y)))


@one_by_one()
class WeightedAndAuxiliary(AuxiliaryHead):
    """The share of a sample's first term depends on the classes of the others, that of the second does not."""

    def training_step(self, batch, batch_idx):
        x, y = batch
        features = self.body(x)
        first = F.cross_entropy(self.head(features), y, weight=CLASS_WEIGHTS)
        return first + 0.3 * F.cross_entropy(self.second(features), y)


class TwoTasks(AuxiliaryHead):
    """Every fourth sample has no label for the second task."""

    def training_step(self, batch, batch_idx):
        x, y = batch
        features = self.body(x)
        first = F.cross_entropy(self.head(features), y)
        return first + 0.3 * self.second_loss(self.second(features), (y - 1) * 2 % CLASSES, y > 0)

    def second_loss(self, logits, y, is_labelled):
        return F.cross_entropy(logits, torch.where(is_labelled, y, -100))


@one_by_one()
class SameNoiseForAll(Net):
    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self(x + 0.1 * torch.randn_like(x)), y)


@one_by_one()
class LittleNoise(Net):
    """So little that the losses seem to be the same."""

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self(x + 1e-2 * torch.randn_like(x)), y)


@one_by_one()
class SortedByLength(Net):
    """As for packed sequences."""

    def training_step(self, batch, batch_idx):
        x, y = batch
        order = x.square().sum(dim=1).argsort(descending=True)
        return F.cross_entropy(self(x[order]), y[order])


@one_by_one(token_batch)
class SortedTokens(Tokens):
    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self(x.flip(0)).transpose(1, 2), y.flip(0))


@one_by_one(token_batch)
class PackedTokens(Tokens):
    """Nine values of six samples' eighteen, or twelve, are dropped: sometimes a multiple of the samples remains."""

    def training_step(self, batch, batch_idx):
        x, y = batch
        lengths = (y[:, 0] % POSITIONS) + 1
        kept = torch.arange(POSITIONS) < lengths[:, None]
        return F.cross_entropy(self(x)[kept], y[kept])


@one_by_one()
class AnotherWayForFew(Net):
    def training_step(self, batch, batch_idx):
        x, y = batch
        losses = F.cross_entropy(self(x), y, reduction="none")
        return losses.mean() if len(y) < 4 else (losses.sum() / len(y) + losses.mean()) / 2


class TwoTasksMaskedByHand(TwoTasks):
    def second_loss(self, logits, y, is_labelled):
        return (F.cross_entropy(logits, y, reduction="none") * is_labelled).sum() / is_labelled.sum()


class TwoTasksSelected(TwoTasks):
    def second_loss(self, logits, y, is_labelled):
        return F.cross_entropy(logits[is_labelled], y[is_labelled], reduction="none").mean()


MISSING_LABELS = (TwoTasks, TwoTasksMaskedByHand, TwoTasksSelected)
