"""One run of a user's training step on a batch, and what can be wrong with it."""

import contextlib
import inspect
import pickle
import random
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from lightning_stiffness.batching import batch_size, take
from lightning_stiffness.callbacks.separation import NotSeparableError, Plan, Step, cut, join
from lightning_stiffness.errors import StiffnessError
from lightning_stiffness.loss_head import PerSampleReductions

REMEDY: Final = (
    "Define `stiffness_step(self, batch) -> (losses [n], targets [n])` on the module, or give the callback "
    "`loss=callable(module, batch) -> [n]`."
)


COPIES: Final = 2  # of one sample, in place of that sample alone, which code that squeezes its outputs refuses


def copies_of(batch: Any, sample: int, count: int) -> Any:
    """A batch of nothing but copies of one sample."""
    return take(batch, [sample] * count)


def watched_step(pl_module: nn.Module, batch: Any, size: int, seed: int = 0) -> Step:
    """Runs the training step and keeps what it sums or averages to a number."""
    with PerSampleReductions() as watched:
        loss = run(pl_module, batch, size, seed)
    return Step(loss, tuple(watched.reduced), size)


def alone(pl_module: nn.Module, batch: Any) -> Float[Tensor, "1"]:
    """The loss of a batch of one, with copies of the sample where the code cannot take one, as when it squeezes."""
    try:
        return _counted(watched_step(pl_module, batch, 1))
    except StiffnessError:
        raise
    except (RuntimeError, ValueError, IndexError) as refusal:
        with contextlib.suppress(RuntimeError, ValueError, IndexError):
            return _counted(watched_step(pl_module, copies_of(batch, 0, COPIES), 1))
        raise refusal


def _counted(step: Step) -> Float[Tensor, "1"]:
    """The loss, without the terms that are 0 / 0 since nothing is counted in them."""
    if _is_transformed(step.total) or not bool(step.total.detach().isnan()):
        return step.total.reshape(1)
    with contextlib.suppress(NotSeparableError):
        terms = cut(step)
        return join(terms, Plan((True,) * len(terms)))
    return step.total.reshape(1)


def run(pl_module: Any, batch: Any, size: int, seed: int = 0) -> Tensor:
    """The loss that the training step returns for a batch."""
    return _loss_of(output_of(pl_module, batch, seed), size)


def output_of(pl_module: Any, batch: Any, seed: int = 0) -> Any:
    """What the training step returns for a copy of the batch: steps pop from batches, and write into them."""
    copy = take(batch, range(batch_size(batch)))
    _seed(seed)
    return pl_module.training_step(*([copy, 0] if _takes_index(pl_module) else [copy]))


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  # the user's code may draw from the global state
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():  # before, a seed would stay for later
        torch.cuda.manual_seed_all(seed)


def has_drawn(seed: int = 0) -> bool:
    """Whether global random numbers were drawn since a run from this seed began; they start from it again then."""
    drawn = _random_states()
    _seed(seed)
    return drawn != _random_states()


def _random_states() -> tuple[object, ...]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    others = (state.numpy().tobytes() for state in (torch.get_rng_state(), *cuda))
    return random.getstate(), pickle.dumps(np.random.get_state()), *others  # noqa: NPY002


def _loss_of(output: Any, size: int) -> Tensor:
    if output is None:
        raise StiffnessError(f"training_step must return a loss to be measured; found None. {REMEDY}")
    loss = output.get("loss") if isinstance(output, Mapping) else output
    if not isinstance(loss, Tensor):
        raise StiffnessError(f'training_step must return a tensor or {{"loss": tensor}}; found {described(output)}.')
    require_gradient(loss, "training_step")
    if loss.numel() == 1:
        return loss.reshape(())
    if loss.shape == (size,):
        return loss
    raise StiffnessError(
        f"training_step must return a scalar or one loss per sample, [{size}]; found shape {list(loss.shape)}. {REMEDY}"
    )


def described(value: object) -> str:
    """The type of a value, with its keys, for messages."""
    return f"{type(value).__name__} with {list(value)}" if isinstance(value, Mapping) else type(value).__name__


def _takes_index(pl_module: Any) -> bool:
    parameters = inspect.signature(pl_module.training_step).parameters.values()
    positional = [one for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    return len(positional) > 1 or any(one.kind is one.VAR_POSITIONAL for one in parameters)


def require_usable(pl_module: Any) -> None:
    """Raises StiffnessError where there is no training step that can be run on a batch to measure."""
    step = getattr(pl_module, "training_step", None)
    if step is None or getattr(step, "__qualname__", "") == "LightningModule.training_step":
        raise StiffnessError(f"{type(pl_module).__name__} has no training_step, from which losses are read. {REMEDY}")
    if not getattr(pl_module, "automatic_optimization", True):
        raise StiffnessError(
            f"The training_step of {type(pl_module).__name__} updates the weights itself (automatic_optimization is "
            f"False), so it cannot be run to measure. {REMEDY}"
        )
    if "dataloader_iter" in inspect.signature(step).parameters:
        raise StiffnessError(
            f"The training_step of {type(pl_module).__name__} takes a dataloader_iter, so it cannot be given a batch. "
            f"{REMEDY}"
        )


def require_gradient(losses: Tensor, name: str) -> None:
    """Raises StiffnessError where no gradient can be taken of the losses."""
    if not _is_transformed(losses) and not losses.requires_grad:
        raise StiffnessError(f"{name} must return a loss with a gradient; found none: frozen parameters, or detached?")


def require_finite(losses: Tensor, name: str) -> None:
    """Raises StiffnessError where a loss is infinite or nan, and says of which sample."""
    if _is_transformed(losses):
        return
    broken = (~losses.detach().isfinite()).nonzero().flatten().tolist()
    if broken:
        raise StiffnessError(
            f"Losses must be finite; {name} gave {losses.detach()[broken[0]].item()} for sample {broken[0]} of the "
            f"batch ({len(broken)} of {len(losses)} samples). Look at that sample, or lower the learning rate. A mean "
            "over nothing, as where a mask leaves a sample out, is 0 / 0: divide by the count with .clamp(min=1)."
        )


def _is_transformed(losses: Tensor) -> bool:
    """Whether this runs inside torch.func.vmap or grad, where a tensor has no values to look at."""
    return torch._C._functorch.is_functorch_wrapped_tensor(losses)
