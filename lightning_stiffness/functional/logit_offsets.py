"""What is added to the logits of a classifier of imbalanced classes, in the loss or after training.

Let p(y | x) be what data with class frequencies f call for. Softmax of z + log(g / f), with z the logits that fit them,
is what data with frequencies g would call for: all functions here are this rule.
"""

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from lightning_stiffness.errors import StiffnessError
from lightning_stiffness.functional.class_rates import require_counts
from lightning_stiffness.functional.smoothed_labels import require_smoothing
from lightning_stiffness.functional.validation import require_targets


def training_logit_adjustment(
    frequencies: Float[Tensor, "c"], tau: float = 1.0, smoothing: float = 0.0
) -> Float[Tensor, "c"]:
    """What logit adjustment adds to the logits inside the training loss: tau log f_c. At test time nothing is added.

    Under label smoothing s the loss meets class c with the frequency (1 - s) f_c + s / c of the smoothed labels, which
    takes the place of f_c: log f_c would prefer small classes, the more the smaller (ours; measured in the docs).

    Args:
        frequencies: how often each class is drawn in training; made to sum to 1. With smoothing, some may be 0.
        tau: strength; 1 makes the test-time logits those of equal class frequencies, where the loss is minimal.
        smoothing: s, the share of each label that the loss spreads evenly over all classes, in [0, 1).

    Returns:
        One offset for each class, at most 0 for tau >= 0.

    Raises:
        StiffnessError: a frequency is not a positive number, or `smoothing` is out of range.

    Source: Menon et al., Long-tail learning via logit adjustment, arXiv:2007.07314.

    >>> import torch
    >>> training_logit_adjustment(torch.tensor([0.9, 0.1]))
    tensor([-0.1054, -2.3026])
    """
    return tau * _log_shares(smoothed_frequencies(frequencies, smoothing))


def smoothed_frequencies(frequencies: Float[Tensor, "c"], smoothing: float) -> Float[Tensor, "c"]:
    """How often classes are met in a loss whose labels are smoothed: (1 - s) f_c + s / c.

    Args:
        frequencies: how often each class is drawn, up to a factor; with smoothing, some may be 0.
        smoothing: s, the share of each label that the loss spreads evenly over all classes, in [0, 1).

    Returns:
        Frequencies that sum to 1.

    Raises:
        StiffnessError: a frequency is not a positive number, or `smoothing` is out of range.

    >>> import torch
    >>> smoothed_frequencies(torch.tensor([3.0, 1.0, 0.0]), 0.3)
    tensor([0.6250, 0.2750, 0.1000])
    """
    require_smoothing(smoothing)
    if smoothing and bool((frequencies >= 0).all()) and bool((frequencies > 0).any()):
        frequencies = (1 - smoothing) * frequencies / frequencies.sum() + smoothing / len(frequencies)
    return _log_shares(frequencies).exp()


def posthoc_logit_adjustment(
    logits: Float[Tensor, "n c"], frequencies: Float[Tensor, "c"], tau: float = 1.0
) -> Float[Tensor, "n c"]:
    """Logits of a plainly trained classifier, corrected after training: z_c - tau log f_c.

    Args:
        logits: of any samples.
        frequencies: how often each class was drawn in training; made to sum to 1.
        tau: strength; 1 is the correction to equal class frequencies.

    Returns:
        The corrected logits, whose largest is the prediction.

    Raises:
        StiffnessError: a frequency is not a positive number, or there is not one for each logit.

    Source: Menon et al., Long-tail learning via logit adjustment, arXiv:2007.07314.

    >>> import torch
    >>> posthoc_logit_adjustment(torch.tensor([[1.0, 0.0]]), torch.tensor([0.9, 0.1])).argmax(1)
    tensor([1])
    """
    return logits - tau * _fitting(frequencies, logits)


def balanced_softmax_loss(
    logits: Float[Tensor, "n c"], targets: Int[Tensor, "n"], counts: Int[Tensor, "c"]
) -> Float[Tensor, "n"]:
    """Cross entropy of the softmax in which each class counts by its size: -log(n_y e^z_y / sum_c n_c e^z_c).

    Args:
        logits: of the samples.
        targets: class of each sample.
        counts: training samples of each class.

    Returns:
        One loss for each sample, at least 0.

    Raises:
        StiffnessError: `counts` are no positive integers, one for each logit, or a target is none of the classes.

    Source: Ren et al., Balanced Meta-Softmax, arXiv:2007.10740.

    >>> import torch
    >>> balanced_softmax_loss(torch.zeros(2, 2), torch.tensor([0, 1]), torch.tensor([90, 10]))
    tensor([0.1054, 2.3026])
    """
    offsets = _fitting(require_counts(counts).double(), logits)
    targets = require_targets(targets, len(logits), logits.shape[1])
    return F.cross_entropy(logits + offsets, targets, reduction="none")


def probabilities_under_frequencies(
    logits: Float[Tensor, "n c"], trained: Float[Tensor, "c"], wanted: Float[Tensor, "c"]
) -> Float[Tensor, "n c"]:
    """Class probabilities where classes occur with other frequencies than those that the logits stand for.

    Args:
        logits: of any samples.
        trained: class frequencies that they stand for: those drawn in training, or equal ones after a logit adjustment.
        wanted: class frequencies where the probabilities will be used.

    Returns:
        softmax(z + log wanted - log trained), in [0, 1], rows sum to 1.

    Raises:
        StiffnessError: a frequency is not a positive number, or there is not one for each logit.

    Source: Saerens, Latinne & Decaestecker, Neural Computation 14 (2002), 21-41: correction to new priors.

    >>> import torch
    >>> even, skewed = torch.tensor([0.5, 0.5]), torch.tensor([0.9, 0.1])
    >>> probabilities_under_frequencies(torch.zeros(1, 2), trained=even, wanted=skewed)
    tensor([[0.9000, 0.1000]])
    """
    return (logits + _fitting(wanted, logits) - _fitting(trained, logits)).softmax(1)


def _fitting(frequencies: Tensor, logits: Tensor) -> Tensor:
    if frequencies.shape != logits.shape[1:]:
        raise StiffnessError(
            f"There must be one class frequency for each of {logits.shape[1]} logits, found shape "
            f"{tuple(frequencies.shape)}."
        )
    return _log_shares(frequencies).to(logits)


def _log_shares(frequencies: Tensor) -> Tensor:
    if not bool((frequencies > 0).all()) or not bool(frequencies.isfinite().all()):
        raise StiffnessError(
            f"Class frequencies must be positive and finite, found {frequencies.flatten().tolist()[:10]}. A class "
            "that is never met has no finite offset: leave it out, count it as one sample, draw it now and then, or "
            "smooth the labels."
        )
    return (frequencies / frequencies.sum()).log()
