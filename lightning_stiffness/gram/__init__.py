"""The Gram matrix of per-sample loss gradients: `GramEngine` and what it returns. Needs torch only, no Lightning."""

from lightning_stiffness.gram.engine import GramEngine
from lightning_stiffness.gram.results import ClassCosine, CrossGram, Explanation, Gram

__all__ = ["ClassCosine", "CrossGram", "Explanation", "Gram", "GramEngine"]
