import pytest
import torch
from torch import nn

from lightning_stiffness.callbacks.balancing_head import HeadHooks, classifier_of
from lightning_stiffness.errors import StiffnessError


def test_the_layer_with_an_output_per_class_is_found():
    model = nn.ModuleDict({"body": nn.Linear(4, 8), "head": nn.Linear(8, 3), "norm": nn.LayerNorm(3)})
    assert classifier_of(model, 3)[0] == "head"
    assert classifier_of(model, None, "norm") == ("norm", model["norm"])


def test_a_frozen_teacher_is_passed_over():
    model = nn.ModuleDict({"teacher": nn.Linear(4, 3).requires_grad_(False), "student": nn.Linear(4, 3)})
    assert classifier_of(model, 3)[0] == "student"
    model["student"].requires_grad_(False)
    with pytest.raises(StiffnessError, match="found 2 of 2"):
        classifier_of(model, 3)


class Adapted(nn.Module):
    """As LoRA libraries wrap a layer."""

    def __init__(self, base):
        super().__init__()
        self.base_layer = base.requires_grad_(False)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(base.in_features, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, base.out_features, bias=False)})

    def forward(self, x):
        return self.base_layer(x) + 4 * self.lora_B["default"](self.lora_A["default"](x))


def test_a_frozen_layer_and_its_adapter_are_one_head():
    model = nn.Sequential(nn.Linear(4, 8), Adapted(nn.Linear(8, 3)))
    assert classifier_of(model, 3) == ("1", model[1])
    teacher = nn.Sequential(nn.Linear(4, 3)).requires_grad_(False)
    assert classifier_of(nn.ModuleDict({"teacher": teacher, "student": model}), 3) == ("student.1", model[1])


def test_one_logit_for_two_classes():
    with pytest.raises(StiffnessError, match=r"found 1 output of '1'.*not supported. Give it two outputs"):
        classifier_of(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 1)), 2)


def test_the_number_of_classes_is_asked_for():
    with pytest.raises(StiffnessError, match=r"must be known to find the classifier.*Pass num_classes= or counts="):
        classifier_of(nn.Linear(4, 8), None)


@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_lazy_layers_are_known_by_their_outputs():
    model = nn.Sequential(nn.Linear(4, 8), nn.LazyLinear(3))
    assert classifier_of(model, 3)[0] == "1"


def test_hooks_act_in_training_mode_and_until_they_are_removed():
    layer = nn.Linear(2, 2)
    x = torch.ones(1, 2)
    plain = layer(x)
    hooks = HeadHooks(layer, lambda features: 2 * features, lambda logits: logits + 1, "head")
    assert torch.allclose(layer(x), nn.functional.linear(2 * x, layer.weight, layer.bias) + 1)
    layer.eval()
    assert torch.equal(layer(x), plain)
    layer.train()
    hooks.remove()
    assert torch.equal(layer(x), plain)


def test_outputs_that_are_no_matrix():
    layer = nn.LSTM(2, 3)
    HeadHooks(layer, lambda features: features, lambda logits: logits, "head")
    with pytest.raises(StiffnessError, match=r"output of the classifier 'head' must be a matrix .* found tuple"):
        layer(torch.ones(1, 2))
