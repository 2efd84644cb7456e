"""Sums of unit gradients over classes: what the mean cosine between classes needs, without any pair."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_stiffness.gram.collect import Found
from lightning_stiffness.gram.factors import Run
from lightning_stiffness.gram.workspace import Workspace

PIECE = 1 << 14  # columns that are multiplied at once: rounding errors of float32 do not grow beyond them
PIECES_AT_ONCE = 8  # are summed at once: fewer make thin, slow products (measured), more take more memory


class UnknownForm(Exception):  # noqa: N818 (the caller answers it by another route)
    """Gradients of a parameter come in a form that is not that of their sums."""


@dataclass
class ClassSums:
    """S_a, the sum over class a of weights_i * g_i, for some parameters.

    Attributes:
        num_classes: Number c of classes.
        all_samples: Only the products are wanted: where so many samples come at once, their sums are not kept.
        sums: One [c, columns] tensor for each form that was found, by its identity.
    """

    num_classes: int
    all_samples: int | None = None
    sums: dict[tuple[tuple[int, ...], ...], Tensor] = field(default_factory=dict)
    _products: Tensor | None = None

    def add(self, found: Sequence[Found], weights: Float[Tensor, "n"], runs: Sequence[Run]) -> None:
        """Adds a chunk of samples that are sorted by class."""
        if len(weights) == self.all_samples and len({one.identity for one in found}) == len(found):
            self._products = self._multiplied(found, weights, runs)
            return
        for one in found:
            factors = one.factors
            if one.identity not in self.sums:
                self.sums[one.identity] = weights.new_zeros(self.num_classes, factors.columns, dtype=factors.dtype)
            factors.add_class_sums(self.sums[one.identity], weights.to(factors.dtype), runs)

    def merge(self, other: "ClassSums") -> None:
        """Adds the sums of other samples, which may use other parameters.

        Raises:
            UnknownForm: They are of another form.
        """
        for identity, sums in other.sums.items():
            if self._knows(identity, sums.shape[1]):
                self.sums[identity] += sums
            else:
                self.sums[identity] = sums

    def products_with(self, found: Sequence[Found], classes: Sequence[int], samples: int) -> Float[Tensor, "n k"]:
        """<g_i, S_a> for these samples and classes a, over all parameters that were found.

        Raises:
            UnknownForm: The gradients are of another form.
        """
        total = torch.zeros(samples, len(classes), dtype=torch.float64)
        for one in found:
            if self._knows(one.identity, one.factors.columns):
                total += one.factors.products_with(self.sums[one.identity][list(classes)]).cpu().double()
        return total

    def _knows(self, identity: tuple[tuple[int, ...], ...], columns: int) -> bool:
        """Whether there are sums of this form; if not, these parameters must have none of another form either."""
        if identity in self.sums and self.sums[identity].shape[1] == columns:
            return True
        if any(set(identity[1]) & set(known[1]) for known in self.sums):
            raise UnknownForm
        return False

    def products(self) -> Float[Tensor, "c c"]:
        """S_a . S_b over all parameters; products of short pieces are added up in float64, where there is one."""
        if self._products is not None:
            return self._products
        return self._total(piece for sums in self.sums.values() for piece in sums.split(PIECE, 1))

    def _multiplied(self, found: Sequence[Found], weights: Tensor, runs: Sequence[Run]) -> Float[Tensor, "c c"]:
        """The products of sums that are made piece by piece, each in the memory of the last."""

        def pieces() -> Iterator[Tensor]:
            workspace = Workspace()
            for one in found:
                scales = weights.to(one.factors.dtype)
                for factors in one.factors.pieces(PIECES_AT_ONCE * PIECE):
                    sums = workspace.block((self.num_classes, factors.columns), scales).zero_()
                    factors.add_class_sums(sums, scales, runs)
                    yield from sums.split(PIECE, 1)

        return self._total(pieces())

    def _total(self, pieces: Iterable[Tensor]) -> Float[Tensor, "c c"]:
        total: Tensor | None = None
        for piece in pieces:
            product = piece @ piece.T
            product = product if product.device.type == "mps" else product.double()
            total = product if total is None else total.add_(product)
        return torch.zeros(self.num_classes, self.num_classes, dtype=torch.float64) if total is None else total


def mean_cosines(products: Float[Tensor, "c c"], counts: Float[Tensor, "c"]) -> Float[Tensor, "c c"]:
    """Mean over pairs of different samples from sums of unit gradients; nan where there is no pair."""
    counts = counts.to(products)
    own = torch.diag(counts)
    pairs = counts[:, None] * counts - own
    means = (products - own) / pairs
    return torch.where(pairs > 0, means, torch.nan).clamp(-1, 1)
