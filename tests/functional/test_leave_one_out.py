"""Against formulas written out for one sample at a time, and against networks that were really trained without it."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_stiffness.functional import Exposure, leave_one_out_scores, own_share
from lightning_stiffness.functional.leave_one_out import STRENGTHS

TIME = 300.0


def random_kernel(n: int, seed: int, rank: int = 100) -> torch.Tensor:
    factor = torch.randn(n, rank, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return factor @ factor.T / rank


def share_by_removal(kernel: torch.Tensor, noise: torch.Tensor, i: int) -> float:
    """The variance of value i once the noisy values of all others are known."""
    others = [k for k in range(len(kernel)) if k != i]
    inner = torch.linalg.inv(kernel[others][:, others] + torch.diag(noise[others]))
    return float(kernel[i, i] - kernel[i, others] @ inner @ kernel[others, i])


@given(st.integers(2, 9), st.integers(0, 10_000))
def test_the_share_is_the_variance_given_all_others(n, seed):
    kernel = random_kernel(n, seed)
    curvature = 0.1 + torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    expected = [share_by_removal(kernel, n / curvature, i) for i in range(n)]
    assert own_share(kernel, curvature, 2.0, n).tolist() == pytest.approx(expected, rel=1e-8, abs=1e-10)


@given(st.integers(2, 8), st.integers(0, 10_000))
def test_of_twins_it_is_the_covariance_given_all_others(n, seed):
    both, noise = random_kernel(2 * n, seed), n / torch.linspace(0.5, 2, n, dtype=torch.float64)
    kernel, twins = both[:n, :n], both[:n, n:]
    expected = []
    for i in range(n):
        others = [k for k in range(n) if k != i]
        inner = torch.linalg.inv(kernel[others][:, others] + torch.diag(noise[others]))
        expected.append(max(0.0, float(twins[i, i] - kernel[i, others] @ inner @ twins[others, i])))
    found = own_share(kernel, n / noise, 1.0, n, twins)
    assert found.tolist() == pytest.approx(expected, rel=1e-7, abs=1e-9)


def test_with_more_samples_than_are_at_hand_the_share_falls_as_from_half_of_them():
    kernel, curvature = random_kernel(40, 0, rank=8), torch.full((40,), TIME, dtype=torch.float64)
    at_hand = own_share(kernel, curvature, TIME, 40)
    noise = 40 / curvature
    halves = [share_by_removal(kernel[:20, :20], noise[:20] / 2, i) for i in range(20)]
    half = torch.tensor(halves, dtype=torch.float64)
    decline = float(at_hand[:20].mean() / half.mean())
    assert decline < 0.9
    for doublings in (1, 2, 3):
        found = own_share(kernel, curvature, TIME, 40 * 2**doublings)
        torch.testing.assert_close(found, at_hand * decline**doublings, rtol=1e-8, atol=0)


def test_the_share_is_no_more_than_the_kernel_and_falls_with_training_time():
    kernel = random_kernel(12, 3)
    shares = [own_share(kernel, torch.full((12,), time, dtype=torch.float64), time, 12) for time in (0.1, 10.0, 1e4)]
    assert bool((shares[0] <= kernel.diagonal() + 1e-9).all())
    assert bool((shares[1] < shares[0]).all())
    assert bool((shares[2] < shares[1]).all())


def test_samples_that_are_known_for_certain_do_not_break_it():
    share = own_share(torch.ones(4, 4, dtype=torch.float64), torch.zeros(4, dtype=torch.float64), 1.0, 4)
    assert bool(share.isfinite().all())


@pytest.mark.slow
def test_exposure_adds_up_what_the_updates_did():
    """dz/dt = z has p known at all times: the trapezoid rule with many steps against the sum over many more."""
    targets = torch.tensor([0, 1])

    def at(time: float) -> torch.Tensor:
        return torch.tensor([[time, -time], [2 * time, 0.0]], dtype=torch.float64)

    def total(steps: int) -> Exposure:
        exposure = Exposure(torch.zeros(2, 2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64), 0.0)
        for k in range(steps):
            exposure = exposure.after(at(k / steps), at((k + 1) / steps), targets, 1 / steps)
        return exposure

    few, many = total(10), total(10_000)
    assert few.time == pytest.approx(1)
    torch.testing.assert_close(few.residual, many.residual, rtol=0, atol=1e-3)
    torch.testing.assert_close(few.curvature, many.curvature, rtol=0, atol=1e-3)
    # Of the first sample 1 - p_0 = 1 / (1 + exp(2 t)), whose integral from 0 to 1 is known.
    exact = 1 - (math.log(1 + math.exp(2)) - math.log(2)) / 2
    assert float(many.residual[0, 0]) == pytest.approx(exact, abs=1e-6)
    assert float(many.residual[0].sum()) == pytest.approx(0, abs=1e-12)


def test_scores_are_means_over_samples_and_strengths():
    generator = torch.Generator().manual_seed(1)
    logits, targets = (
        2 * torch.randn(7, 3, generator=generator, dtype=torch.float64),
        torch.tensor([0, 1, 2, 0, 1, 2, 0]),
    )
    residual, share = torch.randn(7, 3, generator=generator, dtype=torch.float64), torch.rand(7, dtype=torch.float64)
    scores = leave_one_out_scores(logits, targets, Exposure(residual, torch.ones(7), 1.0), share, 5)
    errors, doubts, losses, train = [], [], [], []
    for i in range(7):
        for strength in STRENGTHS:
            z = [float(logits[i, c] - strength * share[i] * residual[i, c] / 5) for c in range(3)]
            p = [math.exp(value) / sum(map(math.exp, z)) for value in z]
            errors.append(z.index(max(z)) != int(targets[i]))
            doubts.append(1 - p[int(targets[i])])
        losses.append(-math.log(p[int(targets[i])]))
        plain = [math.exp(float(value)) for value in logits[i]]
        train.append(-math.log(plain[int(targets[i])] / sum(plain)))
    assert STRENGTHS[-1] == 1
    assert scores.error == pytest.approx(sum(errors) / len(errors))
    assert scores.doubt == pytest.approx(sum(doubts) / len(doubts))
    assert scores.loss == pytest.approx(sum(losses) / 7)
    assert scores.train_loss == pytest.approx(sum(train) / 7)


def trained(x: torch.Tensor, y: torch.Tensor, counted: torch.Tensor, steps: int, rate: float) -> list[torch.Tensor]:
    """Logits of all samples at each step of a linear classifier which is trained on those that are counted."""
    weight, path = torch.zeros(3, x.shape[1], dtype=torch.float64), []
    for _ in range(steps):
        logits = x @ weight.T
        path.append(logits)
        residual = (torch.nn.functional.one_hot(y, 3) - logits.softmax(1)) * counted[:, None]
        weight = weight + rate * residual.T @ x / len(x)
    return [*path, x @ weight.T]


@pytest.mark.parametrize(
    "steps",
    [
        20,
        pytest.param(
            200,
            marks=pytest.mark.xfail(
                strict=True,
                reason="own updates of long ago count for less than they should: 0.4 of the truth in a linear model",
            ),
        ),
    ],
)
@pytest.mark.slow
def test_a_linear_classifier_says_what_it_would_have_without_the_sample(steps):
    """The estimate against 40 trainings, each without one sample; some labels are wrong, so that own updates matter."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(40) % 3
    x = 0.7 * torch.randn(3, 12, generator=generator, dtype=torch.float64)[y]
    x = x + torch.randn(40, 12, generator=generator, dtype=torch.float64)
    y = torch.where(torch.rand(40, generator=generator) < 0.3, (y + 1) % 3, y)
    path = trained(x, y, torch.ones(40), steps, 0.1)
    exposure = Exposure(torch.zeros(40, 3, dtype=torch.float64), torch.zeros(40, dtype=torch.float64), 0.0)
    for before, now in pairwise(path):
        exposure = exposure.after(before, now, y, 0.1)
    share = own_share(x @ x.T, exposure.curvature, exposure.time, 40)
    own = share[:, None] * exposure.residual / 40
    truth = torch.stack(
        [path[-1][i] - trained(x, y, (torch.arange(40) != i).double(), steps, 0.1)[-1][i] for i in range(40)]
    )
    given = own[torch.arange(40), y], truth[torch.arange(40), y]
    assert float(torch.corrcoef(torch.stack(given))[0, 1]) > 0.9
    assert 0.5 < float(given[0].mean() / given[1].mean()) < 2.0
