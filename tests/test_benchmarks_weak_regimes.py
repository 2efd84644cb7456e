import importlib
import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_stiffness.functional import Exposure, own_share
from tests.functional.test_leave_one_out import trained

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def _path_of_the_scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def module(name: str) -> Any:
    return importlib.import_module(name)


# What is recorded


def test_samples_are_left_out_in_turn_for_a_few_epochs_and_none_for_good():
    training = module("stopping_weak_training")
    sampler, out = training.RotatingSampler(200, seed=3), []
    for _ in range(200 + training.WINDOW - 1):  # one more begins each epoch
        drawn = list(sampler)
        ages = sampler.ages()
        out.append(ages > 0)
        assert len(drawn) == len(sampler) == len(set(drawn))
        assert set(drawn) <= set(torch.nonzero(ages == 0).flatten().tolist())
        assert int(ages.max()) <= training.WINDOW
    times = torch.stack(out)
    full = times[training.WINDOW - 1 :].sum(1)
    assert set(full.tolist()) == {round(training.WITHHELD_SHARE * 200)}
    begun = times.long().diff(dim=0, prepend=torch.zeros(1, 200, dtype=torch.long)) == 1
    assert torch.equal(begun[:200].sum(0), torch.ones(200, dtype=torch.long))
    windows = [times[epoch : epoch + training.WINDOW, sample] for epoch, sample in begun[:200].nonzero().tolist()]
    assert all(bool(window.all()) for window in windows)


def test_steps_of_adam_are_those_it_makes():
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0, 0.5]))
    optimizer = torch.optim.Adam([weight], lr=0.1, betas=(0.0, 0.9), eps=1e-3)
    steps = module("stopping_weak_training").entrywise_steps
    assert steps(optimizer, [weight]) is None
    for scale in (1.0, 0.01):
        before = weight.detach().clone()
        weight.grad = scale * torch.tensor([0.3, -4.0, 1e-3])
        optimizer.step()
        made = steps(optimizer, [weight]) * weight.grad
        torch.testing.assert_close(made.float(), before - weight.detach(), rtol=1e-4, atol=1e-6)
    assert steps(torch.optim.SGD([weight], lr=0.1), [weight]) is None


# What the ideas make of it


def interval(logits: Any, targets: Any, before: Exposure, now: Exposure, first: Any, kernel: Any) -> Any:
    parts = now.residual - before.residual, now.curvature - before.curvature, now.time - before.time
    return module("stopping_weak_evidence").Interval(first, logits, targets, *parts, 5, kernel, kernel)


def followed_linear(steps: int, length: int) -> tuple[Any, list[Any], Exposure, torch.Tensor]:
    """A linear classifier's intervals, its whole exposure, and what leaving each sample out really changes."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(40) % 3
    x = 0.7 * torch.randn(3, 12, generator=generator, dtype=torch.float64)[y]
    x = x + torch.randn(40, 12, generator=generator, dtype=torch.float64)
    y = torch.where(torch.rand(40, generator=generator) < 0.3, (y + 1) % 3, y)
    path = trained(x, y, torch.ones(40), steps, 0.1)
    exposure = Exposure(torch.zeros(40, 3).double(), torch.zeros(40).double(), 0.0)
    last, first, found = exposure, path[0], []
    for step, (before, now) in enumerate(pairwise(path), start=1):
        exposure = exposure.after(before, now, y, 0.1)
        if step % length == 0:
            found.append(interval(now, y, last, exposure, first, x @ x.T))
            last, first = exposure, now
    others = [(torch.arange(40) != i).double() for i in range(40)]
    truth = torch.stack([path[-1][i] - trained(x, y, others[i], steps, 0.1)[-1][i] for i in range(40)])
    return x @ x.T, found, exposure, truth


def test_one_step_over_the_whole_training_is_the_present_estimate():
    evidence = module("stopping_weak_evidence")
    kernel, parts, exposure, _ = followed_linear(20, 20)
    own = own_share(kernel, exposure.curvature, exposure.time, 40)[:, None] * exposure.residual / 40
    torch.testing.assert_close(evidence.followed(parts, 40, evidence.trace)[-1], own)


@pytest.mark.slow
def test_what_the_kernel_undoes_step_by_step_is_nearer_to_leaving_a_sample_out():
    evidence = module("stopping_weak_evidence")
    kernel, parts, exposure, truth = followed_linear(200, 5)
    targets = parts[-1].targets
    present = own_share(kernel, exposure.curvature, exposure.time, 40)[:, None] * exposure.residual / 40
    found = evidence.followed(parts, 40, evidence.classwise)[-1]
    ratios = [
        float(own[torch.arange(40), targets].mean() / truth[torch.arange(40), targets].mean())
        for own in (present, found)
    ]
    assert ratios[0] < 0.5
    assert 0.8 < ratios[1] < 1.3
    assert float(torch.corrcoef(torch.stack((found.flatten(), truth.flatten())))[0, 1]) > 0.97


def record(**values: Any) -> Any:
    return module("stopping_weak_evidence").Record(
        **{"logits": {}, "targets": {}, "ages": torch.zeros(0), "readings": [], **values}
    )


def test_withheld_samples_count_while_they_are_left_out():
    logits = torch.tensor([[[2.0, 0.0], [2.0, 0.0], [0.0, 2.0]]] * 3)
    ages = torch.tensor([[0, 0, 0], [1, 0, 0], [0, 0, 1]])
    found = module("stopping_weak_evidence").withheld(
        record(logits={"train": logits}, targets={"train": torch.tensor([0, 1, 0])}, ages=ages)
    )
    right, wrong = math.log1p(math.exp(-2)), math.log1p(math.exp(2))
    assert math.isnan(found[0][0])
    assert found[1] == pytest.approx((right, 0.0, 1 - math.exp(-right), wrong))
    assert found[2] == pytest.approx((wrong, 1.0, 1 - math.exp(-wrong), (right + wrong) / 2))


# The table


def test_only_cells_that_may_be_tuned_on_are_looked_at():
    study, table = module("stopping_weak_regimes"), {c.name: c.setting for c in module("stopping_grid").read_table()}
    names = [name for each in study.CELLS.values() for name in each]
    assert len(names) == len(set(names)) > 8
    assert {table[name].split for name in names} == {"tune"}


def test_differences_are_paired():
    study = module("stopping_weak_regimes")
    present = module("stopping_weak_evidence").PRESENT
    rows = [{"ideas": {present: {"loss_regret": a}, "new": {"loss_regret": b}}} for a, b in ((1.0, 2.0), (10.0, 13.0))]
    assert study.differences(rows, "new", "loss_regret") == (2.0, pytest.approx(1.0))
    assert math.isnan(study.differences(rows[:1], "new", "loss_regret")[1])


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_quick_run_goes_on_where_it_was(tmp_path, monkeypatch, capsys):
    study = module("stopping_weak_regimes")
    assert study.main(["--quick", "--output", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert all(f"| {idea} |" in text for idea in module("stopping_weak_evidence").IDEAS)
    monkeypatch.setattr(study, "train", lambda *_: pytest.fail("trained again"))
    assert study.main(["--quick", "--output", str(tmp_path)]) == 0
    assert capsys.readouterr().out == text
    rows = json.loads((tmp_path / "stopping_weak_regimes.json").read_text())["cells"]
    assert {row["kind"] for row in rows} == set(study.CELLS)


def test_nothing_there_is_said(tmp_path, capsys):
    assert module("stopping_weak_regimes").main(["--report-only", "--output", str(tmp_path)]) == 1
