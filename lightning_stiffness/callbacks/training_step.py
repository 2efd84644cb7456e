"""Per-sample losses from the user's own, unmodified training step."""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lightning_stiffness.batching import batch_size, take
from lightning_stiffness.callbacks.neutrality import attached_trainer, isolated_random_state, without_autocast
from lightning_stiffness.callbacks.separation import (
    DifferentAloneError,
    NotSeparableError,
    Plan,
    Term,
    cut,
    is_reordered,
    join,
    plan,
    telling_samples,
)
from lightning_stiffness.callbacks.step_run import (
    COPIES,
    REMEDY,
    alone,
    copies_of,
    described,
    has_drawn,
    require_finite,
    require_gradient,
    require_usable,
    watched_step,
)
from lightning_stiffness.errors import MixedSamplesError, StiffnessError
from lightning_stiffness.targets import targets_of

FEW = 8  # samples among which another order is looked for
NOTICED = 1e-4  # relative difference of losses that rounding does not make, as a rule
REORDERED = "it puts the samples in another order, such as by their lengths"
Loss = Callable[[nn.Module, Any], Tensor]
Targets = Callable[[Any], Tensor]


def resolve_loss(pl_module: nn.Module, loss: Loss | None = None) -> Loss:
    """Where the losses of the samples come from: ``loss``, else ``stiffness_step``, else ``training_step``.

    Args:
        pl_module: A LightningModule.
        loss: The user's function of a module and a batch.

    Returns:
        A function of a module and a batch of n samples. It returns n finite losses with a gradient, or raises
        StiffnessError.

    Raises:
        StiffnessError: If there is only a training step, and it is missing, belongs to manual optimisation, or asks
            for a data loader's iterator.
    """
    if loss is not None:
        return _Checked(loss, "loss(module, batch)")
    if callable(getattr(pl_module, "stiffness_step", None)):
        return _Checked(_stiffness_losses, "the losses of stiffness_step")
    require_usable(pl_module)
    return TrainingStepLoss()


def resolve_targets(pl_module: nn.Module, targets: Targets | None = None) -> Targets:
    """Where the class of each sample comes from: ``targets``, else ``stiffness_step``, else the batch itself.

    Args:
        pl_module: A LightningModule.
        targets: The user's function of a batch.

    Returns:
        A function of a batch of n samples, which returns n classes.
    """
    if targets is not None:
        return targets
    if not callable(getattr(pl_module, "stiffness_step", None)):
        return targets_of

    def of_step(batch: Any) -> Int[Tensor, "n"]:
        with torch.no_grad():
            return _stiffness_step(pl_module, batch)[1]

    return of_step


class TrainingStepLoss:
    """Losses of the samples of a batch from ``training_step``, called in the state in which the module is.

    The scalar that a training step returns is read as a weighted sum of values that it summed or averaged on the way,
    so many for each sample: the losses are these values, weighted by the scalar's gradient with respect to them. Their
    mean (for a loss that is a sum: their sum) has the gradient of the scalar. Where the scalar is linear in the values,
    as nearly always, a loss is also what the sample adds to it; else only its gradient is exact. With class weights or
    ``ignore_index`` the loss of a sample differs by a positive factor from what the sample gives alone.

    This reading is tried on single samples first. Where it is wrong, as with a penalty on the weights, with noise, or
    where the step sorts the samples, the training step runs for one sample at a time from then on, which is exact by
    definition, but slower; a warning says so once. A sample that is not counted in a mean, being ignored or of weight
    zero, adds zero to it, where PyTorch has 0 / 0 for the sample alone.

    Global random numbers start from the same seed in each run, so that a sample meets the same ones again; the states
    are put back. Use an instance for one module only: it remembers what was tried.

    Args:
        trainer: Whose precision (such as "bf16-true") the step runs in; None for the trainer of the module.

    Source: ours.

    >>> import lightning
    >>> class Classifier(lightning.LightningModule):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.layer = nn.Linear(2, 3)
    ...     def training_step(self, batch, batch_idx):
    ...         x, y = batch
    ...         return nn.functional.cross_entropy(0 * self.layer(x), y)
    >>> batch = torch.ones(4, 2), torch.tensor([0, 1, 2, 0])
    >>> TrainingStepLoss()(Classifier(), batch).detach()
    tensor([1.0986, 1.0986, 1.0986, 1.0986])
    """

    def __init__(self, trainer: Any | None = None) -> None:
        self._trainer = trainer
        self._plans: dict[tuple[int, torch.Size] | None, Plan] = {}
        self._runs_alone = False

    def __call__(self, pl_module: nn.Module, batch: Any) -> Float[Tensor, "n"]:
        """Losses of the samples, with gradients.

        Args:
            pl_module: A LightningModule; put it in eval mode first, with `measuring`.
            batch: What its training step takes, on its device.

        Raises:
            StiffnessError: If the training step cannot be used (manual optimisation, nothing returned, a shape that is
                neither a scalar nor [n]), or a loss is not finite or has no gradient.
            MixedSamplesError: If the loss of a sample depends on the other samples.
        """
        require_usable(pl_module)
        size = batch_size(batch)
        with isolated_random_state(), training_precision(pl_module, self._trainer):
            losses = alone(pl_module, batch) if size == 1 else self._together(pl_module, batch, size)
        require_finite(losses, "training_step")
        return losses

    def _together(self, pl_module: nn.Module, batch: Any, size: int) -> Float[Tensor, "n"]:
        if self._runs_alone:  # for good, or some batches would have graphs of another make
            return self._one_by_one(pl_module, batch, size)
        try:
            return self._split(pl_module, batch, size)
        except DifferentAloneError as difference:
            reason = _why_different(pl_module, batch, size, difference)
        except NotSeparableError as obstacle:
            reason = str(obstacle)
        self._runs_alone = True
        self._warn(reason)
        return self._one_by_one(pl_module, batch, size)

    def _one_by_one(self, pl_module: nn.Module, batch: Any, size: int) -> Float[Tensor, "n"]:
        return torch.cat([alone(pl_module, take(batch, [sample])) for sample in range(size)])

    def _split(self, pl_module: nn.Module, batch: Any, size: int) -> Float[Tensor, "n"]:
        step = watched_step(pl_module, batch, size)
        if step.total.shape == (size,):
            return step.total
        terms = cut(step)
        return join(terms, self._plan(pl_module, batch, terms))

    def _plan(self, pl_module: nn.Module, batch: Any, terms: tuple[Term, ...]) -> Plan:
        """How to read the terms: tried on three samples, each time anew unless one term has a row for each sample."""
        size, shape = terms[0].size, terms[0].values.shape
        key = (terms[0].index, shape[1:]) if len(terms) == 1 and shape[0] == size else None
        if key in self._plans:
            return self._plans[key]
        samples = telling_samples(terms)
        if has_drawn() and not _is_same(pl_module, copies_of(batch, samples[0], COPIES), NOTICED):
            raise NotSeparableError("it draws random numbers")
        copies = COPIES if size > COPIES else COPIES + 1
        singles = {k: cut(watched_step(pl_module, copies_of(batch, k, copies), copies)) for k in samples}
        try:
            found = plan(terms, singles, min(_tolerance(pl_module), NOTICED))
        except DifferentAloneError:
            if _is_reordered(pl_module, batch, size):
                raise NotSeparableError(REORDERED) from None
            found = plan(terms, singles, _tolerance(pl_module))
        if key is not None and found.is_certain and size >= FEW:  # fewer may stand in order by chance
            self._plans[key] = found
        return found

    def _warn(self, reason: str) -> None:
        warnings.warn(
            f"The loss of training_step could not be split into the losses of its samples, since {reason}. The step "
            "runs for one sample at a time: exact, but slower. To make it faster, define "
            "`stiffness_step(self, batch) -> (losses [n], targets [n])` on the module.",
            UserWarning,
            stacklevel=2,
        )


@contextlib.contextmanager
def training_precision(pl_module: nn.Module, trainer: Any | None = None) -> Iterator[None]:
    """The precision that the training step runs in (such as "bf16-true"), without autocast.

    Args:
        pl_module: A LightningModule.
        trainer: Whose precision; None for the trainer of the module.
    """
    trainer = attached_trainer(pl_module) if trainer is None else trainer
    precision = contextlib.nullcontext() if trainer is None else trainer.precision_plugin.forward_context()
    with precision, without_autocast(pl_module):
        yield


@dataclass(frozen=True)
class _Checked:
    """A user's function of a module and a batch, whose answer is looked at."""

    function: Loss
    name: str

    def __call__(self, pl_module: nn.Module, batch: Any) -> Float[Tensor, "n"]:
        losses = self.function(pl_module, batch)
        size = batch_size(batch)
        if not isinstance(losses, Tensor) or losses.shape != (size,):
            found = f"shape {list(losses.shape)}" if isinstance(losses, Tensor) else type(losses).__name__
            raise StiffnessError(f"{self.name} must return a tensor with one loss per sample, [{size}]; found {found}.")
        require_gradient(losses, self.name)
        require_finite(losses, self.name)
        return losses


def _stiffness_losses(pl_module: nn.Module, batch: Any) -> Tensor:
    return _stiffness_step(pl_module, batch)[0]


def _stiffness_step(pl_module: Any, batch: Any) -> tuple[Tensor, Tensor]:
    result = pl_module.stiffness_step(batch)
    if not isinstance(result, tuple) or len(result) != 2:
        raise StiffnessError(f"stiffness_step must return a pair (losses [n], targets [n]); found {described(result)}.")
    return result


def _why_different(pl_module: nn.Module, batch: Any, size: int, difference: DifferentAloneError) -> str:
    """Why samples alone give other losses than in a batch, where they may be run alone all the same.

    Raises:
        MixedSamplesError: The difference cannot come from random numbers, or from what changes with each call.
    """
    if _is_same(pl_module, copies_of(batch, 0, COPIES), _tolerance(pl_module)):
        raise MixedSamplesError(
            f"The loss of a sample must not depend on the other samples of the batch; found that {difference}. A loss "
            f"that compares samples (contrastive, batch statistics, mixup) has no per-sample gradients. {REMEDY}"
        )
    return "it draws random numbers, or changes with each call"


def _is_same(pl_module: nn.Module, batch: Any, tolerance: float) -> bool:
    """Whether two runs from other random numbers give the same values."""
    runs = [watched_step(pl_module, batch, batch_size(batch), seed).reduced for seed in (0, 1)]
    return all(torch.allclose(one, other, rtol=tolerance) for one, other in zip(*runs, strict=True))


def _is_reordered(pl_module: nn.Module, batch: Any, size: int) -> bool:
    """Whether a few samples have the same values alone and together, but together in another order."""
    few = min(size, FEW)
    chosen = take(batch, [sample * size // few for sample in range(few)], size)
    copies = COPIES if few > COPIES else COPIES + 1
    try:
        together = cut(watched_step(pl_module, chosen, few))
        alone = [cut(watched_step(pl_module, copies_of(chosen, k, copies), copies)) for k in range(few)]
    except NotSeparableError:
        return False
    return is_reordered(together, alone, NOTICED)


def _tolerance(pl_module: nn.Module) -> float:
    """Relative difference of a sample's loss between batches of two sizes that rounding alone can make."""
    coarsest = max((torch.finfo(p.dtype).eps for p in pl_module.parameters() if p.is_floating_point()), default=0.0)
    return 1e-6 if coarsest < 1e-12 else 0.05 if coarsest < 1e-6 else 0.2
