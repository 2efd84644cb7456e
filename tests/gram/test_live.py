"""K from a backward pass that runs anyway, against loops of per-sample gradients, and what must not be read."""

import gc
import weakref

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from lightning_stiffness.errors import MixedSamplesError, StiffnessError
from lightning_stiffness.functional import cosine_pairs
from lightning_stiffness.gram import GramEngine, rules
from lightning_stiffness.gram.live import LiveGram, rehearsed
from tests.oracle import loop_gram

N, CLASSES = 11, 4


class Tokens(nn.Module):
    """Embedding, attention by hand, layer norm, and an output layer that shares the table."""

    def __init__(self):
        super().__init__()
        self.table, self.norm, self.mix = nn.Embedding(9, 6), nn.LayerNorm(6), nn.Linear(6, 6)
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, x):
        h = self.norm(self.table(x))
        h = h + torch.softmax(h @ h.transpose(1, 2), 2) @ self.mix(h)
        return self.scale * h.mean(1) @ self.table.weight[:CLASSES].T


class Recurrent(nn.Module):
    """One linear layer used at every step of a sequence, time first."""

    def __init__(self):
        super().__init__()
        self.step, self.head = nn.Linear(8, 5), nn.Linear(5, CLASSES)

    def forward(self, x):
        h = x.new_zeros(len(x), 5)
        for part in x.view(len(x), 3, 3).unbind(1):
            h = torch.tanh(self.step(torch.cat([part, h], 1)))
        return self.head(h)


class Computed(nn.Module):
    """Uses values that are computed from parameters: positions looked up, a merged weight, a normalised one, twice."""

    def __init__(self):
        super().__init__()
        self.table, self.places = nn.Embedding(9, 6), nn.Embedding(8, 6)
        self.mix = nn.utils.parametrizations.weight_norm(nn.Linear(6, 6))
        self.weight, self.up, self.down = (nn.Parameter(torch.randn(*shape)) for shape in ((6, 6), (6, 2), (2, 6)))
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x):
        h = self.table(x) + self.places(torch.arange(x.shape[1])[None])
        h = h + torch.tanh(self.mix(h))
        weight = self.weight + self.up @ self.down
        return self.head((torch.tanh(h @ weight) @ weight).mean(1))


def images(n=N):
    return torch.randn(n, 2, 6, 6)


MODELS = {
    "perceptron": (lambda: nn.Sequential(nn.Linear(9, 7), nn.Tanh(), nn.Linear(7, CLASSES)), lambda: torch.randn(N, 9)),
    "CNN": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Conv2d(4, 4, 3, stride=2), nn.Flatten(),
            nn.LazyLinear(CLASSES),
        ),
        images,
    ),
    "tokens": (Tokens, lambda: torch.randint(9, (N, 5))),
    "recurrent": (Recurrent, lambda: torch.randn(N, 9)),
    "computed": (Computed, lambda: torch.randint(9, (N, 5))),
}  # fmt: skip


def losses(module, batch):
    return cross_entropy(module(batch[0]), batch[1], reduction="none")


def made(name, dtype=torch.float64):
    torch.manual_seed(0)
    make, inputs = MODELS[name]
    model, x = make(), inputs()
    model(x)
    model = model.to(dtype)
    return model, (x.to(dtype) if x.is_floating_point() else x, torch.randint(CLASSES, (N,)))


def known(model, batch):
    modes = [part.training for part in model.modules()]
    rehearsal = rehearsed(model.eval(), losses, batch)
    for part, mode in zip(model.modules(), modes, strict=True):
        part.training = mode
    return rehearsal


def live_gram(model, batch, loss=None, **options):
    """K of a backward pass as a training step runs it."""
    root = losses(model, batch).mean() if loss is None else loss
    live = LiveGram(root, len(batch[1]), known(model, batch), **options)
    live.watch_total()
    root.backward()
    return live.result()


@pytest.mark.parametrize("name", MODELS)
def test_it_is_the_loop_over_samples(name):
    model, batch = made(name)
    expected = loop_gram(model, losses, batch)[0] / N**2  # the weight of a sample in a mean is 1 / n
    torch.testing.assert_close(live_gram(model, batch), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", MODELS)
def test_it_is_so_in_single_precision(name):
    model, batch = made(name, torch.float32)
    expected = cosine_pairs(loop_gram(model, losses, batch)[0])
    torch.testing.assert_close(cosine_pairs(live_gram(model, batch)), expected, rtol=0, atol=1e-5, equal_nan=True)


def test_weights_of_samples_do_not_change_cosines():
    model, batch = made("perceptron")
    weighted = cross_entropy(model(batch[0]), batch[1], weight=torch.tensor([1.0, 5.0, 0.2, 1.0]).double())
    expected = cosine_pairs(loop_gram(model, losses, batch)[0])
    torch.testing.assert_close(cosine_pairs(live_gram(model, batch, weighted)), expected, equal_nan=True)


@pytest.mark.parametrize("factor", [1e-25, 1e15])
def test_tiny_and_huge_gradients_keep_their_cosines(factor):
    model, batch = made("CNN", torch.float32)
    loss = losses(model, batch).mean() * factor
    expected = cosine_pairs(loop_gram(model, losses, batch)[0])
    torch.testing.assert_close(cosine_pairs(live_gram(model, batch, loss)), expected, rtol=0, atol=1e-5, equal_nan=True)


def test_dropout_is_that_of_the_step():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(9, 30), nn.Dropout(0.5), nn.ReLU(), nn.Linear(30, CLASSES)).double()
    batch = torch.randn(N, 9).double(), torch.randint(CLASSES, (N,))
    own = losses(model, batch)
    rows = [torch.autograd.grad(one, list(model.parameters()), retain_graph=True) for one in own]
    gradients = torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])
    torch.testing.assert_close(live_gram(model, batch, own.sum()), gradients @ gradients.T)


def normalised():
    torch.manual_seed(0)
    first = [nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()]
    second = [nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()]
    return nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(288, CLASSES))


def test_under_batch_norm_the_parts_add_up_to_the_gradient_of_the_batch():
    model, batch = normalised().double(), (images().double(), torch.randint(CLASSES, (N,)))
    gram = live_gram(model, batch)
    total = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    assert float(gram.sum()) == pytest.approx(float(total.square().sum()), rel=1e-9)


def test_under_batch_norm_it_is_near_the_gram_of_the_same_statistics():
    """An approximation: of constant statistics of this batch in place of those that every sample moves."""
    torch.manual_seed(1)
    y = torch.arange(64) % CLASSES
    centres = torch.randn(CLASSES, 2, 6, 6)
    model, batch = normalised(), (centres[y] + images(64), y)
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = 1.0
    model(batch[0])  # the running statistics become those of the batch, but for n / (n - 1) in the variance
    found = cosine_pairs(live_gram(model, batch))
    expected = cosine_pairs(GramEngine(model.eval(), losses).gram(batch).matrix)
    off = ~torch.eye(64, dtype=torch.bool)
    assert torch.corrcoef(torch.stack([found[off], expected[off]]))[0, 1] > 0.9
    assert 1e-3 < float((found - expected)[off].abs().mean()) < 0.1


@pytest.mark.parametrize("name", ["CNN", "computed"])
def test_reduced_precision_is_read_as_it_was(name):
    model, batch = made(name, torch.float32)
    rehearsal = known(model, batch)
    with torch.autocast("cpu", torch.bfloat16):
        loss = losses(model, batch).mean()
    live = LiveGram(loss, N, rehearsal)
    live.watch_total()
    loss.backward()
    expected = cosine_pairs(loop_gram(model, losses, batch)[0])
    torch.testing.assert_close(cosine_pairs(live.result()), expected, rtol=0, atol=0.05, equal_nan=True)


# Backward is left as it is


@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_the_same_bit_by_bit(name):
    model, batch = made(name, torch.float32)
    losses(model, batch).mean().backward()
    expected = [parameter.grad for parameter in model.parameters()]
    model.zero_grad()
    live_gram(model, batch)
    assert all(torch.equal(parameter.grad, one) for parameter, one in zip(model.parameters(), expected, strict=True))


@pytest.mark.slow
def test_nothing_is_kept_alive_and_no_hook_stays():
    model, batch = made("perceptron")
    hidden = torch.tanh(model[0](batch[0]))
    kept = weakref.ref(hidden)
    loss = cross_entropy(model[2](hidden), batch[1])
    live = LiveGram(loss, N, known(model, batch))
    loss.backward()
    live.result()
    del hidden, loss
    gc.collect()
    assert kept() is None
    assert not any(parameter._backward_hooks for parameter in model.parameters())


def test_hooks_are_gone_after_closing():
    model, batch = made("perceptron")
    loss = losses(model, batch).mean()
    live = LiveGram(loss, N, known(model, batch))
    live.close()
    loss.backward()
    assert live.seconds == 0


def test_a_rule_that_fails_does_not_stop_backward(monkeypatch):
    model, batch = made("perceptron")
    rehearsal = known(model, batch)
    loss = losses(model, batch).mean()
    live = LiveGram(loss, N, rehearsal)

    def broken(*_):
        raise RuntimeError("no such thing")

    monkeypatch.setitem(rules.RULES, "AddmmBackward0", broken)
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    with pytest.raises(StiffnessError, match="no such thing"):
        live.result()


def test_a_rule_that_is_wrong_is_seen_in_the_sum(monkeypatch):
    model, batch = made("perceptron")
    rehearsal = known(model, batch)
    loss = losses(model, batch).mean()
    live = LiveGram(loss, N, rehearsal)
    live.watch_total()
    own = rules.RULES["AddmmBackward0"]
    monkeypatch.setitem(
        rules.RULES, "AddmmBackward0", lambda node, slots, gradient, layout: own(node, slots, 1.05 * gradient, layout)
    )
    loss.backward()
    with pytest.raises(StiffnessError, match="must add up to the gradient of the batch"):
        live.result()


# What is refused


def test_losses_that_mix_samples():
    model, batch = made("perceptron")
    with pytest.raises(MixedSamplesError):
        rehearsed(model, lambda model, batch: losses(model, batch) + model(batch[0]).mean(), batch)


def test_parameters_without_a_rule_are_named():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.power = nn.Linear(9, CLASSES), nn.Parameter(torch.ones(CLASSES))

        def forward(self, x):
            return torch.atan2(self.layer(x), self.power)

    with pytest.raises(StiffnessError, match=r"1 parameters: power \(no rule for Atan2"):
        rehearsed(Odd(), losses, (torch.randn(N, 9), torch.randint(CLASSES, (N,))))


class Changed(nn.Module):
    """Uses its layers in another way while it trains."""

    def __init__(self, kind):
        super().__init__()
        self.first, self.second, self.head, self.kind = nn.Linear(9, 9), nn.Linear(9, 9), nn.Linear(9, CLASSES), kind

    def forward(self, x):
        if not self.training:
            return self.head(self.second(self.first(x)))
        if self.kind == "skipped":
            return self.head(self.first(x))
        if self.kind == "repeated":
            return self.head(self.first(self.second(self.first(x))))
        reentrant = self.kind == "reentrant"
        x = checkpoint(self.first, x.requires_grad_(reentrant), use_reentrant=reentrant)
        return self.head(checkpoint(self.second, x, use_reentrant=reentrant))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("skipped", "as it does in eval mode"),
        ("repeated", "as it does in eval mode"),
        ("reentrant", "as it does in eval mode"),
        ("checkpointed", "activation checkpointing"),
    ],
)
def test_another_graph_than_that_of_the_rehearsal_is_not_read(kind, message):
    model, batch = Changed(kind), (torch.randn(N, 9), torch.randint(CLASSES, (N,)))
    rehearsal = known(model, batch)
    loss = losses(model, batch).mean()
    with pytest.raises(StiffnessError, match=message):
        LiveGram(loss, N, rehearsal)
    loss.backward()
    assert model.head.weight.grad is not None


def test_a_weight_that_is_computed_in_another_way_is_not_read():
    class Dropped(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(CLASSES, 9))

        def forward(self, x):
            weight = self.weight / self.weight.norm()
            return nn.functional.linear(x, nn.functional.dropout(weight, 0.5, self.training))

    model, batch = Dropped(), (torch.randn(N, 9), torch.randint(CLASSES, (N,)))
    rehearsal = known(model.train(), batch)
    with pytest.raises(StiffnessError, match="as it does in eval mode"):
        LiveGram(losses(model, batch).mean(), N, rehearsal)


def test_hooks_on_parameters_behind_a_value_are_not_called():
    model, batch = made("computed")
    rehearsal = known(model, batch)
    calls = []
    model.up.register_hook(calls.append)
    with pytest.raises(StiffnessError, match="register_hook"):
        LiveGram(losses(model, batch).mean(), N, rehearsal)
    assert not calls


def test_compiled_code_is_named():
    model, batch = made("perceptron", torch.float32)
    rehearsal = known(model, batch)

    class Compiled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, *parameters):
            return x.sum()

        @staticmethod
        def backward(ctx, gradient):
            raise AssertionError

    Compiled.__name__ = Compiled._backward_cls.__name__ = "CompiledFunctionBackward"
    loss = Compiled.apply(batch[0], *model.parameters())
    with pytest.raises(StiffnessError, match=r"torch\.compile"):
        LiveGram(loss, N, rehearsal)


def test_a_penalty_on_weights_is_passed_over():
    model, batch = made("perceptron")
    penalty = sum(parameter.square().sum() + parameter.norm() for parameter in model.parameters())
    expected = live_gram(model, batch)
    torch.testing.assert_close(live_gram(model, batch, losses(model, batch).mean() + 0.1 * penalty), expected)


def test_another_number_of_samples_than_the_graph_has():
    model, batch = made("CNN")
    loss = losses(model, batch).mean()
    live = LiveGram(loss, N - 1, known(model, batch))
    loss.backward()
    with pytest.raises(StiffnessError, match="could not be read"):
        live.result()
