import copy
import functools
import gc
import warnings
import weakref

import pytest
import torch
from torch import nn

from lightning_stiffness.batching import take
from lightning_stiffness.errors import MixedSamplesError, StiffnessError
from lightning_stiffness.gram import GramEngine
from lightning_stiffness.gram.rules import RULES
from tests.oracle import cross_entropy, in_double, loop_gram
from tests.unchecked import unchecked_types
from tests.zoo import CLASSES, MODELS, N, build

CORE = [name for name, function in MODELS.items() if function.__module__ == "tests.zoo"]


def away_from_ties(gram):
    norms = gram.diagonal().sqrt()
    return gram.abs() > 1e-4 * norms[:, None] * norms


def class_means(gram, targets, classes):
    """Mean cosine over pairs of different samples, by a Python loop."""
    means = torch.full((classes, classes), torch.nan, dtype=torch.float64)
    for a in range(classes):
        for b in range(classes):
            pairs = [
                gram[i, j] / (gram[i, i] * gram[j, j]).sqrt()
                for i in range(len(gram))
                for j in range(len(gram))
                if i != j and targets[i] == a and targets[j] == b
            ]
            if pairs:
                means[a, b] = sum(pairs) / len(pairs)
    return means


@functools.cache
def reference(name):
    """K in float64 and the gradients [n, p], by a loop."""
    specimen = build(name)
    return loop_gram(specimen.model, cross_entropy, specimen.batch)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.slow
def test_gram_equals_a_loop_of_backwards(name):
    specimen = build(name)
    expected, _ = reference(name)
    gram = GramEngine(specimen.model, cross_entropy).gram(specimen.batch)
    assert (gram.matrix - expected).norm() <= 1e-5 * expected.norm()  # float32 activations and gradients
    certain = away_from_ties(expected)
    assert torch.equal(gram.matrix.sign()[certain], expected.sign()[certain])
    on_fallback = {name for name, route in gram.routes.items() if route.startswith("fallback")}
    assert on_fallback == set(specimen.fallback)
    assert not gram.matrix.requires_grad
    assert not gram.losses.requires_grad


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_double_precision_model_is_exact_parameter_by_parameter(name):
    specimen = build(name)
    inputs, targets = specimen.batch
    double = nn.Module.double(copy.deepcopy(specimen.model))
    engine, batch = GramEngine(double, cross_entropy, check_every=0), (in_double(inputs), targets)
    expected, gradients = reference(name)
    assert (engine.gram(batch).matrix - expected).norm() <= 1e-12 * expected.norm()
    measurement = engine._measurement(batch)
    losses = measurement.losses_of(measurement.batch)
    sizes = [parameter.numel() for parameter in measurement.parameters]
    by_parameter = gradients.split(sizes, 1)
    found: list[tuple[frozenset[int], torch.Tensor]] = []

    def add(one):
        explicit = torch.cat([block.clone() for block in one.factors.blocks()], 1)
        key, matrix = frozenset(one.parameters), explicit @ explicit.T
        for part in [part for part in found if part[0] & key]:  # one form may cover a weight and its bias
            found.remove(part)
            key, matrix = key | part[0], matrix + part[1]
        found.append((key, matrix))

    with torch.no_grad():
        measurement.collect(losses, torch.ones_like(losses), add)
    for key, matrix in found:
        own = torch.cat([by_parameter[k] for k in key], 1)
        floor = 1e-24 * expected.norm()  # rounding, where a gradient is zero by algebra: that of a bias of keys
        error = (matrix - own @ own.T).norm()
        assert error <= 1e-10 * (own @ own.T).norm() + floor, [list(measurement.names)[k] for k in key]


IN_CHUNKS = (  # what the core has not: bags, operands, several matrices, rows in any order
    *("embedding_bags_of_different_sizes", "parametrized_weight_norm", "position_embedding_by_look_up"),
    *("weights_of_experts_with_dense_routing", "packed_gru", "experts_chosen_by_value", "frames_folded_into_the_batch"),
)
# Every specimen is compared with the loop in float32 and float64 by the quick suite; the rest of it by the slow one.
EACH = [pytest.param(name, marks=() if name in CORE else pytest.mark.slow) for name in MODELS]
WHOLE = [pytest.param(name, 1 << 30, marks=() if name in CORE else pytest.mark.slow) for name in MODELS]
SMALL = [
    *(pytest.param(name, 500, marks=pytest.mark.slow if k % 3 else ()) for k, name in enumerate(CORE)),
    *(pytest.param(name, 3000) for name in IN_CHUNKS),
]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:LSTM with projections")  # by torch, where the model is evaluated as it is
@pytest.mark.parametrize(("name", "budget"), SMALL)
def test_a_small_budget_changes_nothing_but_the_route(name, budget):
    specimen = build(name)
    gram = GramEngine(specimen.model, cross_entropy, budget=budget, check_every=0).gram(specimen.batch)
    expected, _ = reference(name)
    assert (gram.matrix - expected).norm() <= 1e-5 * expected.norm()
    losses = cross_entropy(specimen.model, specimen.batch)
    assert torch.allclose(gram.losses.float(), losses.detach(), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "budget"), [*WHOLE, *SMALL])
def test_class_cosine_equals_the_loop(name, budget):
    specimen = build(name)
    targets = torch.tensor([0, 2, 1, 1, 0, 3, 0, 1, 1, 0, 2, 0])  # class 3 has one sample
    batch = specimen.inputs, specimen.batch[1]
    expected, _ = reference(name)
    engine = GramEngine(specimen.model, cross_entropy, budget=budget, check_every=0)
    found = engine.class_cosine(batch, targets, CLASSES + 1)
    means = class_means(expected, targets, CLASSES + 1)
    assert torch.allclose(found.matrix, means, atol=2e-6, equal_nan=True)
    assert found.matrix[3, 3].isnan()
    assert found.matrix[4].isnan().all()
    assert found.counts.tolist() == [5, 4, 2, 1, 0]
    assert not found.matrix.requires_grad


@pytest.mark.parametrize("layer", [nn.Embedding, nn.EmbeddingBag])
def test_gradients_divided_by_counts_over_the_batch_are_refused(layer):
    width = 48 if layer is nn.Embedding else 8
    model = nn.Sequential(layer(11, 8, scale_grad_by_freq=True), nn.Flatten(), nn.Linear(width, CLASSES))
    with pytest.raises(MixedSamplesError, match="scale_grad_by_freq=False"):
        GramEngine(model, cross_entropy).gram(build("embedding").batch)


# Nodes of other devices and other builds of torch, which no specimen can show here.
ELSEWHERE = {
    "CudnnBatchNormBackward0": "CUDA; in training mode",
    "MiopenBatchNormBackward0": "ROCm; in training mode",
    "FusedRmsNormBackward0": "CUDA and MPS; torch takes it apart on the CPU",
}


@pytest.mark.slow
def test_every_rule_has_a_specimen(monkeypatch):
    used = set()
    for name, rule in list(RULES.items()):

        def noting(*arguments, name=name, rule=rule):
            result = rule(*arguments)
            used.add(name)
            return result

        monkeypatch.setitem(RULES, name, noting)
    for name in MODELS:
        specimen = build(name)
        engine = GramEngine(specimen.model, cross_entropy, check_every=0)
        engine.gram(take(specimen.batch, slice(0, 5)))
    assert RULES.keys() - used == ELSEWHERE.keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", EACH)
def test_one_sample(name):
    specimen = build(name)
    expected, _ = reference(name)
    double = nn.Module.double(copy.deepcopy(specimen.model))
    gram = GramEngine(double, cross_entropy, check_every=0).gram(take(in_double(specimen.batch), [2], N))
    assert torch.allclose(gram.matrix[0, 0], expected[2, 2], rtol=1e-11)
    on_fallback = {name for name, route in gram.routes.items() if route.startswith("fallback")}
    assert on_fallback == set(specimen.fallback)


def test_engine_leaves_no_trace():
    specimen = build("resnet_with_batch_norm")
    model = specimen.model
    model.out.weight.grad = torch.ones_like(model.out.weight)
    before = copy.deepcopy(model.state_dict())
    attributes = {name: set(vars(part)) for name, part in model.named_modules()}
    hooks = {name: len(part._forward_hooks) + len(part._backward_hooks) for name, part in model.named_modules()}
    state = torch.get_rng_state()
    engine = GramEngine(model, cross_entropy)
    engine.gram(specimen.batch)
    engine.class_cosine(specimen.batch, specimen.batch[1], CLASSES)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert attributes == {name: set(vars(part)) for name, part in model.named_modules()}
    assert hooks == {name: len(part._forward_hooks) + len(part._backward_hooks) for name, part in model.named_modules()}
    assert torch.equal(model.out.weight.grad, torch.ones_like(model.out.weight))
    assert all(parameter.grad is None for name, parameter in model.named_parameters() if name != "out.weight")


def test_activations_are_freed_without_the_garbage_collector():
    kept = []

    class Recording(nn.Linear):
        def forward(self, x):
            result = super().forward(x)
            kept.append(weakref.ref(result))
            return result

    model = nn.Sequential(Recording(8, 8), nn.Tanh(), nn.Linear(8, CLASSES))
    gc.disable()
    try:
        GramEngine(model, cross_entropy, check_every=0).gram(build("mlp").batch)
        assert kept
        assert all(reference() is None for reference in kept)
    finally:
        gc.enable()


def test_fitted_samples_keep_their_direction():
    torch.manual_seed(0)
    model = nn.Linear(8, CLASSES)
    x, y = torch.randn(N, 8), torch.arange(N) % CLASSES
    optimizer = torch.optim.Adam(model.parameters(), 0.3)
    for _ in range(500):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    with torch.no_grad():
        model.weight *= 4
        model.bias *= 4
    expected, _ = loop_gram(model, cross_entropy, (x, y))
    losses = nn.functional.cross_entropy(model(x).double(), y, reduction="none")
    assert losses.max() < 1e-8  # float32 losses would all be zero here
    gram = GramEngine(model, cross_entropy).gram((x, y))
    norms, expected_norms = gram.norms, expected.diagonal().sqrt()
    cosines = gram.matrix / (norms[:, None] * norms)
    # The logits are large: their own rounding in float32 moves the probabilities by 1e-5 or so.
    assert torch.allclose(cosines, expected / (expected_norms[:, None] * expected_norms), atol=1e-3)
    assert not gram.zero.any()


def test_zero_gradients_are_reported():
    model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.ReLU(), nn.Linear(8, CLASSES, bias=False))
    x, y = build("mlp").batch
    x = x.clone()
    x[3] = 0
    gram = GramEngine(model, cross_entropy).gram((x, y))
    assert gram.zero.nonzero().flatten().tolist() == [3]
    assert gram.norms[3] == 0
    found = GramEngine(model, cross_entropy).class_cosine((x, y), y, CLASSES)
    assert found.zero.nonzero().flatten().tolist() == [3]
    assert found.counts.tolist() == [3, 3, 3, 2]
    assert torch.isfinite(found.matrix).all()


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6])
def test_small_batches(n):
    specimen = build("attention_time_first_with_as_many_positions_as_samples")
    batch = take(specimen.batch, slice(0, n))
    expected, _ = loop_gram(specimen.model, cross_entropy, batch)
    gram = GramEngine(specimen.model, cross_entropy).gram(batch)
    assert torch.allclose(gram.matrix, expected, rtol=1e-4, atol=1e-7)


def test_batch_size_may_change_between_calls():
    specimen = build("transformer_encoder_time_first")
    engine = GramEngine(specimen.model, cross_entropy)
    for n in (12, 5, 7):
        batch = take(specimen.batch, slice(0, n))
        expected, _ = loop_gram(specimen.model, cross_entropy, batch)
        assert torch.allclose(engine.gram(batch).matrix, expected, rtol=1e-4, atol=1e-7)


def test_freezing_between_calls_is_noticed():
    specimen = build("mlp")
    engine = GramEngine(specimen.model, cross_entropy)
    engine.gram(specimen.batch)
    specimen.model[0].requires_grad_(False)
    expected, _ = loop_gram(specimen.model, cross_entropy, specimen.batch)
    gram = engine.gram(specimen.batch)
    assert torch.allclose(gram.matrix, expected, rtol=1e-4, atol=1e-7)
    assert set(gram.routes) == {"2.weight", "2.bias", "4.weight", "4.bias"}


def test_routes_name_every_trainable_parameter():
    specimen = build("unused_parameter")
    routes = GramEngine(specimen.model, cross_entropy).gram(specimen.batch).routes
    assert routes["out.weight"] == routes["out.bias"] == "product of two Gram matrices"
    assert routes["unused.weight"] == "not used by the loss"


def test_explain_lists_each_parameter_with_its_cost():
    specimen = build("cnn")
    explanation = GramEngine(specimen.model, cross_entropy).explain(specimen.batch)
    text = str(explanation)
    for name, _ in specimen.model.named_parameters():
        assert name in text
    assert "Convolution" in text
    assert "12 samples at once" in text
    linear = next(row for row in explanation.rows if row.parameters == "6.weight + 6.bias")
    assert linear.flops == 12 * 13 * (20 + 4)
    distances = build("pairwise_distances")
    assert "fallback: no rule for CdistBackward0" in str(
        GramEngine(distances.model, cross_entropy).explain(distances.batch)
    )
    unused = build("unused_parameter")
    assert "not used by the loss" in str(GramEngine(unused.model, cross_entropy).explain(unused.batch))


@pytest.mark.parametrize("name", ["mlp", "cnn", "layer_norm", "embedding"])
def test_half_precision_weights(name):
    specimen = build(name)
    expected, _ = loop_gram(specimen.model, cross_entropy, specimen.batch)
    inputs, targets = specimen.batch
    half = copy.deepcopy(specimen.model).bfloat16()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gram = GramEngine(half, cross_entropy).gram(
            (inputs.bfloat16() if inputs.is_floating_point() else inputs, targets)
        )
    assert (gram.matrix - expected).norm() <= 0.1 * expected.norm()  # 8 bits of mantissa, several layers


class TestBadInput:
    def engine(self, loss=cross_entropy):
        return GramEngine(build("mlp").model, loss)

    def test_no_sample(self):
        with pytest.raises(StiffnessError, match="at least one sample"):
            self.engine().gram((torch.zeros(0, 8), torch.zeros(0, dtype=torch.long)))

    def test_frozen_model(self):
        with pytest.raises(StiffnessError, match="no trainable parameter"):
            GramEngine(build("mlp").model.requires_grad_(False), cross_entropy).gram(build("mlp").batch)

    def test_scalar_loss(self):
        with pytest.raises(StiffnessError, match=r'scalar.*reduction="none"'):
            self.engine(lambda module, batch: nn.functional.cross_entropy(module(batch[0]), batch[1])).gram(
                build("mlp").batch
            )

    def test_detached_loss(self):
        with pytest.raises(StiffnessError, match="no gradient"):
            self.engine(lambda module, batch: cross_entropy(module, batch).detach()).gram(build("mlp").batch)

    def test_nan_loss(self):
        x, y = build("mlp").batch
        x = x.clone()
        x[7, 0] = torch.nan
        with pytest.raises(StiffnessError, match="nan for sample 7"):
            self.engine().gram((x, y))

    @unchecked_types()
    def test_loss_that_is_no_tensor(self):
        with pytest.raises(StiffnessError, match="found list"):
            self.engine(lambda module, batch: [1.0]).gram(build("mlp").batch)

    def test_labels_out_of_range(self):
        with pytest.raises(StiffnessError, match=r"in \[0, 2\), found 0 to 3"):
            self.engine().class_cosine(build("mlp").batch, build("mlp").batch[1], 2)

    def test_wrong_number_of_targets(self):
        with pytest.raises(StiffnessError, match=r"shape \[12\]"), unchecked_types():
            self.engine().class_cosine(build("mlp").batch, torch.zeros(3, dtype=torch.long), 2)

    def test_budget(self):
        with pytest.raises(StiffnessError, match="budget"):
            GramEngine(build("mlp").model, cross_entropy, budget=0)

    def test_error_of_the_users_code_passes_through(self):
        def broken(module, batch):
            raise RuntimeError("mine")

        with pytest.raises(RuntimeError, match="mine"):
            self.engine(broken).gram(build("mlp").batch)
