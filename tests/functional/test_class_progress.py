import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_stiffness import StiffnessError
from lightning_stiffness.functional.class_progress import class_progress, class_progress_error
from lightning_stiffness.functional.jackknife import jackknife_error
from lightning_stiffness.gram import GramEngine


def losses(module, batch):
    return F.cross_entropy(module(batch[0]), batch[1], reduction="none")


def test_it_is_the_change_of_the_loss_in_a_small_step():
    """A step of the mean training loss over other samples, at the rates, against the formula."""
    module = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    x, y = torch.randn(9, 4, dtype=torch.float64), torch.tensor([0, 0, 0, 0, 1, 1, 1, 2, 2])
    rates = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
    gram = GramEngine(module, losses).gram((x, y)).matrix
    found = class_progress(gram, y, rates)
    rate = 1e-6
    for label in range(3):
        falls = []
        for sample in (y == label).nonzero().flatten().tolist():
            others = torch.arange(9) != sample
            each = losses(module, (x, y))
            total = sum(q * each[others & (y == b)].mean() for b, q in enumerate(rates))
            step = torch.autograd.grad(total, list(module.parameters()))
            before = each[sample].detach()
            stepped = copy.deepcopy(module)
            with torch.no_grad():
                for parameter, change in zip(stepped.parameters(), step, strict=True):
                    parameter.sub_(rate * change)
            falls.append((before - losses(stepped, (x, y))[sample].detach()) / rate)
        assert float(found[label]) == pytest.approx(float(torch.stack(falls).mean()), rel=1e-3)


def test_classes_without_pairs():
    products = torch.full((3, 3), 2.0)
    found = class_progress(products, torch.tensor([0, 0, 3]), torch.tensor([1.0, 1, 1, 1]))
    assert found[0] == 1  # of itself and of class 3, each a quarter
    assert all(math.isnan(value) for value in found[1:].tolist())


def test_a_class_may_be_sacrificed():
    products = torch.tensor([[1.0, 1, -3, -3], [1, 1, -3, -3], [-3, -3, 9, 9], [-3, -3, 9, 9]])
    labels = torch.tensor([0, 0, 1, 1])
    assert (class_progress(products, labels, torch.tensor([1.0, 1])) < 0).tolist() == [True, False]
    assert (class_progress(products, labels, torch.tensor([9.0, 1])) < 0).tolist() == [False, True]


@pytest.mark.parametrize("rates", [[0.0, 0.0], [-1.0, 2.0], [math.nan, 1.0], [math.inf, 1.0]])
def test_rates_that_are_none(rates):
    with pytest.raises(StiffnessError, match="rates must be numbers from 0 on"):
        class_progress(torch.ones(2, 2), torch.tensor([0, 1]), torch.tensor(rates))


@pytest.mark.parametrize("sizes", [(4, 3, 5), (6, 1, 3), (2, 4, 3)])
def test_the_error_is_that_of_the_jackknife(sizes):
    """Against leaving out one sample after the other."""
    labels = torch.tensor([label for label, size in enumerate(sizes) for _ in range(size)])
    n, rates = len(labels), torch.tensor([0.5, 0.2, 0.3])
    products = torch.randn(n, n, dtype=torch.float64)
    found = class_progress_error(products, labels, rates)
    replicates = []
    for left_out in range(n):
        kept = torch.arange(n) != left_out
        replicates.append(class_progress(products[kept][:, kept], labels[kept], rates))
    for label, size in enumerate(sizes):
        if size < 3:
            assert found[label].isnan()
        else:
            expected = jackknife_error(torch.stack(replicates)[:, label], labels)
            assert float(found[label]) == pytest.approx(float(expected), rel=1e-9)


@pytest.mark.slow
def test_the_error_is_about_right():
    """The spread of the progress over many draws of samples."""
    labels, rates = torch.arange(24) % 2, torch.tensor([0.7, 0.3])
    centres = torch.randn(2, 8)
    values, errors = [], []
    for _ in range(300):
        gradients = centres[labels] + torch.randn(24, 8)
        products = gradients @ gradients.T
        values.append(class_progress(products, labels, rates))
        errors.append(class_progress_error(products, labels, rates))
    ratio = torch.stack(errors).square().mean(0).sqrt() / torch.stack(values).std(0)
    assert ((ratio > 0.9) & (ratio < 1.35)).all()  # a jackknife is too large rather than too small
