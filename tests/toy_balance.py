"""Readings of balance made of numbers."""

import math

import torch

from lightning_stiffness.balance import BalanceReading


def toy_reading(step=10, classes=6, seed=0, names=None, recalls=True, groups=((0, 1), (4, 5)), **changes):
    """Class k has 2^-k of the samples; classes of a group fight, others hardly."""
    generator = torch.Generator().manual_seed(seed + step)
    counts = (1000 * 0.5 ** (5 * torch.arange(classes) / max(classes - 1, 1))).round()
    assignment = list(range(classes))
    for group in groups:
        for label in group:
            assignment[label] = group[0]
    same = torch.tensor(assignment)[:, None] == torch.tensor(assignment)
    noise = 0.05 * torch.randn(classes, classes, generator=generator)
    classifier = (torch.where(same, -0.6, 0.1) + (noise + noise.T) / 2).fill_diagonal_(0.8)
    shares = torch.rand(classes, classes, generator=generator).fill_diagonal_(0)
    absorption = (shares / shares.sum(1, keepdim=True) - 1 / (classes - 1)).clamp(min=0)
    recall = 1 - torch.arange(classes) / (2 * classes)
    fields = {
        "step": step,
        "epoch": step / 10,
        "counts": counts,
        "measured": counts.clamp(max=20),
        "groups": tuple(assignment),
        "order": tuple(sorted(range(classes), key=lambda label: (assignment[label], label))),
        "reason": "no groups: the network does not tell the classes apart yet",
        "agreement": math.nan if step == 10 else 0.75,
        "lost": torch.linspace(0.02, 0.4, classes),
        "progress": torch.randn(classes, generator=generator),
        "progress_se": torch.full((classes,), 0.5),
        "classifier": classifier,
        "features": -classifier / 2,
        "absorption": absorption,
        "recall": recall if recalls else None,
        "natural_recall": recall**2 if recalls else None,
        "class_names": names,
        "seconds": 0.1,
        "elapsed": 2.0 * step,
    }
    return BalanceReading(**{**fields, **changes})


def toy_readings(count=5, **options):
    return [toy_reading(10 * (k + 1), **options) for k in range(count)]
