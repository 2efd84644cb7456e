import pytest
import torch
from torch import nn

from lightning_stiffness.gram.saved_bytes import with_saved_bytes
from tests.zoo import build

FEATURES, SAMPLES = 8, 10


def test_what_a_graph_keeps_is_counted_without_its_parameters():
    model, x = nn.Sequential(nn.Linear(FEATURES, 5), nn.Tanh()), torch.randn(SAMPLES, FEATURES)
    computed, found = with_saved_bytes(lambda: model(x), list(model.parameters()))
    assert torch.equal(computed, model(x))
    assert found == 4 * SAMPLES * (FEATURES + 5)  # the input of the layer and the output of tanh


def test_outputs_count_where_saved_tensors_cannot_be():
    specimen = build("gradient_inside_the_forward_pass")
    parameters = list(specimen.model.parameters())
    computed, found = with_saved_bytes(lambda: specimen.model(specimen.inputs), parameters)
    assert torch.equal(computed, specimen.model(specimen.inputs))
    assert 10 * specimen.inputs.nbytes < found < 100 * specimen.inputs.nbytes


def test_other_failures_are_the_own_of_the_code():
    def fails():
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes do not fit"):
        with_saved_bytes(fails, [])
