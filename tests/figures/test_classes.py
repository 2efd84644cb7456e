import math

import pytest

from lightning_stiffness import figures
from lightning_stiffness.figures.classes import names_of
from lightning_stiffness.functional.class_tree import class_tree
from lightning_stiffness.history import History
from tests.figures.pictures import HISTORIES, NAMES, rendered, texts
from tests.toy_history import Toy, overfitting_history, toy_probe

NAMED = overfitting_history(3, Toy(10, class_names=NAMES[:10]))
HUNDRED = HISTORIES["a hundred classes"]


def boxes_of(words):
    return [word.get_window_extent() for word in words if word.get_text()]


def assert_apart(words):
    boxes = boxes_of(words)
    assert not any(box.overlaps(other) for i, box in enumerate(boxes) for other in boxes[:i])


def assert_inside(figure, words):
    page = figure.bbox
    for box in boxes_of(words):
        assert page.x0 <= box.x0
        assert box.x1 <= page.x1
        assert page.y0 <= box.y0
        assert box.y1 <= page.y1


def test_few_classes_are_in_their_own_order_with_numbers():
    figure = rendered(figures.latest_class_matrix(NAMED))
    axes, scale = figure.axes
    assert axes.images[0].get_array().tolist() == NAMED[-1].cosine.matrix.tolist()
    for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
        assert [label.get_text() for label in labels] == list(NAMES[:10])
        assert_apart(labels)
    assert_inside(figure, [*axes.get_xticklabels(), *axes.get_yticklabels(), scale.yaxis.label, axes._left_title])
    assert len(texts(axes)) == 100
    assert axes.get_title(loc="left") == "Stiffness of the classes, epoch 3"
    assert "red: they help each other" in scale.get_ylabel()


def test_many_classes_are_neighbours_of_those_they_are_stiff_to():
    figure = rendered(figures.latest_class_matrix(HUNDRED))
    axes, scale = figure.axes
    matrix = HUNDRED[-1].cosine.matrix
    order = list(class_tree(matrix).order)
    assert order != sorted(order)
    assert axes.images[0].get_array().tolist() == matrix[order][:, order].tolist()
    assert texts(axes) == [NAMES[label] for label in order]
    assert [text.get_position()[1] for text in axes.texts] == list(range(100))
    assert axes.get_title(loc="left") == "Stiffness of the classes, epoch 4, stiff ones side by side"
    assert_apart(axes.texts)
    assert_inside(figure, [*axes.texts, scale.yaxis.label, axes._left_title])


@pytest.mark.parametrize(("classes", "readable"), [(10, 5.0), (100, 7.0)])
def test_names_are_large_enough_to_read(classes, readable):
    history = NAMED if classes == 10 else HUNDRED
    for draw in (figures.latest_class_matrix, figures.within_of_each_class):
        axes = rendered(draw(history)).axes[0]
        words = [*axes.texts, *axes.get_yticklabels()]
        assert min(word.get_fontsize() for word in words) >= readable


def test_each_class_has_a_line():
    (axes,) = rendered(figures.within_of_each_class(NAMED)).axes
    lines = {line.get_label(): line for line in axes.lines}
    assert list(lines) == list(NAMES[:10])
    assert len({line.get_color() for line in lines.values()}) == 10
    for label, line in enumerate(lines.values()):
        assert list(line.get_xdata()) == [0, 1, 2, 3]
        assert list(line.get_ydata()) == [float(reading.cosine.matrix[label, label]) for reading in NAMED]
    assert sorted(texts(axes)) == sorted(NAMES[:10])
    assert_apart(axes.texts)
    assert_inside(axes.figure, axes.texts)


def test_many_classes_have_a_row_each():
    figure = rendered(figures.within_of_each_class(HUNDRED))
    axes, scale = figure.axes
    values = [[float(reading.cosine.matrix[label, label]) for reading in HUNDRED] for label in range(100)]
    assert axes.images[0].get_array().tolist() == values
    assert texts(axes) == list(NAMES)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "1", "2", "3", "4"]
    assert_apart(axes.texts)
    assert_inside(figure, [*axes.texts, scale.yaxis.label, axes.xaxis.label])


def test_epochs_thin_out_as_readings_grow():
    history = overfitting_history(40, Toy(12, 2))
    axes = rendered(figures.within_of_each_class(history)).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == [str(epoch) for epoch in range(0, 41, 4)]
    assert_apart(axes.get_xticklabels())


def test_classes_without_pairs_are_hatched_or_absent():
    history = HISTORIES["missing classes"]
    (axes,) = rendered(figures.within_of_each_class(history)).axes
    assert math.isnan(axes.lines[7].get_ydata()[-1])
    assert "7" not in texts(axes)
    assert rendered(figures.latest_class_matrix(history)).axes[0].patch.get_hatch()


def test_names_are_numbers_where_there_are_none_and_never_long():
    assert names_of(toy_probe(Toy(3))) == ["0", "1", "2"]
    (name, _) = names_of(toy_probe(Toy(2, class_names=("x" * 40, "y"))))
    assert name == "x" * 23 + "\N{HORIZONTAL ELLIPSIS}"


def test_a_single_reading_is_visible():
    (axes,) = rendered(figures.within_of_each_class(History(NAMED.probe, NAMED[:1]))).axes
    assert {line.get_marker() for line in axes.lines} == {"o"}


@pytest.mark.parametrize("draw", [figures.latest_class_matrix, figures.within_of_each_class])
def test_so_many_classes_that_not_all_have_room_for_a_name(draw):
    names = tuple(f"c{label}" for label in range(250))
    figure = rendered(draw(overfitting_history(2, Toy(250, class_names=names))))
    axes = figure.axes[0]
    assert axes.get_title(loc="left").endswith("(one name in 2)")
    assert len(axes.texts) == 125
    assert_apart(axes.texts)
    assert axes.images[0].get_array().shape[0] == 250
    assert figure.get_figheight() < 25
