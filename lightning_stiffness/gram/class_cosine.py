"""The class matrix of mean cosines: by sums of unit gradients over classes, or by K where that costs less."""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from lightning_stiffness.gram.class_pass import ClassPass
from lightning_stiffness.gram.class_sums import ClassSums, mean_cosines
from lightning_stiffness.gram.measurement import Measurement
from lightning_stiffness.gram.results import ClassCosine

# What a multiply-add for each entry of the sums costs beside one in a matrix product: they are zeroed, written and
# multiplied in main memory (measured).
SUMS_COST = 24


@torch.no_grad()
def class_cosine(measurement: Measurement, targets: Int[Tensor, "n"], num_classes: int) -> ClassCosine:
    """Mean cosines between classes, by the cheaper route."""
    if _prefers_gram(measurement, num_classes):
        return _by_gram(measurement, targets, num_classes)
    return _BySums(measurement, targets.cpu(), num_classes).result()


def _prefers_gram(measurement: Measurement, num_classes: int) -> bool:
    """Whether K costs less than the sums: of few samples, through layers without positions."""
    n, found = measurement.samples, measurement.found_sizes()
    if measurement.plan.fallback or n * n * 8 > measurement.budget:
        return False
    pairs = n * n / 2 * sum(one.pair_cost for one in found)
    sums = sum(one.columns * (n + SUMS_COST * num_classes) for one in found)
    return pairs < sums


def _by_gram(measurement: Measurement, targets: Int[Tensor, "n"], num_classes: int) -> ClassCosine:
    gram = measurement.gram()
    targets = targets.to(gram.matrix.device)
    unit = torch.where(gram.zero, 0.0, 1 / gram.norms)
    members = torch.nn.functional.one_hot(targets.long(), num_classes).to(unit) * unit[:, None]
    counts = torch.bincount(targets[~gram.zero], minlength=num_classes).double()
    products = members.T @ gram.matrix @ members
    return ClassCosine(mean_cosines(products, counts.to(products.device)), counts.cpu(), gram.zero, gram.losses)


@dataclass(frozen=True)
class _BySums:
    """Adds unit gradients class by class, in chunks of samples that are sorted by class."""

    measurement: Measurement
    targets: Int[Tensor, "n"]
    num_classes: int

    def result(self) -> ClassCosine:
        """Where the sums do not fit the budget, each group of parameters takes a pass of its own."""
        passes = ClassPass(self.measurement)
        groups = passes.groups(self.num_classes)
        norms = passes.norms().norms if len(groups) > 1 else None
        products, done = [], None
        for group in groups:
            sums = ClassSums(self.num_classes, self.measurement.samples)
            done = passes.add(sums, self.targets, group, norms)
            norms = done.norms
            products.append(sums.products())
        assert done is not None
        total = torch.stack(products).sum(0)
        alive = (done.norms > 0).to(self.targets.device)
        counts = torch.bincount(self.targets[alive], minlength=self.num_classes).double()
        return ClassCosine(mean_cosines(total, counts.to(total.device)), counts, done.norms == 0, done.losses)
