from dataclasses import replace

import pytest
import torch

from lightning_stiffness import StiffnessError
from lightning_stiffness.balance_words import class_labels
from lightning_stiffness.figures.balancing import (
    BALANCE_PICTURES,
    absorbed_classes,
    fighting_classes,
    recall_of_each_class,
    sacrificed_classes,
)
from tests.figures.pictures import panels_of, rendered, texts
from tests.toy_balance import toy_reading, toy_readings

NAMED = toy_readings(4, names=("cat", "dog", "sea lion", "a/b", "$x$", "a very long name indeed"))
CASES = {
    "named": NAMED,
    "one": toy_readings(1),
    "hundred": toy_readings(3, classes=100, groups=((3, 4, 5), (90, 99))),
    "thousand": toy_readings(2, classes=1000),
    "two": toy_readings(3, classes=2, groups=()),
    "unmeasured": [
        toy_reading(classifier=torch.full((6, 6), torch.nan), features=None, lost=torch.full((6,), torch.nan))
    ],
}


def shown_by(figure):
    return " ".join([figure.get_suptitle(), *(text.get_text() for text in figure.texts)]).replace("\n", " ")


@pytest.mark.parametrize("tag", BALANCE_PICTURES)
@pytest.mark.parametrize("case", ["named", "one", "two", "unmeasured"])
def test_every_picture_can_be_drawn(tag, case):
    figure = rendered(BALANCE_PICTURES[tag](CASES[case]))
    assert "What to do: " in shown_by(figure)
    assert max(figure.get_size_inches()) < 12


@pytest.mark.slow
@pytest.mark.parametrize("tag", BALANCE_PICTURES)
@pytest.mark.parametrize("case", ["hundred", "thousand"])
def test_pictures_of_many_classes(tag, case):
    figure = rendered(BALANCE_PICTURES[tag](CASES[case]))
    assert max(figure.get_size_inches()) < 23


def test_both_levels_have_one_order_and_boxes_around_the_groups():
    panels = panels_of(fighting_classes(NAMED))
    assert list(panels) == ["At the classifier", "In the layers below"]
    left, right = panels.values()
    labels = [class_labels(NAMED[-1])[label] for label in NAMED[-1].order]
    assert [text.get_text() for text in left.get_yticklabels()] == labels
    assert right.get_xticklabels()[0].get_text() == "cat"
    for axes in (left, right):
        assert [(box.get_x(), box.get_width()) for box in axes.patches] == [(-0.5, 2), (3.5, 2)]
    order = list(NAMED[-1].order)
    assert torch.equal(torch.tensor(left.images[0].get_array()), NAMED[-1].classifier[order][:, order].double())


def test_a_positive_entry_is_blue_and_a_negative_one_orange():
    image = panels_of(fighting_classes(NAMED))["At the classifier"].images[0]
    red, _, blue, _ = image.to_rgba(0.8)
    assert blue > red
    red, _, blue, _ = image.to_rgba(-0.8)
    assert red > blue


def test_of_too_many_classes_the_picture_says_which_ones():
    assert "Shown: 60 of 1,000 classes" in shown_by(fighting_classes(CASES["thousand"]))


def test_a_bar_for_each_small_class():
    absorption = torch.zeros(6, 6)
    absorption[5, 0], absorption[5, 2] = 0.5, 0.1
    reading = replace(NAMED[-1], absorption=absorption)
    (axes,) = absorbed_classes([reading]).axes
    small = reading.small
    assert [text.get_text() for text in axes.get_yticklabels()] == [class_labels(reading)[label] for label in small]
    bars = [bar for bar in axes.patches if abs(bar.get_y() + bar.get_height() / 2 - small.index(5)) < 0.1]
    assert [bar.get_width() for bar in bars] == pytest.approx([0.7, 0.3, 0.0])
    assert {"cat", "sea lion", "loses 40 %"} <= set(texts(axes))


def test_names_that_do_not_fit_stand_beside_the_bar():
    absorption = torch.zeros(40, 40)
    absorption[39, 0] = 0.01
    reading = toy_reading(classes=40, groups=(), absorption=absorption, names=tuple(f"name {k}" for k in range(40)))
    assert "name 0" in texts(absorbed_classes([reading]).axes[0])


def test_recalls_before_and_after():
    figure = recall_of_each_class(NAMED)
    (axes,) = figure.axes
    before, after = (dots.get_offsets()[:, 0].tolist() for dots in axes.collections[1:])
    assert before == pytest.approx(NAMED[-1].natural_recall.tolist())
    assert after == pytest.approx(NAMED[-1].recall.tolist())
    assert "mean 64.7 % to 79.2 %" in figure.get_suptitle()
    earlier = [*NAMED[:2], replace(NAMED[3], recall=None, natural_recall=None)]
    assert "epoch 2" in recall_of_each_class(earlier).get_suptitle()


def test_sacrificed_classes_over_time():
    progress = [torch.tensor([1.0, 1, 1, *late]) for late in ([1, 1, 1], [-1, -1, 1], [-1, -1, torch.nan])]
    error = torch.tensor([0.1, 0.1, 0.1, 0.3, 0.9, 0.1])
    readings = [replace(one, progress=p, progress_se=error) for one, p in zip(NAMED, progress, strict=False)]
    assert readings[0].small == (3, 4, 5)
    upper, lower = sacrificed_classes(readings).axes
    assert upper.lines[0].get_ydata().tolist() == pytest.approx([0, 200 / 3, 100])
    assert upper.lines[1].get_ydata().tolist() == pytest.approx([0, 100 / 3, 50])
    assert lower.images[0].get_array().tolist() == [[0, 2, 2], [0, 1, 1], [0, 0, -1]]
    assert [text.get_text() for text in lower.get_xticklabels()] == ["1", "2", "3"]


def test_pictures_that_there_are_not():
    alike = [toy_reading(counts=torch.full((6,), 9.0), recalls=False)]
    assert BALANCE_PICTURES["absorbed_classes"](alike) is None
    assert BALANCE_PICTURES["sacrificed_classes"](alike) is None
    assert BALANCE_PICTURES["recall_of_each_class"](alike) is None
    for draw, message in (
        (absorbed_classes, "no class is smaller"),
        (sacrificed_classes, "no class is smaller"),
        (recall_of_each_class, "none has run"),
    ):
        with pytest.raises(StiffnessError, match=message):
            draw(alike)
    with pytest.raises(StiffnessError, match="at least one reading"):
        fighting_classes([])
    with pytest.raises(StiffnessError, match="must have its class matrices"):
        fighting_classes([toy_reading(classifier=None)])
