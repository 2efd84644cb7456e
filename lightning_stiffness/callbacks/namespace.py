"""Lightning comes as `lightning` and as `pytorch_lightning`, two packages whose classes do not know each other.

The callbacks are built on the one that the user's program imported; on `lightning` when it imported both or none.
"""

import sys
from typing import TYPE_CHECKING, Any

from lightning_stiffness.errors import StiffnessError

if TYPE_CHECKING or "lightning.pytorch" in sys.modules or "pytorch_lightning" not in sys.modules:
    from lightning.pytorch import Trainer
    from lightning.pytorch.callbacks import Callback, EarlyStopping
    from lightning.pytorch.loggers.logger import DummyLogger
    from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
    from lightning.pytorch.utilities.seed import isolate_rng
else:
    from pytorch_lightning import Trainer
    from pytorch_lightning.callbacks import Callback, EarlyStopping
    from pytorch_lightning.loggers.logger import DummyLogger
    from pytorch_lightning.utilities import rank_zero_info, rank_zero_warn
    from pytorch_lightning.utilities.seed import isolate_rng

__all__ = [
    "Callback",
    "DummyLogger",
    "EarlyStopping",
    "Trainer",
    "isolate_rng",
    "rank_zero_info",
    "rank_zero_warn",
    "require_same_namespace",
]


def require_same_namespace(trainer: Any) -> None:
    """Refuses a Trainer of the other package, which would not recognise the callbacks.

    Raises:
        StiffnessError: The Trainer belongs to the other package.
    """
    if not isinstance(trainer, Trainer):
        found = next(
            (kind.__module__ for kind in type(trainer).__mro__ if kind.__module__.endswith("trainer.trainer")),
            type(trainer).__module__,
        )
        raise StiffnessError(
            f"The callbacks are built on {Trainer.__module__.split('.')[0]!r}, but the Trainer is one of "
            f"{found.split('.')[0]!r}: the two do not know each other's classes. Import only one of the two packages, "
            "before lightning_stiffness."
        )
