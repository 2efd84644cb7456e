"""The metrics as torchmetrics tests its own: values, batches, collections, merging, saving, processes, pictures."""

import pickle
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from lightning_stiffness.errors import StiffnessError
from lightning_stiffness.metrics import (
    BetweenClassSignStiffness,
    BetweenClassStiffness,
    CosineStiffness,
    SignStiffness,
    WithinClassSignStiffness,
    WithinClassStiffness,
)
from tests.functional import oracle
from tests.functional.synthetic import Labelled, random_labelled
from tests.processes import in_processes
from tests.unchecked import unchecked_types

matplotlib.use("Agg")

MATRICES: list[type[Metric]] = [CosineStiffness, SignStiffness]
SCALARS: list[type[Metric]] = [
    WithinClassStiffness,
    BetweenClassStiffness,
    WithinClassSignStiffness,
    BetweenClassSignStiffness,
]
EVERY_METRIC = pytest.mark.parametrize("metric_class", MATRICES + SCALARS)
CLASSES = 4

# torchmetrics hands matplotlib a torch tensor, whose conversion NumPy 2 has deprecated.
DRAWS = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")


@pytest.fixture(autouse=True)
def closed_figures() -> Iterator[None]:
    yield
    plt.close("all")


def batches(count: int = 3) -> list[Labelled]:
    return [random_labelled(seed, samples=12, num_classes=CLASSES) for seed in range(count)]


def expected(metric_class: type[Metric], parts: list[Labelled]) -> Tensor:
    """The oracle's value over all pairs within a batch: the batches side by side, with no pairs across them."""
    pairs_of = oracle.sign_pairs if "Sign" in metric_class.__name__ else oracle.cosine_pairs
    blocks = [torch.tensor(pairs_of(part.gram.tolist()), dtype=torch.float64) for part in parts]
    size = sum(len(block) for block in blocks)
    pairs, start = torch.full((size, size), float("nan"), dtype=torch.float64), 0
    for block in blocks:
        pairs[start : start + len(block), start : start + len(block)] = block
        start += len(block)
    targets = torch.cat([part.targets for part in parts]).tolist()
    matrix = oracle.class_matrix(pairs.tolist(), targets, targets, CLASSES)
    if "Within" in metric_class.__name__:
        return torch.tensor(oracle.within_class(matrix), dtype=torch.float64)
    if "Between" in metric_class.__name__:
        return torch.tensor(oracle.between_class(matrix), dtype=torch.float64)
    return torch.tensor(matrix, dtype=torch.float64)


def updated(metric: Metric, parts: list[Labelled]) -> Metric:
    for part in parts:
        metric.update(part.gram, part.targets)
    return metric


def states(metric: Metric) -> dict[str, Tensor]:
    return {name: state for name, state in metric.metric_state.items() if isinstance(state, Tensor)}


def assert_value(metric: Metric, parts: list[Labelled]) -> None:
    torch.testing.assert_close(metric.compute(), expected(type(metric), parts), rtol=0, atol=1e-12, equal_nan=True)


@EVERY_METRIC
def test_value_of_one_and_of_several_batches(metric_class: type[Metric]) -> None:
    metric = metric_class(num_classes=CLASSES)
    for count in (1, 2, 3):
        metric.reset()
        assert_value(updated(metric, batches(count)), batches(count))


@EVERY_METRIC
def test_forward_gives_the_batch_and_keeps_the_sum(metric_class: type[Metric]) -> None:
    metric = metric_class(num_classes=CLASSES)
    for part in batches():
        value = metric(part.gram, part.targets)
        torch.testing.assert_close(value, expected(metric_class, [part]), rtol=0, atol=1e-12, equal_nan=True)
    assert_value(metric, batches())


@EVERY_METRIC
def test_reset_forgets(metric_class: type[Metric]) -> None:
    metric = updated(metric_class(num_classes=CLASSES), batches())
    metric.reset()
    assert all(not state.any() for state in states(metric).values())
    assert_value(updated(metric, batches(1)), batches(1))


@EVERY_METRIC
def test_merge_state_is_the_pooled_value(metric_class: type[Metric]) -> None:
    parts = batches()
    metric = updated(metric_class(num_classes=CLASSES), parts[:1])
    metric.merge_state(updated(metric_class(num_classes=CLASSES), parts[1:]))
    assert_value(metric, parts)


@EVERY_METRIC
def test_pickle_and_clone_carry_the_state(metric_class: type[Metric]) -> None:
    metric = updated(metric_class(num_classes=CLASSES), batches(2))
    for copy in (pickle.loads(pickle.dumps(metric)), metric.clone()):
        copy.update(batches()[2].gram, batches()[2].targets)
        assert_value(copy, batches())
    assert_value(metric, batches(2))


@EVERY_METRIC
def test_state_dict_carries_the_state_when_asked(metric_class: type[Metric]) -> None:
    metric = updated(metric_class(num_classes=CLASSES), batches())
    assert metric.state_dict() == {}
    metric.persistent(True)
    loaded = metric_class(num_classes=CLASSES)
    loaded.persistent(True)
    loaded.load_state_dict(metric.state_dict())
    for name, state in states(metric).items():
        assert torch.equal(states(loaded)[name], state)


@EVERY_METRIC
def test_flags(metric_class: type[Metric]) -> None:
    metric = metric_class(num_classes=CLASSES)
    assert metric.full_state_update is False
    assert metric.higher_is_better is None
    assert metric.is_differentiable is False
    assert all(state.dtype == torch.float64 for state in states(metric).values())


@EVERY_METRIC
def test_nothing_counted_is_nan(metric_class: type[Metric]) -> None:
    metric = metric_class(num_classes=2)
    metric.update(torch.eye(1), torch.tensor([0]))
    assert metric.compute().isnan().all()


@EVERY_METRIC
def test_compute_before_update_warns_and_is_nan(metric_class: type[Metric]) -> None:
    with pytest.warns(UserWarning, match="before the ``update`` method"):
        assert metric_class(num_classes=2).compute().isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@EVERY_METRIC
def test_gram_of_lower_precision(metric_class: type[Metric], dtype: torch.dtype) -> None:
    metric, exact = metric_class(num_classes=CLASSES), metric_class(num_classes=CLASSES)
    gram = batches()[0].gram.to(dtype)
    metric.update(gram, batches()[0].targets)
    exact.update(gram.double(), batches()[0].targets)
    # The pairs are rounded once to the type of the gram; their sums are not.
    torch.testing.assert_close(metric.compute(), exact.compute(), rtol=0, atol=torch.finfo(dtype).eps, equal_nan=True)


@EVERY_METRIC
def test_states_stay_double_unless_told_otherwise(metric_class: type[Metric]) -> None:
    metric = metric_class(num_classes=CLASSES).half()
    assert_value(updated(metric, batches()), batches())
    metric.reset()
    metric.set_dtype(torch.float32)
    updated(metric, batches())
    assert all(state.dtype == torch.float32 for state in states(metric).values())
    torch.testing.assert_close(
        metric.compute(), expected(metric_class, batches()).float(), rtol=0, atol=1e-6, equal_nan=True
    )


def test_no_graph_is_kept() -> None:
    metric = CosineStiffness(num_classes=CLASSES)
    metric.update(batches()[0].gram.requires_grad_(), batches()[0].targets)
    assert not metric.compute().requires_grad


def test_a_collection_shares_states_among_cosines_and_among_signs() -> None:
    collection = MetricCollection([metric_class(num_classes=CLASSES) for metric_class in MATRICES + SCALARS])
    for part in batches():
        collection.update(part.gram, part.targets)
    groups = {frozenset(group) for group in collection.compute_groups.values()}
    assert groups == {
        frozenset({"CosineStiffness", "WithinClassStiffness", "BetweenClassStiffness"}),
        frozenset({"SignStiffness", "WithinClassSignStiffness", "BetweenClassSignStiffness"}),
    }
    for metric_class in MATRICES + SCALARS:
        value = collection.compute()[metric_class.__name__]
        torch.testing.assert_close(value, expected(metric_class, batches()), rtol=0, atol=1e-12, equal_nan=True)


def test_a_first_batch_with_equal_cosine_and_sign_does_not_merge_them() -> None:
    collection = MetricCollection([CosineStiffness(num_classes=2), SignStiffness(num_classes=2)])
    collection.update(torch.ones(2, 2), torch.tensor([0, 0]))
    collection.update(torch.tensor([[4.0, 3.0], [3.0, 9.0]]), torch.tensor([0, 0]))
    values = collection.compute()
    assert values["CosineStiffness"][0, 0] == 0.75
    assert values["SignStiffness"][0, 0] == 1


def one_process() -> None:
    torch.distributed.init_process_group("gloo")
    parts = batches()
    for metric_class in MATRICES + SCALARS:
        own = parts[:1] if torch.distributed.get_rank() == 0 else parts[1:]
        metric = updated(metric_class(num_classes=CLASSES), own)
        assert_value(metric, parts)
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_give_the_pooled_value(tmp_path: Path) -> None:
    in_processes(one_process, folder=tmp_path)


@DRAWS
@EVERY_METRIC
def test_plot_gives_figure_and_axes(metric_class: type[Metric]) -> None:
    metric = updated(metric_class(num_classes=CLASSES), batches())
    figure, axes = metric.plot()
    assert isinstance(figure, Figure)
    assert isinstance(axes, Axes)
    figure.canvas.draw()


@DRAWS
@EVERY_METRIC
def test_plot_into_given_axes(metric_class: type[Metric]) -> None:
    value = updated(metric_class(num_classes=CLASSES), batches()).compute()
    of_given, given = plt.subplots()
    figure, axes = metric_class(num_classes=CLASSES).plot(value, ax=given)
    assert (figure, axes) == (of_given, given)


@DRAWS
@pytest.mark.parametrize("metric_class", MATRICES)
def test_heat_map_spans_minus_one_to_one_and_leaves_undefined_cells_empty(metric_class: type[Metric]) -> None:
    matrix = torch.tensor([[0.9, -0.25], [-0.25, float("nan")]])
    _, axes = metric_class(num_classes=2).plot(matrix, labels=["cat", "dog"])
    assert axes.images[0].get_clim() == (-1, 1)
    assert [text.get_text() for text in axes.texts] == ["0.90", "-0.25", "-0.25", ""]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["cat", "dog"]
    assert axes.get_title() == metric_class.__name__
    _, bare = metric_class(num_classes=2).plot(matrix, add_text=False)
    assert not bare.texts


@pytest.mark.parametrize("metric_class", SCALARS)
def test_scalars_plot_as_they_evolve(metric_class: type[Metric]) -> None:
    metric = metric_class(num_classes=CLASSES)
    values = [metric(part.gram, part.targets) for part in batches()]
    _, axes = metric.plot(values)
    assert len(axes.lines[0].get_ydata()) == 3


@EVERY_METRIC
@unchecked_types()
def test_bad_input_is_refused_and_leaves_no_trace(metric_class: type[Metric]) -> None:
    metric = updated(metric_class(num_classes=CLASSES), batches(1))
    with pytest.raises(StiffnessError, match="gram must be square"):
        metric.update(torch.ones(2, 3), torch.tensor([0, 1]))
    with pytest.raises(StiffnessError, match=r"targets must lie in \[0, 4\)"):
        metric.update(torch.eye(2), torch.tensor([0, 4]))
    with pytest.raises(StiffnessError, match="gram has 4 non-finite entries"):
        metric.update(torch.full((2, 2), float("nan")), torch.tensor([0, 1]))
    assert_value(metric, batches(1))


@EVERY_METRIC
@unchecked_types()
def test_bad_settings_are_refused(metric_class: type[Metric]) -> None:
    with pytest.raises(StiffnessError, match="num_classes must be an integer of at least 1, but is 0"):
        metric_class(num_classes=0)
    with pytest.raises(ValueError, match="Unexpected keyword arguments: `colour`"):
        metric_class(num_classes=2, colour="red")
