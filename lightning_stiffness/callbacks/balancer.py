"""ClassGroupingBalancer: a classifier of imbalanced classes that treats them alike."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from lightning_stiffness.callbacks.agreement import attempted
from lightning_stiffness.callbacks.balancing_backward import BalancingOfLosses
from lightning_stiffness.callbacks.balancing_classes import classifier_for, outputs_of, require_labels
from lightning_stiffness.callbacks.balancing_labels import batch_labels
from lightning_stiffness.callbacks.balancing_loader import LoaderExchange, known_number
from lightning_stiffness.callbacks.balancing_statistics import ClassStatistics, absorption
from lightning_stiffness.callbacks.balancing_step import BalancedClassifier, Step
from lightning_stiffness.callbacks.namespace import require_same_namespace
from lightning_stiffness.callbacks.progress import planned_batches
from lightning_stiffness.errors import StiffnessError
from lightning_stiffness.functional.class_rates import power_rates
from lightning_stiffness.functional.logit_offsets import probabilities_under_frequencies
from lightning_stiffness.functional.smoothed_labels import require_smoothing
from lightning_stiffness.sampling import Rates, generator_of

_BATCHES_OF_A_STREAM: Final = 100  # warm-up where nobody knows how long training lasts


class ClassGroupingBalancer(BalancingOfLosses):
    """Trains a classifier for balanced accuracy: each class counts the same, however few samples it has.

    Three parts, each of which can be switched off, and a fourth that can be switched on:

    - `sampling`: classes are drawn at rates proportional to their size to the power of 3/4. A training loader with
      `shuffle=True` is exchanged for such a one while `fit` lasts. A loader with another sampler, a stream, and a
      dataset whose labels cannot be read without loading samples are left as they are, and a message says so:
      `make_balanced_loader` makes a loader of the first, and of the last with `labels=`. Samples that a sampler never
      draws (held out by a SubsetRandomSampler, or by weights of 0) are neither drawn nor counted; what a sampler of a
      class of one's own draws is counted while training.
    - `logits`: log q_c is added to the logits in training (logit adjustment), q_c being how often class c is really
      met in the loss: drawn, by whatever sampler, and with smoothed labels.
    - `smoothing`: the logits are changed so that a cross entropy of them is one with smoothed labels, by loss and
      gradients (`functional.smoothed_label_logits`).
    - `shift` (off): after a warm-up, the features of a sample of a small class are moved up to half way toward the mean
      of a bigger class that takes its probability, label kept: small classes get the room that big ones have. Half as
      far, or not at all, where the network would take the moved sample for one of another class. Worth nothing beside
      smoothed labels, in the mean of our settings.

    The last three are hooks on the classifier layer, in its training mode and inside the training step only.
    Validation, testing and prediction are untouched: the network's own logits are those for equal class frequencies.
    `natural_probabilities` turns them into probabilities for classes as frequent as in the training data. What the
    training step logs of its logits (training accuracy) is of the changed ones.

    What it is good for, and where it loses, is measured in docs/balancing.md (docs/when-not-to-balance.md sums it up).
    It costs recall of the biggest classes, and smoothed labels make probabilities less sure: do not use it where the
    natural frequencies are those that count.

    Mixed inputs (mixup, CutMix): with labels mixed inside the training step, `shift` and `smoothing` would take mixed
    samples for those of the batch's labels; switch them off. The other parts remain right, since log q_c is a part of
    the softmax that both labels are compared with. Loss: a softmax cross entropy with any reduction; for another one
    switch `logits` and `smoothing` off. Smoothing and class weights of its own (log q_c becomes log q_c w_c) are seen
    in a `CrossEntropyLoss` that the module holds; take them out of functions. The first loss is looked at: where it is
    computed of other logits than those of the layer found, an error says so (a warning, if you have named the layer).

    A head that is called several times in a step gets log q_c each time; the batch's labels are taken to be those of
    the first call with gradients (after each backward pass anew), which alone is smoothed and shifted. Gradient
    accumulation, mixed precision, DDP, FSDP2 and torch.compile work (without `fullgraph`, since the hooks run
    uncompiled). Heads for tokens or pixels ([n, t, c]) do not. `torch.jit.script` cannot be called while training.

    Under DDP each process draws its own part of a pass; class means are pooled at the end of each epoch.

    Checkpoints hold what was learnt of the classes. The exchanged loader is resumed in the middle of an epoch, so a
    checkpoint of a run with `sampling` has to be resumed with it.

    Args:
        sampling: Draw classes at `rates`.
        logits: Add log q_c to the training logits.
        smoothing: Share of each label that the loss spreads evenly over all classes, in [0, 1); 0 for none.
        shift: Shift features of small classes.
        absorbers: Shift toward classes by how much probability they take. Off: toward any bigger classes, a control.
        rates: How often classes are drawn: a strategy of `functional.class_rates`, class sizes [c] -> rates [c], or a
            `DeferredRates` schedule.
        counts: Samples of each class, 1 for a class without any. Not given: read from the dataset, again whenever its
            loader is loaded again, or counted while training.
        num_classes: Number of classes; that of the counts, or of the dataset's labels when not given. Given: a class
            may be without a training sample (a fold of a long tail); it is never drawn, and counts as one sample.
        classifier: Name of the layer or module that gives the logits to the loss, of any kind. Not given: the only
            Linear layer with an output per class, with its adapter (LoRA) if it has one.
        targets: batch -> integer classes [n]. Not given: the second element of the batch, or its "labels", "targets",
            "y" ... Given: the labels that the dataset stores may be other ones, so they are not used, and `sampling`
            needs a loader of `make_balanced_loader`.
        warmup: Share of training before the first shift.
        seed: Of the sampler and the shifts; the global random state is not used.
        max_readings: How often, at most, it measures how the network treats its classes; 0 for never. Evenly over the
            run, more rarely where it would take more than 5 % of the time (a second more is allowed), and at the end.
            Measuring changes nothing in training. `readings` holds them, checkpoints and the file `balancing.jsonl`
            too, and `lightning-stiffness report` makes a page of the latter.
        panels: Show them in TensorBoard, Weights & Biases and MLflow: which classes fight and which share features,
            who takes the probability of small classes, recall of each class in validation, classes that the mean step
            sacrifices. Pictures come while they take at most 5 % of the time, and at the end.
        class_names: One for each class, for pictures; those that the dataset stores as `classes` when not given.
        save_dir: Folder of `balancing.jsonl`. Not given: beside the checkpoints of the first logger; without a logger
            no file.

    Raises:
        StiffnessError: An argument is out of range.

    Source: ours; logit adjustment by Menon et al., arXiv:2007.07314, sampling by Kang et al., arXiv:1910.09217,
        label smoothing by Szegedy et al., arXiv:1512.00567.

    Example:
        >>> balancer = ClassGroupingBalancer(smoothing=0.05)
        >>> balancer.frequencies is None  # until training starts
        True
    """

    def __init__(  # noqa: PLR0913  # the settings of a callback, each by its name
        self,
        *,
        sampling: bool = True,
        logits: bool = True,
        smoothing: float = 0.1,
        shift: bool = False,
        absorbers: bool = True,
        rates: Rates = power_rates,
        counts: Sequence[int] | None = None,
        num_classes: int | None = None,
        classifier: str | None = None,
        targets: Callable[[Any], Any] | None = None,
        warmup: float = 0.25,
        seed: int = 0,
        max_readings: int = 10,
        panels: bool = True,
        class_names: Sequence[str] | None = None,
        save_dir: str | None = None,
    ) -> None:
        """See the class."""
        super().__init__(counts, num_classes, max_readings, panels, class_names, save_dir)
        if not 0 <= warmup <= 1:
            raise StiffnessError(f"warmup must be a share of training in [0, 1], found {warmup}.")
        require_smoothing(smoothing)
        self.sampling, self.logits, self.shift, self.rates = sampling, logits, shift, rates
        self.smoothing, self.absorbers = smoothing, absorbers
        self.classifier, self.targets, self.warmup, self.seed = classifier, targets, warmup, seed
        self._statistics: ClassStatistics | None = None
        self._exchange: LoaderExchange | None = None
        self._batches, self._first_shift = 0, 0.0

    @property
    def absorption(self) -> Float[Tensor, "c c"] | None:
        """Who takes the probability of whom: see `balancing_statistics.absorption`; None until it is measured.

        With `shift`: of the unchanged logits, in training mode, on average over the last 20 or so samples of each
        class. Without: that of the last reading.
        """
        found = self._means()
        if found is not None:
            return absorption(found.probabilities.cpu())
        return next((one.absorption for one in reversed(self.readings) if one.absorption is not None), None)

    def natural_probabilities(self, logits: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        """Probabilities where classes are as frequent as in the training data.

        Warns once where nobody knows that, since labels cannot be read without loading samples and the sampler need not
        draw classes as they occur: pass `counts`.

        Args:
            logits: What the trained module says of any samples, in eval mode.

        Returns:
            In [0, 1], rows sum to 1.

        Raises:
            StiffnessError: Training has not started, or there is not one logit for each class.
        """
        wanted, drawn = self.known_prior(), self.frequencies
        assert drawn is not None
        trained = torch.ones_like(drawn) if self.logits else self.met(drawn)
        return probabilities_under_frequencies(logits, trained, wanted)

    @override
    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        require_same_namespace(trainer)
        if stage != "fit":
            return
        if trainer.global_step == 0:  # a checkpoint is loaded after this
            self._statistics, self._batches = None, 0
            self.forget()
        if self.sampling and self.targets is None and self._exchange is None:
            self._exchange = LoaderExchange(trainer, self.rates, seed=self.seed, num_classes=self.given_number())

    @override
    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        acts = self.logits or self.shift or self.smoothing > 0
        if not (self.sampling or acts):
            return
        found, given = self.found_counts(trainer), self.given_number()
        number = given or (None if found is None else len(found))
        if not acts:
            if number is not None:
                self.begin_counting(trainer, found, number)
                layer = attempted(lambda: classifier_for(pl_module, number, self.classifier, given)[1])
                self.observe(trainer, pl_module, layer)
            return
        number = number or (known_number(trainer) if self.targets is None else None)
        name, layer = classifier_for(pl_module, number, self.classifier, given)
        size = outputs_of(name, layer, number)
        if len(self._drawn) != size:
            self._statistics = None
        self.begin_counting(trainer, found, size)
        self.look_at_losses(pl_module)
        self._head = BalancedClassifier(name, layer, size, self._statistics, self.classifier is not None)
        length = planned_batches(trainer)
        self._first_shift = self.warmup * length if length < math.inf else _BATCHES_OF_A_STREAM
        self.observe(trainer, pl_module, layer)

    @override
    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if self._observer is not None:
            self._observer.before_batch()
        is_needed = self._head is not None and (self.shift or self.smoothing or self._known is None)
        labels = self._labels(batch) if is_needed else None
        if self._check is not None:
            self._check.see(batch, labels)
        if self._head is None:
            return
        if labels is not None and self._known is None:
            tally = torch.bincount(labels, minlength=len(self._drawn))
            self._drawn += trainer.strategy.reduce(tally, reduce_op="sum").cpu()
        self._head.begin(self._step(labels, trainer.global_rank))
        self._batches += 1

    @override
    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self._head is not None:
            self._head.end(is_called=bool(outputs) or not pl_module.automatic_optimization)

    @override
    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        means = self._means()
        if trainer.world_size > 1 and means is not None:
            means.pool(lambda values: trainer.strategy.reduce(values, reduce_op="sum"))
        if self._observer is not None:
            self._observer.after_epoch()

    @override
    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        if self._observer is not None:
            self._observer.end()
        self._remove()

    @override
    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._remove()

    @override
    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self._remove()

    @override
    def state_dict(self) -> dict[str, Any]:
        """Counts of drawn labels, class means, how many batches were seen, and the readings."""
        if len(self._drawn) == 0:
            return {}
        means = self._means()
        return {
            "batches": self._batches,
            "means": None if means is None else means.state_dict(),
            **super().state_dict(),
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if not state_dict:
            return
        super().load_state_dict(state_dict)
        self._batches, means = state_dict["batches"], state_dict["means"]
        self._statistics = None if means is None else ClassStatistics.from_state_dict(means)

    def _means(self) -> ClassStatistics | None:
        return self._statistics if self._head is None else self._head.statistics

    def _step(self, labels: Tensor | None, rank: int) -> Step:
        smoothing = 0.0 if self.losses.smoothing else self.smoothing
        if labels is None or not (self.shift or smoothing):
            return Step(self.offsets)
        if not self.shift:
            return Step(self.offsets, labels, smoothing=smoothing)
        is_warm = self._batches >= self._first_shift
        chances = (
            torch.rand(len(labels), 2, generator=generator_of(self.seed, rank, self._batches)) if is_warm else None
        )
        counts = self._drawn + 1 if self.counts is None else self.counts.double()
        return Step(self.offsets, labels, counts, chances, self.absorbers, smoothing)

    def _labels(self, batch: Any) -> Tensor:
        labels = batch_labels(batch, self.targets, is_only_smoothed=self._known is not None)
        if labels.device.type == "cpu" or self._batches == 0:  # elsewhere a look at them makes the device wait
            require_labels(labels, len(self._drawn))
        return labels

    def _remove(self) -> None:
        if self._head is not None:
            self._statistics = self._head.statistics
            self._head.remove()
        if self._exchange is not None:
            self._exchange.remove()
        self._head = self._exchange = None
        self.end_observing()
