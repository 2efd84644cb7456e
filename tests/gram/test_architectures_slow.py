"""The engine on architectures of other people's libraries; `make test-architectures` installs them."""

import copy
import warnings

import pytest
import torch

from lightning_stiffness.batching import take
from lightning_stiffness.gram import GramEngine
from tests.architectures import ARCHITECTURES, N, build
from tests.oracle import cross_entropy, in_double

pytestmark = [
    pytest.mark.architectures,
    pytest.mark.filterwarnings("default"),  # what other people's code says about itself; the engine's is looked at
]


def gradients_of_pairs(model, batch):
    """For each trainable parameter its gradients [n, q], one sample at a time in a batch of two copies of it.

    Torch (2.13, CPU) returns wrong gradients for a batch of one in eval BatchNorm, where what follows takes the image
    as a sequence.
    """
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    rows = {name: [] for name in named}
    for sample in range(N):
        loss = cross_entropy(model, take(batch, [sample, sample]))[0]
        found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
        for (name, parameter), gradient in zip(named.items(), found, strict=True):
            rows[name].append((torch.zeros_like(parameter) if gradient is None else gradient).flatten())
    return {name: torch.stack(own) for name, own in rows.items()}


def gram_of(gradients):
    return sum(own.double() @ own.double().T for own in gradients.values())


def distance(matrix, expected):
    return float((matrix - expected).norm() / expected.norm())


def if_installed(name):
    package = ARCHITECTURES[name].package
    reason = f"{package} is not installed: make test-architectures installs it"
    return pytest.param(name, marks=pytest.mark.skipif(not ARCHITECTURES[name].installed, reason=reason))


@pytest.mark.parametrize("name", [if_installed(name) for name in ARCHITECTURES])
def test_gram_equals_a_loop_of_backwards(name):
    architecture = ARCHITECTURES[name]
    model, batch = build(name)
    double = copy.deepcopy(model).double()
    gradients = gradients_of_pairs(double, in_double(batch))
    expected = gram_of(gradients)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        gram = GramEngine(model, cross_entropy).gram(batch)
    assert not [str(one.message) for one in caught if "disagreed" in str(one.message)]
    error = distance(gram.matrix, expected)
    if error > 1e-5:  # a deep network: float32 itself, by a plain loop, is no better
        assert error <= 5 * distance(gram_of(gradients_of_pairs(model, batch)), expected)
    on_fallback = {name: route for name, route in gram.routes.items() if route.startswith("fallback")}
    assert set(on_fallback) == {one for one in gram.routes if architecture.fallback and architecture.fallback in one}
    if not architecture.is_float32_inside:
        compare_small_parameters_too(double, in_double(batch), gradients)
    print(f"{name}: error {error:.1e}, {len(gram.routes)} parameters, {len(on_fallback)} on the fallback")


def compare_small_parameters_too(model, batch, gradients):
    """Small gradients hide behind large ones: measures again with the large ones frozen, until little is left."""
    whole, parameters = float(gram_of(gradients).trace()), dict(model.named_parameters())
    left = dict(gradients)
    while left:
        expected = gram_of(left)
        if float(expected.trace()) <= 1e-18 * whole:  # gradients that are zero but for rounding
            return
        assert distance(GramEngine(model, cross_entropy, check_every=0).gram(batch).matrix, expected) <= 1e-7, list(
            left
        )
        shares = {name: float(own.square().sum()) for name, own in left.items()}
        large = [name for name, share in shares.items() if share >= 1e-5 * max(shares.values())]
        for name in large:
            parameters[name].requires_grad_(False)
            del left[name]


CACHED = (
    "in eval mode it keeps a tensor of the first forward pass with its graph: a second backward pass is impossible in "
    "plain torch, too"
)


@pytest.mark.parametrize("name", [if_installed("timm-levit_128s")])
@pytest.mark.xfail(strict=True, raises=RuntimeError, reason=CACHED)
def test_a_model_that_keeps_its_graph(name):
    model, batch = build(name)
    GramEngine(model.eval(), cross_entropy).gram(batch)
