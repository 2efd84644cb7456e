"""The Gram matrix of per-sample loss gradients of any model, without holding the n x p gradients."""

import functools
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lightning_stiffness.batching import batch_size, join, take
from lightning_stiffness.errors import StiffnessError
from lightning_stiffness.gram.check import Check, tolerance_of
from lightning_stiffness.gram.class_alignment import AlignmentPasses, require_classes
from lightning_stiffness.gram.class_cosine import class_cosine
from lightning_stiffness.gram.collect import Declined, GraphChanged
from lightning_stiffness.gram.fallback import ONE_BY_ONE, VECTORISED
from lightning_stiffness.gram.logit_gram import Logits, Projection, projected_gram
from lightning_stiffness.gram.losses import LossSource
from lightning_stiffness.gram.measurement import Measurement
from lightning_stiffness.gram.memory import default_budget, is_out_of_memory
from lightning_stiffness.gram.modes import require_measurable_mode
from lightning_stiffness.gram.plain import plainly, unwrapped
from lightning_stiffness.gram.plans import MISTRUSTED, Plans
from lightning_stiffness.gram.results import ClassAlignment, ClassCosine, CrossGram, Explanation, Gram
from lightning_stiffness.gram.totals import Grouping, across, by_class, everything, grouped
from lightning_stiffness.gram.trainable import trainable
from lightning_stiffness.targets import targets_of

Result = TypeVar("Result")
FEW = 8  # samples whose Gram is computed to check a reading that has none
SMALLEST = 64 << 20  # a budget that is not made smaller


class GramEngine:
    """Computes inner products of per-sample loss gradients by reading the autograd graph.

    Nothing is set on the module, `.grad` is untouched and no global random number is drawn. The module is measured in
    the mode it is in: call `module.eval()` first if it has dropout or batch norm. It is measured as its code reads: a
    compiled module, or one that is wrapped for data-parallel training, is unwrapped; activation checkpointing and
    autocast are off meanwhile, and parameters that FSDP2 has shared out are gathered, so all processes must measure.

    Args:
        module: The model; all its parameters with `requires_grad` count.
        loss: (module, batch) -> losses [n], one per sample, such as cross entropy with `reduction="none"`. Loss
            functions of torch are evaluated in double precision, so that gradients of fitted samples are not rounding
            noise. Losses that are divided by the batch size keep their cosines and signs; where a batch is processed in
            chunks, K has the scale that they have in a chunk.
        budget: Bytes of memory that a measurement may take beside the [n, n] result: four fifths for what it plans
            with, the rest for what nobody can count. Larger batches are processed in chunks of samples and groups of
            parameters: slower, with the same result. Not given: a quarter of the memory of the device, at most 4 GiB,
            and less where that turns out to be more than there is.
        check_every: Each time a new kind of batch or of graph is seen, and at every `check_every`-th reading, results
            are compared with plain autograd: for two samples alone, for a sum over all samples, and parameter by
            parameter for a few samples, others each time. Where they differ, a warning names the parameters; they are
            measured anew by a slower, safe route, and from then on. A check costs about one forward and backward pass
            of the batch; 0 switches it off.

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
        self, module: nn.Module, loss: Callable[[Any, Any], Tensor], *, budget: int | None = None, check_every: int = 20
    ) -> None:
        """See the class."""
        if budget is not None and budget <= 0:
            raise StiffnessError(f"budget must be a positive number of bytes, found {budget}.")
        if check_every < 0:
            raise StiffnessError(f"check_every must be a number of readings, or 0 for no check; found {check_every}.")
        self.module = unwrapped(module)
        self._outermost = module
        self.budget = budget
        self._shrunk = 0
        self.check_every = check_every
        self._source = LossSource(self.module, loss)
        self._plans = Plans(self.module, self._source)
        self._mistrusted = self._plans.mistrusted
        self._readings = 0
        self._checks = 0
        self._logit_engine: tuple[tuple[Logits, int, int], Projection, GramEngine] | None = None

    def gram(self, batch: Any, *, by: Grouping = None, within: Int[Tensor, "n"] | None = None) -> Gram:
        """The Gram matrix of a batch.

        Args:
            batch: The samples.
            by: "layer" (the module that holds a parameter), "parameter", or a function from the name of a parameter to
                that of its group: `parts` of the result then has the Gram of each group, at the cost of their memory.
                A parameter that is used under several names counts by its first one.
            within: The class of each sample: only pairs of the same class are computed, a c-th of the products for c
                classes of equal size; the others are nan.

        Returns:
            Matrix [n, n], losses [n], and the route of each parameter.

        Raises:
            StiffnessError: The loss is no finite vector [n] with a gradient, or random, or nothing is trainable, or an
                argument does not fit.
            MixedSamplesError: The loss of one sample depends on the others.
        """
        n = batch_size(batch)
        if within is not None:
            require_classes(within, n)
        request = grouped(everything(n) if within is None else by_class(within.tolist()), by)

        def work(measurement: Measurement) -> Gram:
            return measurement.gram(request)

        with plainly(self._outermost):
            if within is not None:
                return self._run(self._begun(batch), work)
            measurement = self._measurement(batch)
            is_due = self._is_due(measurement)
            gram = self._run(measurement, work)
            return self._checked(batch, gram, work) if is_due else gram

    def cross_gram(self, first: Any, second: Any, *, by: Grouping = None, with_first: bool = False) -> CrossGram:
        """The inner products of the gradients of one batch with those of another, without those inside a batch.

        Args:
            first: The samples of the rows.
            second: The samples of the columns; a batch of the same structure and shapes, of another size if you like.
            by: As in `gram`.
            with_first: The columns are the samples of the first batch, then those of the second: the left part is what
                `gram` is of the first batch, from the same pass. A sample with itself has cosine 1 there.

        Returns:
            Matrix [n, m], or [n, n + m] with the first; the norms and losses of both sides; `cosines` has the cosines.

        Raises:
            StiffnessError: As `gram`, or batches that cannot be joined.
            MixedSamplesError: The loss of one sample depends on the others.
        """
        batch = join([first, second])
        request = grouped(across(batch_size(first), batch_size(second), with_first), by)
        with plainly(self._outermost):
            return self._run(self._begun(batch), lambda measurement: measurement.cross_gram(request))

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
        require_classes(targets, batch_size(batch), num_classes)
        with plainly(self._outermost):
            work = functools.partial(class_cosine, targets=targets, num_classes=num_classes)
            return self._run(self._begun(batch), work)

    def class_alignment(
        self,
        batches: Iterable[Any],
        num_classes: int,
        *,
        targets: Callable[[Any], Tensor] = targets_of,
        relabel: Callable[[Any, Tensor], Any] | None = None,
    ) -> ClassAlignment:
        """Mean cosine of each sample's gradient with those of each class, over data of any size, without any pair.

        Source: ours; u_i . S_a / n_a with the sums of `class_cosine`, the sample itself left out of its own class.

        Args:
            batches: Read twice or more, such as a list or a DataLoader; memory does not grow with their number.
            num_classes: Number c of classes.
            targets: batch -> the given class [n] of each sample.
            relabel: (batch, labels [n]) -> the batch with these labels. Given: column a is the cosine of the gradient
                that the sample would have under label a, and there is a pass over the data for each label.

        Raises:
            StiffnessError: As `gram`, targets that do not fit, or batches that change from pass to pass.
            MixedSamplesError: The loss of one sample depends on the others.
        """
        with plainly(self._outermost):
            passes = AlignmentPasses(self._aligned, batches, num_classes, targets, relabel)
            return passes.result(give_up_rules=self._plans.distrust_all)

    def logit_gram(
        self,
        batch: Any,
        logits: Logits,
        *,
        directions: int = 3,
        rates: Mapping[str, float] | None = None,
        seed: int = 0,
    ) -> Float[Tensor, "n n"]:
        """The Gram matrix of the gradients of the logits, mean over the logits: the neural tangent kernel's trace.

        Args:
            batch: The samples.
            logits: (module, batch) -> [n, c].
            directions: How many random sums of the logits are differentiated, each at the cost of a `gram`. With c or
                more the result is exact; with fewer, entries have an error of about 1 / sqrt(directions) of the
                geometric mean of their diagonal entries, and their expectation is exact.
            rates: How much each parameter counts, by its name: its learning rate relative to others. Rounded to a
                quarter of an octave. Not given: all count as 1.
            seed: Of the random sums; the global random state is not used.

        Returns:
            K_ij = mean over c of rate * <dz_ic/dw, dz_jc/dw>; symmetric, positive semi-definite, float64 where there is
            such.

        Raises:
            StiffnessError: As `gram`, or logits of another shape.
            MixedSamplesError: The logits of one sample depend on others.

        Source: the kernel is Jacot et al., arXiv:1806.07572; the route is ours.
        """
        known = self._logit_engine
        if known is None or known[0] != (logits, directions, seed):
            projection = Projection(logits, directions, seed)
            engine = GramEngine(self._outermost, projection, budget=self.budget, check_every=self.check_every)
            known = self._logit_engine = (logits, directions, seed), projection, engine
        _, projection, engine = known
        return projected_gram(engine.gram, projection, batch, rates)

    def explain(self, batch: Any) -> Explanation:
        """What is computed how, and what it costs, for each parameter: `print(engine.explain(batch))`."""
        with plainly(self._outermost):
            return self._run(self._measurement(batch), Measurement.explain)

    def _aligned(self, batch: Any, work: Callable[[Measurement], Result]) -> Result:
        """Works on one of many batches; the first of its kind is checked."""
        measurement = self._measurement(batch)
        if self.check_every and not measurement.plan.is_checked:
            measurement = self._begun(batch)
        return self._run(measurement, work)

    def _run(self, measurement: Measurement, work: Callable[[Measurement], Result]) -> Result:
        """Works by a plan, and by an amended one for as long as the graph or a rule contradicts it."""
        for _ in range(len(measurement.names) + 2):
            try:
                result = work(measurement)
            except (GraphChanged, Declined, RuntimeError, MemoryError) as cause:
                if self._has_less_memory(measurement, cause):
                    self._shrunk += 1
                elif not self._plans.amend(measurement.plan, cause):
                    raise
            else:
                measurement.plan.is_used = True
                return result
            measurement = self._measurement(measurement.batch)
        measurement.plan.leave_to_fallback(range(len(measurement.names)), "what is computed differs from call to call")
        return work(measurement)

    def _has_less_memory(self, measurement: Measurement, cause: Exception) -> bool:
        """Whether there is less than was thought, and a smaller budget may do."""
        return is_out_of_memory(cause) and self.budget is None and measurement.budget >= SMALLEST

    def _measurement(self, batch: Any) -> Measurement:
        n = batch_size(batch)
        if n == 0:
            raise StiffnessError("A batch must hold at least one sample, found none.")
        names = trainable(self.module)
        require_measurable_mode(self.module)
        plan = self._plans.of(batch, names)
        budget = self.budget or default_budget(next(iter(names.values())).device) >> self._shrunk
        return Measurement(self.module, self._source, self._source.raw, plan, names, batch, n, budget)

    def _is_due(self, measurement: Measurement) -> bool:
        """Begins a reading; whether it is to be checked."""
        self._readings += 1
        if self.check_every == 0:
            return False
        return not measurement.plan.is_checked or self._readings % self.check_every == 0

    def _begun(self, batch: Any) -> Measurement:
        """Begins a reading whose result is not checked; the routes are, on a few samples, if that is due."""
        measurement = self._measurement(batch)
        if not self._is_due(measurement):
            return measurement
        n = measurement.samples
        generator = torch.Generator().manual_seed(self._checks)
        few = take(batch, torch.randperm(n, generator=generator)[:FEW].sort().values, n)
        self._checked(few, self._run(self._measurement(few), Measurement.gram))
        return self._measurement(batch)

    def _checked(self, batch: Any, gram: Gram, work: Callable[[Measurement], Gram] = Measurement.gram) -> Gram:
        """The Gram matrix once plain autograd has agreed; parameters at fault are measured anew by a safer route.

        Raises:
            StiffnessError: The loss is random, or no route agrees.
            MixedSamplesError: The loss of one sample depends on the others.
        """
        self._checks += 1
        while True:
            measurement = self._measurement(batch)
            coarsest = [torch.empty(0, dtype=torch.bfloat16)] if self._source.has_autocast else []
            check = Check(measurement, self._checks, tolerance_of([*measurement.parameters, *coarsest]))
            try:
                if check.agrees(gram):
                    measurement.plan.is_checked = True
                    return gram
                self._distrust(measurement, check)
            except GraphChanged as changed:  # the graph of the few samples that it looks at is another one
                measurement.plan.set_apart(changed.parameters, str(changed))
            gram = self._run(self._measurement(batch), work)

    def _distrust(self, measurement: Measurement, check: Check) -> None:
        """Sends the parameters at fault to the fallback; where it is the fallback itself, to its plainest form."""
        plan, names = measurement.plan, list(measurement.names)
        covered = [k for k in range(len(names)) if k not in plan.fallback]
        faulty = check.faulty()
        if not faulty and plan.fallback and plan.fallback_route == VECTORISED:
            faulty, plan.fallback_route = sorted(plan.fallback), ONE_BY_ONE
            self._plans.fallback_route = ONE_BY_ONE
        elif covered:
            faulty = faulty or covered
            plan.leave_to_fallback(faulty, MISTRUSTED)
            self._mistrusted.update(names[k] for k in faulty)
        else:
            raise StiffnessError(
                "The Gram matrix must be that of plain autograd, and no route of the engine agrees with it for this "
                "model and loss. Please report it with the model; check_every=0 would return the numbers nevertheless."
            )
        warnings.warn(
            f"The fast route disagreed with plain autograd for {', '.join(names[k] for k in faulty[:5])}"
            f"{' and others' if len(faulty) > 5 else ''}; these parameters are now measured by a slower, safe route.",
            stacklevel=5,
        )
