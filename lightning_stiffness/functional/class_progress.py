"""What the mean training step does to each class, to first order."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_stiffness.errors import StiffnessError
from lightning_stiffness.functional.tally import membership
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
        members: 1 where a sample is of a class, [n, c].
        shares: How often each class is drawn, summing to 1.
        rows: Sum over the samples of each class, of the products of a sample as i, [n, c].
        columns: The same of a sample as j.
    """

    targets: Tensor
    members: Tensor
    shares: Tensor
    rows: Tensor
    columns: Tensor

    @classmethod
    def of(cls, products: Tensor, targets: Tensor, rates: Tensor) -> "_Pairs":
        require_square(products, "products")
        targets = require_targets(targets, len(products), len(rates))
        if not bool((rates >= 0).all()) or not 0 < float(rates.sum()) < torch.inf:
            raise StiffnessError("rates must be numbers from 0 on, not all 0: how often each class is drawn.")
        members = membership(targets, len(rates))
        others = products.to(members.dtype).clone().fill_diagonal_(0)
        shares = rates.to(members) / rates.to(members).sum()
        return cls(targets, members, shares, others @ members, others.T @ members)

    @property
    def sizes(self) -> Tensor:
        return self.members.sum(0)

    @property
    def sums(self) -> Tensor:
        return self.members.T @ self.rows

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
        centres = (self.members.T @ replicates) / sizes.clamp(min=1)[:, None]
        squares = self.members.T @ (replicates - centres[self.targets]).square()
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
