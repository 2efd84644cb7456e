import math

import pytest
import torch

from lightning_stiffness import balance_words
from lightning_stiffness.balance_words import (
    HEADINGS,
    absorption_caption,
    class_labels,
    class_rows,
    class_words,
    groups_words,
    matrices_caption,
    recall_caption,
    sacrificed_caption,
    shown_classes,
    takers,
)
from tests.toy_balance import toy_reading, toy_readings


def test_classes_are_named_with_their_samples():
    reading = toy_reading(classes=3, names=("cat", "dog", "a very long name indeed"), groups=())
    assert class_labels(reading) == ["cat (n=1,000)", "dog (n=177)", "a very long nam… (n=31)"]
    assert class_labels(toy_reading(classes=3, groups=()))[1] == "1 (n=177)"


def test_captions_say_what_is_easily_misread():
    caption = matrices_caption(toy_reading())
    assert "classes that fight are confused" in caption
    assert "Blue (positive) among small classes is no similarity: they have a common enemy" in caption
    assert "no other training" in recall_caption(toy_reading())
    for words in (matrices_caption, absorption_caption, recall_caption, sacrificed_caption):
        assert "What to do: " in words(toy_reading())


def test_captions_say_where_it_was_measured():
    assert "its validation samples" in absorption_caption(toy_reading())
    assert "its training samples" in absorption_caption(toy_reading(recalls=False))


def test_groups_or_why_there_are_none():
    assert groups_words(toy_reading(groups=())) == ("No groups: the network does not tell the classes apart yet.")
    words = groups_words(toy_reading(20, names=tuple("abcdef")))
    assert words.endswith("so the network confuses them (0.75 alike to the reading before; 1: the same): a, b; e, f.")
    assert "alike" not in groups_words(toy_reading(10))
    many = toy_reading(classes=16, groups=tuple((2 * k, 2 * k + 1) for k in range(8)))
    assert groups_words(many).endswith("10, 11 and others.")


def test_of_too_many_classes_those_in_groups_and_the_smallest_are_shown(monkeypatch):
    reading = toy_reading(classes=8, groups=((0, 3),))
    assert shown_classes(reading) == reading.order
    monkeypatch.setattr(balance_words, "MOST_CLASSES", 7)
    monkeypatch.setattr(balance_words, "CHOSEN", 4)
    assert shown_classes(reading) == (0, 3, 6, 7)
    assert "Shown: 4 of 8 classes, those in groups and the smallest." in matrices_caption(reading)


def test_who_takes_more_than_an_even_split():
    absorption = torch.zeros(4, 4)
    absorption[0, 1], absorption[0, 3] = 0.1, 0.3
    reading = toy_reading(classes=4, groups=(), absorption=absorption)
    found = takers(reading, 0)
    assert [other for other, _ in found] == [3, 1]
    assert [share for _, share in found] == pytest.approx([0.3 + 1 / 3, 0.1 + 1 / 3])
    assert takers(reading, 1) == []
    assert takers(toy_reading(absorption=None), 0) == []


def test_a_row_for_each_class():
    reading = toy_reading(classes=3, groups=((0, 2),), progress=torch.tensor([1.0, math.nan, -2.0]))
    rows = class_rows(reading)
    assert [row[0] for row in rows] == ["2", "1", "0"]
    assert [row[2] for row in rows] == [1, None, 1]
    assert rows[1][HEADINGS.index("progress")] is None
    assert rows[2][HEADINGS.index("recall")] == 1.0
    assert class_rows(toy_reading(recalls=False))[0][-2:] == [None, None]
    assert all(len(row) == len(HEADINGS) for row in rows)


def test_rows_in_words_are_a_table_in_markdown():
    text = class_words(toy_readings(2, classes=40, groups=()))
    lines = text.splitlines()
    assert lines[2].count("|") == lines[3].count("|") == lines[4].count("|") == len(HEADINGS) + 1
    assert lines[-1] == "10 larger classes are left out."
