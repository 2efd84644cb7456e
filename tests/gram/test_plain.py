"""Models that run in another way than their code reads: compiled, checkpointed, in autocast, in training mode."""

import copy
import functools
import threading

import pytest
import torch
import torch.utils.checkpoint
from torch import nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from lightning_stiffness.errors import StiffnessError
from lightning_stiffness.gram import GramEngine
from lightning_stiffness.gram.plain import plain_name, plainly, unwrapped
from tests.oracle import cross_entropy, loop_gram

CLASSES = 4


def batch(n=12, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 8, generator=generator), torch.arange(n) % CLASSES


def seeded(build):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build()


def network():
    return seeded(lambda: nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, CLASSES)))


class Checkpointed(nn.Module):
    """Two blocks, the second recomputed in the backward pass."""

    def __init__(self, how):
        super().__init__()
        self.first, self.inner, self.out = nn.Linear(8, 8), network()[:2], nn.Linear(8, CLASSES)
        self.how = how

    def forward(self, x):
        return self.out(self.how(self.inner, torch.tanh(self.first(x))))


def assert_exact(gram, model, sample_batch, on_fallback=()):
    plain = copy.deepcopy(model)
    if isinstance(plain, Checkpointed):
        plain.how = lambda inner, x: inner(x)
    expected, _ = loop_gram(plain, cross_entropy, sample_batch)
    assert (gram.matrix - expected).norm() <= 1e-5 * expected.norm()
    assert {name for name, route in gram.routes.items() if route.startswith("fallback")} == set(on_fallback)


class TestCheckpointing:
    HOW = {  # noqa: RUF012
        "non_reentrant": functools.partial(checkpoint, use_reentrant=False),
        "reentrant": functools.partial(checkpoint, use_reentrant=True),
        "sequential": lambda inner, x: checkpoint_sequential(inner, 2, x, use_reentrant=False),
        "nested": lambda inner, x: checkpoint(
            lambda y: checkpoint(inner, y, use_reentrant=False), x, use_reentrant=False
        ),
        "selective": lambda inner, x: checkpoint(
            inner,
            x,
            use_reentrant=False,
            context_fn=functools.partial(
                torch.utils.checkpoint.create_selective_checkpoint_contexts, [torch.ops.aten.addmm.default]
            ),
        ),
        "as an attribute of its module": lambda inner, x: torch.utils.checkpoint.checkpoint(
            inner, x, use_reentrant=False
        ),
    }

    @pytest.mark.parametrize("how", HOW)
    def test_is_off_while_measuring(self, how):
        model = seeded(lambda: Checkpointed(self.HOW[how]))
        assert_exact(GramEngine(model, cross_entropy).gram(batch()), model, batch())

    @pytest.mark.parametrize("how", ["non_reentrant", "reentrant"])
    def test_is_on_again_afterwards(self, how):
        calls = []
        model = seeded(lambda: Checkpointed(self.HOW[how]))
        model.inner.register_forward_pre_hook(lambda *_: calls.append(torch.is_grad_enabled()))
        GramEngine(model, cross_entropy).gram(batch())
        calls.clear()
        cross_entropy(model, batch()).sum().backward()
        assert len(calls) == 2  # computed forward, and once more backward

    @pytest.mark.parametrize("how", ["non_reentrant", "reentrant"])
    def test_is_on_again_after_an_exception(self, how):
        model = seeded(lambda: Checkpointed(self.HOW[how]))

        def broken(module, batch):
            raise ValueError("mine")

        with pytest.raises(ValueError, match="mine"):
            GramEngine(model, broken).gram(batch())
        self.test_is_on_again_afterwards(how)

    def test_is_on_in_other_threads_meanwhile(self):
        model = seeded(lambda: Checkpointed(self.HOW["non_reentrant"]))
        calls = []
        model.inner.register_forward_pre_hook(lambda *_: calls.append(1))
        other = copy.deepcopy(model)
        with plainly(model):
            thread = threading.Thread(target=lambda: cross_entropy(other, batch()).sum().backward())
            thread.start()
            thread.join()
        assert len(calls) == 2

    def test_reentrant_parts_without_an_input_that_has_a_gradient_get_none_as_in_training(self):
        class First(Checkpointed):
            def forward(self, x):
                return self.out(self.how(self.inner, x))

        model = seeded(lambda: First(self.HOW["reentrant"]))
        model.first = nn.Identity()
        with pytest.warns(UserWarning, match="None of the inputs have requires_grad"):
            cross_entropy(model, batch()).sum().backward()
        assert model.inner[0].weight.grad is None
        gram = GramEngine(model, cross_entropy).gram(batch())
        assert gram.routes["inner.0.weight"] == "not used by the loss"
        x, y = batch()
        head = nn.Sequential(model.out)
        assert_exact(gram, head, (model.inner(x).detach(), y))

    def test_nothing_is_left_in_torch(self):
        before = {
            owner: dict(vars(owner))
            for owner in (
                torch.autocast,
                torch.utils.checkpoint.CheckpointFunction,
                torch.utils.checkpoint._checkpoint_hook,
            )
        }
        with plainly(nn.Linear(2, 2)), plainly(nn.Linear(2, 2)):
            assert dict(vars(torch.autocast)) != before[torch.autocast]
        assert before == {owner: dict(vars(owner)) for owner in before}


class Counted:
    """A back end of torch.compile that counts compilations and runs."""

    def __init__(self):
        self.compilations = self.runs = 0

    def __call__(self, graph, inputs):
        self.compilations += 1

        def run(*arguments):
            self.runs += 1
            return graph(*arguments)

        return run


class Outer(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)


class TestCompiled:
    def trained(self, wrap):
        torch._dynamo.reset()
        backend = Counted()
        model = wrap(network(), backend)
        cross_entropy(model, batch()).sum().backward()
        assert backend.compilations == 1
        return model, backend

    @pytest.mark.parametrize("how", ["wrapped", "in place", "a part", "the loss alone"])
    @pytest.mark.slow
    def test_is_measured_as_it_was_written(self, how):
        def wrap(module, backend):
            if how == "in place":
                module = Outer(module)  # torch compiles no forward of its own, such as that of Sequential
                module.compile(backend=backend)
                return module
            if how == "a part":
                return nn.Sequential(torch.compile(module, backend=backend))
            return torch.compile(module, backend=backend)

        model, backend = self.trained(wrap)
        runs = backend.runs
        loss = cross_entropy if how != "the loss alone" else lambda module, batch: cross_entropy(model, batch)
        gram = GramEngine(unwrapped(model) if how == "the loss alone" else model, loss).gram(batch())
        assert_exact(gram, network(), batch())
        prefix = {"a part": "0.", "in place": "inner."}.get(how, "")
        assert set(gram.routes) == {f"{prefix}{name}" for name, _ in network().named_parameters()}
        assert (backend.compilations, backend.runs) == (1, runs)
        cross_entropy(model, batch()).sum().backward()
        assert (backend.compilations, backend.runs) == (1, runs + 1)  # compiled as before, and not anew

    def test_fallback_parameters_too(self):
        class Odd(nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = network()
                self.scale = nn.Parameter(torch.ones(8))

            def forward(self, x):
                return self.inner(torch.special.erfcx(x * self.scale.pow(3).cumprod(0)))

        model, _ = self.trained(lambda module, backend: torch.compile(seeded(Odd), backend=backend))
        gram = GramEngine(model, cross_entropy).gram(batch())
        expected, _ = loop_gram(unwrapped(model), cross_entropy, batch())
        assert (gram.matrix - expected).norm() <= 1e-5 * expected.norm()


class Cast(nn.Module):
    """A forward pass with an autocast of its own."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.inner(x)


class Decorated(Cast):
    @torch.autocast("cpu", dtype=torch.bfloat16)
    def forward(self, x):
        return self.inner(x)


class TestAutocast:
    def test_around_the_measurement(self):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            gram = GramEngine(network(), cross_entropy).gram(batch())
            assert torch.is_autocast_enabled("cpu")
        assert_exact(gram, network(), batch())

    @pytest.mark.parametrize("kind", [Cast, Decorated])
    def test_inside_the_forward_pass(self, kind):
        model = kind(network())
        gram = GramEngine(model, cross_entropy).gram(batch())
        assert_exact(gram, network(), batch())
        assert model(batch()[0]).dtype == torch.bfloat16  # as before

    def test_that_the_model_needs_is_left_on(self):
        class Needy(Cast):
            def forward(self, x):
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    return self.inner[2](self.inner[1](self.inner[0](x).bfloat16()))

        def build():
            model = Needy(network())
            model.inner[0].bfloat16()  # fails on a float32 input without autocast
            return model

        gram = GramEngine(build(), cross_entropy).gram(batch())
        expected, _ = loop_gram(network(), cross_entropy, batch())
        assert (gram.matrix - expected).norm() <= 0.05 * expected.norm()  # bfloat16


class TestTrainingMode:
    @pytest.mark.parametrize(
        ("part", "message"),
        [
            (nn.Dropout(0.5), r"dropout is on \(in training mode: 1\).*eval"),
            (nn.AlphaDropout(0.5), "dropout is on"),
            (nn.BatchNorm1d(8), r"BatchNorm in training mode.*\(in training mode: 1\).*eval"),
            (nn.BatchNorm1d(8, affine=False), "BatchNorm in training mode"),
            (nn.BatchNorm1d(8, track_running_stats=False), "BatchNorm in training mode"),
            (nn.SyncBatchNorm(8), "BatchNorm in training mode"),
        ],
        ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
    )
    def test_is_refused_by_name_before_anything_runs(self, part, message):
        model = nn.Sequential(nn.Linear(8, 8), copy.deepcopy(part), nn.Linear(8, CLASSES))
        buffers = copy.deepcopy(dict(model.named_buffers()))
        state = torch.get_rng_state()
        with pytest.raises(StiffnessError, match=message):
            GramEngine(model, cross_entropy).gram(batch())
        assert all(torch.equal(value, buffers[name]) for name, value in model.named_buffers())
        assert torch.equal(torch.get_rng_state(), state)

    @pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
    def test_dropout_inside_recurrent_layers(self, kind):
        class Recurrent(nn.Module):
            def __init__(self):
                super().__init__()
                self.cells, self.out = kind(8, 8, 2, dropout=0.5, batch_first=True), nn.Linear(8, CLASSES)

            def forward(self, x):
                return self.out(self.cells(x[:, None])[0][:, 0])

        with pytest.raises(StiffnessError, match=r"dropout is on \(in training mode: cells\)"):
            GramEngine(Recurrent(), cross_entropy).gram(batch())

    def test_dropout_inside_attention(self):
        class Attention(nn.Module):
            def __init__(self):
                super().__init__()
                self.attention, self.out = nn.MultiheadAttention(8, 2, dropout=0.5), nn.Linear(8, CLASSES)

            def forward(self, x):
                return self.out(self.attention(x[None], x[None], x[None])[0][0])

        with pytest.raises(StiffnessError, match=r"dropout is on \(in training mode: attention\)"):
            GramEngine(Attention(), cross_entropy).gram(batch())

    def test_dropout_without_a_module_is_seen_and_the_random_state_put_back(self):
        class Hidden(nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = network()

            def forward(self, x):
                return self.inner(nn.functional.dropout(x, 0.5, self.training))

        state = torch.get_rng_state()
        with pytest.raises(StiffnessError, match="same each time"):
            GramEngine(Hidden(), cross_entropy).gram(batch())
        assert torch.equal(torch.get_rng_state(), state)
        assert_exact(GramEngine(Hidden().eval(), cross_entropy).gram(batch()), network(), batch())

    def test_a_suspect_of_another_library_is_named(self):
        class DropPath(nn.Module):
            def forward(self, x):
                return x * torch.rand(len(x), 1).round() * 2

        model = nn.Sequential(nn.Linear(8, 8), DropPath(), nn.Linear(8, CLASSES))
        with pytest.raises(StiffnessError, match=r"same each time.*\(in training mode: 1\)"):
            GramEngine(model, cross_entropy).gram(batch())

    def test_batch_statistics_in_eval_mode_are_seen(self):
        model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8, track_running_stats=False), nn.Linear(8, CLASSES))
        with pytest.raises(StiffnessError, match=r"BatchNorm|depend on that sample alone"):
            GramEngine(model.eval(), cross_entropy).gram(batch())

    def test_running_statistics_of_instance_norm_are_put_back(self):
        class Images(nn.Module):
            def __init__(self):
                super().__init__()
                self.norm, self.out = nn.InstanceNorm1d(2, affine=True, track_running_stats=True), network()

            def forward(self, x):
                return self.out(self.norm(x.reshape(-1, 2, 4)).flatten(1))

        model = seeded(Images)
        before = copy.deepcopy(model.state_dict())
        gram = GramEngine(model, cross_entropy).gram(batch())
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        expected, _ = loop_gram(model, cross_entropy, batch())
        assert (gram.matrix - expected).norm() <= 1e-5 * expected.norm()


def test_names():
    assert plain_name("a._orig_mod.b._checkpoint_wrapped_module.weight") == "a.b.weight"
    assert plain_name("module.weight") == "module.weight"


def test_gradients_that_are_accumulating_stay_as_they_are():
    model = network()
    cross_entropy(model, batch()).sum().backward()
    before = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    engine = GramEngine(model, cross_entropy)
    engine.gram(batch())
    engine.class_cosine(batch(), batch()[1], CLASSES)
    assert all(torch.equal(parameter.grad, before[name]) for name, parameter in model.named_parameters())


def test_under_no_grad():
    with torch.no_grad():
        gram = GramEngine(network(), cross_entropy).gram(batch())
    assert_exact(gram, network(), batch())
