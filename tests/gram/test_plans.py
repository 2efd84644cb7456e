import torch

from lightning_stiffness.gram import plans
from lightning_stiffness.gram.losses import LossSource
from lightning_stiffness.gram.plans import Plans
from lightning_stiffness.gram.trainable import trainable
from tests.oracle import cross_entropy


def make():
    model = torch.nn.Linear(3, 4)
    known = Plans(model, LossSource(model, cross_entropy))
    return model, known, lambda size: known.of(batch(size), trainable(model))


def batch(size, width=3):
    return torch.randn(size, width), torch.arange(size) % 4


def test_a_kind_of_batch_has_one_plan():
    _, known, plan_of = make()
    first = plan_of(6)
    assert plan_of(9) is first  # as large as the trial, or larger
    assert plan_of(2) is not first
    assert plan_of(6) is first
    known.forget(first)
    assert plan_of(6) is not first


def test_modes_and_frozen_parameters_make_another_kind():
    model, _, plan_of = make()
    first = plan_of(6)
    model.eval()
    assert plan_of(6) is not first
    model.train()
    assert plan_of(6) is first
    model.bias.requires_grad_(False)
    assert plan_of(6) is not first


def test_mistrusted_parameters_go_by_the_fallback_in_every_plan():
    _, known, plan_of = make()
    known.mistrusted.add("bias")
    assert list(plan_of(6).fallback) == [1]
    known.distrust_all()
    assert sorted(plan_of(6).fallback) == [0, 1]


def test_old_plans_are_dropped(monkeypatch):
    monkeypatch.setattr(plans, "KEPT", 2)
    _, _, plan_of = make()
    first, second, third = map(plan_of, (1, 2, 3))
    assert plan_of(2) is second
    assert plan_of(3) is third
    assert plan_of(1) is not first
