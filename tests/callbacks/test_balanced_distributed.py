"""Two processes share one balanced pass: Lightning leaves the sampler, and so the rates, as they are."""

import pytest
import torch

from tests.callbacks.balanced_fit import balanced, numbered, observed, sampled
from tests.processes import seen_by_both

pytestmark = pytest.mark.slow


def test_the_order_survives_and_the_processes_share_it(tmp_path):
    first, second = seen_by_both(sampled, folder=tmp_path)
    labels = numbered().targets
    for found in (first, second):
        assert found["kind"] == "ClassRateSampler"
        assert found["seen"] == found["expected"]
    for epoch in range(2):
        together = sorted(first["seen"][epoch] + second["seen"][epoch])
        assert together == sorted(first["whole"][epoch])
        assert sorted(torch.bincount(labels[together]).tolist()) == [16, 17, 17]
    assert first["seen"][0] != first["seen"][1]


def test_a_balancer_exchanges_the_loader_of_both_processes(tmp_path):
    first, second = seen_by_both(balanced, True, folder=tmp_path)
    for found in (first, second):
        assert found["kind"] == "ClassRateSampler"
        assert found["seen"] == found["expected"]
    for same in ("weights", "frequencies", "absorption"):
        assert torch.allclose(torch.tensor(first[same]), torch.tensor(second[same]))
    rates = torch.tensor([30.0, 15, 5]) ** 0.75
    assert first["frequencies"] == pytest.approx((rates / rates.sum()).tolist())


def test_what_is_drawn_is_counted_over_both_processes(tmp_path):
    first, second = seen_by_both(balanced, False, folder=tmp_path)
    assert first["weights"] == second["weights"]
    drawn = [position for found in (first, second) for epoch in found["seen"] for position in epoch]
    counts = torch.bincount(numbered().targets[drawn]).double() + 1
    for found in (first, second):
        assert found["frequencies"] == pytest.approx((counts / counts.sum()).tolist())


def test_both_processes_have_the_same_readings_of_all_validation_samples(tmp_path):
    first, second = seen_by_both(observed, False, folder=tmp_path)
    assert first["steps"] == second["steps"]
    assert len(first["steps"]) == 2
    assert first["classifier"] == second["classifier"]
    assert first["recall"] == second["recall"]
    assert first["recall"][-1] == pytest.approx(first["expected"], abs=1e-6)
    assert first["written"]


def test_a_process_that_fails_does_not_make_the_other_wait(tmp_path):
    first, second = seen_by_both(observed, True, folder=tmp_path)
    assert first["steps"] == second["steps"]
    assert first["classifier"] == second["classifier"]
