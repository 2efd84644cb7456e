import math
from dataclasses import asdict, replace

import pytest
import torch

from lightning_stiffness import StiffnessError, balance
from lightning_stiffness.balance import (
    extended,
    is_balance,
    load_readings,
    reading_of_record,
    records_of,
    save_readings,
)
from tests.callbacks.test_monitor_neutrality import assert_identical
from tests.toy_balance import toy_reading, toy_readings
from tests.toy_history import overfitting_history


def without_nan(reading):
    return {
        key: None if isinstance(value, float) and math.isnan(value) else value for key, value in asdict(reading).items()
    }


@pytest.mark.parametrize("recalls", [True, False])
def test_readings_come_back_from_their_file(recalls, tmp_path):
    readings = toy_readings(3, recalls=recalls, names=tuple("abcdef"))
    readings.append(toy_reading(40, classifier=None, features=None, absorption=None))
    path = tmp_path / "run" / "balancing.jsonl"
    save_readings(path, readings)
    assert is_balance(path)
    for before, after in zip(readings, load_readings(path), strict=True):
        assert_identical(without_nan(before), without_nan(after))


def test_readings_come_back_from_a_checkpoint(tmp_path):
    readings = toy_readings(2)
    torch.save(records_of(readings), tmp_path / "state.ckpt")
    found = [reading_of_record(record) for record in torch.load(tmp_path / "state.ckpt", weights_only=True)]
    for before, after in zip(readings, found, strict=True):
        assert_identical(without_nan(before), without_nan(after))


def test_a_torn_line_is_left_out_and_a_damaged_one_named(tmp_path):
    path = tmp_path / "balancing.jsonl"
    save_readings(path, toy_readings(2))
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    assert len(load_readings(path)) == 1
    path.write_bytes(whole.replace(b'"step"', b'"stop"', 1))
    with pytest.raises(StiffnessError, match=r"balancing\.jsonl: .*no record of a reading"):
        load_readings(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must begin with their header"),
        (b'{"format":"lightning-stiffness balance","version":9}\n', "is of 9. Update"),
    ],
)
def test_what_is_no_file_of_readings(content, message, tmp_path):
    path = tmp_path / "balancing.jsonl"
    path.write_bytes(content)
    with pytest.raises(StiffnessError, match=message):
        load_readings(path)


def test_histories_are_no_readings_of_balance(tmp_path):
    overfitting_history(2).save(tmp_path / "stiffness.jsonl")
    assert not is_balance(tmp_path / "stiffness.jsonl")
    assert not is_balance(tmp_path / "nothing.jsonl")


def test_with_many_classes_only_the_last_reading_keeps_its_matrices(monkeypatch):
    first, second = toy_readings(2)
    assert extended([first], second)[0] is first
    monkeypatch.setattr(balance, "MOST_CLASSES", 5)
    kept = extended([first], second)
    assert (kept[0].classifier, kept[0].features, kept[0].absorption) == (None, None, None)
    assert kept[0].recall is first.recall
    assert kept[1] is second


def test_small_and_sacrificed_classes():
    counts = torch.tensor([100.0, 60, 10, 40, 11])  # the mean is 44.2, three quarters of it 33.15
    progress = torch.tensor([1.0, -1, -1, -1, math.nan])
    error = torch.tensor([0.1, 0.1, 0.6, 0.1, 0.1])
    reading = toy_reading(classes=5, counts=counts, progress=progress, progress_se=error, groups=())
    assert reading.small == (4, 2)
    assert reading.sacrificed == (2,)
    assert reading.sacrificed_share == 1.0  # of those that are known
    assert (reading.metrics()["sacrificed"], reading.metrics()["clearly_sacrificed"]) == (1.0, 0.0)
    assert replace(reading, progress_se=error / 2).clearly_sacrificed == (2,)
    assert replace(reading, progress_se=error * math.nan).clearly_sacrificed == ()
    alike = toy_reading(classes=5, counts=torch.full((5,), 20.0), groups=())
    assert alike.small == ()
    assert math.isnan(alike.sacrificed_share)
    assert "sacrificed" not in alike.metrics()


def test_groups_in_the_order_of_the_pictures():
    reading = toy_reading(classes=4, groups=())
    changed = toy_reading(classes=4, groups=((0, 2),), order=(3, 2, 0, 1))
    assert reading.members == ()
    assert changed.members == ((2, 0),)


def test_metrics_know_validation_where_it_has_run():
    found = toy_reading(20, classes=4, groups=((0, 1),)).metrics()
    assert found["balanced_accuracy"] == pytest.approx((1 + 0.875 + 0.75 + 0.625) / 4)
    assert found["worst_recall"] == pytest.approx(0.625)
    assert found["worst_recall_at_natural_frequencies"] == pytest.approx(0.625**2)
    assert (found["classes_in_groups"], found["group_agreement"]) == (2.0, 0.75)
    assert set(toy_reading(10, recalls=False).metrics()) == {"sacrificed", "clearly_sacrificed", "classes_in_groups"}
    partly = toy_reading(20, classes=2, groups=(), recall=torch.tensor([0.5, math.nan]))
    assert (partly.metrics()["balanced_accuracy"], partly.metrics()["worst_recall"]) == (0.5, 0.5)
