"""Samples that learn least together with their own class: candidates for wrong labels."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from lightning_stiffness.history import History, Reading
from lightning_stiffness.report.words import class_names

MOST: Final = 24


@dataclass(frozen=True)
class Suspect:
    """A sample that stands out from its class.

    Attributes:
        row: its place in the probe.
        position: its place in the dataset, where it is known.
        given: the name of its class.
        opposed: the name of the class that its gradient opposes most at most readings, where that is known. A wrong
            label works against its right class: of 58 wrong digits, 53 to 56 opposed it most from epoch 5 on.
        own_alignment: mean cosine with its own class, averaged over readings, in [-1, 1].
        rival_alignment: the same with whichever other class is best, in [-1, 1].
        usual: the median of the own alignments of its class.
    """

    row: int
    position: int | None
    given: str
    opposed: str | None
    own_alignment: float
    rival_alignment: float
    usual: float

    @property
    def margin(self) -> float:
        """Own minus rival alignment."""
        return self.own_alignment - self.rival_alignment


def suspects(history: History, most: int = MOST) -> list[Suspect]:
    """The samples with the lowest margin between own and rival alignment, averaged over the readings that `counted`.

    At most a quarter of the probe; a run without wrong labels has such samples, too: unusual ones.
    """
    readings = counted(history)
    if not readings:
        return []
    own, rival = (_mean(readings, name) for name in ("own", "rival"))
    margins = (own - rival).nan_to_num(math.inf)
    order = margins.argsort()[: min(most, len(own) // 4)].tolist()
    return [_suspect(history, readings, row, own, rival) for row in order if math.isfinite(margins[row])]


def counted(history: History) -> list[Reading]:
    """The readings that count: those with details, without the first quarter, in which all samples look alike."""
    known = [reading for reading in history if reading.detail is not None and len(reading.detail.own)]
    sizes = {len(reading.detail.own) for reading in known if reading.detail is not None}
    return known[math.ceil(len(known) / 4) if len(known) > 2 else len(known) - 1 :] if len(sizes) == 1 else []


def _suspect(history: History, readings: Sequence[Reading], row: int, own: Tensor, rival: Tensor) -> Suspect:
    probe, names = history.probe, class_names(history.probe)
    strata = torch.tensor(probe.strata[: len(own)])
    has_class = row < len(strata) == len(own)
    usual = own[strata == strata[row]].nanmedian() if has_class else own.nanmedian()
    return Suspect(
        row=row,
        position=probe.ids[row] if row < len(probe.ids) else None,
        given=names[strata[row]] if has_class else "unknown",
        opposed=_opposed(readings, row, names),
        own_alignment=float(own[row]),
        rival_alignment=float(rival[row]),
        usual=float(usual),
    )


def _opposed(readings: Sequence[Reading], row: int, names: Sequence[str]) -> str | None:
    classes = [int(reading.detail.opposed_class[row]) for reading in readings if reading.detail is not None]
    known = [label for label in classes if label >= 0]
    return names[max(set(known), key=known.count)] if known else None


def _mean(readings: Sequence[Reading], name: str) -> Tensor:
    return torch.stack([getattr(reading.detail, name).double() for reading in readings]).nanmean(dim=0)
