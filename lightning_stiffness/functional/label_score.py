"""Whether the label of a sample is right: how well its gradient agrees with that of each class, were that its label."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_stiffness.errors import StiffnessError
from lightning_stiffness.functional.validation import require_matrix, require_targets

LOSS_WEIGHT = 0.1  # a difference in loss that is usual in the data counts like one in alignment of this size
SHARPNESS = 0.1  # the margin at which quality is 1 / (1 + 1/e)


def label_evidence(alignment: Float[Tensor, "n c"], losses: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
    """What speaks for each label of each sample: E_ia = A_ia - 0.1 L_ia / spread.

    A gradient step on a sample with a wrong label undoes what the samples of its true class teach; under its true label
    it would agree with them. That holds even where the network has learnt the wrong label by heart and its loss is low.

    Args:
        alignment: A_ia, the mean cosine of sample i's gradient, were its label a, with the gradients of the other
            samples of class a: `GramEngine.class_alignment(..., relabel=...)`.
        losses: L_ia, its loss, were its label a, in nats or any other unit.

    Returns:
        Evidence; the differences between labels of one sample count, mostly between -2 and 2. The spread is the mean
        difference between the two lowest losses of a sample. nan where the alignment is.

    Raises:
        StiffnessError: The two matrices are empty, or have different shapes.

    Source: ours; the weight of the loss was chosen on digits and MNIST, see docs/wrong_labels.md.

    >>> alignment = torch.tensor([[0.5, 0.1], [-0.4, 0.6]])
    >>> label_evidence(alignment, torch.tensor([[0.1, 2.1], [1.0, 3.0]]))
    tensor([[ 0.4950, -0.0050],
            [-0.4500,  0.4500]])
    """
    require_matrix(alignment, "alignment")
    if losses.shape != alignment.shape:
        raise StiffnessError(
            f"losses must have the shape of alignment, {tuple(alignment.shape)}, one for each sample and label, but "
            f"have {tuple(losses.shape)}; take both from the same call of GramEngine.class_alignment with relabel="
        )
    if losses.shape[1] < 2:
        return alignment
    lowest = losses.topk(2, dim=1, largest=False).values
    spread = (lowest[:, 1] - lowest[:, 0]).mean()
    return alignment - LOSS_WEIGHT * losses / spread.clamp_min(torch.finfo(losses.dtype).tiny)


def label_margin(evidence: Float[Tensor, "n c"], targets: Int[Tensor, "n"]) -> Float[Tensor, "n"]:
    """Evidence for the given label less that for the best other one: below 0 where another label fits better.

    Args:
        evidence: `label_evidence`; the mean over several readings of the same samples is more reliable.
        targets: The given labels.

    Returns:
        Margins in the unit of the evidence. nan where there is no evidence for the given label (a sample that is the
        only one of its class, or whose gradient is zero), or for any other.

    Raises:
        StiffnessError: The targets do not fit the evidence.

    Source: ours.

    >>> label_margin(torch.tensor([[0.5, 0.1, -0.2], [-0.4, 0.6, 0.3]]), torch.tensor([0, 2]))
    tensor([ 0.4000, -0.3000])
    """
    own, rivals = _own_and_rivals(evidence, targets)
    best = rivals.max(1).values
    return torch.where(best.isinf(), torch.nan, own - best)


def label_quality(evidence: Float[Tensor, "n c"], targets: Int[Tensor, "n"]) -> Float[Tensor, "n"]:
    """How likely the given label is right, as a score: 1 / (1 + exp(-margin / 0.1)).

    It orders samples as the margin does, and is no probability: no share of wrong labels is assumed.

    Args:
        evidence: `label_evidence`.
        targets: The given labels.

    Returns:
        Scores in [0, 1], lower is worse; below 0.5 another label fits better. nan as `label_margin`.

    Raises:
        StiffnessError: The targets do not fit the evidence.

    Source: ours.

    >>> label_quality(torch.tensor([[0.5, 0.3, -0.2], [-0.4, 0.6, 0.3]]), torch.tensor([0, 2]))
    tensor([0.8808, 0.0474])
    """
    return torch.sigmoid(label_margin(evidence, targets) / SHARPNESS)


def suggested_labels(evidence: Float[Tensor, "n c"], targets: Int[Tensor, "n"]) -> Int[Tensor, "n"]:
    """The label with the most evidence; the given one where the margin is undefined.

    Args:
        evidence: `label_evidence`.
        targets: The given labels.

    Returns:
        One label for each sample.

    Raises:
        StiffnessError: The targets do not fit the evidence.

    Source: ours.

    >>> suggested_labels(torch.tensor([[0.5, 0.1, -0.2], [-0.4, 0.6, 0.3]]), torch.tensor([0, 2]))
    tensor([0, 1])
    """
    _, rivals = _own_and_rivals(evidence, targets)
    return torch.where(label_margin(evidence, targets) < 0, rivals.argmax(1), targets.long())


def _own_and_rivals(evidence: Tensor, targets: Tensor) -> tuple[Float[Tensor, "n"], Float[Tensor, "n c"]]:
    """The evidence for the given label, and for the others, minus infinity where there is none."""
    require_matrix(evidence, "evidence")
    targets = require_targets(targets, len(evidence), evidence.shape[1])
    own = evidence.gather(1, targets[:, None])[:, 0]
    return own, evidence.nan_to_num(-torch.inf).scatter(1, targets[:, None], -torch.inf)
