import math
from dataclasses import replace

import pytest
import torch

from lightning_stiffness.history import History
from lightning_stiffness.report.samples import counted, suspects
from tests.report.runs import batch_run, detailed
from tests.toy_history import Toy, overfitting_history

HISTORY = detailed(overfitting_history(8, Toy(num_classes=3, class_names=("a", "b", "c"))), odd=(1, 5))


def with_details(history, **fields):
    return History(history.probe, [replace(r, detail=replace(r.detail, **fields)) for r in history])


def test_odd_samples_come_first_with_their_class_and_place():
    found = suspects(HISTORY)
    assert [suspect.row for suspect in found[:2]] == [1, 5]
    first, second = found[:2]
    assert (first.given, first.position, second.given) == ("a", 101, "b")
    assert first.own_alignment == pytest.approx(-0.3)
    assert first.margin == pytest.approx(-0.4)
    assert first.usual > 0.25
    assert first.opposed == "c"


def test_at_most_a_quarter_of_the_probe():
    assert len(suspects(HISTORY)) == 3
    assert len(suspects(HISTORY, most=1)) == 1


def test_the_first_quarter_of_the_readings_does_not_count():
    assert [reading.epoch for reading in counted(HISTORY)] == [3, 4, 5, 6, 7, 8]
    assert [reading.epoch for reading in counted(HISTORY[:2])] == [1]
    assert [reading.epoch for reading in counted(HISTORY[:1])] == [0]


def test_without_details_there_are_none():
    assert suspects(batch_run().history) == []
    assert suspects(overfitting_history(3)) == []
    assert suspects(History(HISTORY.probe)) == []


def test_unknown_alignments_are_passed_over():
    own = torch.full((12,), math.nan)
    own[7] = 0.2
    assert [suspect.row for suspect in suspects(with_details(HISTORY, own=own))] == [7]


def test_positions_that_are_not_known():
    unknown = History(replace(HISTORY.probe, ids=()), list(HISTORY))
    assert suspects(unknown)[0].position is None
