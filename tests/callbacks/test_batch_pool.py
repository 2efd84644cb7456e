"""Pools of batches against plain loops over their pairs."""

import math

import pytest
import torch

from lightning_stiffness import StiffnessError
from lightning_stiffness.callbacks.batch_pool import BatchPool
from lightning_stiffness.functional import class_matrix, cosine_pairs, sign_pairs
from tests.functional import oracle
from tests.functional.synthetic import random_labelled

CLASSES = 4


def batches(sizes=(12, 7, 9)):
    return [random_labelled(seed, samples=n, num_classes=CLASSES) for seed, n in enumerate(sizes)]


def pooled(data, values=(2.0, 1.0, 0.5)):
    pools = [BatchPool.of(one.gram, one.targets, value, CLASSES) for one, value in zip(data, values, strict=True)]
    return BatchPool.empty(CLASSES).joined(pools)


def within_batches(data, pairs_of):
    """All pairs of all samples, nan across batches."""
    n = sum(len(one.targets) for one in data)
    pairs, start = torch.full((n, n), torch.nan, dtype=torch.float64), 0
    for one in data:
        stop = start + len(one.targets)
        pairs[start:stop, start:stop] = pairs_of(one.gram)
        start = stop
    return pairs, torch.cat([one.targets for one in data])


@pytest.mark.parametrize(("name", "pairs_of"), [("cosine", cosine_pairs), ("sign", sign_pairs)])
def test_the_class_matrix_and_errors_are_those_of_a_loop(name, pairs_of):
    data = batches()
    found = getattr(pooled(data).reading(3, 1.0), name)
    pairs, targets = within_batches(data, pairs_of)
    torch.testing.assert_close(found.matrix, class_matrix(pairs, targets, targets, CLASSES), equal_nan=True)
    replicates = oracle.replicates(pairs.tolist(), targets.tolist(), CLASSES)
    for k, key in enumerate(("within_se", "between_se")):
        expected = oracle.jackknife_error([one[k] for one in replicates], targets.tolist())
        assert getattr(found, key) == pytest.approx(expected, abs=1e-12)


def test_the_order_and_the_grouping_of_batches_do_not_matter():
    first, second, third = [pooled([one], [1.0]) for one in batches()]
    one, other = first.joined([second, third]).reading(0, 0.0), third.joined([first.joined([second])]).reading(0, 0.0)
    for key, value in one.metrics().items():
        assert other.metrics()[key] == pytest.approx(value, abs=1e-12, nan_ok=True), key


def test_loss_is_the_mean_over_samples_and_its_error_that_of_batches():
    reading = pooled(batches((8, 8, 8))).reading(0, 0.0)
    values = torch.tensor([2.0, 1.0, 0.5], dtype=torch.float64)
    assert reading.loss == pytest.approx(float(values.mean()))
    assert reading.loss_se == pytest.approx(float(values.std()) / math.sqrt(3))
    assert math.isnan(pooled(batches((8,)), [1.0]).reading(0, 0.0).loss_se)


def test_zero_gradients_are_counted_and_left_out():
    data = batches((6, 6))
    data[0].gradients[2] = 0
    assert pooled(data, [1.0, 1.0]).reading(0, 0.0).zero_fraction == pytest.approx(1 / 12)


def test_a_class_of_one_sample_in_each_batch_has_no_within_value():
    gram = torch.eye(2, dtype=torch.float64) + 0.5
    targets = torch.tensor([0, 1])
    pool = BatchPool.empty(2).joined([BatchPool.of(gram, targets, 1.0, 2) for _ in range(5)])
    reading = pool.reading(0, 0.0)
    assert math.isnan(reading.cosine.within)
    assert reading.cosine.between == pytest.approx(1 / 3)


def test_a_state_dict_brings_it_back():
    pool = pooled(batches())
    again = BatchPool.from_state_dict(pool.state_dict())
    assert again.reading(1, 1.0).metrics() == pool.reading(1, 1.0).metrics()
    assert again.bytes == pool.bytes > 0


def test_a_gram_that_is_not_finite_is_refused():
    with pytest.raises(StiffnessError, match="finite"):
        BatchPool.of(torch.full((2, 2), torch.inf), torch.tensor([0, 0]), 1.0, 1)
