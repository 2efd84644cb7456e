"""How often each class is drawn, as values: functions from the class sizes [c] to class rates [c] that sum to 1.

A sampler that draws class c at rate q_c draws each of its n_c samples q_c / n_c of the time. The same shares can be had
from the loss instead, by `sample_weights`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_stiffness.errors import StiffnessError
from lightning_stiffness.functional.validation import require_integers

ClassRates = Callable[[Any], Any]  # tensors; a command line would not take functions that are annotated with shapes
"""A strategy: class sizes [c] to class rates [c]."""


def natural_rates(counts: Int[Tensor, "c"]) -> Float[Tensor, "c"]:
    """Classes as often as they occur: q_c = n_c / n. Shuffling does the same.

    Args:
        counts: samples of each class.

    Returns:
        Rates in (0, 1] that sum to 1, float64.

    Raises:
        StiffnessError: `counts` are no positive integers.

    Source: instance-balanced sampling, Kang et al., Decoupling, arXiv:1910.09217 (eq. 1 with q = 1).

    >>> natural_rates(torch.tensor([90, 10]))
    tensor([0.9000, 0.1000], dtype=torch.float64)
    """
    return _normalised(_positive(counts))


def inverse_frequency_rates(counts: Int[Tensor, "c"]) -> Float[Tensor, "c"]:
    """All classes equally often, each sample at a rate inverse to the size of its class: q_c = 1 / c.

    Args:
        counts: samples of each class.

    Returns:
        Rates that sum to 1, float64.

    Raises:
        StiffnessError: `counts` are no positive integers.

    Source: class-balanced sampling, Kang et al., Decoupling, arXiv:1910.09217 (eq. 1 with q = 0).

    >>> inverse_frequency_rates(torch.tensor([90, 10]))
    tensor([0.5000, 0.5000], dtype=torch.float64)
    """
    return _normalised(torch.ones_like(_positive(counts)))


def power_rates(counts: Int[Tensor, "c"], exponent: float = 0.75) -> Float[Tensor, "c"]:
    """Between equal (exponent 0) and natural (1) rates: q_c proportional to n_c^exponent.

    Args:
        counts: samples of each class.
        exponent: 0.75 lost least and won as much as 0.5 where class sizes differed by 10 to 100, with log q_c added to
            the logits (see docs/balancing.md).

    Returns:
        Rates in (0, 1] that sum to 1, float64.

    Raises:
        StiffnessError: `counts` are no positive integers, or the exponent is not a finite number.

    Source: Kang et al., Decoupling, arXiv:1910.09217 (eq. 1).

    >>> power_rates(torch.tensor([16, 1])).round(decimals=4)
    tensor([0.8889, 0.1111], dtype=torch.float64)
    """
    if not math.isfinite(exponent):
        raise StiffnessError(f"exponent must be a finite number, found {exponent}; 0.75 is the default.")
    return _normalised(_positive(counts) ** exponent)


def square_root_rates(counts: Int[Tensor, "c"]) -> Float[Tensor, "c"]:
    """Half way between natural and equal: q_c proportional to the square root of n_c.

    Args:
        counts: samples of each class.

    Returns:
        Rates in (0, 1] that sum to 1, float64.

    Raises:
        StiffnessError: `counts` are no positive integers.

    Source: square-root sampling, Kang et al., Decoupling, arXiv:1910.09217 (eq. 1 with q = 1/2).

    >>> square_root_rates(torch.tensor([90, 10]))
    tensor([0.7500, 0.2500], dtype=torch.float64)
    """
    return power_rates(counts, 0.5)


def effective_number_rates(counts: Int[Tensor, "c"], beta: float = 0.999) -> Float[Tensor, "c"]:
    """Each sample at a rate inverse to the effective number of its class: q_c proportional to n_c w_c.

    w_c = (1 - beta) / (1 - beta^n_c): beta = 0 gives the natural rates, beta near 1 equal ones. The paper chooses beta
    from 0.9, 0.99, 0.999 and 0.9999.

    Args:
        counts: samples of each class.
        beta: 0 <= beta < 1; (N - 1) / N for N distinguishable samples of a class.

    Returns:
        Rates in (0, 1] that sum to 1, float64.

    Raises:
        StiffnessError: `counts` are no positive integers, or beta is out of range.

    Source: Cui et al., Class-Balanced Loss, arXiv:1901.05555, proposition 1 and section 4.

    >>> effective_number_rates(torch.tensor([90, 10]), beta=0.9).round(decimals=3)
    tensor([0.8540, 0.1460], dtype=torch.float64)
    """
    if not 0 <= beta < 1:
        raise StiffnessError(f"beta must lie in [0, 1), found {beta}; 0.999 is the default.")
    sizes = _positive(counts)
    return _normalised(sizes * (1 - beta) / (1 - beta**sizes))


def within_group_rates(counts: Int[Tensor, "c"], groups: Int[Tensor, "c"]) -> Float[Tensor, "c"]:
    """Groups of classes as often as they occur, the classes inside a group equally often.

    **Measured, and it loses**: 2.2 points of balanced accuracy behind logit adjustment over 8 settings. It is here to
    be compared with. `functools.partial(within_group_rates, groups=groups)` is the strategy.

    Args:
        counts: samples of each class.
        groups: the group of each class, any integers.

    Returns:
        q_a = n_g / (n * classes in g) for a class a of group g; rates that sum to 1, float64.

    Raises:
        StiffnessError: `counts` are no positive integers, or there is not one group for each class.

    Source: ours.

    >>> within_group_rates(torch.tensor([60, 20, 20]), torch.tensor([0, 0, 1]))
    tensor([0.4000, 0.4000, 0.2000], dtype=torch.float64)
    """
    sizes = _positive(counts)
    require_integers(groups, len(sizes), "groups")
    members = torch.unique(groups, return_inverse=True)[1]
    total = sizes.new_zeros(int(members.max()) + 1).index_add(0, members, sizes)
    return _normalised((total / torch.bincount(members))[members])


def sample_weights(rates: Float[Tensor, "c"], counts: Int[Tensor, "c"]) -> Float[Tensor, "c"]:
    """Loss weights that stand in for drawing classes at these rates: q_c / (n_c / n).

    They are what `torch.nn.CrossEntropyLoss(weight=...)` takes. Over the data they have mean 1, so that a learning rate
    keeps its meaning. The gradient is the same as under sampling in expectation only: weights make rare classes noisy.

    Args:
        rates: how often each class would be drawn.
        counts: samples of each class.

    Returns:
        The weight of each class, not negative, float64.

    Raises:
        StiffnessError: `counts` are no positive integers, or there is not one rate for each class.

    Source: ours; importance weights.

    >>> sample_weights(torch.tensor([0.5, 0.5]), torch.tensor([90, 10])).round(decimals=4)
    tensor([0.5556, 5.0000], dtype=torch.float64)
    """
    return require_rates(rates, counts) / natural_rates(counts)


@dataclass(frozen=True)
class DeferredRates:
    """A schedule: one strategy until an epoch, another one from it on. The features are learnt first.

    A sampler takes it in place of a strategy. With loss weights it is deferred re-weighting:
    `sample_weights(schedule.at(epoch)(counts), counts)`.

    Attributes:
        start: the first epoch of `after`, counted from 0; the paper takes 160 of 200.
        before: the strategy of the epochs before it.
        after: the strategy of the others.

    Source: deferred re-weighting, Cao et al., LDAM, arXiv:1906.07413, algorithm 1.

    >>> schedule = DeferredRates(start=160)
    >>> schedule.at(159)(torch.tensor([90, 10])), schedule.at(160)(torch.tensor([90, 10]))
    (tensor([0.9000, 0.1000], dtype=torch.float64), tensor([0.5000, 0.5000], dtype=torch.float64))
    """

    start: int
    before: ClassRates = natural_rates
    after: ClassRates = inverse_frequency_rates

    def at(self, epoch: int) -> ClassRates:
        """The strategy of an epoch."""
        return self.after if epoch >= self.start else self.before


def require_rates(rates: Tensor, counts: Tensor) -> Float[Tensor, "c"]:
    """The rates in float64, made to sum to 1.

    Raises:
        StiffnessError: There is not one finite number of at least 0 for each class, or they are all 0, or a class that
            is to be drawn has no sample.
    """
    found = torch.as_tensor(rates).detach().cpu().double()
    if found.shape != counts.shape:
        raise StiffnessError(
            f"Rates must be one number for each of {len(counts)} classes, found shape {tuple(found.shape)}. Pass a "
            "strategy, such as square_root_rates, or a tensor [c]."
        )
    if not bool(found.isfinite().all()) or bool((found < 0).any()) or not bool((found > 0).any()):
        raise StiffnessError(
            f"Rates must be finite and not negative, and one of them positive; found {found.tolist()[:10]}."
        )
    wanted = ((found > 0) & (counts.cpu() == 0)).nonzero().flatten().tolist()
    if wanted:
        raise StiffnessError(
            f"Every class that is drawn must have a sample, found none of {_named(wanted)}. Number the classes without "
            "gaps, or give such a class the rate 0."
        )
    return _normalised(found)


def require_counts(counts: Tensor) -> Int[Tensor, "c"]:
    """The class sizes on the CPU, as int64.

    Raises:
        StiffnessError: They are not one positive integer for each of at least two classes.
    """
    found = torch.as_tensor(counts).detach().cpu()
    if found.is_floating_point() or found.is_complex() or found.dtype == torch.bool or found.ndim != 1:
        raise StiffnessError(
            f"Class counts must be one integer for each class, found {found.dtype} of shape {tuple(found.shape)}. "
            "torch.bincount(labels) makes them."
        )
    if len(found) < 2:
        raise StiffnessError(f"There must be at least two classes to balance, found {len(found)}.")
    empty = (found <= 0).nonzero().flatten().tolist()
    if empty:
        raise StiffnessError(
            f"Every class must have at least one sample, found {int(found[empty[0]])} of {_named(empty)}. Number the "
            "classes from 0 without gaps, leave the class out or count it as one sample; samplers and balancers that "
            "are given num_classes= never draw it."
        )
    return found.long()


def _positive(counts: Tensor) -> Float[Tensor, "c"]:
    return require_counts(counts).double()


def _normalised(values: Tensor) -> Float[Tensor, "c"]:
    return values / values.sum()


def _named(classes: list[int]) -> str:
    shown = ", ".join(map(str, classes[:10]))
    return f"class{'es' if len(classes) > 1 else ''} {shown}{' ...' if len(classes) > 10 else ''}"
