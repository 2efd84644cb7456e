"""A run with a monitor is the run without it, bit by bit."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import Logger
from torch.utils.data import DataLoader

from lightning_stiffness import StiffnessEarlyStopping, StiffnessMonitor
from tests.callbacks.modules import QUIET, NoisyDataset, Rich, loader, trainer
from tests.unchecked import unchecked_types

pytestmark = QUIET
OURS = ("stiffness/", "balancing/")  # first parts of what we log


class Memory(Logger):
    """Keeps what is logged."""

    name, version = "memory", 0

    def __init__(self) -> None:
        self.rows: list[tuple[int | None, dict[str, float]]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.append((step, {k: v for k, v in metrics.items() if not k.startswith(OURS)}))

    def log_hyperparams(self, params: Any) -> None:
        """Not kept."""


class Trace(Callback):
    """What can be seen of a module at each step, before and after the monitor had its turn."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        gradients = [None if p.grad is None else p.grad.clone() for p in pl_module.parameters()]
        flags = [module.training for module in pl_module.modules()]
        self.seen.append((gradients, flags, pl_module.accuracy.metric_state, float(outputs["loss"])))


def fitted(callbacks: list[Callback], tmp_path: Any, **loading: Any) -> dict[str, Any]:
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002
    torch.manual_seed(3)
    module, memory, trace = Rich(), Memory(), Trace()
    run = trainer(
        [*callbacks, trace],
        logger=memory,
        log_every_n_steps=1,
        max_epochs=3,
        accumulate_grad_batches=2,
        gradient_clip_val=0.5,
        default_root_dir=tmp_path,
    )
    train = DataLoader(NoisyDataset(), batch_size=8, shuffle=True, **loading)
    run.fit(module, train, loader(24, shuffle=False))
    metrics = {key: value for key, value in run.callback_metrics.items() if not key.startswith(OURS)}
    return {
        "weights": module.state_dict(),
        "optimizer": run.optimizers[0].state_dict(),
        "rates": run.lr_scheduler_configs[0].scheduler.get_last_lr(),
        "gradients": [None if p.grad is None else p.grad.clone() for p in module.parameters()],
        "random": (random.getstate(), np.random.get_state(), torch.get_rng_state()),  # noqa: NPY002
        "module": (module.order, module.noise, module.calls, module.accuracy.metric_state, sorted(vars(module))),
        "logged": memory.rows,
        "metrics": metrics,
        "trace": trace.seen,
    }


def assert_identical(first: Any, second: Any, path: str = "") -> None:
    assert type(first) is type(second), path
    if isinstance(first, torch.Tensor):
        assert first.dtype == second.dtype, path
        assert torch.equal(first, second), path
    elif isinstance(first, np.ndarray):
        assert np.array_equal(first, second), path
    elif isinstance(first, dict):
        assert list(first) == list(second), path
        for key in first:
            assert_identical(first[key], second[key], f"{path}.{key}")
    elif isinstance(first, list | tuple):
        assert len(first) == len(second), path
        for index, pair in enumerate(zip(first, second, strict=True)):
            assert_identical(*pair, f"{path}[{index}]")
    else:
        assert first == second, path


def without_empty_logs(rows: list[Any]) -> list[Any]:
    return [row for row in rows if row[1]]


def assert_neutral(callbacks: list[Callback], tmp_path: Any, **loading: Any) -> None:
    without, with_callbacks = fitted([], tmp_path, **loading), fitted(callbacks, tmp_path, **loading)
    with_callbacks["logged"] = without_empty_logs(with_callbacks["logged"])
    assert_identical(without, with_callbacks)


@pytest.mark.parametrize(
    ("mode", "every_n_steps"),
    [
        ("train", 0),
        ("val", 3),
        ("cross", 1),
        *(
            pytest.param(mode, every, marks=pytest.mark.slow)
            for mode, every in (("train", 1), ("train", 3), ("val", 0), ("val", 1), ("cross", 0), ("cross", 3))
        ),
    ],
)
@pytest.mark.slow
def test_training_is_unchanged(mode, every_n_steps, tmp_path):
    monitor = StiffnessMonitor(mode=mode, every_n_steps=every_n_steps, probe_size=18)
    assert_neutral([monitor], tmp_path)
    assert len(monitor.history) == {0: 4, 1: 13, 3: 7}[every_n_steps]


@unchecked_types()  # the checker draws random numbers of Python's to look into dicts
@pytest.mark.slow
def test_training_is_unchanged_by_a_stopper_that_does_not_stop(tmp_path):
    stopper = StiffnessEarlyStopping(patience=50, restore="stop")
    assert_neutral([stopper], tmp_path)
    assert len(stopper.history) == 4


def test_training_is_unchanged_where_measuring_fails(tmp_path):
    def loss(module, batch):
        torch.rand(3)
        module.calls += 1
        module.order.append(batch)
        raise RuntimeError("no")

    with pytest.warns(UserWarning, match="could not be measured"):
        assert_neutral([StiffnessMonitor(loss=loss, probe_size=18)], tmp_path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_training_is_unchanged_with_persistent_workers(tmp_path):
    monitor = StiffnessMonitor(every_n_steps=3, probe_size=18)
    assert_neutral([monitor], tmp_path, num_workers=2, persistent_workers=True, multiprocessing_context="fork")


def test_the_comparison_sees_a_difference(tmp_path):
    class Draws(Callback):
        def on_train_end(self, trainer, pl_module):
            torch.rand(1)

    with pytest.raises(AssertionError, match="random"):
        assert_identical(fitted([], tmp_path), fitted([Draws()], tmp_path))
