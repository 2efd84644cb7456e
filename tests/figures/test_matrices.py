import math

import pytest
import torch
from matplotlib.colors import to_hex

from lightning_stiffness import figures
from lightning_stiffness.errors import StiffnessError
from tests.figures.pictures import HISTORIES, NAMES, rendered, texts


def heat_maps(figure):
    return [axes for axes in figure.axes if axes.images]


def test_a_class_matrix_is_centred_and_named():
    matrix = torch.tensor([[0.5, -0.25], [-0.004, math.nan]])
    figure = rendered(figures.class_matrix(matrix, ("cat", "dog"), "Epoch 3"))
    axes, bar = figure.axes
    (image,) = axes.images
    assert image.get_clim() == (-0.5, 0.5)
    assert image.get_array().mask.tolist() == [[False, False], [False, True]]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["cat", "dog"]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["cat", "dog"]
    assert axes.get_title(loc="left") == "Epoch 3"
    assert texts(axes) == [".50", "\N{MINUS SIGN}.25", ".00"]
    assert axes.patch.get_hatch()
    assert bar.get_ylabel() == "stiffness"
    red, blue = (image.cmap(image.norm(value)) for value in (0.5, -0.5))
    assert red[0] > red[2]
    assert blue[2] > blue[0]
    assert to_hex(image.cmap(image.norm(0.0))) == "#f7f6f6"


def test_labels_thin_out_and_numbers_go_as_classes_grow():
    matrix = HISTORIES["a hundred classes"][0].cosine.matrix
    axes = rendered(figures.class_matrix(matrix, NAMES)).axes[0]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == list(NAMES[::5])
    assert axes.get_yticks().tolist() == list(range(0, 100, 5))
    assert texts(axes) == []
    axes = rendered(figures.class_matrix(matrix[:10, :10])).axes[0]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == list("0123456789")
    assert len(texts(axes)) == 100


@pytest.mark.parametrize("classes", [10, 100])
def test_labels_of_classes_do_not_overlap(classes):
    figure = rendered(figures.class_matrix(torch.eye(classes), NAMES[:classes]))
    for labels in (figure.axes[0].get_xticklabels(), figure.axes[0].get_yticklabels()):
        boxes = [label.get_window_extent() for label in labels]
        assert not any(box.overlaps(other) for i, box in enumerate(boxes) for other in boxes[:i])


@pytest.mark.slow
def test_class_matrices_share_one_scale():
    history = HISTORIES["ten classes"]
    figure = rendered(figures.class_matrices(history))
    panels = heat_maps(figure)
    assert [axes.get_title(loc="left") for axes in panels] == ["Epoch 0", "Epoch 4", "Epoch 8"]
    largest = max(history[index].cosine.matrix.abs().max().item() for index in (0, 4, 8))
    assert {axes.images[0].get_clim() for axes in panels} == {(-largest, largest)}
    assert len(figure.axes) == 4
    for axes, index in zip(panels, (0, 4, 8), strict=True):
        assert axes.images[0].get_array().tolist() == history[index].cosine.matrix.tolist()


@pytest.mark.slow
def test_class_matrices_of_chosen_readings():
    panels = heat_maps(rendered(figures.class_matrices(HISTORIES["ten classes"], [2, -1])))
    assert [axes.get_title(loc="left") for axes in panels] == ["Epoch 2", "Epoch 8"]


def test_bad_matrices_are_refused():
    with pytest.raises(StiffnessError, match="at least one reading"):
        figures.class_matrices(HISTORIES["ten classes"], [])
    with pytest.raises(StiffnessError, match=r"one row and one column a class, but is \(2, 3\)"):
        figures.class_matrix(torch.ones(2, 3))
    with pytest.raises(StiffnessError, match="There must be 2 class names, one a class, but there are 1"):
        figures.class_matrix(torch.eye(2), ["a"])
