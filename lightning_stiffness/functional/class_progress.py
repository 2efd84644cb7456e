"""What the mean training step does to each class, to first order."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_stiffness.errors import StiffnessError
from lightning_stiffness.functional.tally import class_sums, summation_dtype
from lightning_stiffness.functional.validation import require_square, require_targets


def class_progress(
    products: Float[Tensor, "n n"], targets: Int[Tensor, "n"], rates: Float[Tensor, "c"]
) -> Float[Tensor, "c"]:
    """By how much the loss of each class falls in the mean training step, to first order.

    A step of plain gradient descent with learning rate r changes the loss of sample i by -r <g_i, h>, where g_i is the
    gradient of that loss and h the gradient that training follows: on average sum_b q_b h_b, with h_b the mean gradient
    of the training loss over class b. A sample's product with itself is what it does for itself alone, so only pairs of
    different samples count: this is what the step does for *another* sample of the class.

    Args:
        products: <g_i, h_j>: g_i of the loss that counts, h_j of the loss that is trained. Where the two are the same
            loss, the Gram matrix.
        targets: Class of each sample, in [0, c).
        rates: How often each class is drawn; made to sum to 1.

    Returns:
        progress_a = sum over b of q_b * mean over i in a, j in b, i != j of <g_i, h_j>, in units of loss for a learning
        rate of 1. Negative: the step raises the loss of the class. nan for a class with fewer than two samples; other
        classes without a sample are left out of the sum.

    Raises:
        StiffnessError: The products are not square, targets do not fit them, or a rate is not a number from 0 on.

    Source: ours.

    >>> products = torch.tensor([[4.0, 4, -1], [4, 4, -1], [-1, -1, 9]])
    >>> class_progress(products, torch.tensor([0, 0, 1]), torch.tensor([3.0, 1]))
    tensor([2.7500,    nan], dtype=torch.float64)
    """
    return _Pairs.of(products, targets, rates).progress


def class_progress_error(
    products: Float[Tensor, "n n"], targets: Int[Tensor, "n"], rates: Float[Tensor, "c"]
) -> Float[Tensor, "c"]:
    """Standard error of `class_progress`, for another draw of samples of each class: a stratified delete-one jackknife.

    Args:
        products: As in `class_progress`.
        targets: Likewise.
        rates: Likewise.

    Returns:
        One for each class, in the unit of the progress; nan for a class with fewer than three samples.

    Raises:
        StiffnessError: As `class_progress`.

    Source: ours (jackknife: Efron & Stein 1981).

    >>> class_progress_error(torch.ones(6, 6), torch.tensor([0, 0, 0, 1, 1, 1]), torch.tensor([1.0, 1]))
    tensor([0., 0.], dtype=torch.float64)
    """
    return _Pairs.of(products, targets, rates).error


@dataclass(frozen=True)
class _Pairs:
    """Sums over pairs of different samples, and what leaving one sample out changes.

    Attributes:
        targets: Class of each sample.
        sizes: Samples of each class.
        shares: How often each class is drawn, summing to 1.
        rows: Sum over the samples of each class, of the products of a sample as i, [n, c].
        columns: The same of a sample as j.
    """

    targets: Tensor
    sizes: Tensor
    shares: Tensor
    rows: Tensor
    columns: Tensor

    @classmethod
    def of(cls, products: Tensor, targets: Tensor, rates: Tensor) -> "_Pairs":
        require_square(products, "products")
        targets = require_targets(targets, len(products), len(rates))
        if not bool((rates >= 0).all()) or not 0 < float(rates.sum()) < torch.inf:
            raise StiffnessError("rates must be numbers from 0 on, not all 0: how often each class is drawn.")
        others = products.to(summation_dtype(products.device), copy=True).fill_diagonal_(0)
        sizes = class_sums(torch.ones_like(others[0]), targets, len(rates))
        shares = rates.to(others) / rates.to(others).sum()
        rows, columns = (class_sums(others, targets, len(rates), dim) for dim in (1, 0))
        return cls(targets, sizes, shares, rows, columns.T)

    @property
    def sums(self) -> Tensor:
        return class_sums(self.rows, self.targets, len(self.shares))

    @property
    def means(self) -> Tensor:
        """Of each pair of classes; 0 where there is no pair."""
        pairs = self.sizes[:, None] * self.sizes - torch.diag(self.sizes)
        return torch.where(pairs > 0, self.sums / pairs, 0)

    @property
    def progress(self) -> Tensor:
        return torch.where(self.sizes < 2, torch.nan, self.means @ self.shares)

    @property
    def error(self) -> Tensor:
        replicates, sizes = self._replicates(), self.sizes
        centres = class_sums(replicates, self.targets, len(sizes)) / sizes.clamp(min=1)[:, None]
        squares = class_sums((replicates - centres[self.targets]).square(), self.targets, len(sizes))
        variance = ((sizes - 1).clamp(min=0) / sizes.clamp(min=1)) @ squares
        return torch.where(sizes < 3, torch.nan, variance.sqrt())

    def _replicates(self) -> Tensor:
        """The progress of each class without each sample, [n, c]; of no meaning where a class has too few left."""
        sums, sizes, own, means = self.sums, self.sizes, self.targets, self.means
        left = (sizes[own] - 1)[:, None]  # samples of its class without this one
        column = torch.where(left > 0, (sums[:, own].T - self.columns) / (left * sizes).clamp(min=1), 0)
        found = means @ self.shares + self.shares[own][:, None] * (column - means[:, own].T)
        row = torch.where(left > 0, (sums[own] - self.rows) / (left * sizes).clamp(min=1), 0)
        same = own[:, None]
        both = self.rows.gather(1, same) + self.columns.gather(1, same)
        row.scatter_(1, same, (sums[own, own][:, None] - both) / (left * (left - 1)).clamp(min=1))
        return found.scatter_(1, same, (row @ self.shares)[:, None])
