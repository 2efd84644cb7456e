"""Gradients made up for the tests: small integers that bring zeros and ties, and noise around class means."""

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor


@dataclass(frozen=True)
class Labelled:
    """Gradients of some samples with their classes."""

    gradients: Tensor
    targets: Tensor
    num_classes: int

    @property
    def gram(self) -> Tensor:
        return self.gradients @ self.gradients.T


@st.composite
def labelled(draw: st.DrawFn, max_samples: int = 9, max_classes: int = 4) -> Labelled:
    """Few samples with small whole entries: zero gradients, equal samples, empty and one-sample classes all occur."""
    samples, num_classes = draw(st.integers(1, max_samples)), draw(st.integers(1, max_classes))
    row = st.lists(st.integers(-2, 2), min_size=2, max_size=2)
    gradients = draw(st.lists(row, min_size=samples, max_size=samples))
    targets = draw(st.lists(st.integers(0, num_classes - 1), min_size=samples, max_size=samples))
    return Labelled(torch.tensor(gradients, dtype=torch.float64), torch.tensor(targets), num_classes)


def random_labelled(seed: int, samples: int = 24, num_classes: int = 4, parameters: int = 6) -> Labelled:
    """Class means plus noise of about their size."""
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(num_classes, parameters, generator=generator, dtype=torch.float64)
    targets = torch.randint(num_classes, (samples,), generator=generator)
    noise = torch.randn(samples, parameters, generator=generator, dtype=torch.float64)
    return Labelled(means[targets] + noise, targets, num_classes)
