"""The methods of the benchmark of imbalanced classes: what each changes of plain training."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader

from lightning_stiffness import ClassGroupingBalancer, make_balanced_loader
from lightning_stiffness.functional.class_rates import (
    ClassRates,
    DeferredRates,
    effective_number_rates,
    inverse_frequency_rates,
    natural_rates,
    sample_weights,
    square_root_rates,
)
from lightning_stiffness.functional.logit_offsets import training_logit_adjustment

DEFERRED = 0.8  # share of the epochs before the weights, as in the paper: 160 of 200


@dataclass(frozen=True)
class Method:
    """What a training does about imbalance.

    Attributes:
        name: For files.
        title: For tables.
        rates: Of a sampler in place of the shuffled one.
        weights: Loss weights that stand in for these rates.
        is_deferred: Whether the weights come in the last fifth of the epochs only.
        tau: Strength of the logit adjustment in the loss.
        smoothing: Of the labels, in the loss.
        is_adapted: Whether the adjustment is by the frequencies of the smoothed labels.
        balancer: Arguments of a ClassGroupingBalancer, if there is one.
    """

    name: str
    title: str
    rates: ClassRates | None = None
    weights: ClassRates | None = None
    is_deferred: bool = False
    tau: float = 0.0
    smoothing: float = 0.0
    is_adapted: bool = False
    balancer: dict[str, Any] | None = field(default=None, hash=False)

    def loader(self, plain: DataLoader[Any], seed: int) -> DataLoader[Any]:
        """The training batches."""
        return plain if self.rates is None else make_balanced_loader(plain, self.rates, seed=seed)

    def callbacks(self, seed: int) -> list[ClassGroupingBalancer]:
        """Ours, where the method has it."""
        return [] if self.balancer is None else [ClassGroupingBalancer(seed=seed, max_readings=0, **self.balancer)]

    def offsets(self, counts: Tensor) -> Tensor | None:
        """What the training step adds to the logits."""
        smoothing = self.smoothing if self.is_adapted else 0.0
        return training_logit_adjustment(counts.double(), self.tau, smoothing).float() if self.tau else None

    def loss_weights(self, counts: Tensor, epoch: int, epochs: int) -> Tensor | None:
        """The weight of each class in the loss of an epoch."""
        if self.weights is None:
            return None
        before = natural_rates if self.is_deferred else self.weights
        schedule = DeferredRates(round(DEFERRED * epochs), before, self.weights)
        return sample_weights(schedule.at(epoch)(counts), counts).float()


ALONE = {"logits": False, "smoothing": 0.0, "rates": square_root_rates}
METHODS = (
    Method("plain", "plain training"),
    Method("inverse", "inverse-frequency sampler", rates=inverse_frequency_rates),
    Method("class_balanced", "class-balanced loss (effective number)", weights=effective_number_rates),
    Method("deferred", "deferred re-weighting (DRW)", weights=inverse_frequency_rates, is_deferred=True),
    Method("adjusted", "logit adjustment, tau 1 = balanced softmax", tau=1.0),
    Method("adjusted_125", "logit adjustment, tau 1.25", tau=1.25),
    Method("smoothed", "logit adjustment, tau 1, label smoothing .1", tau=1.0, smoothing=0.1),
    Method("adapted", "the same, adjusted by the smoothed labels", tau=1.0, smoothing=0.1, is_adapted=True),
    Method("root", "square-root sampling alone", balancer=ALONE),
    Method("ours", "**ours**", balancer={}),
    Method("unsmoothed", "ours without smoothing", balancer={"smoothing": 0.0}),
    Method("no_sampling", "ours without sampling", balancer={"sampling": False}),
    Method("no_logits", "ours without logits", balancer={"logits": False}),
    Method("shifted", "ours with shift", balancer={"shift": True}),
    Method("random", "ours with shift, random bigger partner", balancer={"shift": True, "absorbers": False}),
)
METHOD = {method.name: method for method in METHODS}
POSTHOC = "posthoc"
_RIVALS = ("plain", "inverse", "class_balanced", "deferred", "adjusted", "adjusted_125", "smoothed", "adapted", "root")
OURS = ("ours",)
CONTROLS = ("unsmoothed", "no_sampling", "no_logits", "shifted", "random")
RIVALS = (*_RIVALS[:6], POSTHOC, *_RIVALS[6:])
_POSTHOC_TITLE = "post-hoc logit adjustment (of the plain network)"
TITLES = {name: _POSTHOC_TITLE if name == POSTHOC else METHOD[name].title for name in (*RIVALS, *OURS, *CONTROLS)}
