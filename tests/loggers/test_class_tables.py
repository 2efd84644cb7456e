"""Rows of tables: the class matrix, and groups of classes that are stiff to each other."""

import math
from dataclasses import replace

import pytest
import torch

from lightning_stiffness import History
from lightning_stiffness.loggers.class_tables import (
    MOST_ROWS,
    balance_rows,
    class_groups,
    group_rows,
    matrix_rows,
    names_of,
)
from tests.toy_balance import toy_readings
from tests.toy_history import Toy, toy_history

BLOCKS = torch.tensor([[0.9, 0.5, 0.0, 0.1], [0.5, 0.8, 0.1, 0.0], [0.0, 0.1, 0.7, 0.4], [0.1, 0.0, 0.4, 0.6]])


def history_of(matrix, toy):
    history = toy_history([0.5, 0.4], toy=toy)
    last = replace(history[-1], cosine=replace(history[-1].cosine, matrix=matrix.double()))
    return History(history.probe, [history[0], last])


def test_each_pair_of_classes_is_a_row():
    rows = matrix_rows(history_of(BLOCKS, Toy(num_classes=4, class_names=("cat", "dog", "car", "bus"))))
    assert list(rows.columns) == ["epoch", "class a", "class b", "mean cosine"]
    assert len(rows.rows) == 10
    assert rows.rows[1] == [1.0, "cat", "dog", pytest.approx(0.5)]


def test_pairs_without_a_value_are_left_out():
    rows = matrix_rows(toy_history([0.5], toy=Toy(missing=(1,)))).rows
    assert {(first, second) for _, first, second, _ in rows} == {("0", "0"), ("0", "2"), ("2", "2")}


def test_in_cross_mode_a_pair_has_two_sides():
    history = toy_history([0.5])
    rows = matrix_rows(History(replace(history.probe, mode="cross"), history)).rows
    assert len({(first, second) for _, first, second, _ in rows}) == 9


def test_of_very_many_pairs_the_farthest_from_zero_are_kept():
    rows = matrix_rows(toy_history([0.5], toy=Toy(num_classes=110, per_class=2))).rows
    assert len(rows) == MOST_ROWS
    assert sum(first == second for _, first, second, _ in rows) == 110


def test_groups_are_the_blocks():
    assert class_groups(BLOCKS) == [[0, 1], [2, 3]]


@pytest.mark.parametrize(
    ("matrix", "groups"),
    [
        (torch.eye(1), [[0]]),
        (torch.eye(2), [[0], [1]]),
        (torch.full((4, 4), 0.3), [[0], [1], [2], [3]]),
        (torch.full((3, 3), math.nan), [[0], [1], [2]]),
    ],
)
def test_where_nothing_stands_out_each_class_is_alone(matrix, groups):
    assert class_groups(matrix) == groups


def test_every_class_is_in_one_group():
    generator = torch.Generator().manual_seed(0)
    for count in range(1, 12):
        groups = class_groups(torch.randn(count, count, generator=generator))
        assert sorted(label for group in groups for label in group) == list(range(count))


def test_groups_tell_their_members_and_means():
    toy = Toy(num_classes=4, class_names=("cat", "dog", "car", "bus"), superclasses=(0, 0, 0, 1))
    rows = group_rows(history_of(BLOCKS, toy))
    assert [row[1:4] for row in rows.rows] == [
        ["found", "cat, dog", 2],
        ["found", "car, bus", 2],
        ["given", "cat, dog, car", 3],
        ["given", "bus", 1],
    ]
    assert rows.rows[0][4:] == pytest.approx([0.85, 0.5, 0.05])
    assert rows.rows[2][4:] == pytest.approx([0.8, 0.2, (0.1 + 0.0 + 0.4) / 3])
    assert rows.rows[3][5] is None
    assert len(rows.columns) == len(rows.rows[0])


def test_classes_without_names_have_numbers():
    assert names_of(toy_history([0.5]).probe) == ["0", "1", "2"]


def test_a_row_for_each_class_of_a_balancer():
    table = balance_rows(toy_readings(2, names=tuple("abcdef")))
    assert [row[0] for row in table.rows] == ["f", "e", "d", "c", "b", "a"]
    for row in table.rows:
        for entry, kind in zip(row, table.columns.values(), strict=True):
            assert entry is None or isinstance(entry, int | float if kind is float else kind)
