"""What to say where a batch has other losses each time it is measured."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Final

from torch import Tensor, nn

from lightning_stiffness.gram.modes import in_training_mode
from lightning_stiffness.random_states import GENERATORS

NAMED: Final = 3  # attributes in a message
_OR_INSTEAD: Final = (
    "or measure a loss without it (`stiffness_step(self, batch) -> (losses [n], targets [n])` on a LightningModule, or "
    "`loss=`)."
)


def remedy(module: nn.Module, evaluate: Callable[[], object]) -> str:
    """What to do about losses that change from call to call, as far as can be seen what makes them change.

    Args:
        module: The model.
        evaluate: Computes the losses once more.
    """
    if in_training_mode(module):
        return "Call module.eval() before measuring, or take the randomness out of the loss."
    generators = [name for name, value in _attributes(module) if isinstance(value, GENERATORS)]
    before = _versions(module)
    evaluate()
    after = _versions(module)
    changed = [name for name in after if before.get(name) != after[name]]
    if any("activation_post_process" in name for name in changed):
        return (
            f"The observers of quantisation-aware training see each batch ({_listed(changed)}): measure a loss that "
            "begins with `self.apply(torch.ao.quantization.disable_observer)`, in stiffness_step or `loss=`."
        )
    if changed:
        return (
            f"The forward pass changes {_listed(changed)}, in eval mode too: change that only `if self.training`, "
            f"{_OR_INSTEAD}"
        )
    if generators:
        return (
            f"The module draws from a generator of its own, {_listed(generators)}, in eval mode too: draw only "
            f"`if self.training`, {_OR_INSTEAD}"
        )
    return (
        "The code draws random numbers in eval mode too (torch.rand, functional.dropout without "
        f"training=self.training): draw only `if self.training`, {_OR_INSTEAD}"
    )


def _attributes(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Attributes and buffers of all parts, by their names from the module on."""
    for prefix, part in module.named_modules():
        for name, value in (*vars(part).items(), *part._buffers.items()):
            yield f"{prefix}.{name}" if prefix else name, value


def _versions(module: nn.Module) -> dict[str, tuple[int, int]]:
    versions: dict[str, tuple[int, int]] = {}
    for name, value in _attributes(module):
        if isinstance(value, Tensor):
            with contextlib.suppress(RuntimeError):  # tensors of inference mode have no version
                versions[name] = id(value), value._version
    return versions


def _listed(names: list[str]) -> str:
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
