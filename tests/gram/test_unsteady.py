import random

import numpy as np
import pytest
import torch
from torch import nn

from lightning_stiffness.errors import StiffnessError
from lightning_stiffness.gram import GramEngine
from lightning_stiffness.gram.unsteady import remedy
from tests.oracle import cross_entropy
from tests.specimens import CLASSES, head, vectors

BATCH = vectors(), torch.arange(12) % CLASSES


class Steady(nn.Module):
    def __init__(self):
        super().__init__()
        self.out = head()

    def forward(self, x):
        return self.out(x)


class OwnGenerator(Steady):
    def __init__(self):
        super().__init__()
        self.noise = torch.Generator().manual_seed(0)

    def forward(self, x):
        return self.out(x + torch.randn(x.shape, generator=self.noise))


class OwnNumpyGenerator(Steady):
    def __init__(self):
        super().__init__()
        self.noise = np.random.default_rng(0)

    def forward(self, x):
        return self.out(x + torch.as_tensor(self.noise.standard_normal(x.shape), dtype=x.dtype))


class OwnPythonGenerator(Steady):
    def __init__(self):
        super().__init__()
        self.noise = random.Random(0)

    def forward(self, x):
        return self.out(x * (1 + self.noise.random()))


class Codebook(Steady):
    """Its codes follow what they see, in eval mode too."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Module()
        self.inner.register_buffer("codes", torch.zeros(8))

    def forward(self, x):
        self.inner.codes.mul_(0.9).add_(x.detach().mean(0))
        return self.out(x - self.inner.codes.clone())


class Replaced(Steady):
    centre = 0.0

    def forward(self, x):
        self.centre = 0.9 * torch.as_tensor(self.centre) + x.detach().mean()
        return self.out(x - self.centre)


class Observer(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("largest", torch.zeros(()))


class Quantised(Steady):
    def __init__(self):
        super().__init__()
        self.activation_post_process = Observer()

    def forward(self, x):
        self.activation_post_process.largest.add_(x.detach().abs().max())
        return self.out(x / self.activation_post_process.largest.clone())


class GlobalNoise(Steady):
    def forward(self, x):
        return self.out(nn.functional.dropout(x))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (OwnGenerator, "generator of its own, noise,.*stiffness_step"),
        (OwnNumpyGenerator, "generator of its own, noise,"),
        (OwnPythonGenerator, "generator of its own, noise,"),
        (Codebook, "forward pass changes inner.codes, in eval mode too.*if self.training"),
        (Replaced, "forward pass changes centre,"),
        (Quantised, "disable_observer"),
        (GlobalNoise, "functional.dropout without training=self.training"),
    ],
)
def test_what_changes_from_call_to_call_in_eval_mode_is_named(kind, message):
    torch.manual_seed(0)
    model = kind().eval()
    with pytest.raises(StiffnessError, match=f"same each time.*{message}") as caught:
        GramEngine(model, cross_entropy).gram(BATCH)
    assert "Call module.eval()" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_in_training_mode_the_mode_is_to_blame():
    class DropPath(nn.Module):
        pass

    model = Steady()
    model.drop = DropPath()
    assert "Call module.eval()" in remedy(model, lambda: None)
