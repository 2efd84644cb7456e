"""Faults are put into the engine, the model or the loss, one at a time: each is seen, and what is returned is right."""

import contextlib
import dataclasses
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from lightning_stiffness.batching import take
from lightning_stiffness.errors import MixedSamplesError, StiffnessError
from lightning_stiffness.gram import GramEngine
from lightning_stiffness.gram import check as check_module
from lightning_stiffness.gram import collect as collect_module
from lightning_stiffness.gram import fallback as fallback_module
from lightning_stiffness.gram import plan as plan_module
from lightning_stiffness.gram import plans as plans_module
from lightning_stiffness.gram.factors import Explicit
from lightning_stiffness.gram.outer import Outer
from lightning_stiffness.gram.rules import RULES
from tests.oracle import cross_entropy, loop_gram

N, CLASSES = 12, 4
LINEAR, NORM = "AddmmBackward0", "NativeLayerNormBackward0"


class Encoder(nn.Module):
    """Attention, whose inside has time before samples, norms, and linear maps over positions."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.out = nn.Linear(8, CLASSES)

    def forward(self, x):
        return self.out(self.encoder(x).mean(1))


class Tied(nn.Module):
    """One weight that is used twice."""

    def __init__(self):
        super().__init__()
        self.inner, self.out = nn.Linear(8, 8), nn.Linear(8, CLASSES)

    def forward(self, x):
        return self.out(torch.tanh(self.inner(torch.tanh(self.inner(x)))))


class Normed(nn.Sequential):
    """A norm between two linear maps."""

    def __init__(self):
        super().__init__(nn.Linear(8, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, CLASSES))


class Uncovered(nn.Module):
    """A parameter without a rule beside others that have one."""

    def __init__(self):
        super().__init__()
        self.angles, self.out = nn.Parameter(torch.rand(8) + 0.5), nn.Linear(8, CLASSES)

    def forward(self, x):
        return self.out(torch.atan2(x, self.angles))


class TimeFirst(nn.Module):
    """Positions before samples, as many as the input has."""

    def __init__(self):
        super().__init__()
        self.inner, self.out = nn.Linear(8, 10), nn.Linear(10, CLASSES)

    def forward(self, x):
        return self.out(torch.tanh(self.inner(x.transpose(0, 1))).mean(0))


class BatchCentred(nn.Module):
    def forward(self, x):
        return x - 0.5 * x.mean(0)


def seeded(build):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build()


def batch(n=N, length=None, seed=1):
    generator = torch.Generator().manual_seed(seed)
    shape = (n, 8) if length is None else (n, length, 8)
    return torch.randn(*shape, generator=generator), torch.arange(n) % CLASSES


def batch_of(model, n=N):
    return batch(n, 5 if isinstance(model, Encoder | TimeFirst) else None)


def assert_right(gram, model, sample_batch, loss=cross_entropy, tolerance=1e-5):
    expected, _ = loop_gram(model, loss, sample_batch)
    assert (gram.matrix - expected).norm() <= tolerance * expected.norm()


def assert_right_cosines(found, model, sample_batch):
    expected, _ = loop_gram(model, cross_entropy, sample_batch)
    sizes = expected.diagonal().sqrt()
    cosines, y = expected / sizes[:, None] / sizes, sample_batch[1]
    for a in range(CLASSES):
        for b in range(CLASSES):
            pairs = cosines[(y[:, None] == a) & (y == b) & ~torch.eye(len(y), dtype=torch.bool)]
            assert abs(found.matrix[a, b] - pairs.mean()) < 1e-5


def wrong_rule(name, change):
    """A rule whose factors are changed by a function of them."""

    def inject(monkeypatch):
        right = RULES[name]

        def wrong(*arguments):
            return {slots: change(factors) for slots, factors in right(*arguments).items()}

        monkeypatch.setitem(RULES, name, wrong)

    return inject


def wrong_plan(change):
    """A plan that is changed once it is made."""

    def inject(monkeypatch):
        right = plan_module.make_plan

        def wrong(*arguments):
            plan = right(*arguments)
            change(plan)
            return plan

        monkeypatch.setattr(plans_module, "make_plan", wrong)

    return inject


def scaled(factor):
    return lambda factors: Explicit(factors.dense() * factor)


def only_for_one_sample(factors):
    """Wrong for the one sample whose gradient is the largest, if there are more than a few."""
    gradients = factors.dense().clone()
    if len(gradients) > 10:
        gradients[gradients.norm(dim=1).argmax()] *= -1
    return Explicit(gradients)


def without_its_bias(monkeypatch):
    right = RULES[NORM]

    def wrong(*arguments):
        return {slots: factors for slots, factors in right(*arguments).items() if slots == (1,)}

    monkeypatch.setitem(RULES, NORM, wrong)


def without_a_parameter(monkeypatch):
    """A walk that does not see the uses of the first parameter."""
    for module in (plan_module, collect_module):
        right = module.consumers

        def wrong(*arguments, right=right):
            return tuple(one for one in right(*arguments) if all(use.parameter != 0 for use in one.uses))

        monkeypatch.setattr(module, "consumers", wrong)


def with_positions_reversed(factors):
    if isinstance(factors, Outer) and factors.left.shape[1] > 1:
        return dataclasses.replace(factors, left=factors.left.flip(1))
    return factors


def with_samples_shifted(factors):
    return Explicit(factors.dense().roll(1, 0))


def wrong_fallback(monkeypatch):
    right = fallback_module.Fallback._vectorised
    monkeypatch.setattr(
        fallback_module.Fallback, "_vectorised", lambda *arguments: [row * 0.9 for row in right(*arguments)]
    )


class WrongNorms(Explicit):
    def square_norms(self):
        return super().square_norms() * 1.1


class WrongClassSums(Explicit):
    def add_class_sums(self, sums, weights, runs):
        super().add_class_sums(sums, 0.9 * weights, runs)


@dataclass(frozen=True)
class Fault:
    """A fault of the engine, the model that has it, and the parameters that a warning must name."""

    inject: Callable[[pytest.MonkeyPatch], None]
    model: Callable[[], nn.Module]
    names: tuple[str, ...]


FAULTS = {
    "a bias is silently missed": Fault(without_its_bias, Normed, ("1.bias",)),
    "a parameter is silently missed": Fault(without_a_parameter, Normed, ("0.weight",)),
    "the batch axis is misread": Fault(
        wrong_plan(lambda plan: setattr(plan, "prefixes", tuple(1 for _ in plan.prefixes))),
        Encoder,
        ("encoder.self_attn.in_proj_weight",),
    ),
    "cross terms of a weight that is used twice are dropped": Fault(
        wrong_plan(lambda plan: plan.joint.clear()), Tied, ("inner.weight", "inner.bias")
    ),
    "a rule is off by a tenth": Fault(wrong_rule(NORM, scaled(0.9)), Normed, ("1.weight", "1.bias")),
    "a rule is off by a hundredth": Fault(wrong_rule(NORM, scaled(1.01)), Normed, ("1.weight", "1.bias")),
    "a rule has the wrong sign for one sample of many": Fault(
        wrong_rule(NORM, only_for_one_sample), Normed, ("1.weight", "1.bias")
    ),
    "a factor has its positions reversed": Fault(
        wrong_rule(LINEAR, with_positions_reversed), Encoder, ("encoder.linear1.weight",)
    ),
    "samples are shifted against each other": Fault(
        wrong_rule(NORM, with_samples_shifted), Normed, ("1.weight", "1.bias")
    ),
    "the vectorised fallback is off": Fault(wrong_fallback, Uncovered, ("angles",)),
    "norms are off": Fault(
        wrong_rule(NORM, lambda factors: WrongNorms(factors.dense())), Normed, ("1.weight", "1.bias")
    ),
    "sums over classes are off": Fault(
        wrong_rule(NORM, lambda factors: WrongClassSums(factors.dense())), Normed, ("1.weight", "1.bias")
    ),
}


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize(
    "budget", [pytest.param(1 << 30, id="at once"), pytest.param(20_000, id="in chunks", marks=pytest.mark.slow)]
)
def test_a_fault_of_the_engine_is_seen_and_the_gram_is_right(name, budget, monkeypatch):
    fault = FAULTS[name]
    model = seeded(fault.model)
    fault.inject(monkeypatch)
    engine = GramEngine(model, cross_entropy, budget=budget)
    with pytest.warns(UserWarning, match="disagreed with plain autograd for") as seen:
        gram = engine.gram(batch_of(model))
    assert_right(gram, model, batch_of(model))
    text = " ".join(str(warning.message) for warning in seen)
    assert all(name in text for name in fault.names)
    assert all(gram.routes[name].startswith("fallback") for name in fault.names)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # once is enough
        assert_right(engine.gram(batch_of(model)), model, batch_of(model))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(FAULTS) - {"a rule has the wrong sign for one sample of many"}))
def test_a_fault_of_the_engine_is_seen_and_the_class_cosine_is_right(name, monkeypatch):
    fault = FAULTS[name]
    model = seeded(fault.model)
    fault.inject(monkeypatch)
    with pytest.warns(UserWarning, match="disagreed with plain autograd for"):
        found = GramEngine(model, cross_entropy).class_cosine(batch_of(model), batch_of(model)[1], CLASSES)
    assert_right_cosines(found, model, batch_of(model))


def test_only_the_parameters_at_fault_leave_their_route(monkeypatch):
    wrong_rule(NORM, scaled(0.9))(monkeypatch)
    model = seeded(Normed)
    with pytest.warns(UserWarning, match=r"for 1\.weight, 1\.bias; these"):
        gram = GramEngine(model, cross_entropy).gram(batch())
    on_fallback = {name for name, route in gram.routes.items() if route.startswith("fallback")}
    assert on_fallback == {"1.weight", "1.bias"}
    assert "failed the self-check" in gram.routes["1.bias"]


def test_what_no_route_gets_right_is_an_error(monkeypatch):
    monkeypatch.setattr(fallback_module.Fallback, "blocks", lambda self, batch, some, weights, losses: iter(()))
    with (
        pytest.warns(UserWarning, match="disagreed"),
        pytest.raises(StiffnessError, match="no route of the engine agrees"),
    ):
        GramEngine(seeded(Uncovered), cross_entropy).gram(batch())


class TestWhenItIsChecked:
    @pytest.fixture
    def checks(self, monkeypatch):
        """The samples that the checks looked at."""
        seen = []
        right = check_module.Check.agrees
        monkeypatch.setattr(
            check_module.Check, "agrees", lambda self, gram: seen.append(self.chosen(gram.norms)) or right(self, gram)
        )
        return seen

    def counts(self, checks, read, readings):
        result = []
        for _ in range(readings):
            before = len(checks)
            read()
            result.append(len(checks) - before)
        return result

    def test_at_the_first_and_every_kth_reading(self, checks):
        engine = GramEngine(seeded(Normed), cross_entropy, check_every=3)
        assert self.counts(checks, lambda: engine.gram(batch()), 7) == [1, 0, 1, 0, 0, 1, 0]

    def test_class_cosines_count_too(self, checks):
        engine = GramEngine(seeded(Normed), cross_entropy, check_every=2)
        assert self.counts(checks, lambda: engine.class_cosine(batch(), batch()[1], CLASSES), 4) == [1, 1, 0, 1]

    @pytest.mark.slow
    def test_by_default_now_and_then(self, checks):
        engine = GramEngine(seeded(Normed), cross_entropy)
        assert sum(self.counts(checks, lambda: engine.gram(batch()), 60)) == 4

    def test_never(self, checks):
        engine = GramEngine(seeded(Normed), cross_entropy, check_every=0)
        assert self.counts(checks, lambda: engine.gram(batch()), 3) == [0, 0, 0]

    def test_again_for_another_kind_of_batch(self, checks):
        engine = GramEngine(seeded(TimeFirst), cross_entropy)
        for length in (3, 7, 3, 7):
            engine.gram(batch(length=length))
        assert len(checks) == 2

    @pytest.mark.slow
    def test_on_other_samples_each_time_but_the_same_in_each_run(self, checks):
        runs = []
        for _ in range(2):
            checks.clear()
            engine = GramEngine(seeded(Normed), cross_entropy, check_every=1)
            for _ in range(8):
                engine.gram(batch(n=40))
            runs.append([tuple(chosen) for chosen in checks])
        assert runs[0] == runs[1]
        assert len(set(runs[0])) >= 7

    def test_without_the_global_random_state(self):
        state = torch.get_rng_state()
        GramEngine(seeded(Normed), cross_entropy).gram(batch())
        assert torch.equal(torch.get_rng_state(), state)

    @pytest.mark.parametrize("kind", ["gram", "class_cosine"])
    def test_a_fault_that_comes_later_is_seen_then(self, kind, monkeypatch):
        model = seeded(Normed)
        engine = GramEngine(model, cross_entropy, check_every=3)
        read = {
            "gram": lambda: assert_right(engine.gram(batch()), model, batch()),
            "class_cosine": lambda: assert_right_cosines(
                engine.class_cosine(batch(), batch()[1], CLASSES), model, batch()
            ),
        }[kind]
        read()
        wrong_rule(NORM, scaled(0.9))(monkeypatch)
        with contextlib.suppress(AssertionError):
            read()  # the one reading between two checks
        with pytest.warns(UserWarning, match=r"for 1\.weight, 1\.bias; these"):
            read()

    def test_a_fault_in_so_few_samples_that_two_tell_nothing(self, monkeypatch):
        wrong_rule(NORM, only_for_one_sample)(monkeypatch)
        model = seeded(Normed)
        with pytest.warns(UserWarning, match="disagreed"):
            gram = GramEngine(model, cross_entropy).gram(batch(n=60))
        assert_right(gram, model, batch(n=60))

    def test_what_is_not_a_number_of_readings(self):
        with pytest.raises(StiffnessError, match=r"number of readings.*found -1"):
            GramEngine(seeded(Normed), cross_entropy, check_every=-1)


class TestMixing:
    """Losses that have no per-sample gradients."""

    def contrastive(module, batch):  # noqa: N805
        z = nn.functional.normalize(module(batch[0]), dim=1)
        return nn.functional.cross_entropy(z @ z.T * 5, torch.arange(len(z)).roll(1), reduction="none")

    def standardised(module, batch):  # noqa: N805
        losses = cross_entropy(module, batch)
        return losses / losses.mean()

    @pytest.mark.parametrize("loss", [contrastive, standardised])
    def test_in_the_loss(self, loss):
        with pytest.raises(MixedSamplesError, match="depend on that sample alone"):
            GramEngine(seeded(Normed), loss).gram(batch())

    @pytest.mark.parametrize("kind", ["gram", "class_cosine"])
    def test_in_an_operation_without_parameters(self, kind):
        model = seeded(lambda: nn.Sequential(nn.Linear(8, 8), BatchCentred(), nn.Tanh(), nn.Linear(8, CLASSES)))
        engine = GramEngine(model, cross_entropy)
        with pytest.raises(MixedSamplesError, match="depend on that sample alone"):
            engine.gram(batch()) if kind == "gram" else engine.class_cosine(batch(), batch()[1], CLASSES)

    def test_noise(self):
        def noisy(module, batch):
            return cross_entropy(module, batch) * torch.rand(len(batch[1]))

        with pytest.raises(StiffnessError, match="the same each time"):
            GramEngine(seeded(Normed), noisy).gram(batch())

    def test_a_loss_of_another_module(self):
        other = seeded(Normed)
        with pytest.raises(StiffnessError, match="depends on none of the trainable parameters"):
            GramEngine(seeded(Normed), lambda module, batch: cross_entropy(other, batch)).gram(batch())


class TestScale:
    """A loss divided by the batch size: each sample alone has a larger one."""

    def mean_scaled(module, batch):  # noqa: N805
        return cross_entropy(module, batch) / len(batch[1])

    @pytest.mark.parametrize("model", [Normed, Uncovered, Tied])
    def test_all_parameters_have_the_same_scale(self, model):
        built = seeded(model)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            gram = GramEngine(built, TestScale.mean_scaled).gram(batch())
        expected, _ = loop_gram(built, cross_entropy, batch())
        assert (gram.matrix * N**2 - expected).norm() <= 1e-5 * expected.norm()

    def test_fallback_one_by_one(self, monkeypatch):
        def failing(*_):
            raise RuntimeError("no vmap")

        monkeypatch.setattr(fallback_module.Fallback, "_vectorised", failing)
        self.test_all_parameters_have_the_same_scale(Uncovered)

    @pytest.mark.parametrize("model", [Normed, Uncovered])
    def test_cosines_in_chunks(self, model):
        built = seeded(model)
        gram = GramEngine(built, TestScale.mean_scaled, budget=3_000).gram(batch(n=13))
        expected, _ = loop_gram(built, cross_entropy, batch(n=13))
        sizes = expected.diagonal().sqrt()
        cosines = gram.matrix / gram.norms[:, None] / gram.norms
        assert torch.allclose(cosines, expected / sizes[:, None] / sizes, atol=1e-5)

    @pytest.mark.parametrize("factor", [1e-12, 1e12])
    def test_tiny_and_huge_losses(self, factor):
        model = seeded(Normed)

        def loss(module, batch):
            return cross_entropy(module, batch) * factor

        with warnings.catch_warnings():
            warnings.simplefilter("error")
            gram = GramEngine(model, loss).gram(batch())
        assert_right(gram, model, batch(), loss)


class TestBetweenCalls:
    """What the plan was made for is no longer what is measured."""

    def engine(self, model):
        engine = GramEngine(model, cross_entropy, check_every=0)  # the plan alone must see it
        engine.gram(batch_of(model))
        return engine

    def test_another_sequence_length(self):
        model = seeded(TimeFirst)
        engine = self.engine(model)
        for length in (7, 4, 5, 10):  # with 10 columns and a length of 10, rows could be read as if there were five
            assert_right(engine.gram(batch(length=length)), model, batch(length=length))

    @pytest.mark.slow
    @pytest.mark.parametrize("budget", [1 << 30, 6_000], ids=["at once", "in chunks"])
    def test_a_sequence_length_that_the_input_does_not_show(self, budget):
        class Trimmed(TimeFirst):
            """Positions at the end that are padding in all samples are not computed."""

            def forward(self, x):
                is_used = (x != 0).any(2)
                length = int(is_used.sum(1).max())
                hidden = torch.tanh(self.inner(x[:, :length].transpose(0, 1)))
                counts = is_used[:, :length].t()[..., None]
                return self.out((hidden * counts).sum(0) / counts.sum(0))

        model = seeded(Trimmed)
        engine = GramEngine(model, cross_entropy, budget=budget, check_every=0)
        for longest in (5, 4, 3):
            x, y = batch(length=5)
            for k in range(N):
                x[k, max(1, longest - k // 3) :] = 0  # later chunks are shorter
            assert_right(engine.gram((x, y)), model, (x, y))
            assert_right(engine.gram((x.flip(0), y)), model, (x.flip(0), y))
            assert_right_cosines(engine.class_cosine((x, y), y, CLASSES), model, (x, y))

    def test_a_length_that_other_samples_decide_mixes_them(self):
        class Trimmed(TimeFirst):
            def forward(self, x):
                return super().forward(x[:, : int(x[0, 0, 0] > 0) + 3 if len(x) > 5 else 5])

        with pytest.raises(MixedSamplesError, match="depend on that sample alone"):
            GramEngine(seeded(Trimmed), cross_entropy).gram(batch(length=5))

    def test_a_single_sample_first(self):
        model = seeded(TimeFirst)
        engine = GramEngine(model, cross_entropy, check_every=0)
        for n in (1, 2, 4, 12, 3):
            some = take(batch_of(model), slice(0, n))
            assert_right(engine.gram(some), model, some)

    def test_a_parameter_is_frozen_and_another_unfrozen(self):
        model = seeded(lambda: nn.Sequential(*(nn.Linear(8, 8) for _ in range(3)), nn.Linear(8, CLASSES)))
        model[0].requires_grad_(False)
        engine = self.engine(model)
        model[0].requires_grad_(True)
        model[1].requires_grad_(False)
        gram = engine.gram(batch())
        assert set(gram.routes) == {f"{k}.{name}" for k in (0, 2, 3) for name in ("weight", "bias")}
        assert_right(gram, model, batch())

    def test_a_parameter_is_replaced(self):
        model = seeded(Normed)
        engine = self.engine(model)
        model[0].weight = nn.Parameter(torch.randn(8, 8, generator=torch.Generator().manual_seed(3)))
        assert_right(engine.gram(batch()), model, batch())

    def test_a_layer_is_added(self):
        model = seeded(Normed)
        engine = self.engine(model)
        model[2] = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
        gram = engine.gram(batch())
        assert "2.0.weight" in gram.routes
        assert_right(gram, model, batch())

    def test_a_layer_moves_behind_another(self):
        model = seeded(lambda: nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.LayerNorm(8), nn.Linear(8, CLASSES)))
        engine = self.engine(model)
        model[0], model[2] = model[2], model[0]
        assert_right(engine.gram(batch()), model, batch())

    def test_the_type_changes(self):
        model = seeded(Normed)
        engine = self.engine(model)
        model.double()
        gram = engine.gram((batch()[0].double(), batch()[1]))
        assert_right(gram, model, batch(), tolerance=1e-12)

    def test_the_loss_reads_the_mode(self):
        class Moody(Normed):
            def forward(self, x):
                return super().forward(x if self.training else torch.tanh(self[0](x)))

        model = seeded(Moody)
        engine = self.engine(model)
        assert_right(engine.gram(batch()), model, batch())
        model.eval()
        assert_right(engine.gram(batch()), model, batch())

    def test_dropout_is_switched_on(self):
        model = seeded(lambda: nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, CLASSES)).eval())
        engine = self.engine(model)
        model.train()
        with pytest.raises(StiffnessError, match=r"dropout is on \(in training mode: 1\)"):
            engine.gram(batch())

    def test_gradients_that_were_zero_when_the_plan_was_made(self):
        model = seeded(TimeFirst)
        nn.init.zeros_(model.out.weight)
        engine = self.engine(model)
        with torch.no_grad():
            model.out.weight.normal_(generator=torch.Generator().manual_seed(3))
        gram = engine.gram(batch_of(model))
        assert_right(gram, model, batch_of(model))
        assert not gram.routes["inner.weight"].startswith("fallback")

    def test_gradients_that_are_zero_for_the_samples_that_the_plan_looks_at(self):
        class Gated(TimeFirst):
            def forward(self, x):
                return torch.where(x[:, 0, :1] < 5, x[:, 0, :CLASSES] * self.out.bias, super().forward(x))

        model = seeded(Gated)
        x, y = batch(length=5)
        x[6:, 0, 0] = 6.0  # the first samples do not reach the inner layer
        gram = GramEngine(model, cross_entropy, check_every=0).gram((x, y))
        assert_right(gram, model, (x, y))


class TestRouting:
    """What is computed depends on values."""

    class Experts(nn.Module):
        """Each sample goes to one expert, which is not called if it has none."""

        def __init__(self):
            super().__init__()
            self.first, self.experts = nn.Linear(8, 8), nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
            self.out = nn.Linear(8, CLASSES)

        def forward(self, x):
            choice = (x[:, 0] > 0.3).long() + (x[:, 0] > 1.2).long()
            x = torch.tanh(self.first(x))
            y = torch.zeros_like(x)
            for k, expert in enumerate(self.experts):
                rows = (choice == k).nonzero().flatten()
                if len(rows):
                    y = y.index_copy(0, rows, expert(x[rows]))
            return self.out(torch.tanh(y))

    class Branch(nn.Module):
        """One of two ways for all samples, by the value of the first."""

        def __init__(self):
            super().__init__()
            self.ways, self.out = nn.ModuleList(nn.Linear(8, 8) for _ in range(2)), nn.Linear(8, CLASSES)

        def forward(self, x):
            return self.out(torch.tanh(self.ways[int(x[0, 0] > 0)](x)))

    @pytest.mark.slow
    @pytest.mark.parametrize("budget", [1 << 30, 4_000], ids=["at once", "in chunks"])
    def test_experts(self, budget):
        model = seeded(self.Experts)
        engine = GramEngine(model, cross_entropy, budget=budget)
        for seed in range(4):
            some = batch(n=9 + seed, seed=seed)
            gram = engine.gram(some)
            assert_right(gram, model, some)
            assert not gram.routes["first.weight"].startswith("fallback")
            assert not gram.routes["out.weight"].startswith("fallback")
            assert_right_cosines(engine.class_cosine(some, some[1], CLASSES), model, some)

    def test_a_branch_that_the_samples_take_together_mixes_them(self):
        model = seeded(self.Branch)
        with pytest.raises(MixedSamplesError, match="depend on that sample alone"):
            GramEngine(model, cross_entropy).gram(batch())

    def test_a_branch_that_all_take_alike(self):
        model = seeded(self.Branch)
        engine = GramEngine(model, cross_entropy)
        for sign in (1, -1, 1):
            x, y = batch()
            some = x.abs() * sign, y
            gram = engine.gram(some)
            assert_right(gram, model, some)
            assert not any(route.startswith("fallback") for route in gram.routes.values())


@pytest.mark.parametrize("check_every", [0, 20])
def test_a_parameter_held_by_reference_is_not_lost_by_the_vectorised_fallback(check_every):
    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(8, 8, generator=torch.Generator().manual_seed(0)))
            self.held = [self.weight]
            self.out = nn.Linear(8, 3)

        def forward(self, x):
            return self.out(torch.tanh(x @ self.held[0]))

    model, batch = Holder(), (torch.randn(9, 8), torch.arange(9) % 3)
    expected, _ = loop_gram(model, cross_entropy, batch)
    engine = GramEngine(model, cross_entropy, check_every=check_every)
    engine._mistrusted.add("weight")
    gram = engine.gram(batch)
    assert (gram.matrix - expected).norm() <= 1e-5 * expected.norm()
    assert "one sample at a time (vmap: RuntimeError: its gradients" in gram.routes["weight"]
