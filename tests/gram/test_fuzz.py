"""Random small networks: the engine by every route against a loop of backward passes in float64.

`STIFFNESS_FUZZ=5000 pytest tests/gram/test_fuzz.py` tries as many other networks, drawn anew each time.
"""

import os
import warnings

import pytest
import torch
from hypothesis import HealthCheck, currently_in_test_context, event, given, settings

from lightning_stiffness.batching import take
from lightning_stiffness.gram import GramEngine
from tests.fuzz_architectures import SEQUENCE, VECTOR, Description, Step, descriptions

EXAMPLES = int(os.environ.get("STIFFNESS_FUZZ", "0"))


def fuzzing(examples):
    """Settings: the same examples each time, unless many are asked for."""
    return settings(
        max_examples=EXAMPLES or examples,
        deadline=None,
        derandomize=not EXAMPLES,
        database=None,
        suppress_health_check=list(HealthCheck),
        print_blob=not EXAMPLES,
    )


def gradients_of(module, description, batch):
    """[n, p]; a sample in a batch of two copies, since torch has faults of its own in batches of one."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    rows = []
    for k in range(description.samples):
        loss = description.loss_of(module, take(batch, [k, k]))[0]
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        pairs = zip(found, parameters, strict=True)
        rows.append(torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs]))
    return torch.stack(rows).double()


def error_of(matrix, expected):
    """Of K, relative to |K|, or to a gradient of 1e-6 where there is none."""
    return float((matrix - expected).norm() / expected.norm().clamp_min(1e-12))


def mean_cosines(gram, targets, classes):
    """Mean cosines over pairs of different samples, by masks; samples without a gradient are left out."""
    norms = gram.diagonal().clamp_min(0).sqrt()
    alive = norms > 0
    cosines = gram / torch.where(alive, norms, 1)[:, None] / torch.where(alive, norms, 1)
    members = torch.nn.functional.one_hot(targets, classes).double() * alive[:, None]
    off = 1 - torch.eye(len(gram), dtype=torch.double)
    return (members.T @ (cosines * off) @ members) / (members.T @ off @ members)


class Case:
    """A network and what its Gram matrix has to be."""

    def __init__(self, description):
        self.description = description
        self.model, self.batch = description.build()
        twin, batch = description.build(double=True)
        gradients = gradients_of(twin, description, batch)
        self.expected = gradients @ gradients.T
        self.tolerance = 1e-9
        if not description.double:  # what float32 can do: a plain loop in float32, and room for another order of sums
            own = gradients_of(self.model, description, self.batch)
            self.tolerance = 2e-5 + 20 * error_of(own @ own.T, self.expected)

    @property
    def measurable(self):
        """Whether there is a gradient at all; relu and max-pooling may leave none, then K is rounding noise."""
        return bool(self.expected.diagonal().min() > 1e-12)

    def engine(self, **settings):
        return GramEngine(self.model, self.description.loss_of, **settings)


def note_routes(gram):
    """What fell back, for `--hypothesis-show-statistics`."""
    if currently_in_test_context():
        for route in {route.split(";")[0] for route in gram.routes.values()}:
            event(route)


def compare_routes(description, budget):
    """Every route without the self-check, which would mend a wrong rule."""
    case = Case(description)
    whole = case.engine(check_every=0).gram(case.batch)
    note_routes(whole)
    assert error_of(whole.matrix, case.expected) <= case.tolerance
    chunked = case.engine(check_every=0, budget=budget).gram(case.batch)
    assert error_of(chunked.matrix, case.expected) <= case.tolerance
    if case.measurable:
        targets = torch.arange(description.samples) * 2 % 3
        expected = mean_cosines(case.expected, targets, 4)
        for memory in (budget, 1 << 30):
            found = case.engine(check_every=0, budget=memory).class_cosine(case.batch, targets, 4).matrix
            assert torch.allclose(found, expected, rtol=0, atol=1e-6 + 10 * case.tolerance, equal_nan=True)


def compare_checked(description):
    """As users run it: a warning of the self-check is a failure."""
    case = Case(description)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engine = case.engine(check_every=1)
        for _ in range(2):
            assert error_of(engine.gram(case.batch).matrix, case.expected) <= case.tolerance


NETWORKS = descriptions()
BUDGETS = (200, 3_000, 40_000)


@pytest.mark.slow
@fuzzing(25)
@given(NETWORKS)
def test_random_networks_by_every_route(description):
    compare_routes(description, BUDGETS[description.seed % len(BUDGETS)])


@pytest.mark.slow
@fuzzing(15)
@given(NETWORKS)
def test_random_networks_with_the_self_check(description):
    compare_checked(description)


@pytest.mark.slow
@fuzzing(60)
@given(descriptions(most_steps=8))
def test_many_random_networks_by_every_route(description):
    compare_routes(description, BUDGETS[description.seed % len(BUDGETS)])


@pytest.mark.slow
@fuzzing(40)
@given(descriptions(most_steps=8))
def test_many_random_networks_with_the_self_check(description):
    compare_checked(description)


def test_a_description_prints_what_builds_it_again():
    description = Description(SEQUENCE, (Step("attention", 1, 2, 3), Step("pooling_of_positions")), samples=2)
    again = eval(repr(description))
    assert again == description
    first, second = description.build()[0], again.build()[0]
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_the_comparison_sees_a_lost_parameter(monkeypatch):
    description = Description(VECTOR, (Step("linear", 2, 1), Step("layer_norm")))
    original = GramEngine.gram

    def without_biases(self, batch):
        for name, parameter in self.module.named_parameters():
            parameter.requires_grad_(not name.endswith("bias"))
        return original(self, batch)

    monkeypatch.setattr(GramEngine, "gram", without_biases)
    with pytest.raises(AssertionError):
        compare_routes(description, 3_000)
