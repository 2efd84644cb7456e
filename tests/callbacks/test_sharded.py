"""Two processes which hold a part of the weights each (FSDP2) measure, stop and balance as two which hold all."""

import pytest

from tests.callbacks import sharded_fit
from tests.processes import seen_by_both

pytestmark = pytest.mark.slow


def both_ways(fit, folder):
    """What a fit saw with shared weights, and under DDP; both processes saw the same."""
    found = []
    for sharded in (True, False):
        own = folder / str(sharded)
        own.mkdir()
        first, second = seen_by_both(fit, sharded, folder=own)
        assert {**first, "rank": 1} == second
        found.append(first)
    return found


def assert_close(one, other, tolerance):
    for name in ("readings", "weights"):
        for numbers, expected in zip(one[name], other[name], strict=True):
            assert numbers == pytest.approx(expected, rel=tolerance, abs=tolerance / 100, nan_ok=True)


def test_readings_signals_and_restored_weights_are_those_of_ddp(tmp_path):
    sharded, replicated = both_ways(sharded_fit.watched, tmp_path)
    assert sharded["epochs"] == replicated["epochs"] > 4
    assert sharded["restored"] == replicated["restored"] < sharded["readings"][-1][0]
    assert_close(sharded, replicated, 1e-4)


def test_training_is_the_same_bit_for_bit(tmp_path):
    found = []
    for with_monitor in (True, False):
        folder = tmp_path / str(with_monitor)
        folder.mkdir()
        found.append(seen_by_both(sharded_fit.neutral, with_monitor, folder=folder))
    assert found[0] == found[1]
    assert found[0][0]["epochs"] == 2


@pytest.mark.parametrize(("case", "words"), [("batch", 'leave out probe="batch"'), ("asked", "Pass targets=")])
def test_what_cannot_be_measured_is_said_by_both_and_nobody_waits(case, words, tmp_path):
    first, second = seen_by_both(sharded_fit.refused, case, folder=tmp_path)
    assert words in first["error"]
    assert first["error"] == second["error"]


def test_a_balancer_reads_and_trains_as_with_ddp(tmp_path):
    sharded, replicated = both_ways(sharded_fit.balanced, tmp_path)
    assert len(sharded["readings"]) == 10
    assert_close(sharded, replicated, 1e-3)


def test_a_run_that_is_taken_up_again_restores_weights_from_before(tmp_path):
    first, second = seen_by_both(sharded_fit.resumed, folder=tmp_path)
    assert {**first, "rank": 1} == second
    assert first["readings"] == first["expected_readings"]
    assert first["restored"] == first["readings"][1][0]
    assert first["weights"] == first["expected"]
