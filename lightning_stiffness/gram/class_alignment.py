"""How each sample's gradient agrees with those of each class: passes over any number of batches, without any pair."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_stiffness.batching import batch_size
from lightning_stiffness.errors import StiffnessError
from lightning_stiffness.gram.class_pass import ClassPass, Passed
from lightning_stiffness.gram.class_sums import ClassSums, UnknownForm
from lightning_stiffness.gram.measurement import Measurement
from lightning_stiffness.gram.results import ClassAlignment

Result = TypeVar("Result")


@dataclass(frozen=True)
class AlignmentPasses:
    """The passes: one for the sums over classes, another for the products with them; for each group of parameters.

    Attributes:
        run: Works on one batch.
        batches: As `GramEngine.class_alignment`, and so the others.
        num_classes: Number c of classes.
        targets: batch -> classes.
        relabel: (batch, labels) -> batch, or None.
    """

    run: Callable[[Any, Callable[[Measurement], Any]], Any]
    batches: Iterable[Any]
    num_classes: int
    targets: Callable[[Any], Tensor]
    relabel: Callable[[Any, Tensor], Any] | None

    def result(self, give_up_rules: Callable[[], None]) -> ClassAlignment:
        """The means; where batches differ so much that their sums do not add up, by the slow route for all.

        Args:
            give_up_rules: Sends all parameters to the fallback.
        """
        if iter(self.batches) is self.batches:
            raise StiffnessError(
                f"The batches are read twice, found {type(self.batches).__name__}, which can be read once. "
                "Pass a list of batches or a DataLoader."
            )
        try:
            return self._result()
        except UnknownForm:
            give_up_rules()
            return self._result()

    def _result(self) -> ClassAlignment:
        groups = self._groups()
        norms = _Rows("norms")
        if len(groups) > 1:
            for batch in self.batches:
                norms.append(self._targets_of(batch), self.run(batch, lambda one: ClassPass(one).norms().norms))
        totals = _Totals()
        counts = torch.zeros(self.num_classes, dtype=torch.float64)
        for group in groups:
            sums = ClassSums(self.num_classes)
            counts = self._add(sums, group, norms if len(groups) > 1 else None)
            for number, batch in enumerate(self.batches):
                totals.add(number, self._targets_of(batch), self._products(batch, sums, group))
        return totals.result(counts, with_losses=self.relabel is not None)

    def _groups(self) -> list[set[int] | None]:
        for batch in self.batches:
            found: list[set[int] | None] = self.run(batch, lambda one: ClassPass(one).groups(self.num_classes))
            return found
        raise StiffnessError("There must be at least one batch to align with classes, found none.")

    def _add(self, sums: ClassSums, group: set[int] | None, norms: "_Rows | None") -> Float[Tensor, "c"]:
        """Adds all batches to the sums; the number of samples of each class that have a gradient."""
        counts = torch.zeros(self.num_classes, dtype=torch.float64)
        for number, batch in enumerate(self.batches):
            targets = self._targets_of(batch)
            known = None if norms is None else norms.of(number, targets)

            def work(
                one: Measurement, targets: Tensor = targets, known: Tensor | None = known
            ) -> tuple[ClassSums, Tensor]:
                own = ClassSums(self.num_classes)  # a batch whose plan turns out wrong is added anew
                return own, ClassPass(one).add(own, targets, group, known).norms

            own, found = self.run(batch, work)
            sums.merge(own)
            counts += torch.bincount(targets[found.cpu() > 0], minlength=self.num_classes)
        return counts

    def _products(self, batch: Any, sums: ClassSums, group: set[int] | None) -> "_Products":
        """The products of a batch with the sums, under the labels that it has or under each label in turn."""
        parts = []
        for variant, classes in self._variants(batch):

            def work(one: Measurement, classes: Sequence[int] = classes) -> Passed:
                return ClassPass(one).multiply(sums, classes, group)

            parts.append(self.run(variant, work))
        return _Products(
            torch.cat([part.products for part in parts], 1),
            torch.stack([part.norms.cpu().double().square() for part in parts], 1),
            torch.stack([part.losses.cpu() for part in parts], 1),
        )

    def _variants(self, batch: Any) -> Iterator[tuple[Any, list[int]]]:
        if self.relabel is None:
            yield batch, list(range(self.num_classes))
            return
        given = self.targets(batch)
        for label in range(self.num_classes):
            yield self.relabel(batch, torch.full_like(given, label)), [label]

    def _targets_of(self, batch: Any) -> Int[Tensor, "n"]:
        targets = self.targets(batch)
        require_classes(targets, batch_size(batch), self.num_classes)
        return targets.detach().cpu().long()


@dataclass(frozen=True, eq=False)
class _Products:
    """Of one batch: products with the sums, squares of the norms, and losses, under one label or under each."""

    products: Float[Tensor, "n c"]
    squares: Float[Tensor, "n v"]
    losses: Float[Tensor, "n v"]


@dataclass(frozen=True)
class _Rows:
    """Values of the samples of each batch, for a later pass over the same batches."""

    name: str
    targets: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)

    def append(self, targets: Tensor, values: Tensor) -> None:
        self.targets.append(targets)
        self.values.append(values)

    def of(self, number: int, targets: Tensor) -> Tensor:
        """Those of a batch, which must be the one that it was."""
        _require_same(self.targets, number, targets)
        return self.values[number]


@dataclass(frozen=True)
class _Totals:
    """What the groups of parameters add up to, batch by batch."""

    targets: list[Tensor] = field(default_factory=list)
    parts: list[_Products] = field(default_factory=list)

    def add(self, number: int, targets: Tensor, found: _Products) -> None:
        """Adds what was found of some parameters."""
        if number < len(self.parts):
            _require_same(self.targets, number, targets)
            known = self.parts[number]
            self.parts[number] = _Products(known.products + found.products, known.squares + found.squares, found.losses)
        else:
            self.targets.append(targets)
            self.parts.append(found)

    def result(self, counts: Float[Tensor, "c"], with_losses: bool) -> ClassAlignment:
        """The means over classes; of the losses all, or those under the given labels."""
        products, squares, losses = (
            torch.cat([getattr(part, name) for part in self.parts]) for name in ("products", "squares", "losses")
        )
        targets = torch.cat(self.targets)
        own = torch.nn.functional.one_hot(targets, len(counts)).double()
        norms = torch.where(squares > 0, squares.sqrt(), torch.nan)
        others = counts - own
        means = torch.where(others > 0, (products / norms - own) / others, torch.nan).clamp(-1, 1)
        return ClassAlignment(means, targets, losses if with_losses else losses[:, 0], counts)


def _require_same(known: Sequence[Tensor], number: int, targets: Tensor) -> None:
    if number >= len(known) or not torch.equal(known[number], targets):
        raise StiffnessError(
            "The batches must be the same in each pass over the data, in the same order; the classes of batch "
            f"{number} are others than before. Pass a list of batches, or a DataLoader with shuffle=False."
        )


def require_classes(targets: Tensor, n: int, num_classes: int | None = None) -> None:
    """Raises StiffnessError where these are not the classes of n samples, in [0, num_classes) if that is given."""
    if targets.shape != (n,) or targets.dtype.is_floating_point:
        raise StiffnessError(f"targets must be integers of shape [{n}], found {targets.dtype} {list(targets.shape)}.")
    low, high = (int(targets.min()), int(targets.max())) if n else (0, 0)
    if num_classes is not None and (low < 0 or high >= num_classes):
        raise StiffnessError(
            f"targets must lie in [0, {num_classes}), found {low} to {high}; pass the right num_classes."
        )
