"""The virtual leave-one-out estimate beside training: the only signal that looks between readings."""

import math
from typing import Any

import torch
from torch import Tensor

from lightning_stiffness.callbacks.progress import epochs_completed
from lightning_stiffness.callbacks.signals.signal import Scene
from lightning_stiffness.callbacks.signals.step_sizes import StepSizes, learning_rates, step_sizes
from lightning_stiffness.callbacks.signals.tracked_kernel import TrackedKernel
from lightning_stiffness.errors import StiffnessError
from lightning_stiffness.functional import Exposure, LeaveOneOutScores, leave_one_out_scores, own_share
from lightning_stiffness.gram import Gram
from lightning_stiffness.gram.sharding import held
from lightning_stiffness.gram.trainable import named_trainable

# In epochs: predictions change fastest at the beginning; from the last entry on once an epoch.
LOOKS = (1 / 8, 1 / 2, 1)


class LeaveOneOutSignal:
    """What the network would say about training samples had it not been trained on them.

    Follows the predictions for some hundred training samples, in eval mode: at readings, and in between twice in the
    first epoch, then once an epoch. With the learning rates of the steps they tell what the samples' own updates have
    done to the network; the Gram matrix of the logits' gradients tells how much of that is left in their own logits.
    See `functional.own_share` and `functional.leave_one_out_scores`.

    The Gram matrix is the dear part. It is the mean over three random directions of the logits, of which each reading
    measures one anew; see `TrackedKernel`.

    Where training augments its samples, each is followed in two variants: what counts is how much a visit of one helps
    the other. The loss is taken to be a mean over the batch, and all samples to be visited equally often. Weight decay
    and gradient clipping are not seen, and optimizers other than SGD and those with Adam's or RMSprop's state count as
    SGD.

    Source: ours.
    """

    names = ("leave_one_out_loss", "leave_one_out_error", "leave_one_out_doubt", "leave_one_out_train_loss")

    def __init__(self, scene: Scene) -> None:
        """Draws the samples; their predictions before training are the beginning."""
        self._scene, self._tracked = scene, scene.tracked
        if not math.isfinite(self._tracked.samples):
            raise StiffnessError(
                "The leave-one-out estimate needs the number of training samples, which a stream does not tell. Train "
                "from a dataset with a length, or stop by another criterion."
            )
        self._logits = self._tracked.logits()
        self._kernel = TrackedKernel(scene, self._logits.shape[1])
        self._exposure = Exposure(torch.zeros_like(self._logits), torch.zeros(len(self._logits)).double(), 0.0)
        self._sizes: StepSizes | None = None
        self._now = self._sizes_now()
        self._step = self._seen_step = scene.trainer.global_step
        self._learning_rates = learning_rates(scene.trainer.optimizers)
        self._summed = [0.0 for _ in self._learning_rates]

    def before_step(self) -> None:
        """Counts the learning rates of the steps, and looks at the predictions where that is due."""
        trainer = self._scene.trainer
        self._count_steps()
        self._learning_rates = learning_rates(trainer.optimizers)
        epoch, steps = epochs_completed(trainer), trainer.num_training_batches
        if trainer.global_step > self._seen_step and _is_due(epoch, 1 / steps):
            self._look(self._sizes_now(), None)

    def before_reading(self) -> None:
        """Asks the optimizers for the sizes of their steps."""
        self._count_steps()
        self._now = self._sizes_now()

    def read(self, gram: Gram) -> dict[str, float]:
        """Its four numbers; nan before training."""
        if self._scene.trainer.global_step == 0:
            return dict.fromkeys(self.names, math.nan)
        sizes = self._now
        self._look(sizes, self._kernel.renew(self._rates(sizes)))
        if not self._exposure.time > 0:
            return dict.fromkeys(self.names, math.nan)
        scores = self._scores(self._kernel.mean)
        return dict(zip(self.names, (scores.loss, scores.error, scores.doubt, scores.train_loss), strict=True))

    def state_dict(self) -> dict[str, Any]:
        """What was followed so far."""
        return {
            "fingerprint": self._tracked.fingerprint,
            "logits": self._logits,
            "residual": self._exposure.residual,
            "curvature": self._exposure.curvature,
            "time": self._exposure.time,
            "step": self._step,
            "seen_step": self._seen_step,
            "summed": list(self._summed),
            "learning_rates": list(self._learning_rates),
            "sizes": None if self._sizes is None else [dict(part) for part in _parts(self._sizes)],
            "kernel": self._kernel.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on, unless other samples were followed.

        Raises:
            StiffnessError: They were others.
        """
        if state.get("fingerprint") != self._tracked.fingerprint:
            raise StiffnessError(
                "The samples of the leave-one-out estimate are others than in the checkpoint, which knows nothing of "
                "what training has done to these. Resume with the same data, seed and num_classes."
            )
        self._logits = state["logits"]
        self._exposure = Exposure(state["residual"], state["curvature"], state["time"])
        self._step, self._seen_step, self._summed = state["step"], state["seen_step"], list(state["summed"])
        self._learning_rates = list(state["learning_rates"])
        self._sizes = None if state["sizes"] is None else StepSizes(*state["sizes"])
        self._kernel.load_state_dict(state.get("kernel", {}))

    def _count_steps(self) -> None:
        step = self._scene.trainer.global_step
        made, self._step = step - self._step, step
        self._summed = [total + made * rate for total, rate in zip(self._summed, self._learning_rates, strict=True)]

    def _sizes_now(self) -> StepSizes:
        named = {name: held(parameter) for name, parameter in named_trainable(self._scene.engine.module).items()}
        return step_sizes(self._scene.trainer.optimizers, named)

    def _look(self, sizes: StepSizes, now: Tensor | None) -> None:
        """Takes the time since the last look into account; ``now`` are the logits, where they are known."""
        step = self._scene.trainer.global_step
        if step == self._seen_step:
            return
        now = self._tracked.logits() if now is None else now
        before = sizes if self._sizes is None else self._sizes
        elapsed = (before.mean(self._summed) + sizes.mean(self._summed)) / 2
        self._exposure = self._exposure.after(self._logits, now, self._tracked.targets, elapsed)
        self._logits, self._sizes, self._seen_step = now, sizes, step
        self._summed = [0.0 for _ in self._summed]

    def _rates(self, sizes: StepSizes) -> dict[str, float] | None:
        rates = sizes.rates(self._learning_rates)
        return None if all(abs(rate - 1) < 1e-6 for rate in rates.values()) else rates

    def _scores(self, kernel: Tensor) -> LeaveOneOutScores:
        n = len(self._logits)
        samples = max(int(self._tracked.samples), n)
        twins = (kernel[:n, n:] + kernel[n:, :n]) / 2 if len(kernel) > n else None
        share = own_share(kernel[:n, :n], self._exposure.curvature, self._exposure.time, samples, twins)
        return leave_one_out_scores(self._logits, self._tracked.targets, self._exposure, share, samples)


def _is_due(epoch: float, step: float) -> bool:
    """Whether a look falls between this step and the one before."""
    if epoch > LOOKS[-1]:
        return epoch % 1 < step
    return any(look <= epoch + 1e-9 < look + step for look in LOOKS)


def _parts(sizes: StepSizes) -> tuple[Any, ...]:
    return sizes.scales, sizes.groups, sizes.energy
