from dataclasses import replace

import pytest

from lightning_stiffness import figures
from lightning_stiffness.errors import StiffnessError
from lightning_stiffness.figures import Curves
from lightning_stiffness.history import History
from tests.figures.pictures import CURVES, EPOCHS, HISTORIES, panels_of, rendered, texts
from tests.toy_history import Toy, toy_history, toy_probe


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


@pytest.mark.slow
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


@pytest.mark.slow
def test_the_summary_of_a_run_that_was_not_stopped():
    figure = rendered(figures.training_summary(CURVES, HISTORIES["ten classes"]))
    assert figure.get_suptitle() == "Not stopped in 8 epochs: test accuracy 50.0 % at the end, 90.0 % at best"
    panels = panels_of(figure)
    assert not any("stop" in text for axes in panels.values() for text in texts(axes))
    assert list(panels["Test accuracy"].lines[0].get_xdata()) == list(EPOCHS)
    assert len([line for line in panels["Stiffness"].lines if line.get_label() == "within"]) == 1


@pytest.mark.slow
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


def test_bad_curves_are_refused():
    with pytest.raises(StiffnessError, match="at least one reading"):
        figures.training_summary(CURVES, History(toy_probe()))
    with pytest.raises(StiffnessError, match=r"same number of values, at least one, but have"):
        replace(CURVES, test_loss=(1.0,))
    with pytest.raises(StiffnessError, match=r"have \{0\}"):
        Curves((), (), (), ())
