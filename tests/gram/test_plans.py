import torch

from lightning_stiffness.gram import plans
from lightning_stiffness.gram.losses import LossSource
from lightning_stiffness.gram.plans import Plans
from tests.oracle import cross_entropy


def make():
    model = torch.nn.Linear(3, 4)
    return model, Plans(model, LossSource(model, cross_entropy))


def batch(size, width=3):
    return torch.randn(size, width), torch.arange(size) % 4


def test_a_kind_of_batch_has_one_plan():
    _, known = make()
    assert not known.knows(batch(6))
    first = known.of(batch(6))
    assert known.of(batch(9)) is first  # as large as the trial, or larger
    assert known.of(batch(2)) is not first
    known.forget(batch(6))
    assert known.of(batch(6)) is not first


def test_modes_and_frozen_parameters_make_another_kind():
    model, known = make()
    known.of(batch(6))
    model.eval()
    assert not known.knows(batch(6))
    model.train()
    model.bias.requires_grad_(False)
    assert not known.knows(batch(6))


def test_mistrusted_parameters_go_by_the_fallback_in_every_plan():
    _, known = make()
    known.mistrusted.add("bias")
    assert list(known.of(batch(6)).fallback) == [1]
    known.distrust_all()
    assert sorted(known.of(batch(6)).fallback) == [0, 1]


def test_old_plans_are_dropped(monkeypatch):
    monkeypatch.setattr(plans, "KEPT", 2)
    _, known = make()
    for size in (1, 2, 3):
        known.of(batch(size))
    assert [known.knows(batch(size)) for size in (1, 2, 3)] == [False, True, True]
