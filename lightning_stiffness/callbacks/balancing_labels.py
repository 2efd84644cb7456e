"""The labels of a balanced training: read from batches, and compared with what was expected of them."""

from collections.abc import Callable
from typing import Any, Final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_stiffness.batching import batch_size
from lightning_stiffness.callbacks.agreement import attempted
from lightning_stiffness.callbacks.namespace import rank_zero_warn
from lightning_stiffness.errors import StiffnessError
from lightning_stiffness.targets import as_class_targets, targets_of

_FAR_OFF: Final = 1.25  # a share that is so many times another moves the logits by .2
_DEVIATIONS: Final = 6  # of a share by chance, so that no true training is warned of
_SPARE: Final = 3  # samples that a last batch or another process may have instead


def batch_labels(batch: Any, targets: Callable[[Any], Any] | None, is_only_smoothed: bool) -> Int[Tensor, "n"]:
    """Class of each sample of a batch.

    Args:
        batch: What the loader yields.
        targets: The user's function for it, or None.
        is_only_smoothed: Whether labels are asked for by `smoothing` and `shift` alone.

    Raises:
        StiffnessError: There is not one integer for each sample.
    """
    if targets is not None:
        return as_class_targets(targets(batch), batch_size(batch))
    try:
        return targets_of(batch)
    except StiffnessError as error:
        if not is_only_smoothed:
            raise
        raise StiffnessError(
            f"{error} Are labels mixed (mixup, CutMix)? Then pass smoothing=0 and shift=False instead: no labels are "
            "read then, and sampling goes on, which targets= would switch off."
        ) from None


class LabelCheck:
    """Whether the batches of an epoch have the classes that they should have by the labels of the dataset.

    Labels are counted where they are, so that no device is waited for; each process counts its own.

    Args:
        num_classes: Number of classes.
        may_read: Whether labels may be read from batches where nobody else needs them: a function of the user's is not
            called for this.
    """

    def __init__(self, num_classes: int, may_read: bool) -> None:
        """Nothing is counted yet."""
        self._num_classes, self._may_read = num_classes, may_read
        self._met: Tensor | None = None

    def see(self, batch: Any, labels: Tensor | None) -> None:
        """Counts a batch, whose labels may have been read."""
        if labels is None and self._may_read:
            found = attempted(lambda: targets_of(batch))
            self._may_read = not isinstance(found, Exception)
            labels = None if isinstance(found, Exception) else found
        if labels is None:
            return
        if self._met is None:
            self._met = torch.zeros(self._num_classes, dtype=torch.long, device=labels.device)
        places = labels.to(self._met.device).clamp(0, self._num_classes - 1)  # others are refused elsewhere, or nowhere
        self._met.scatter_add_(0, places, torch.ones_like(places))

    def end(self, expected: Float[Tensor, "c"]) -> None:
        """The epoch is over: warns if the classes were others.

        Args:
            expected: How often each class should have been met.
        """
        worst = None if self._met is None else _unexpected(self._met.cpu(), expected)
        if worst is not None and self._met is not None:
            share = float(self._met[worst]) / float(self._met.sum())
            rank_zero_warn(
                "The labels of the batches should be those by which the classes were counted, but class "
                f"{worst} made up {share:.1%} of the first epoch instead of {float(expected[worst]):.1%}: does a "
                "target transform or the collate function change them? Rates and what is added to the logits are those "
                "of other classes. Pass targets=, such as lambda batch: batch[1], so that the labels that the dataset "
                "stores are not used, and counts= or a loader of make_balanced_loader(loader, labels=...)."
            )


def _unexpected(met: Int[Tensor, "c"], expected: Float[Tensor, "c"]) -> int | None:
    """The class that is farthest off, if one is beyond chance and by enough to matter."""
    size, shares = met.sum(), expected.cpu()
    off = (met - size * shares).abs()
    allowed = _DEVIATIONS * (size * shares * (1 - shares)).sqrt() + _SPARE
    ratio = (met + 1) / (size * shares + 1)
    is_off = (off > allowed) & ((ratio > _FAR_OFF) | (ratio < 1 / _FAR_OFF))
    return int((off * is_off).argmax()) if bool(is_off.any()) else None
