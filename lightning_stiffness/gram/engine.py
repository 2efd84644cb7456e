"""The Gram matrix of per-sample loss gradients of any model, without holding the n x p gradients."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointError

from lightning_stiffness.batching import batch_size, take
from lightning_stiffness.errors import StiffnessError
from lightning_stiffness.gram.check import Check, contradicted
from lightning_stiffness.gram.collect import Declined, GraphChanged
from lightning_stiffness.gram.losses import LossSource
from lightning_stiffness.gram.measurement import Measurement
from lightning_stiffness.gram.plan import Plan, make_plan
from lightning_stiffness.gram.results import ClassCosine, Explanation, Gram

Result = TypeVar("Result")


class GramEngine:
    """Computes inner products of per-sample loss gradients by reading the autograd graph.

    Nothing is set on the module, `.grad` is untouched and no global random number is drawn. The module is measured in
    the mode it is in: call `module.eval()` first if it has dropout or batch norm.

    Args:
        module: The model; all its parameters with `requires_grad` count.
        loss: (module, batch) -> losses [n], one per sample, such as cross entropy with `reduction="none"`. Loss
            functions of torch are evaluated in double precision, so that gradients of fitted samples are not rounding
            noise.
        budget: Bytes of memory that activations and factors may take beside the [n, n] result. Larger batches are
            processed in chunks of samples and groups of parameters: slower, with the same result.
        check: Compare two samples with plain autograd whenever a new kind of graph is seen.

    Source: ours; for linear layers the product of two Gram matrices, as Goodfellow (arXiv:1510.01799) has it for norms.

    Example:
        >>> import torch
        >>> from torch.nn.functional import cross_entropy
        >>> model = torch.nn.Linear(2, 2, bias=False)
        >>> _ = torch.nn.init.zeros_(model.weight)
        >>> def losses(module, batch):
        ...     return cross_entropy(module(batch[0]), batch[1], reduction="none")
        >>> batch = torch.tensor([[1.0, 1.0], [2.0, 1.0], [1.0, 0.0]]), torch.tensor([0, 0, 1])
        >>> GramEngine(model, losses).gram(batch).matrix.round(decimals=4)
        tensor([[ 1.0000,  1.5000, -0.5000],
                [ 1.5000,  2.5000, -1.0000],
                [-0.5000, -1.0000,  0.5000]], dtype=torch.float64)
    """

    def __init__(
        self, module: nn.Module, loss: Callable[[Any, Any], Tensor], *, budget: int = 1 << 30, check: bool = True
    ) -> None:
        """See the class."""
        if budget <= 0:
            raise StiffnessError(f"budget must be a positive number of bytes, found {budget}.")
        self.module = module
        self.budget = budget
        self.check = check
        self._source = LossSource(module, loss)
        self._plan: Plan | None = None
        self._checked = False

    def gram(self, batch: Any) -> Gram:
        """The Gram matrix of a batch.

        Returns:
            Matrix [n, n], losses [n], and the route of each parameter.

        Raises:
            StiffnessError: The loss is no finite vector [n] with a gradient, or random, or nothing is trainable.
            MixedSamplesError: The loss of one sample depends on the others.
        """
        gram = self._run(batch, Measurement.gram)
        if not self._checked and self._disagrees(batch, gram):
            gram = self._run(batch, Measurement.gram)
        self._checked = True
        return gram

    def class_cosine(self, batch: Any, targets: Int[Tensor, "n"], num_classes: int) -> ClassCosine:
        """The class matrix of mean cosines without the Gram matrix: linear in n, with memory for c x p sums.

        With u_i = g_i / |g_i| and S_a the sum of u_i over class a, the mean over pairs is S_a . S_b / (n_a n_b) between
        classes and (|S_a|^2 - n_a) / (n_a (n_a - 1)) within one. Where the sums do not fit the budget, each group of
        parameters takes a pass of its own.

        Source: ours.

        Args:
            batch: The samples.
            targets: Their classes, in [0, num_classes).
            num_classes: Number c of classes.

        Returns:
            The class matrix [c, c].

        Raises:
            StiffnessError: As `gram`, or targets that do not fit.
            MixedSamplesError: The loss of one sample depends on the others.
        """
        n = batch_size(batch)
        if targets.shape != (n,) or targets.dtype.is_floating_point:
            raise StiffnessError(
                f"targets must be integers of shape [{n}], found {targets.dtype} {list(targets.shape)}."
            )
        low, high = (int(targets.min()), int(targets.max())) if n else (0, 0)
        if low < 0 or high >= num_classes:
            raise StiffnessError(
                f"targets must lie in [0, {num_classes}), found {low} to {high}; pass the right num_classes."
            )
        if not self._checked and n:
            self.gram(take(batch, torch.linspace(0, n - 1, min(n, 8)).long(), n))
        return self._run(batch, lambda measurement: measurement.class_cosine(targets, num_classes))

    def explain(self, batch: Any) -> Explanation:
        """What is computed how, and what it costs, for each parameter: `print(engine.explain(batch))`."""
        return self._run(batch, Measurement.explain)

    def _run(self, batch: Any, work: Callable[[Measurement], Result]) -> Result:
        """Works by a plan, and by an amended one for as long as the graph or a rule contradicts it."""
        measurement = self._measurement(batch)
        for _ in range(len(measurement.names) + 2):
            done, result = self._attempt(measurement, work)
            if done:
                return result  # type: ignore[return-value]  # it is the result where it is done
            measurement = self._measurement(batch)
        _send_to_fallback(measurement, "the graph differs from call to call")
        return work(measurement)

    def _attempt(self, measurement: Measurement, work: Callable[[Measurement], Result]) -> tuple[bool, Result | None]:
        try:
            return True, work(measurement)
        except GraphChanged:
            self._plan = None
        except CheckpointError:  # torch lets a checkpointed activation be recomputed once, for its own backward pass
            _send_to_fallback(measurement, "activation checkpointing")
        except Declined as declined:
            measurement.plan.fallback.update(dict.fromkeys(declined.parameters, str(declined)))
        return False, None

    def _measurement(self, batch: Any) -> Measurement:
        n = batch_size(batch)
        if n == 0:
            raise StiffnessError("A batch must hold at least one sample, found none.")
        names = {name: parameter for name, parameter in self.module.named_parameters() if parameter.requires_grad}
        if not names:
            raise StiffnessError(
                f"{type(self.module).__name__} has no trainable parameter: every requires_grad is False, so there is "
                "no gradient to compare. Measure before freezing, or unfreeze the layers you want to look at."
            )
        parameters = list(names.values())
        if self._plan is None:
            self._plan = make_plan(lambda k: self._source(take(batch, slice(0, k), n)), parameters, n)
            self._checked = not self.check
        return Measurement(self.module, self._source, self._source.raw, self._plan, names, batch, n, self.budget)

    def _disagrees(self, batch: Any, gram: Gram) -> bool:
        """Whether plain autograd contradicts; the parameters at fault then take the fallback from now on.

        Raises:
            StiffnessError: The loss is random.
            MixedSamplesError: The loss of one sample depends on the others.
        """
        measurement = self._measurement(batch)
        check = Check(self.module, self._source, measurement.parameters, batch, measurement.samples)
        chosen = check.chosen(gram.norms)
        # Samples that mix leave no batch axis, and then no rule applies that could be wrong about them.
        if None not in measurement.plan.prefixes and check.agrees(gram.matrix, gram.losses, chosen):
            return False
        if check.agrees_inside(gram.matrix, gram.losses, chosen):
            return False
        names = list(measurement.names)
        faulty = self._faulty(measurement, chosen) or [
            k for k in range(len(names)) if k not in measurement.plan.fallback
        ]
        measurement.plan.fallback.update(dict.fromkeys(faulty, "failed the self-check"))
        warnings.warn(
            f"The fast route disagreed with plain autograd for {', '.join(names[k] for k in faulty[:5])}"
            f"{' and others' if len(faulty) > 5 else ''}; these parameters are now measured by a slower, safe route.",
            stacklevel=4,
        )
        return bool(faulty)

    def _faulty(self, measurement: Measurement, chosen: list[int]) -> list[int]:
        """The parameters whose own contribution differs from plain autograd on a batch of the chosen samples."""
        pair = replace(measurement, batch=take(measurement.batch, chosen, measurement.samples), samples=len(chosen))
        return contradicted(pair)


def _send_to_fallback(measurement: Measurement, reason: str) -> None:
    measurement.plan.fallback.update(dict.fromkeys(range(len(measurement.names)), reason))
