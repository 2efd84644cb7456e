"""The samples that are compared: one probe with itself, or a training probe with a validation probe."""

import hashlib
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_stiffness.batching import join
from lightning_stiffness.functional import Detail, Stiffness, pair_detail, summarise, summarise_cross
from lightning_stiffness.history import ProbeSummary
from lightning_stiffness.probe import Probe, label_entropy
from lightning_stiffness.structure import tensors

Mode = Literal["train", "val", "cross"]


@dataclass(frozen=True)
class ProbePair:
    """The samples that are compared: one probe with itself, or a training probe with a validation probe.

    Attributes:
        mode: Which of the two, and whose samples.
        rows: The probe, in cross mode that of training samples.
        columns: The validation probe in cross mode, else None.
    """

    mode: Mode
    rows: Probe
    columns: Probe | None = None

    @property
    def num_classes(self) -> int:
        """Number of classes that the probes know together."""
        return max(probe.num_classes for probe in (self.rows, self.columns) if probe is not None)

    @property
    def batch(self) -> Any:
        """All samples, rows first."""
        return self.rows.batch if self.columns is None else join([self.rows.batch, self.columns.batch])

    @property
    def missing(self) -> tuple[int, ...]:
        """Classes without a within-class value: fewer than two samples, or in cross mode none on one side."""
        return self.rows.missing if self.columns is None else tuple(sorted({*self.rows.missing, *self.columns.missing}))

    @property
    def fingerprint(self) -> str:
        """Equal for the same samples: their positions in the dataset, or their content where these are not known."""
        digest = hashlib.sha256()
        for probe in (self.rows, self.columns):
            if probe is not None:
                digest.update(repr(probe.targets.tolist()).encode())
                digest.update(_content(probe.batch) if None in probe.ids else repr(probe.ids).encode())
        return digest.hexdigest()

    def summary(self, class_names: tuple[str, ...] | None, superclasses: tuple[int, ...] | None) -> ProbeSummary:
        """What a reader of the history has to know."""
        strata = self.rows.targets.tolist()
        if self.columns is not None:
            strata += (self.columns.targets + self.num_classes).tolist()
        entropy = label_entropy(self.rows.targets)
        return ProbeSummary(
            self.mode, self.num_classes, tuple(strata), entropy, class_names, superclasses, self.rows.ids
        )

    def stiffness(self, pairs: Tensor) -> Stiffness:
        """The class matrix and its summaries from the values of all pairs of samples."""
        if self.columns is None:
            return summarise(pairs, self.rows.targets, self.num_classes)
        n = len(self.rows.targets)
        return summarise_cross(pairs[:n, n:], self.rows.targets, self.columns.targets, self.num_classes)

    def detail(self, pairs: Tensor, distances: Tensor | None) -> Detail:
        """What the values of all pairs say of single row samples, and of their own spread."""
        n, rows = len(self.rows.targets), self.rows.targets
        if self.columns is None:
            return pair_detail(pairs, rows, rows, self.num_classes, distances)
        return pair_detail(pairs[:n, n:], rows, self.columns.targets, self.num_classes, distances)


def _content(batch: Any) -> bytes:
    parts = (part.detach().cpu().reshape(-1).contiguous().view(torch.uint8) for part in tensors(batch))
    return b"".join(part.numpy().tobytes() for part in parts)
