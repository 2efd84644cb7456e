"""The losses of a batch, as the user's function gives them, with what is required of them checked."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_stiffness.batching import batch_size
from lightning_stiffness.errors import StiffnessError
from lightning_stiffness.gram.memory import is_out_of_memory
from lightning_stiffness.gram.plain import with_autocast
from lightning_stiffness.gram.recurrent import recurrent_layers_by_steps
from lightning_stiffness.loss_head import double_precision_loss_heads


@dataclass(frozen=True)
class _Precision:
    """How a loss is evaluated: its head in double precision, the network with the autocast of its own code."""

    double_head: bool
    autocast: bool


# From the most exact on; the next where the user's code cannot take one.
_PRECISIONS = tuple(_Precision(double_head, autocast) for autocast in (False, True) for double_head in (True, False))


class LossSource:
    """Calls the loss with its head in double precision and without autocast, where the user's code can take that."""

    def __init__(self, module: nn.Module, loss: Callable[[Any, Any], Tensor]) -> None:
        """`loss` maps (module, batch) to losses [n]."""
        self._module = module
        self._loss = loss
        self._precision = _PRECISIONS[0]

    def __call__(self, batch: Any, samples: Sequence[int] | None = None) -> Tensor:
        """The losses [n] of a batch, with their graph.

        Args:
            batch: The samples.
            samples: What they are called in an error, where they are some of a larger batch.

        Raises:
            StiffnessError: They are no finite vector [n] with a gradient.
        """
        losses = self._evaluate(batch)
        _require_per_sample(losses, range(batch_size(batch)) if samples is None else samples)
        return losses

    @property
    def has_autocast(self) -> bool:
        """Whether the model could only be evaluated with the autocast of its own code."""
        return self._precision.autocast

    def raw(self, module: Any, batch: Any) -> Tensor:
        """The losses of another module (the same with other parameter values), unchecked."""
        return self._with(self._precision, module, batch)

    def _with(self, precision: _Precision, module: Any, batch: Any) -> Tensor:
        with (
            torch.enable_grad(),
            double_precision_loss_heads(precision.double_head),
            with_autocast(precision.autocast),
            recurrent_layers_by_steps(self._module),
        ):
            return self._loss(module, batch)

    def _evaluate(self, batch: Any) -> Tensor:
        failure: RuntimeError | None = None
        for precision in _PRECISIONS[_PRECISIONS.index(self._precision) :]:
            try:
                losses = self._with(precision, self._module, batch)
            except RuntimeError as cause:  # noqa: PERF203 (a few turns)
                if is_out_of_memory(cause):
                    raise
                failure = cause
            else:
                self._precision = precision
                return losses
        assert failure is not None
        if "offsets[0] has to be 0" in str(failure):
            raise StiffnessError(
                "A batch must be indexable by sample; found offsets into the tokens of all samples (EmbeddingBag), "
                "which fit the whole batch alone. Pass padded tokens [n, t] to nn.EmbeddingBag(..., padding_idx=)."
            ) from failure
        raise failure


def _require_per_sample(losses: Any, samples: Sequence[int]) -> None:
    n = len(samples)
    if not isinstance(losses, Tensor):
        raise StiffnessError(
            f"The loss must return a tensor [{n}], one value per sample; found {type(losses).__name__}."
        )
    if losses.shape != (n,):
        kind = "a scalar, which is a mean or sum over samples" if losses.ndim == 0 else f"shape {list(losses.shape)}"
        raise StiffnessError(
            f"The loss must return one value per sample, shape [{n}]; found {kind}. "
            'Use reduction="none" (and average over positions, if each sample has several).'
        )
    if not losses.is_floating_point():
        raise StiffnessError(f"The loss must return floating point values, found {losses.dtype}.")
    if losses.grad_fn is None:
        raise StiffnessError(
            "The loss has no gradient: it does not depend on a trainable parameter, or was computed under "
            "torch.no_grad(), or detached."
        )
    finite = torch.isfinite(losses.detach())
    if not bool(finite.all()):
        bad = (~finite).nonzero().flatten().tolist()
        raise StiffnessError(
            f"All losses must be finite; found {losses[bad[0]].item()} for sample {samples[bad[0]]} "
            f"({len(bad)} of the {n} that were looked at). "
            "Look at that sample's input, and at the learning rate."
        )
