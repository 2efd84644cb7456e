import math

import pytest

from lightning_stiffness.callbacks.balance_schedule import ALLOWED_SECONDS, FIRST, SHARE, ReadingSchedule


def due(schedule, length, batches_of_epoch):
    """After how many batches readings are due, asked as a Trainer does."""
    found = []
    for done in range(length + 1):
        asked = [True] if done and done % batches_of_epoch == 0 else []  # after the last batch of an epoch
        asked += [False] if done < length else []  # before the next one
        for at_epoch_end in asked:
            if schedule.is_due(done, at_epoch_end):
                found.append(done)
                schedule.tried(done)
    return found


def test_readings_come_at_the_ends_of_epochs_where_there_are_enough():
    assert due(ReadingSchedule(10, 100, 10), 100, 10) == [10, 20, 30, 40, 50, 60, 70, 80, 90, 100]
    assert due(ReadingSchedule(4, 70, 10), 70, 10) == [20, 40, 60, 70]


def test_readings_come_within_epochs_where_there_are_few():
    assert due(ReadingSchedule(4, 20, 10), 20, 10) == [5, 10, 15, 20]
    assert due(ReadingSchedule(10, 4, 4), 4, 4) == [1, 2, 3, 4]


def test_no_readings():
    assert due(ReadingSchedule(0, 20, 10), 20, 10) == []


def test_a_run_of_unknown_length_is_read_ever_more_rarely():
    assert due(ReadingSchedule(10, math.inf, math.inf), 1000, 10**9) == [FIRST, 2 * FIRST, 4 * FIRST, 8 * FIRST]


def test_a_run_that_is_taken_up_again_goes_on():
    assert due(ReadingSchedule(5, 50, 10, tried_at=30), 50, 10) == [40, 50]


@pytest.mark.parametrize(
    ("taken", "elapsed", "expected"),
    [
        ([], 0.0, True),
        ([0.4], 0.0, True),
        ([0.4, 0.4], 0.0, False),
        ([0.4, 0.4], 10.0, True),
        ([3.0], 60.0, False),
        ([3.0], 120.0, True),
    ],
)
def test_readings_take_a_small_share_of_the_time(taken, elapsed, expected):
    schedule = ReadingSchedule(10, 100, 10)
    for seconds in taken:
        schedule.took(seconds)
    assert schedule.is_affordable(elapsed) is expected
    expects = sum(taken) + (taken[-1] if taken else 0)
    assert expected == (expects <= ALLOWED_SECONDS + SHARE * elapsed)
