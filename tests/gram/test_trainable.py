import pytest
import torch
from torch import nn

from lightning_stiffness.errors import StiffnessError
from lightning_stiffness.gram import GramEngine
from tests.oracle import cross_entropy, loop_gradients, loop_gram

SAMPLES, FEATURES, CLASSES = 12, 6, 4
BATCH = torch.randn(SAMPLES, FEATURES, generator=torch.Generator().manual_seed(0)), torch.arange(SAMPLES) % CLASSES


class Complex(nn.Module):
    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.weight = nn.Parameter(torch.randn(FEATURES, 8, dtype=torch.cfloat, generator=generator) * 0.3)
        self.out = nn.Linear(8, CLASSES)

    def complex_weight(self):
        return self.weight

    def forward(self, x):
        weight = self.complex_weight()
        return self.out((x.to(weight.dtype) @ weight).abs())


class TwoParts(Complex):
    """The same, with real and imaginary parts as a real parameter."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.view_as_real(self.weight.detach()).clone())

    def complex_weight(self):
        return torch.view_as_complex(self.weight)


@pytest.mark.parametrize("check_every", [0, 20])
def test_complex_parameters_are_refused_with_a_remedy(check_every):
    with pytest.raises(StiffnessError, match=r"found weight, which is complex64.*view_as_real") as caught:
        GramEngine(Complex(), cross_entropy, check_every=check_every).gram(BATCH)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("check_every", [0, 20])
def test_the_remedy_for_complex_parameters(check_every):
    model = TwoParts()
    expected, _ = loop_gram(model, cross_entropy, BATCH)
    found = GramEngine(model, cross_entropy, check_every=check_every).gram(BATCH).matrix
    assert (found - expected).norm() <= 1e-5 * expected.norm()  # float32 activations and gradients


def test_a_complex_parameter_that_is_frozen_is_no_obstacle():
    model = Complex()
    model.weight.requires_grad_(False)
    gradients = loop_gradients(model, cross_entropy, BATCH).double()
    expected = gradients @ gradients.T
    assert (GramEngine(model, cross_entropy).gram(BATCH).matrix - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.xfail(reason="products of complex gradients are not implemented", strict=True, raises=StiffnessError)
def test_limit_complex_parameters():
    GramEngine(Complex(), cross_entropy).gram(BATCH)
