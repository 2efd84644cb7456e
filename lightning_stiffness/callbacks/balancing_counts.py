"""What a ClassGroupingBalancer knows of its training data: samples of each class, and how often each is drawn."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from lightning_stiffness.callbacks.balance_observing import ObservedBalancing
from lightning_stiffness.callbacks.balancing_classes import agreed_counts
from lightning_stiffness.callbacks.balancing_labels import LabelCheck
from lightning_stiffness.callbacks.balancing_loader import is_natural, known_counts, known_frequencies
from lightning_stiffness.callbacks.namespace import rank_zero_warn
from lightning_stiffness.errors import StiffnessError
from lightning_stiffness.functional.class_rates import require_counts


class CountedBalancing(ObservedBalancing):
    """The part of a ClassGroupingBalancer that counts classes.

    Args:
        counts: Samples of each class, as the user has them, or None.
        num_classes: Number of classes, as the user has it, or None.
        observed: Arguments of ObservedBalancing.

    Raises:
        StiffnessError: An argument is out of range.
    """

    def __init__(self, counts: Sequence[int] | None, num_classes: int | None, *observed: Any) -> None:
        """See the class."""
        super().__init__(*observed)
        self.num_classes, self._given = num_classes, None if counts is None else require_counts(torch.as_tensor(counts))
        self.counts: Tensor | None = None
        """Samples of each class; None until training starts, and where they are counted while training."""
        self._known: Tensor | None = None
        self._drawn = torch.zeros(0, dtype=torch.float64)
        self._is_natural, self._has_warned = True, False
        self._check: LabelCheck | None = None

    @property
    @override
    def frequencies(self) -> Float[Tensor, "c"] | None:
        """How often each class is drawn, summing to 1; None until training starts.

        Where the sampler does not tell it, they are counted, each class one sample ahead.
        """
        if self._known is not None or len(self._drawn) == 0:
            return self._known
        return (self._drawn + 1) / (self._drawn + 1).sum()

    @property
    @override
    def sizes(self) -> Float[Tensor, "c"]:
        """Samples of each class; where nobody knows, of those drawn so far. Empty until training starts."""
        return self._drawn if self.counts is None else self.counts.double()

    def known_prior(self) -> Float[Tensor, "c"]:
        """How frequent the classes are in the training data, in samples or in shares, as far as it is known.

        Warns once where the counts are not known, and classes were drawn at other rates than they occur.

        Raises:
            StiffnessError: Training has not started.
        """
        drawn = self.frequencies
        if drawn is None:
            raise StiffnessError(
                "Class frequencies must be known, found none before training. Call fit first, or load a state from a "
                "checkpoint, as after a fit in processes of its own (ddp_spawn): "
                'balancer.load_state_dict(torch.load(path)["callbacks"]["ClassGroupingBalancer"]).'
            )
        if self.counts is None and not self._is_natural and not self._has_warned:
            self._has_warned = True
            rank_zero_warn(
                "Samples of each class must be known for natural frequencies, found none: the dataset has no labels "
                "that can be read without loading samples, or its sampler does not tell what it draws. The frequencies "
                "with which the sampler has drawn classes are taken instead, which need not be the natural ones. Pass "
                "counts=, or a loader of make_balanced_loader(loader, labels=...)."
            )
        return drawn if self.counts is None else self.counts.double()

    @override
    def forget(self) -> None:
        super().forget()
        self.counts = self._known = None
        self._drawn, self._is_natural, self._has_warned = torch.zeros(0, dtype=torch.float64), True, False

    @override
    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """A sampler may have other rates in each epoch, and loaders that are loaded again other samples."""
        size = len(self._drawn)
        if size and trainer.reload_dataloaders_every_n_epochs:
            self._count(trainer, self.found_counts(trainer), size)
        elif size:
            self._known = known_frequencies(trainer, self.counts, size)

    @override
    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if self._check is not None and self._known is not None:
            self._check.end(self._known)
        self._check = None

    @override
    def state_dict(self) -> dict[str, Any]:
        """Counts of drawn labels, and the readings."""
        counted = {"counts": self.counts, "frequencies": self.frequencies, "drawn": self._drawn.clone()}
        return {**counted, "natural": self._is_natural, **super().state_dict()}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.counts, self._known = state_dict["counts"], state_dict["frequencies"]
        self._drawn, self._is_natural = state_dict["drawn"].clone(), state_dict.get("natural", True)

    def found_counts(self, trainer: Any) -> Tensor | None:
        """Samples of each class in the data that are trained on, without a look at `counts`; None for unknown."""
        return known_counts(trainer, self.given_number(), is_stored=self.targets is None)

    def given_number(self) -> int | None:
        """The number of classes, if the user has said it."""
        return self.num_classes if self._given is None else len(self._given)

    def begin_counting(self, trainer: Any, found: Tensor | None, size: int) -> None:
        """Training starts.

        Args:
            trainer: The Trainer.
            found: What `found_counts` has found.
            size: Number of classes.

        Raises:
            StiffnessError: What user and data say of the classes does not agree.
        """
        if len(self._drawn) != size:
            self._drawn = torch.zeros(size, dtype=torch.float64)
        self._count(trainer, found, size)
        self._check = LabelCheck(size, may_read=self.targets is None)

    def _count(self, trainer: Any, found: Tensor | None, size: int) -> None:
        self.counts = agreed_counts(found, self._given, size, may_be_empty=self.given_number() is not None)
        self._known = known_frequencies(trainer, self.counts, size)
        self._is_natural = is_natural(trainer)
