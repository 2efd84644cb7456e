"""The Gram matrix of per-sample loss gradients: `GramEngine` and what it returns. Needs torch only, no Lightning."""

from lightning_stiffness.gram.engine import GramEngine
from lightning_stiffness.gram.results import ClassAlignment, ClassCosine, CrossGram, Explanation, Gram

__all__ = ["ClassAlignment", "ClassCosine", "CrossGram", "Explanation", "Gram", "GramEngine"]
