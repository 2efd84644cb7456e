import inspect
import io
import math
import subprocess
import sys
from dataclasses import replace

import matplotlib
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from lightning_stiffness import figures
from lightning_stiffness.errors import StiffnessError
from lightning_stiffness.figures import Curves
from lightning_stiffness.history import History
from tests.toy_history import Toy, overfitting_history, toy_history, toy_probe

NAMES = tuple(f"class {label}" for label in range(100))
HISTORIES = {
    "ten classes": overfitting_history(8),
    "a hundred classes": overfitting_history(4, Toy(100, 2, class_names=NAMES)),
    "missing classes": overfitting_history(4, Toy(10, missing=(0, 7))),
    "one reading": overfitting_history(0),
    "two readings": overfitting_history(1),
    "nothing defined": toy_history([math.nan] * 3, toy=Toy(missing=(0, 1, 2))),
}
EPOCHS = tuple(map(float, range(9)))
CURVES = Curves(EPOCHS, (2.0,) * 9, (1.5,) * 9, (0.1, 0.5, 0.8, 0.9, 0.875, 0.8, 0.7, 0.6, 0.5))
DRAWN = {
    "within_and_between": lambda history: figures.within_and_between(history, 1.0),
    "class_matrix": lambda history: figures.class_matrix(history[-1].cosine.matrix, history.probe.class_names),
    "class_matrices": figures.class_matrices,
    "training_summary": lambda history: figures.training_summary(CURVES, history, history, history[-1].epoch),
}


def rendered(figure):
    """The figure after drawing, which is when matplotlib finds most faults."""
    assert isinstance(figure, Figure)
    figure.draw_without_rendering()
    return figure


def texts(axes):
    return [text.get_text() for text in axes.texts]


def heat_maps(figure):
    return [axes for axes in figure.axes if axes.images]


def test_every_figure_function_is_tested_here():
    public = {
        name
        for name, entry in inspect.getmembers(figures, inspect.isfunction)
        if entry.__module__ == figures.__name__ and not name.startswith("_")
    }
    assert public == set(DRAWN)


@pytest.mark.parametrize("history", HISTORIES.values(), ids=HISTORIES)
@pytest.mark.parametrize("name", DRAWN)
def test_every_figure_draws_every_history_and_leaves_no_settings(name, history):
    before = dict(matplotlib.rcParams)
    figure = DRAWN[name](history)
    figure.savefig(io.BytesIO(), dpi=40)
    assert dict(matplotlib.rcParams) == before
    assert figure.axes
    assert all(axes.get_title(loc="left") or axes.get_ylabel() for axes in figure.axes)


def test_pyplot_is_never_imported():
    code = "import sys, lightning_stiffness.figures; sys.exit('matplotlib.pyplot' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_within_and_between_shows_the_series_with_bands_of_two_errors():
    history = HISTORIES["ten classes"]
    (axes,) = rendered(figures.within_and_between(history)).axes
    lines = {line.get_label(): line for line in axes.lines}
    for name in ("within", "between"):
        assert lines[name].get_xdata().tolist() == history.series("epoch").tolist()
        assert lines[name].get_ydata().tolist() == history.series(name).tolist()
    dashed = [line for line in axes.lines if line.get_linestyle() == "--"]
    found = [list(line.get_ydata()) for line in dashed]
    assert found == [history.series(f"{name}_sign").tolist() for name in ("within", "between")]
    assert all(line.get_linewidth() < lines["within"].get_linewidth() for line in dashed)
    assert dashed[0].get_color() == lines["within"].get_color() != lines["between"].get_color()
    band = axes.collections[0].get_paths()[0].vertices
    assert band[:, 1].max() == pytest.approx(float(history.series("within").max()) + 0.02)
    assert band[:, 1].min() == pytest.approx(float(history.series("within").min()) - 0.02)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("epoch", "stiffness")
    assert sorted(texts(axes)) == ["between", "between, sign", "within", "within, sign"]
    assert axes.get_legend() is None


def test_the_stop_is_marked_where_it_is():
    (axes,) = rendered(figures.within_and_between(HISTORIES["ten classes"], decision_epoch=3.25)).axes
    (mark,) = [line for line in axes.lines if line.get_label() == "stop"]
    assert set(mark.get_xdata()) == {3.25}
    (label,) = [text for text in axes.texts if "stop" in text.get_text()]
    assert label.get_text() == "stop, epoch 3.25"
    assert label.xy == (3.25, 1.0)


def test_no_names_of_lines_overlap():
    history = toy_history([0.01, 0.0101, 0.0102], toy=Toy(standard_error=1.0))
    figure = rendered(figures.within_and_between(history, 1.0))
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert len(boxes) == 5
    assert not any(box.overlaps(other) for i, box in enumerate(boxes) for other in boxes[:i])


def test_a_single_reading_is_visible():
    (axes,) = figures.within_and_between(HISTORIES["one reading"]).axes
    assert sum(line.get_marker() in ("o", ".") for line in axes.lines) == 4
    summary = panels_of(figures.training_summary(Curves((0.0,), (1.0,), (1.0,), (0.5,)), HISTORIES["one reading"]))
    assert {line.get_marker() for line in summary["Loss"].lines} == {"o"}
    assert sum(line.get_marker() == "o" for line in summary["Stiffness"].lines) == 2


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


def test_class_matrices_of_chosen_readings():
    panels = heat_maps(rendered(figures.class_matrices(HISTORIES["ten classes"], [2, -1])))
    assert [axes.get_title(loc="left") for axes in panels] == ["Epoch 2", "Epoch 8"]


def panels_of(figure):
    return {axes.get_title(loc="left"): axes for axes in figure.axes if axes.get_title(loc="left")}


def test_the_summary_tells_the_whole_story():
    full = HISTORIES["ten classes"]
    figure = rendered(figures.training_summary(CURVES, full[:5], full, 4.0))
    assert figure.get_suptitle() == (
        "Stopped at epoch 4 of 8 with a test accuracy of 87.5 %; going on (pale) would have ended at 50.0 %"
    )
    panels = panels_of(figure)
    maps = ["Class matrix, epoch 0", "Class matrix, epoch 2", "Class matrix, epoch 4 (stop)"]
    assert list(panels) == ["Loss", "Test accuracy", "Stiffness", *maps]
    for name in ("Loss", "Test accuracy", "Stiffness"):
        assert "stop, epoch 4" in texts(panels[name])
        (mark,) = [line for line in panels[name].lines if line.get_label() == "stop"]
        assert set(mark.get_xdata()) == {4.0}
    assert {"test", "training"} < set(texts(panels["Loss"]))
    before, after = panels["Test accuracy"].lines[:2]
    assert list(before.get_xdata()) == [0, 1, 2, 3, 4]
    assert list(after.get_xdata()) == [4, 5, 6, 7, 8]
    assert list(after.get_ydata()) == pytest.approx([87.5, 80, 70, 60, 50])
    assert after.get_alpha() < before.get_alpha()
    within = [line for line in panels["Stiffness"].lines if line.get_label() == "within"]
    assert [list(line.get_xdata()) for line in within] == [[0, 1, 2, 3, 4], [4, 5, 6, 7, 8]]


def test_the_summary_of_a_run_that_was_not_stopped():
    figure = rendered(figures.training_summary(CURVES, HISTORIES["ten classes"]))
    assert figure.get_suptitle() == "Not stopped in 8 epochs: test accuracy 50.0 % at the end, 90.0 % at best"
    panels = panels_of(figure)
    assert not any("stop" in text for axes in panels.values() for text in texts(axes))
    assert list(panels["Test accuracy"].lines[0].get_xdata()) == list(EPOCHS)
    assert len([line for line in panels["Stiffness"].lines if line.get_label() == "within"]) == 1


def test_no_text_of_the_summary_overlaps():
    full = HISTORIES["ten classes"]
    figure = rendered(figures.training_summary(CURVES, full[:5], full, 4.0))
    panels = list(panels_of(figure).values())
    labels = [text for axes in panels for text in axes.texts]
    labels += [axes._left_title for axes in panels] + [axes.xaxis.label for axes in panels[:3]]
    boxes = [label.get_window_extent() for label in labels]
    clashes = [
        (labels[i].get_text(), labels[j].get_text())
        for i in range(len(boxes))
        for j in range(i)
        if boxes[i].overlaps(boxes[j])
    ]
    assert not clashes


@pytest.mark.parametrize("draw", [DRAWN[name] for name in ("within_and_between", "class_matrices")])
def test_an_empty_history_is_no_picture(draw):
    with pytest.raises(StiffnessError, match="at least one reading"):
        draw(History(toy_probe()))


def test_bad_input_is_refused():
    history = HISTORIES["ten classes"]
    with pytest.raises(StiffnessError, match="at least one reading"):
        figures.training_summary(CURVES, History(toy_probe()))
    with pytest.raises(StiffnessError, match="at least one reading"):
        figures.class_matrices(history, [])
    with pytest.raises(StiffnessError, match=r"one row and one column a class, but is \(2, 3\)"):
        figures.class_matrix(torch.ones(2, 3))
    with pytest.raises(StiffnessError, match="There must be 2 class names, one a class, but there are 1"):
        figures.class_matrix(torch.eye(2), ["a"])
    with pytest.raises(StiffnessError, match=r"same number of values, at least one, but have"):
        replace(CURVES, test_loss=(1.0,))
    with pytest.raises(StiffnessError, match=r"have \{0\}"):
        Curves((), (), (), ())
