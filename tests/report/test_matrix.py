import math
from dataclasses import replace

import pytest
import torch

from lightning_stiffness.functional.class_tree import class_tree
from lightning_stiffness.history import History
from lightning_stiffness.report import matrix as module
from lightning_stiffness.report.matrix import (
    class_pairs,
    dendrogram,
    frames,
    orders,
    shown_classes,
    superclass_series,
    tree_of,
    within_by_class,
)
from tests.toy_history import Toy, overfitting_history, toy_history

NAMES = ("cat", "dog", "car", "bus")
FOUR = Toy(num_classes=4, class_names=NAMES)
MATRIX = torch.tensor(
    [[0.9, 0.4, -0.2, -0.1], [0.2, 0.8, -0.3, 0.0], [-0.2, -0.3, 0.7, 0.5], [-0.1, 0.0, 0.5, 0.6]]
).double()


def history_of(*matrices, toy=FOUR):
    history = toy_history([0.5] * len(matrices), toy=toy)
    readings = [replace(r, cosine=replace(r.cosine, matrix=m)) for r, m in zip(history, matrices, strict=True)]
    return History(history.probe, readings)


def test_frames_hold_thousandths_and_know_their_limit():
    missing = MATRIX.clone()
    missing[0, 1] = math.nan
    found = frames(history_of(MATRIX, missing))
    assert found.readings == (0, 1)
    assert found.entries[0][:4] == (900, 400, -200, -100)
    assert found.entries[1][1] is None
    assert found.limit == pytest.approx(0.9)


def test_frames_of_a_long_run_are_thinned_out(monkeypatch):
    monkeypatch.setattr(module, "MOST_ENTRIES", 5 * 16)
    assert frames(history_of(*[MATRIX] * 21)).readings == (0, 5, 10, 15, 20)


def test_of_too_many_classes_those_are_shown_that_help_another(monkeypatch):
    history = history_of(MATRIX)
    assert shown_classes(history) == (0, 1, 2, 3)
    monkeypatch.setattr(module, "MOST_CLASSES", 2)
    assert shown_classes(history) == (2, 3)
    assert frames(history).entries == ((700, 500, 500, 600),)


def test_a_limit_exists_where_nothing_was_measured():
    assert frames(history_of(MATRIX * math.nan)).limit == 1.0
    assert frames(history_of(MATRIX * 0)).limit == 0.001


def test_orders_are_permutations_and_keep_super_classes_together():
    toy = Toy(num_classes=4, class_names=NAMES, superclasses=(1, 0, 1, 0))
    history = history_of(MATRIX, toy=toy)
    found = orders(history, range(4), tree_of(history, range(4)))
    assert all(sorted(order) == [0, 1, 2, 3] for order in found.values())
    assert found["given"] == [0, 1, 2, 3]
    assert {*found["super"][:2]} == {1, 3}
    assert "super" not in orders(history_of(MATRIX), range(4), class_tree(MATRIX))


def test_the_dendrogram_joins_neighbours_at_their_stiffness():
    tree = class_tree(MATRIX)
    segments = dendrogram(tree)
    assert len(segments) == 3 * len(tree.merges)
    joins = [line for line in segments if line.stiffness == line.end_stiffness]
    assert [join.stiffness for join in joins] == [merge.stiffness for merge in tree.merges]
    assert {*joins[0].members} == {2, 3}
    assert abs(joins[0].place - joins[0].end_place) == 1
    assert {*joins[-1].members} == {0, 1, 2, 3}
    assert dendrogram(class_tree(torch.ones(1, 1))) == []


def test_pairs_are_means_of_both_entries_the_stiffest_first():
    pairs = class_pairs(history_of(MATRIX * 0.5, MATRIX))
    assert (pairs[0].first, pairs[0].second, pairs[0].stiffness) == ("car", "bus", 0.5)
    assert pairs[0].change == pytest.approx(0.25)
    assert (pairs[1].first, pairs[1].stiffness) == ("cat", pytest.approx(0.3))
    assert len(pairs) == 6
    assert class_pairs(history_of(MATRIX * 0.5, MATRIX), slice(-2, None)) == pairs[4:]
    missing = MATRIX.clone()
    missing[2, :] = missing[:, 2] = math.nan
    assert len(class_pairs(history_of(missing))) == 3


def test_stiffness_by_class_is_sorted_and_without_what_is_unknown():
    assert list(within_by_class(history_of(MATRIX), 0)) == ["bus", "car", "dog", "cat"]
    assert list(within_by_class(toy_history([0.5], toy=Toy(missing=(1,))), -1)) == ["0", "2"]


def test_classes_of_the_same_name_stay_apart():
    history = toy_history([0.5], toy=Toy(class_names=("a", "a", "b")))
    assert len(within_by_class(history, 0)) == 3


def test_super_classes_over_time():
    toy = Toy(num_classes=4, superclasses=(0, 0, 1, 1))
    inside, across = superclass_series(history_of(MATRIX, toy=toy)).values()
    assert inside == pytest.approx([(0.4 + 0.2 + 0.5 + 0.5) / 4])
    assert across == pytest.approx([-0.15])
    assert superclass_series(overfitting_history(2)) == {}
