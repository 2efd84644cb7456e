"""The plans of an engine: one for each kind of batch, made when the kind is first seen."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointError

from lightning_stiffness.batching import batch_size, take
from lightning_stiffness.gram.collect import Declined, GraphChanged
from lightning_stiffness.gram.fallback import VECTORISED
from lightning_stiffness.gram.losses import LossSource
from lightning_stiffness.gram.plan import TRIAL_SIZES, Plan, make_plan
from lightning_stiffness.gram.trainable import trainable
from lightning_stiffness.structure import tensors

KEPT = 16  # plans, one for each kind of batch
MISTRUSTED = "failed the self-check"


@dataclass
class Plans:
    """What is known of the graphs of a module.

    Attributes:
        module: The model.
        source: batch -> losses with their graph.
        mistrusted: Names of the parameters that every plan leaves to the fallback.
        fallback_route: How the fallback goes about it.
    """

    module: nn.Module
    source: LossSource
    mistrusted: set[str] = field(default_factory=set)
    fallback_route: str = VECTORISED
    _known: dict[Hashable, Plan] = field(default_factory=dict)

    def amend(self, plan: Plan, cause: Exception) -> bool:
        """Changes or drops a plan so that the cause of a failure is gone the next time; whether that can be done."""
        if isinstance(cause, GraphChanged):
            if plan.is_used:  # it may be out of date
                self.forget(plan)
            else:
                plan.set_apart(cause.parameters, str(cause))
        elif isinstance(cause, Declined):
            plan.leave_to_fallback(cause.parameters, str(cause))
        elif isinstance(cause, CheckpointError):  # what is checkpointed can be recomputed once, for its own backward
            plan.leave_to_fallback(range(len(trainable(self.module))), "activation checkpointing")
        else:
            return False
        return True

    def forget(self, plan: Plan) -> None:
        """Drops a plan; the next batch of its kind has a new one."""
        self._known = {kind: known for kind, known in self._known.items() if known is not plan}

    def distrust_all(self) -> None:
        """From now on all parameters go by the fallback, whose gradients have the same form in every batch."""
        self.mistrusted.update(trainable(self.module))
        self._known.clear()

    def of(self, batch: Any, names: Mapping[str, nn.Parameter]) -> Plan:
        """The plan for a batch and the parameters that are trainable now, made if there is none."""
        kind = self._kind(batch, names)
        if kind not in self._known:
            plan = self._made(batch, names)
            if len(self._known) == KEPT:
                del self._known[next(iter(self._known))]
            self._known[kind] = plan
        return self._known[kind]

    def _made(self, batch: Any, names: Mapping[str, nn.Parameter]) -> Plan:
        n = batch_size(batch)
        few = max(TRIAL_SIZES)  # small batches are repeated: one sample alone does not show its axis

        def losses_of(k: int) -> Tensor:
            return self.source(take(batch, [sample % n for sample in range(k)], n))

        plan = make_plan(losses_of, list(names.values()), max(n, few))
        plan.leave_to_fallback([k for k, name in enumerate(names) if name in self.mistrusted], MISTRUSTED)
        plan.fallback_route = self.fallback_route
        return plan

    def _kind(self, batch: Any, names: Mapping[str, nn.Parameter]) -> Hashable:
        """What a plan is made for: the parameters, the modes of all parts, and the shapes of one sample."""
        parameters = tuple((name, p.dtype, p.device, p.shape) for name, p in names.items())
        modes = tuple(part.training for part in self.module.modules())
        shapes = tuple((tensor.shape[1:], tensor.dtype) for tensor in tensors(batch))
        return parameters, modes, shapes, min(batch_size(batch), max(TRIAL_SIZES))
