"""Per-sample gradients by a loop over training steps on one sample each."""

from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lightning_stiffness.batching import take
from tests.callbacks.step_zoo import BinarySqueezed, LabelSmoothing


def prepared(kind: type[LightningModule], dtype: torch.dtype = torch.float64) -> LightningModule:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = kind().to(dtype)
        for buffer in module.buffers():
            if buffer.is_floating_point():
                buffer.copy_(torch.rand_like(buffer) + 0.5)
    return module


def gradients(module: nn.Module, losses: Tensor) -> list[Tensor]:
    """One flat gradient for each loss, by a loop over backward passes."""
    parameters = list(module.parameters())
    rows = []
    for loss in losses:
        parts = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True, materialize_grads=True)
        rows.append(torch.cat([part.flatten() for part in parts]))
    return rows


def naive_gradients(module: LightningModule, batch: Any, n: int) -> list[Tensor]:
    """The training step on each sample alone, on two copies where it squeezes, from the same random numbers."""
    rows = []
    for sample in range(n):
        torch.manual_seed(0)
        copies = 2 if isinstance(module, BinarySqueezed) else 1
        output = module.training_step(
            take(batch, [sample] * copies), *([] if isinstance(module, LabelSmoothing) else [0])
        )
        loss = output["loss"] if isinstance(output, dict) else output
        rows += gradients(module, loss.reshape(-1)[:1])
    return rows


def assert_parallel(found: list[Tensor], expected: list[Tensor], tolerance: float = 1e-10) -> None:
    for sample, (one, other) in enumerate(zip(found, expected, strict=True)):
        if other.isfinite().all() and other.any():
            assert F.cosine_similarity(one, other, dim=0) > 1 - tolerance, f"sample {sample}"
        else:
            assert not one.any(), f"sample {sample} is not counted"
    assert any(one.any() for one in found)
