"""Which labels of a data set are probably wrong: a score for each sample, from the gradients of one trained model."""

import csv
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from torch import Tensor, nn

from lightning_stiffness.batching import batch_size as size_of
from lightning_stiffness.callbacks.neutrality import measuring
from lightning_stiffness.callbacks.training_step import resolve_loss, resolve_targets
from lightning_stiffness.errors import StiffnessError
from lightning_stiffness.functional.label_score import label_evidence, label_quality, suggested_labels
from lightning_stiffness.gram import GramEngine
from lightning_stiffness.sequential_data import SequentialData, loader_of, number_of_classes, transfer_to
from lightning_stiffness.targets import as_class_targets, with_targets

_SHOWN = 10
_COLUMNS = (
    *("id", "is_label_issue", "label_score", "given_label", "predicted_label"),
    *("own_alignment", "rival_alignment", "loss"),
)


@dataclass(frozen=True, eq=False)
class LabelScores:
    """A score for the label of each sample; `print` with rich shows the worst.

    Attributes:
        ids: The positions of the samples in the data set (in a stream: in the order of the stream).
        given: The label that each sample has.
        evidence: What speaks for each label of each sample, as `functional.label_evidence`; nan where nothing can be
            said, as for the only sample of a class.
        alignment: Mean cosine of each sample's gradient, under each label, with the gradients of the other samples of
            that class; in [-1, 1], nan where undefined.
        losses: The loss of each sample under each label.
        seconds: What the measurement cost.
    """

    ids: Int[Tensor, "n"]
    given: Int[Tensor, "n"]
    evidence: Float[Tensor, "n c"]
    alignment: Float[Tensor, "n c"]
    losses: Float[Tensor, "n c"]
    seconds: float = 0.0

    @cached_property
    def score(self) -> Float[Tensor, "n"]:
        """In [0, 1], lower is worse, below 0.5 another label fits better; 1 where nothing can be said."""
        return label_quality(self.evidence, self.given).nan_to_num(1.0)

    @cached_property
    def suggested(self) -> Int[Tensor, "n"]:
        """The label that fits best: the given one where the score is 0.5 or more."""
        return suggested_labels(self.evidence, self.given)

    @property
    def is_issue(self) -> Bool[Tensor, "n"]:
        """Whether another label fits better."""
        return self.suggested != self.given

    @property
    def own_alignment(self) -> Float[Tensor, "n"]:
        """Mean cosine of each sample's gradient with those of its class, in [-1, 1]; nan where undefined."""
        return _of(self.alignment, self.given)

    @property
    def rival_alignment(self) -> Float[Tensor, "n"]:
        """The same, were the sample labelled as suggested; as a rival the best other label where none is suggested."""
        others = self.evidence.nan_to_num(-torch.inf).scatter(1, self.given[:, None], -torch.inf)
        return _of(self.alignment, others.argmax(1))

    @property
    def loss(self) -> Float[Tensor, "n"]:
        """The loss of each sample under its label."""
        return _of(self.losses, self.given)

    def worst(self, count: int) -> Int[Tensor, "k"]:
        """The rows of the samples with the lowest scores, the worst first."""
        return torch.argsort(self.score, stable=True)[:count]

    def to_csv(self, path: str | Path) -> None:
        """Writes one line a sample, in the order of the data, with the column names of cleanlab's label issues.

        `is_label_issue`, `label_score` (in [0, 1], lower is worse), `given_label`, `predicted_label`, and our own
        `id`, `own_alignment`, `rival_alignment`, `loss`. `pandas.read_csv(path)` is what `CleanLearning.fit` takes as
        `label_issues`; the column `label_score` what `cleanlab.rank.find_top_issues` takes.
        """
        columns = [self.ids, self.is_issue, self.score, self.given, self.suggested]
        columns += [self.own_alignment, self.rival_alignment, self.loss]
        with Path(path).open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(_COLUMNS)
            writer.writerows(zip(*(column.tolist() for column in columns), strict=True))

    def __rich__(self) -> Table:
        """The worst samples."""
        count = int(self.is_issue.sum())
        table = Table(
            *("id", "score", "given", "suggested", "loss", "cosine with given", "with best other"),
            title=f"{count} of {len(self.score)} labels look wrong ({count / max(1, len(self.score)):.1%})",
            title_justify="left",
        )
        values = (self.ids, self.score, self.given, self.suggested, self.loss, self.own_alignment, self.rival_alignment)
        formats = ("d", ".4f", "d", "d", ".3f", "+.3f", "+.3f")
        for row in self.worst(min(count, _SHOWN)).tolist():
            table.add_row(*(format(column[row].item(), form) for column, form in zip(values, formats, strict=True)))
        return table


def average_scores(scores: Sequence[LabelScores]) -> LabelScores:
    """One score from several readings of the same data: of checkpoints of a run, or of models from several seeds.

    Readings that were taken while the network was still learning are worth more than a single late one.

    Args:
        scores: At least one reading, all of the same samples with the same labels.

    Returns:
        The means of evidence, alignment and losses; nan where any reading has it.

    Raises:
        StiffnessError: There is no reading, or they are of other samples, labels or classes.

    Source: ours.

    >>> reading = LabelScores(*torch.arange(2).expand(2, 2), *torch.eye(2).expand(3, 2, 2))
    >>> average_scores([reading, reading]).score
    tensor([1.0000, 1.0000])
    """
    if not scores:
        raise StiffnessError("At least one reading is needed for an average; found none.")
    first = scores[0]
    for other in scores:
        if not (torch.equal(first.ids, other.ids) and torch.equal(first.given, other.given)):
            raise StiffnessError(
                "Readings can be averaged when they are of the same samples with the same labels, in the same order; "
                f"found {len(first.ids)} and {len(other.ids)} samples, or other labels. Score the same data each time."
            )
    evidence, alignment, losses = (
        torch.stack([getattr(one, name) for one in scores]).mean(0) for name in ("evidence", "alignment", "losses")
    )
    return LabelScores(first.ids, first.given, evidence, alignment, losses, sum(one.seconds for one in scores))


def score_labels(  # noqa: PLR0913  # the settings, each by its name
    module: nn.Module,
    data: Any,
    *,
    loss: Callable[[Any, Any], Tensor] | None = None,
    targets: Callable[[Any], Tensor] | None = None,
    relabel: Callable[[Any, Tensor], Any] | None = None,
    num_classes: int | None = None,
    batch_size: int = 256,
    budget: int | None = None,
    progress: bool = True,
) -> LabelScores:
    """Scores the label of each sample of a data set by the gradients of a trained classifier.

    For each sample and each label: how well does the gradient that the sample would have under that label agree with
    the gradients of the samples of that class? The label that fits best is the suggested one; `functional.label_score`
    has the formulas. Train on the labels that are to be looked at, to the point where you would stop anyway: too long a
    training is learnt by heart, which costs this score less than one by the loss (docs/wrong_labels.md).

    It takes c + 1 forward and backward passes over the data for c classes, and memory for the sums of c gradients,
    whatever the number of samples. The module is measured in eval mode and left as it was, as are the random states.

    Args:
        module: A LightningModule, or any module with `loss`.
        data: A DataLoader, a Dataset or a LightningDataModule (its training data). All samples are read, in the order
            of the data set.
        loss: (module, batch) -> losses [n]. Not given: `stiffness_step`, else `training_step`, as for
            `StiffnessMonitor`.
        targets: batch -> labels [n]. Not given: as for `StiffnessMonitor`.
        relabel: (batch, labels [n]) -> the batch with these labels. Not given: they are put where the batch has its
            labels, in the second element or under "labels", "targets", "y" ...
        num_classes: Number of classes; the largest label + 1 when not given.
        batch_size: Samples that are read at once.
        budget: Bytes for gradients; as in `GramEngine` when not given.
        progress: Whether to show a progress bar, on a terminal.

    Returns:
        A score in [0, 1] for each label, lower is worse, and a suggested label.

    Raises:
        StiffnessError: Something is missing or does not fit; the message says what to pass.
        MixedSamplesError: The loss of one sample depends on the others.

    Source: ours.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> model = nn.Linear(2, 2, bias=False)
        >>> _ = model.weight.data.copy_(torch.eye(2))
        >>> inputs = torch.tensor([[2.0, 0.0], [1.5, 0.0], [0.0, 2.0], [0.0, 1.5], [0.0, 1.0]])
        >>> data = TensorDataset(inputs, torch.tensor([0, 0, 1, 1, 0]))  # the last label is wrong
        >>> def losses(module, batch):
        ...     return nn.functional.cross_entropy(module(batch[0]), batch[1], reduction="none")
        >>> scores = score_labels(model, data, loss=losses, progress=False)
        >>> scores.worst(1).tolist(), scores.suggested.tolist()
        ([4], [0, 0, 1, 1, 1])
    """
    start = time.perf_counter()
    if loss is None and not hasattr(module, "training_step") and not hasattr(module, "stiffness_step"):
        raise StiffnessError(
            f"Losses come from the training_step of a LightningModule, or from loss=; {type(module).__name__} has "
            "neither. Pass loss=lambda module, batch: cross_entropy(module(batch[0]), batch[1], reduction='none')."
        )
    with measuring(module):
        classes_of = resolve_targets(module, targets)
        reread = SequentialData(loader_of(data), transfer_to(module), batch_size)
        count = number_of_classes(reread, classes_of) if num_classes is None else num_classes
        engine = GramEngine(module, resolve_loss(module, loss), budget=budget)
        with _bar(len(reread) * (count + 2), progress) as tick:
            relabelled = _Relabelled(relabel or with_targets, classes_of, tick)
            found = engine.class_alignment(_Watched(reread, tick), count, targets=classes_of, relabel=relabelled)
    alignment, losses = found.matrix, found.losses.double()
    evidence = label_evidence(alignment, losses)
    seconds = time.perf_counter() - start
    scores = LabelScores(torch.arange(len(alignment)), found.targets, evidence, alignment, losses, seconds)
    _warn_if_untrained(scores)
    return scores


@dataclass(frozen=True)
class _Relabelled:
    """Exchanges the labels of a batch, and makes sure that they are exchanged."""

    relabel: Callable[[Any, Tensor], Any]
    targets: Callable[[Any], Tensor]
    tick: Callable[[int], None]

    def __call__(self, batch: Any, labels: Tensor) -> Any:
        self.tick(len(labels))
        with suppress(StiffnessError):  # the labels are somewhere else: said below
            changed = self.relabel(batch, labels)
            if torch.equal(as_class_targets(self.targets(changed), len(labels)), labels.long()):
                return changed
        raise StiffnessError(
            "To try each label, the labels of a batch are exchanged; the targets found in it afterwards are not "
            "those that were put there. Pass relabel=callable(batch, labels [n]) -> the batch with these labels."
        )


@dataclass(frozen=True)
class _Watched:
    """Batches that tell when they are read."""

    batches: SequentialData
    tick: Callable[[int], None]

    def __iter__(self) -> Iterator[Any]:
        for batch in self.batches:
            self.tick(size_of(batch))
            yield batch


@contextmanager
def _bar(total: int, shown: bool) -> Iterator[Callable[[int], None]]:
    """A progress bar on the terminal, gone once it is full; in a file or a notebook's log there is none."""
    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %")
    with Progress(
        *columns, TimeRemainingColumn(), console=console, transient=True, disable=not (shown and console.is_terminal)
    ) as bar:
        task = bar.add_task("gradients under each label", total=total or None)
        yield lambda samples: bar.advance(task, samples)


def _warn_if_untrained(scores: LabelScores) -> None:
    count, size = int(scores.is_issue.sum()), len(scores.given)
    if 2 * count > size:
        warnings.warn(
            f"{count} of {size} labels look wrong, more than half: the model has hardly learnt these labels, so its "
            "gradients say little about them. Train it on them first, or load the weights of a trained one.",
            UserWarning,
            stacklevel=3,
        )


def _of(values: Float[Tensor, "n c"], labels: Int[Tensor, "n"]) -> Float[Tensor, "n"]:
    return values.gather(1, labels[:, None])[:, 0]
