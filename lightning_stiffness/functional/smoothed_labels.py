"""Label smoothing as a change of the logits: for a loss that somebody else computes."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_stiffness.errors import StiffnessError
from lightning_stiffness.functional.validation import require_targets


def smoothed_label_logits(
    logits: Float[Tensor, "n c"], targets: Int[Tensor, "n"], smoothing: float
) -> Float[Tensor, "n c"]:
    """Logits whose plain cross entropy is that of label smoothing: the same loss and the same gradients.

    Smoothing s adds s (z_y - mean z) to the cross entropy of logits z with class y. The same loss comes of a smaller
    logit of that class alone: with p_y its probability, z_y + log(1 - p_y) - log(exp(s (z_y - mean z)) - p_y).

    Args:
        logits: of the samples, for two classes or more.
        targets: class of each sample.
        smoothing: s, the share of the label that is spread evenly over all classes, in [0, 1).

    Returns:
        The logits, changed at the samples' own classes. Where s (z_y - mean z) is above log 2 or so, the largest is no
        longer that of the own class, however sure the network is of it: they are for the loss alone.

    Raises:
        StiffnessError: `smoothing` is out of range, there is a single class, or a target is none of the classes.

    Source: ours; label smoothing by Szegedy et al., arXiv:1512.00567, section 7.

    >>> import torch.nn.functional as F
    >>> z, y = torch.tensor([[3.0, 1.0, 0.0]]), torch.tensor([0])
    >>> F.cross_entropy(smoothed_label_logits(z, y, 0.1), y), F.cross_entropy(z, y, label_smoothing=0.1)
    (tensor(0.3365), tensor(0.3365))
    """
    require_smoothing(smoothing)
    if logits.shape[1] < 2:
        raise StiffnessError(f"Label smoothing needs logits of at least two classes, found {logits.shape[1]}.")
    own = require_targets(targets, len(logits), logits.shape[1])[:, None]
    if smoothing == 0:
        return logits
    logs = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(1)
    sure = logs.gather(1, own)
    lead = smoothing * (sure - logs.mean(1, keepdim=True))
    others = logs.scatter(1, own, -torch.inf).logsumexp(1, keepdim=True)  # log(1 - p_y)
    rest = lead + (-torch.expm1(sure - lead)).log()  # log(exp(lead) - p_y); lead - sure is the smoothed loss, above 0
    return logits.scatter_add(1, own, (others - rest).to(logits))


def require_smoothing(smoothing: float) -> None:
    """Raises StiffnessError unless it is a share of the labels in [0, 1)."""
    if not 0 <= smoothing < 1:
        raise StiffnessError(f"smoothing must be a share of the labels in [0, 1), found {smoothing}; 0.1 is usual.")
