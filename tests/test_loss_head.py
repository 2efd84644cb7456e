import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_stiffness.loss_head import PerSampleReductions, double_precision_loss_heads

CLASSES = 4


def cosine(first: Tensor, second: Tensor) -> float:
    return float(F.cosine_similarity(first.double().flatten(), second.double().flatten(), dim=0))


def fitted_case(loss_level: float) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden activations and float32 output weights that give one sample about this loss, and its class."""
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(1, 16, generator=generator)
    weight = torch.randn(CLASSES, 16, generator=generator) * 0.1
    target = torch.tensor([1])
    needed = -torch.log(torch.tensor(loss_level)) + 1.2
    logits = hidden @ weight.T
    weight[1] += (needed + logits.max() - logits[0, 1]) * hidden[0] / hidden.square().sum()
    return hidden, weight, target


def weight_gradient(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    leaf = weight.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(hidden @ leaf.T, target), leaf)
    return gradient


@pytest.mark.parametrize("level", [1e-4, 1e-6, 1e-8])
def test_gradient_of_a_fitted_sample_is_that_of_float64(level):
    hidden, weight, target = fitted_case(level)
    exact = weight_gradient(hidden.double(), weight.double(), target)
    assert F.cross_entropy(hidden.double() @ weight.double().T, target) < level
    with double_precision_loss_heads():
        close = weight_gradient(hidden, weight, target)
    assert close.dtype == torch.float32
    assert 1 - cosine(close, exact) < 1e-6
    single = weight_gradient(hidden, weight, target)
    if level < 1e-5:
        assert not single.any() or 1 - cosine(single, exact) > 1e-5


HEADS = {
    "cross_entropy": lambda x, y, w: F.cross_entropy(x, y, weight=w, label_smoothing=0.1),
    "cross_entropy_module": lambda x, y, w: nn.CrossEntropyLoss(weight=w)(x, y),
    "nll_loss": lambda x, y, w: F.nll_loss(F.log_softmax(x, dim=1), y, weight=w),
    "torch.log_softmax": lambda x, y, w: torch.log_softmax(x, 1)[range(len(y)), y].mean(),
    "torch.special.log_softmax": lambda x, y, w: torch.special.log_softmax(x, 1)[range(len(y)), y].mean(),
    "Tensor.log_softmax": lambda x, y, w: x.log_softmax(dim=1)[range(len(y)), y].mean(),
    "log_softmax_with_dtype": lambda x, y, w: F.log_softmax(x, dim=1, dtype=torch.float32)[range(len(y)), y].mean(),
    "binary_cross_entropy_with_logits": lambda x, y, w: F.binary_cross_entropy_with_logits(
        x, F.one_hot(y, CLASSES).to(x.dtype), pos_weight=w
    ),
    "binary_cross_entropy": lambda x, y, w: F.binary_cross_entropy(x.sigmoid(), F.one_hot(y, CLASSES).to(x.dtype)),
    "logsigmoid": lambda x, y, w: F.logsigmoid(x).mean(),
    "kl_div": lambda x, y, w: F.kl_div(x.log_softmax(1), F.one_hot(y, CLASSES).to(x.dtype), reduction="batchmean"),
    "multi_margin_loss": lambda x, y, w: F.multi_margin_loss(x, y, weight=w),
    "multilabel_margin_loss": lambda x, y, w: F.multilabel_margin_loss(x, F.one_hot(y, CLASSES)),
    "soft_margin_loss": lambda x, y, w: F.soft_margin_loss(x, 2 * F.one_hot(y, CLASSES) - 1),
    "multilabel_soft_margin_loss": lambda x, y, w: F.multilabel_soft_margin_loss(x, F.one_hot(y, CLASSES).to(x.dtype)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_heads_run_in_float64_and_give_gradients_in_the_precision_of_the_network(head, dtype):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, CLASSES, generator=generator).to(dtype).requires_grad_()
    target = torch.tensor([0, 1, 2, 3, 1])
    weight = torch.tensor([1.0, 2.0, 0.5, 1.0]).to(dtype)
    with double_precision_loss_heads():
        loss = head(logits, target, weight)
    assert loss.dtype == torch.float64
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient.dtype == dtype
    exact_logits = logits.detach().double().requires_grad_()
    exact = head(exact_logits, target, weight.double())
    assert 1 - cosine(gradient, torch.autograd.grad(exact, exact_logits)[0]) < 1e-4  # bfloat16 rounds each entry


def test_softmax_is_left_alone():
    with double_precision_loss_heads():
        assert F.softmax(torch.zeros(2, 3), dim=1).dtype == torch.float32
        assert torch.softmax(torch.zeros(2, 3), 1).dtype == torch.float32
        attended = F.scaled_dot_product_attention(*torch.zeros(3, 1, 1, 2, 4).unbind())
    assert attended.dtype == torch.float32


def test_a_switched_off_head_changes_nothing():
    logits, target = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0])
    with double_precision_loss_heads(enabled=False):
        off = F.cross_entropy(logits, target)
    assert off.dtype == torch.float32
    assert torch.equal(off, F.cross_entropy(logits, target))


def test_the_context_ends_after_an_exception():
    with pytest.raises(ZeroDivisionError), double_precision_loss_heads():
        raise ZeroDivisionError
    assert F.log_softmax(torch.zeros(2, 3), dim=1).dtype == torch.float32


def test_devices_without_float64_are_left_alone(monkeypatch):
    monkeypatch.setattr("lightning_stiffness.loss_head._WITHOUT_DOUBLE", frozenset({"cpu"}))
    with double_precision_loss_heads():
        assert F.log_softmax(torch.zeros(2, 3), dim=1).dtype == torch.float32


def test_vmapped_gradients_are_those_of_a_loop():
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(6, CLASSES, dtype=torch.float64)
    inputs, targets = torch.randn(5, 6, dtype=torch.float64, generator=generator), torch.tensor([0, 1, 2, 3, 0])

    def loss(weight: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(x[None], weight.float()), y[None])

    expected = [
        torch.autograd.grad(loss(layer.weight, x, y), layer.weight)[0]
        for x, y in zip(inputs.float(), targets, strict=True)
    ]
    with double_precision_loss_heads():
        found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(
            layer.weight.detach(), inputs.float(), targets
        )
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-4, atol=1e-6)


def reduced_like_torch(loss, *inputs: Tensor) -> list[Tensor]:
    """Asserts that value and gradient are PyTorch's own, and returns what was watched."""
    expected = loss(*inputs)
    with PerSampleReductions() as watched:
        found = loss(*inputs)
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    for one, other in zip(torch.autograd.grad(found, inputs), torch.autograd.grad(expected, inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    return watched.reduced


def logits(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", [(5,), (5, 3), (5, 2, 3)])
def test_cross_entropy_is_reduced_like_torch(reduction, smoothing, weighted, shape):
    x = logits(shape[0], CLASSES, *shape[1:])
    weight = torch.tensor([1.0, 2.0, 0.5, 3.0], dtype=torch.float64) if weighted else None
    classes = torch.arange(shape[0] * max(1, x[0, 0].numel())).reshape(shape) % CLASSES
    ignored = classes.clone()
    ignored.view(-1)[1] = -100
    chances = x.detach().softmax(1)
    for target in (classes, ignored, chances):
        settings = {"weight": weight, "reduction": reduction, "label_smoothing": smoothing}
        (watched,) = reduced_like_torch(lambda z, y=target, s=settings: F.cross_entropy(z, y, **s), x)
        assert watched.shape == shape


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_nll_loss_is_reduced_like_torch(reduction):
    weight, target = torch.tensor([1.0, 2.0, 0.5, 3.0], dtype=torch.float64), torch.tensor([0, 7, 2, 3])
    settings = {"weight": weight, "ignore_index": 7, "reduction": reduction}
    reduced_like_torch(lambda z: F.nll_loss(z.log_softmax(1), target, **settings), logits(4, CLASSES))


MEANS_OVER_NOTHING = {
    "ignored": lambda x: F.cross_entropy(x, torch.tensor([-100, -100])),
    "no weight": lambda x: F.cross_entropy(x, torch.tensor([0, 0]), weight=torch.tensor([0.0, 1.0, 1.0, 1.0]).double()),
    "no sample": lambda x: F.mse_loss(x[:0], x.detach()[:0]),
    "Tensor.mean": lambda x: x[:0].mean(),
    "dim by name": lambda x: torch.mean(input=x[:0, 0], dim=0, keepdim=True),
}


@pytest.mark.parametrize("mean", MEANS_OVER_NOTHING.values(), ids=MEANS_OVER_NOTHING)
def test_means_over_nothing_are_zero_with_a_gradient_of_zero(mean):
    x = logits(2, CLASSES)
    assert mean(x).isnan()
    with PerSampleReductions():
        loss = mean(x)
    assert loss.shape == mean(x).shape
    assert loss == 0
    assert not torch.autograd.grad(loss, x)[0].any()


POSITIVE = torch.rand(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) + 0.1
SIGNS = torch.tensor([[1.0, -1.0, 1.0]] * 5, dtype=torch.float64)
OTHER_LOSSES = {
    "bce": lambda z, r: F.binary_cross_entropy(z.sigmoid(), POSITIVE / 2, weight=POSITIVE, reduction=r),
    "bce_logits": lambda z, r: F.binary_cross_entropy_with_logits(z, POSITIVE / 2, pos_weight=POSITIVE[0], reduction=r),
    "mse": lambda z, r: F.mse_loss(z, POSITIVE, reduction=r),
    "l1": lambda z, r: F.l1_loss(z, POSITIVE, reduction=r),
    "smooth_l1": lambda z, r: F.smooth_l1_loss(z, POSITIVE, reduction=r),
    "huber": lambda z, r: F.huber_loss(z, POSITIVE, reduction=r),
    "gaussian": lambda z, r: F.gaussian_nll_loss(z, POSITIVE, POSITIVE, reduction=r),
    "poisson": lambda z, r: F.poisson_nll_loss(z, POSITIVE, reduction=r),
    "hinge": lambda z, r: F.hinge_embedding_loss(z, SIGNS, reduction=r),
    "soft_margin": lambda z, r: F.soft_margin_loss(z, SIGNS, reduction=r),
    "multi_margin": lambda z, r: F.multi_margin_loss(z, torch.tensor([0, 1, 2, 0, 1]), weight=POSITIVE[0], reduction=r),
    "multilabel_margin": lambda z, r: F.multilabel_margin_loss(z, torch.tensor([[0, 1, -1]] * 5), reduction=r),
    "multilabel_soft_margin": lambda z, r: F.multilabel_soft_margin_loss(z, (SIGNS > 0).double(), reduction=r),
    "cosine_embedding": lambda z, r: F.cosine_embedding_loss(z, POSITIVE, SIGNS[:, 0], reduction=r),
    "margin_ranking": lambda z, r: F.margin_ranking_loss(z, POSITIVE, SIGNS, reduction=r),
    "triplet": lambda z, r: F.triplet_margin_loss(z, POSITIVE, SIGNS, reduction=r),
    "triplet_distance": lambda z, r: F.triplet_margin_with_distance_loss(z, POSITIVE, SIGNS, reduction=r),
}


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("loss", OTHER_LOSSES.values(), ids=OTHER_LOSSES)
def test_other_losses_are_reduced_like_torch(loss, reduction):
    (watched,) = reduced_like_torch(lambda z: loss(z, reduction), logits(5, 3))
    assert watched.shape[0] == 5


def test_kl_divergence_by_batch_is_reduced_like_torch():
    (watched,) = reduced_like_torch(
        lambda z: F.kl_div(z.log_softmax(1), POSITIVE / 3, reduction="batchmean"), logits(5, 3)
    )
    assert watched.shape == (5, 3)


def test_losses_that_are_not_known_run_unchanged():
    weighted = reduced_like_torch(lambda z: F.mse_loss(z, POSITIVE, weight=POSITIVE), logits(5, 3))
    with pytest.warns(UserWarning, match="size_average"):
        legacy = reduced_like_torch(lambda z: F.mse_loss(z, POSITIVE, size_average=False), logits(5, 3))
    unbatched = reduced_like_torch(lambda z: F.cross_entropy(z, torch.tensor(1)), logits(3))
    assert (weighted, legacy, unbatched) == ([], [], [])


FULL_SUMS = {
    "Tensor.sum": lambda z: z.sum(),
    "Tensor.mean": lambda z: z.mean(),
    "torch.sum": torch.sum,
    "torch.mean_by_name": lambda z: torch.mean(input=z),
    "dim": lambda z: z.mean(dim=(0, 1)),
    "nanmean": lambda z: z.nanmean(),
    "torch.nansum": torch.nansum,
}


@pytest.mark.parametrize("total", FULL_SUMS.values(), ids=FULL_SUMS)
def test_full_sums_are_watched(total):
    (watched,) = reduced_like_torch(total, logits(4, 3))
    assert watched.shape == (4, 3)


def test_sums_that_leave_a_dimension_or_need_no_gradient_are_not_watched():
    with PerSampleReductions() as watched:
        logits(4, 3).sum(dim=1)
        logits(4, 3).detach().mean()
        F.cross_entropy(logits(4, 3).detach(), torch.tensor([0, 1, 2, 0]))
    assert watched.reduced == []


def test_a_watched_tensor_carries_the_weight_of_its_own_sum_only():
    x = logits(4)
    with PerSampleReductions() as watched:
        values = x * 2
        total = values.mean() + 3 * (values * 5).sum()
    first, second = torch.autograd.grad(total, watched.reduced, retain_graph=True)
    torch.testing.assert_close(first, torch.full_like(first, 0.25))
    torch.testing.assert_close(second, torch.full_like(second, 3.0))


def test_watching_and_double_precision_work_together():
    x = logits(4, 3).detach().float().requires_grad_()
    target = torch.tensor([0, 1, 2, 0])
    with double_precision_loss_heads(), PerSampleReductions() as watched:
        loss = F.cross_entropy(x, target)
    assert loss.dtype == torch.float64
    torch.testing.assert_close(watched.reduced[0], F.cross_entropy(x.double(), target, reduction="none"))
