"""Parts of the Gram matrix: by groups of parameters, within classes, across batches."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_stiffness.batching import take
from lightning_stiffness.errors import StiffnessError
from lightning_stiffness.functional import class_matrix, cosine_stiffness
from lightning_stiffness.gram import GramEngine
from lightning_stiffness.gram.totals import by_class, layer_of
from tests.oracle import cross_entropy, loop_gram
from tests.unchecked import unchecked_types
from tests.zoo import CLASSES, N, build

KINDS = [
    *("mlp", "cnn", "resnet_with_batch_norm", "transformer_encoder_time_first", "tied_embedding", "lstm"),
    *("parametrized_weight_norm", "convolution_with_large_filters", "weight_used_raw_and_normalised"),
    *("experts_chosen_by_value", "convolutions_over_the_batch_axis"),
]
BUDGETS = [pytest.param(500, marks=pytest.mark.slow), 1 << 30]


def engine_of(name, budget=1 << 30):
    specimen = build(name)
    return GramEngine(specimen.model, cross_entropy, budget=budget), specimen


def expected_parts(specimen, group_of):
    _, gradients = loop_gram(specimen.model, cross_entropy, specimen.batch)
    named = [(name, parameter) for name, parameter in specimen.model.named_parameters() if parameter.requires_grad]
    columns = gradients.split([parameter.numel() for _, parameter in named], 1)
    parts = {}
    for (name, _), rows in zip(named, columns, strict=True):
        parts[group_of(name)] = parts.get(group_of(name), 0) + rows @ rows.T
    return parts


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("by", ["layer", "parameter"])
def test_parts_are_those_of_a_loop_and_add_up(name, budget, by):
    engine, specimen = engine_of(name, budget)
    gram = engine.gram(specimen.batch, by=by)
    expected = expected_parts(specimen, layer_of if by == "layer" else lambda name: name)
    assert set(gram.parts) == set(expected)
    scale = sum(part.norm() for part in expected.values())
    for group, part in expected.items():
        assert (gram.parts[group] - part).norm() <= 1e-5 * scale, group
    assert torch.allclose(sum(gram.parts.values()), gram.matrix)


def test_groups_may_be_any_function_of_the_name():
    engine, specimen = engine_of("mlp")
    gram = engine.gram(specimen.batch, by=lambda name: "biases" if name.endswith("bias") else "weights")
    whole = engine.gram(specimen.batch)
    assert set(gram.parts) == {"biases", "weights"}
    assert torch.allclose(gram.matrix, whole.matrix)
    assert whole.parts == {}


def test_parameters_of_the_model_itself_are_a_layer():
    assert layer_of("scale") == "(root)"
    assert layer_of("blocks.0.linear.weight") == "blocks.0.linear"


@pytest.mark.parametrize("by", ["layers", "module", ""])
def test_an_unknown_grouping_is_named(by):
    engine, specimen = engine_of("mlp")
    with pytest.raises(StiffnessError, match="by must be"):
        engine.gram(specimen.batch, by=by)


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("budget", BUDGETS)
def test_within_computes_the_pairs_of_equal_class_and_no_other(name, budget):
    engine, specimen = engine_of(name, budget)
    targets = torch.tensor([3, 0, 1, 1, 0, 3, 0, 1, 1, 0, 2, 0])
    gram = engine.gram(specimen.batch, within=targets)
    whole = engine.gram(specimen.batch)
    same = targets[:, None] == targets
    assert torch.equal(gram.matrix.isnan(), ~same)
    assert torch.allclose(gram.matrix[same], whole.matrix[same], atol=1e-5 * float(whole.matrix.norm()))
    assert torch.allclose(gram.losses, whole.losses, rtol=1e-6)
    within = class_matrix(gram.cosines, targets, targets, CLASSES)
    expected = cosine_stiffness(whole.matrix, targets, CLASSES)
    assert torch.allclose(within.diagonal(), expected.diagonal(), atol=1e-5, equal_nan=True)
    assert bool(within[~torch.eye(CLASSES, dtype=torch.bool)].isnan().all())


def test_within_and_by_go_together():
    engine, specimen = engine_of("cnn")
    gram = engine.gram(specimen.batch, within=specimen.batch[1], by="layer")
    same = specimen.batch[1][:, None] == specimen.batch[1]
    assert torch.allclose(sum(gram.parts.values())[same], gram.matrix[same])


@pytest.mark.parametrize("targets", [torch.zeros(3, dtype=torch.long), torch.zeros(N)])
def test_within_wants_a_class_for_each_sample(targets):
    engine, specimen = engine_of("mlp")
    with unchecked_types(), pytest.raises(StiffnessError, match="integers of shape"):
        engine.gram(specimen.batch, within=targets)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("budget", BUDGETS)
def test_cross_gram_is_a_block_of_the_whole(name, budget):
    engine, specimen = engine_of(name, budget)
    whole = engine.gram(specimen.batch)
    cross = engine.cross_gram(take(specimen.batch, slice(0, 5), N), take(specimen.batch, slice(5, N), N))
    scale = float(whole.matrix.norm())
    assert torch.allclose(cross.matrix, whole.matrix[:5, 5:], atol=1e-5 * scale)
    assert torch.allclose(cross.row_norms, whole.norms[:5], rtol=1e-4)
    assert torch.allclose(cross.column_norms, whole.norms[5:], rtol=1e-4)
    assert torch.allclose(torch.cat([cross.row_losses, cross.column_losses]), whole.losses, rtol=1e-6)
    expected = whole.matrix / whole.norms / whole.norms[:, None]
    assert torch.allclose(cross.cosines, expected[:5, 5:], atol=1e-4)
    assert set(cross.routes) == set(whole.routes)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("budget", BUDGETS)
def test_with_the_first_batch_the_rows_are_those_of_the_whole(name, budget):
    engine, specimen = engine_of(name, budget)
    whole = engine.gram(specimen.batch, by="layer")
    cross = engine.cross_gram(
        take(specimen.batch, slice(0, 5), N), take(specimen.batch, slice(5, N), N), by="layer", with_first=True
    )
    scale = float(whole.matrix.norm())
    assert torch.allclose(cross.matrix, whole.matrix[:5], atol=1e-5 * scale)
    assert list(cross.parts) == list(whole.parts)
    for layer, part in cross.parts.items():
        assert torch.allclose(part, whole.parts[layer][:5], atol=1e-5 * scale)
    assert torch.allclose(cross.column_norms, whole.norms, rtol=1e-4)
    assert torch.allclose(cross.column_losses, whole.losses, rtol=1e-6)
    assert torch.allclose(cross.cosines.diagonal(), torch.ones(()).double(), atol=1e-5)


def test_the_layers_of_a_cross_gram_add_up():
    engine, specimen = engine_of("cnn")
    first, second = take(specimen.batch, slice(0, 5), N), take(specimen.batch, slice(5, N), N)
    cross = engine.cross_gram(first, second, by="layer")
    assert torch.allclose(sum(cross.parts.values()), engine.cross_gram(first, second).matrix, rtol=1e-5)


def test_batches_that_do_not_fit_one_another_are_refused():
    engine, specimen = engine_of("mlp")
    inputs, targets = specimen.batch
    with pytest.raises(StiffnessError, match="shape"):
        engine.cross_gram((inputs, targets), (inputs[:, :5], targets))


@given(targets=st.lists(st.integers(0, 4), min_size=1, max_size=20))
def test_class_blocks_hold_each_pair_of_a_class_once(targets):
    request = by_class(targets)
    assert sorted(request.order) == list(range(len(targets)))
    covered = [
        (request.order[row], request.order[column])
        for block in request.blocks
        for row in block.rows
        for column in block.columns
    ]
    same = {(i, j) for i, a in enumerate(targets) for j, b in enumerate(targets) if a == b}
    assert len(covered) == len(same)
    assert set(covered) == same
