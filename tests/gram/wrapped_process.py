"""One process of `test_wrapped`: wraps a module, measures it, and trains it on."""

import torch
import torch.distributed as dist
from torch import nn

from lightning_stiffness.gram import GramEngine
from tests.oracle import cross_entropy, loop_gram

CLASSES = 4


def network() -> nn.Module:
    """The same in every process."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, CLASSES))


def batch(n: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """Likewise."""
    return torch.randn(n, 8, generator=torch.Generator().manual_seed(1)), torch.arange(n) % CLASSES


def ddp(closed_over: bool = False) -> None:
    """Measured between two steps, the second as if nothing had been measured; also while gradients accumulate."""
    model, untouched = (nn.parallel.DistributedDataParallel(with_buffers()) for _ in range(2))
    for wrapped in (model, untouched):
        train(wrapped)
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    loss = (lambda module, batch: cross_entropy(model, batch)) if closed_over else cross_entropy
    gram = GramEngine(model, loss).gram(batch())
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True))
    expected, _ = loop_gram(plain_copy(model.module), cross_entropy, batch())
    assert (gram.matrix - expected).norm() <= 1e-5 * expected.norm()
    assert "0.weight" in gram.routes
    for wrapped in (model, untouched):
        train(wrapped)
        train(wrapped)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), untouched.parameters(), strict=True))
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(model.parameters(), untouched.parameters(), strict=True))


def with_buffers() -> nn.Module:
    """A network whose buffers are broadcast by the wrapper."""
    model = network()
    return nn.Sequential(*model[:1], nn.BatchNorm1d(8).eval(), *model[1:])


def plain_copy(module: nn.Module) -> nn.Module:
    """A module with the same parameters and buffers."""
    copy = with_buffers()
    copy.load_state_dict(module.state_dict())
    return copy


def train(model: nn.Module) -> None:
    """One step of gradient descent on samples which differ from process to process."""
    x, y = batch()
    cross_entropy(model, (x + dist.get_rank(), y)).mean().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.sub_(0.01 * parameter.grad)


CASES = {
    "ddp": ddp,
    "ddp_closed_over": lambda: ddp(closed_over=True),
}


def main() -> None:
    """All cases, each in all processes."""
    dist.init_process_group("gloo")
    for name, case in CASES.items():
        case()
        dist.barrier()
        print(name, "right")
    dist.destroy_process_group()
