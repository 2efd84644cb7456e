"""Stiffness as torchmetrics: additive states, so that it runs in a MetricCollection, merges and works under DDP.

Every formula is in `lightning_stiffness.functional`. The states are sums and numbers of pairs of each two classes:
several updates, and several processes, give the mean over all their pairs. Pairs of samples from two different updates
or processes are not counted: pass a probe's samples in one update to have them all.

The states are float64. Apple's MPS has none: there call `metric.set_dtype(torch.float32)` before `metric.to("mps")`.
"""

from abc import ABC
from collections.abc import Sequence
from math import isnan
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.plot import _AX_TYPE, _PLOT_OUT_TYPE, plot_confusion_matrix

from lightning_stiffness.functional import Tally, between_class, class_pair_sums, cosine_pairs, sign_pairs, within_class
from lightning_stiffness.functional.validation import require_num_classes


class _ClassPairs(Metric, ABC):
    """What all the metrics share; the states of cosine and sign have different names on purpose.

    A MetricCollection shares states between metrics whose states have the same names and, after the first update, the
    same values, which those of cosine and sign can have by chance.
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False
    plot_lower_bound = -1.0
    plot_upper_bound = 1.0

    pair_count: Tensor

    def __init__(self, num_classes: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        require_num_classes(num_classes)
        self.num_classes = num_classes
        self._add_sums("pair_count")

    def _add_sums(self, name: str) -> None:
        zeros = torch.zeros(self.num_classes, self.num_classes, dtype=torch.float64)
        self.add_state(name, default=zeros, dist_reduce_fx="sum")

    def _sums(self, pairs: Tensor, targets: Tensor) -> Tally:
        sums = class_pair_sums(pairs, targets, targets, self.num_classes)
        return sums.map(lambda values: values.to(self.pair_count))


class _CosinePairs(_ClassPairs):
    cosine_sum: Tensor

    def __init__(self, num_classes: int, **kwargs: Any) -> None:
        super().__init__(num_classes, **kwargs)
        self._add_sums("cosine_sum")

    def update(self, gram: Float[Tensor, "n n"], targets: Int[Tensor, "n"]) -> None:
        """Add the pairs of one set of samples.

        Args:
            gram: inner products of the gradients of the samples' losses.
            targets: class of each sample.

        Raises:
            StiffnessError: `gram` is no Gram matrix, or the targets do not fit it or the number of classes.
        """
        sums = self._sums(cosine_pairs(gram), targets)
        self.cosine_sum, self.pair_count = self.cosine_sum + sums.total, self.pair_count + sums.count

    def _matrix(self) -> Float[Tensor, "c c"]:
        return Tally(self.cosine_sum, self.pair_count).mean


class _SignPairs(_ClassPairs):
    sign_sum: Tensor

    def __init__(self, num_classes: int, **kwargs: Any) -> None:
        super().__init__(num_classes, **kwargs)
        self._add_sums("sign_sum")

    def update(self, gram: Float[Tensor, "n n"], targets: Int[Tensor, "n"]) -> None:
        """Add the pairs of one set of samples.

        Args:
            gram: inner products of the gradients of the samples' losses.
            targets: class of each sample.

        Raises:
            StiffnessError: `gram` is no Gram matrix, or the targets do not fit it or the number of classes.
        """
        sums = self._sums(sign_pairs(gram), targets)
        self.sign_sum, self.pair_count = self.sign_sum + sums.total, self.pair_count + sums.count

    def _matrix(self) -> Float[Tensor, "c c"]:
        return Tally(self.sign_sum, self.pair_count).mean


class _MatrixPlot(Metric, ABC):
    def plot(
        self,
        val: Tensor | None = None,
        ax: _AX_TYPE | None = None,
        add_text: bool = True,
        labels: list[int | str] | None = None,
    ) -> _PLOT_OUT_TYPE:
        """Draw the class matrix as a heat map from -1 (blue) to 1 (red); undefined entries stay empty.

        Args:
            val: class matrix to draw; by default what `compute` gives.
            ax: axes to draw into; by default those of a new figure.
            add_text: write the values into the cells.
            labels: names of the classes; by default their numbers.

        Returns:
            The figure and its axes.
        """
        matrix = self.compute() if val is None else val
        fig, axes = plot_confusion_matrix(matrix, ax=ax, add_text=False, labels=labels, cmap="RdBu_r")
        axes.images[-1].set_clim(-1, 1)
        axes.set(xlabel="Class", ylabel="Class", title=type(self).__name__)
        if add_text:
            _write_values(axes, matrix)
        return fig, axes


class _ScalarPlot(Metric, ABC):
    def plot(self, val: Tensor | Sequence[Tensor] | None = None, ax: _AX_TYPE | None = None) -> _PLOT_OUT_TYPE:
        """Draw one value, or several as they evolve.

        Args:
            val: value or values to draw; by default what `compute` gives.
            ax: axes to draw into; by default those of a new figure.

        Returns:
            The figure and its axes.
        """
        axes: Any = self._plot(val, ax)[1]
        return axes.figure, axes


class CosineStiffness(_CosinePairs, _MatrixPlot):
    """Class stiffness matrix of the cosine: mean cosine of the gradients of the pairs of samples of two classes.

    `compute` returns the symmetric matrix [c c] in [-1, 1]; nan where no pair was counted.

    Args:
        num_classes: number of classes.
        **kwargs: keyword arguments of `torchmetrics.Metric`.

    Raises:
        StiffnessError: `num_classes` is not a positive integer.

    Source: Fort et al., Stiffness, arXiv:1901.09491 (v1, eq. 6, with the cosine of v3).

    >>> metric = CosineStiffness(num_classes=2)
    >>> metric.update(torch.tensor([[4.0, 3.0], [3.0, 9.0]]), torch.tensor([0, 1]))
    >>> metric.compute()
    tensor([[   nan, 0.5000],
            [0.5000,    nan]], dtype=torch.float64)
    """

    def compute(self) -> Float[Tensor, "c c"]:
        """The class matrix of all pairs so far."""
        return self._matrix()


class SignStiffness(_SignPairs, _MatrixPlot):
    """Class stiffness matrix of the sign: mean sign of the gradients' inner product over the pairs of two classes.

    `compute` returns the symmetric matrix [c c] in [-1, 1]; nan where no pair was counted.

    Args:
        num_classes: number of classes.
        **kwargs: keyword arguments of `torchmetrics.Metric`.

    Raises:
        StiffnessError: `num_classes` is not a positive integer.

    Source: Fort et al., Stiffness, arXiv:1901.09491 (v1), eqs. 5 and 6.

    >>> metric = SignStiffness(num_classes=2)
    >>> metric.update(torch.tensor([[4.0, -3.0], [-3.0, 9.0]]), torch.tensor([0, 1]))
    >>> metric.compute()
    tensor([[nan, -1.],
            [-1., nan]], dtype=torch.float64)
    """

    def compute(self) -> Float[Tensor, "c c"]:
        """The class matrix of all pairs so far."""
        return self._matrix()


class WithinClassStiffness(_CosinePairs, _ScalarPlot):
    """Mean of the defined diagonal of `CosineStiffness`, in [-1, 1]; nan when no class has a pair.

    Args:
        num_classes: number of classes.
        **kwargs: keyword arguments of `torchmetrics.Metric`.

    Raises:
        StiffnessError: `num_classes` is not a positive integer.

    Source: Fort et al., Stiffness, arXiv:1901.09491 (v3), within-class stiffness.

    >>> metric = WithinClassStiffness(num_classes=2)
    >>> metric.update(torch.tensor([[4.0, 3.0], [3.0, 9.0]]), torch.tensor([0, 0]))
    >>> metric.compute()
    tensor(0.5000, dtype=torch.float64)
    """

    def compute(self) -> Float[Tensor, ""]:
        """Within-class cosine stiffness of all pairs so far."""
        return within_class(self._matrix())


class BetweenClassStiffness(_CosinePairs, _ScalarPlot):
    """Mean of the defined entries of `CosineStiffness` off its diagonal, in [-1, 1]; nan without pairs of two classes.

    Args:
        num_classes: number of classes.
        **kwargs: keyword arguments of `torchmetrics.Metric`.

    Raises:
        StiffnessError: `num_classes` is not a positive integer.

    Source: Fort et al., Stiffness, arXiv:1901.09491 (v3), between-class stiffness.

    >>> metric = BetweenClassStiffness(num_classes=2)
    >>> metric.update(torch.tensor([[4.0, 3.0], [3.0, 9.0]]), torch.tensor([0, 1]))
    >>> metric.compute()
    tensor(0.5000, dtype=torch.float64)
    """

    def compute(self) -> Float[Tensor, ""]:
        """Between-class cosine stiffness of all pairs so far."""
        return between_class(self._matrix())


class WithinClassSignStiffness(_SignPairs, _ScalarPlot):
    """Mean of the defined diagonal of `SignStiffness`, in [-1, 1]; nan when no class has a pair.

    Args:
        num_classes: number of classes.
        **kwargs: keyword arguments of `torchmetrics.Metric`.

    Raises:
        StiffnessError: `num_classes` is not a positive integer.

    Source: Fort et al., Stiffness, arXiv:1901.09491 (v1, eq. 5), within-class stiffness.

    >>> metric = WithinClassSignStiffness(num_classes=2)
    >>> metric.update(torch.tensor([[4.0, 3.0], [3.0, 9.0]]), torch.tensor([0, 0]))
    >>> metric.compute()
    tensor(1., dtype=torch.float64)
    """

    def compute(self) -> Float[Tensor, ""]:
        """Within-class sign stiffness of all pairs so far."""
        return within_class(self._matrix())


class BetweenClassSignStiffness(_SignPairs, _ScalarPlot):
    """Mean of the defined entries of `SignStiffness` off its diagonal, in [-1, 1]; nan without pairs of two classes.

    Args:
        num_classes: number of classes.
        **kwargs: keyword arguments of `torchmetrics.Metric`.

    Raises:
        StiffnessError: `num_classes` is not a positive integer.

    Source: Fort et al., Stiffness, arXiv:1901.09491 (v1, eq. 5), between-class stiffness.

    >>> metric = BetweenClassSignStiffness(num_classes=2)
    >>> metric.update(torch.tensor([[4.0, -3.0], [-3.0, 9.0]]), torch.tensor([0, 1]))
    >>> metric.compute()
    tensor(-1., dtype=torch.float64)
    """

    def compute(self) -> Float[Tensor, ""]:
        """Between-class sign stiffness of all pairs so far."""
        return between_class(self._matrix())


def _write_values(axes: Any, matrix: Tensor) -> None:
    for row, values in enumerate(matrix.tolist()):
        for column, value in enumerate(values):
            colour = "white" if abs(value) > 0.6 else "black"
            text = "" if isnan(value) else f"{value:.2f}"
            axes.text(column, row, text, ha="center", va="center", color=colour)
