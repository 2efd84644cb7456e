"""One function per kind of autograd node: the per-sample gradients of the parameters which it consumes.

A rule is given the node, the input slots that hold wanted parameters, the node's output gradient and the layout of the
batch, and returns factors, keyed by the slots they cover. It states the layer's algebra once; Gram matrices, norms and
class sums follow. A node without a rule, or one whose rule declines, sends its parameters to the fallback route.
"""

from lightning_stiffness.gram.rules import (  # noqa: F401 (they register their rules)
    convolutions,
    linear_maps,
    norms,
    pointwise,
    tables,
)
from lightning_stiffness.gram.rules.registry import RULES as RULES
from lightning_stiffness.gram.rules.registry import rule_of as rule_of
