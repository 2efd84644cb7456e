"""What the mean training step does to each class, to first order."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_stiffness.errors import StiffnessError
from lightning_stiffness.functional.stiffness import class_matrix
from lightning_stiffness.functional.validation import require_square


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
    require_square(products, "products")
    if not bool((rates >= 0).all()) or not 0 < float(rates.sum()) < torch.inf:
        raise StiffnessError("rates must be numbers from 0 on, not all 0: how often each class is drawn.")
    shares = rates.to(products.device).double() / rates.sum()
    others = products.double().clone().fill_diagonal_(torch.nan)
    means = class_matrix(others, targets, targets, len(rates))
    return torch.where(means.diagonal().isnan(), torch.nan, (means.nan_to_num(0.0) * shares).sum(1))
