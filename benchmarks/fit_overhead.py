"""What the callbacks add to the processor time of a fit, in rounds of fits without them and with each.

python benchmarks/fit_overhead.py --samples 5000 --epochs 4 --pairs 5

Two numbers: how much longer the fit with them takes than the one without, and the time inside their hooks as a share of
the rest of the same fit. The second is far less noisy on a busy machine, but does not see what they do to training
itself, such as emptied caches.
"""

import argparse
import logging
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_stiffness import ClassGroupingBalancer, StiffnessEarlyStopping, StiffnessMonitor


def perceptron() -> nn.Module:
    layers = [nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)]
    return nn.Sequential(nn.Flatten(), *layers)


def convolutions() -> nn.Module:
    first = [nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    second = [nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(4096, 10))


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "perceptron": (perceptron, (784,)),
    "CNN": (convolutions, (3, 32, 32)),
}


class Classifier(L.LightningModule):
    """Cross entropy and SGD."""

    def __init__(self, network: nn.Module) -> None:
        """Takes the network."""
        super().__init__()
        self.network = network

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        """One loss."""
        return nn.functional.cross_entropy(self.network(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain SGD."""
        return torch.optim.SGD(self.parameters(), 1e-2)


class Stopwatch:
    """Adds up the processor time inside the hooks of callbacks; a hook that another one calls counts once."""

    def __init__(self) -> None:
        """Nothing has been measured."""
        self.seconds, self._depth = 0.0, 0

    def watch(self, callback: L.Callback) -> L.Callback:
        """The same callback, with a clock around each hook that it has."""
        hooks = [name for name in dir(L.Callback) if name.startswith("on_") or name in ("setup", "teardown")]
        for name in hooks:
            if getattr(type(callback), name) is not getattr(L.Callback, name):
                setattr(callback, name, self._timed(getattr(callback, name)))
        return callback

    def _timed(self, hook: Callable[..., None]) -> Callable[..., None]:
        def timed(*args: Any, **kwargs: Any) -> None:
            if self._depth:
                return hook(*args, **kwargs)
            start, self._depth = time.process_time(), 1
            try:
                return hook(*args, **kwargs)
            finally:
                self._depth = 0
                self.seconds += time.process_time() - start

        return timed


def seconds(model: str, options: argparse.Namespace, callbacks: Sequence[L.Callback]) -> float:
    """Processor time of one fit on random data."""
    make, shape = MODELS[model]
    L.seed_everything(0, verbose=False)
    data = TensorDataset(torch.randn(options.samples, *shape), torch.randint(0, 10, (options.samples,)))
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = L.Trainer(max_epochs=options.epochs, callbacks=list(callbacks), accelerator="cpu", **quiet)
    module = Classifier(make())
    start = time.process_time()
    trainer.fit(module, DataLoader(data, 64, shuffle=True))
    return time.process_time() - start


CALLBACKS: dict[str, Callable[[], list[L.Callback]]] = {
    "a probe of 200, each epoch": lambda: [StiffnessMonitor()],
    "the same and early stopping": lambda: [StiffnessMonitor(), StiffnessEarlyStopping()],
    "both, every 2nd epoch": lambda: [StiffnessMonitor(every_n_epochs=2), StiffnessEarlyStopping()],
    "every batch": lambda: [StiffnessMonitor(probe="batch", every_n_batches=1)],
    "every 10th batch": lambda: [StiffnessMonitor(probe="batch", every_n_batches=10)],
    "the class-grouping balancer": lambda: [ClassGroupingBalancer()],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=5000, help="training samples (%(default)s)")
    parser.add_argument("--epochs", type=int, default=4, help="epochs of each fit (%(default)s)")
    parser.add_argument("--pairs", type=int, default=5, help="rounds of fits without and with each (%(default)s)")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS), help="which (all)")
    parser.add_argument(
        "--only", nargs="+", default=[""], metavar="WORD", help="callbacks whose name holds a word (all)"
    )
    options = parser.parse_args()
    chosen = {name: make for name, make in CALLBACKS.items() if any(word in name for word in options.only)}
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    for model in options.models:
        for make in chosen.values():
            seconds(model, argparse.Namespace(samples=640, epochs=1), make())  # warm-up
        plain: list[float] = []
        added: dict[str, list[float]] = {name: [] for name in chosen}
        inside: dict[str, list[float]] = {name: [] for name in chosen}
        for _ in range(options.pairs):
            plain.append(seconds(model, options, []))
            for name, make in chosen.items():
                stopwatch = Stopwatch()
                whole = seconds(model, options, [stopwatch.watch(callback) for callback in make()])
                added[name].append(100 * (whole / plain[-1] - 1))
                inside[name].append(100 * stopwatch.seconds / (whole - stopwatch.seconds))
        print(f"{model}: {sum(plain) / len(plain):.2f} s without")
        for name in chosen:
            print(f"  {name}: {shown(added[name])}; inside their hooks {shown(inside[name])}", flush=True)


def shown(shares: Sequence[float]) -> str:
    """The mean with its standard error."""
    share = torch.tensor(shares)
    return f"{share.mean().item():+.1f} % +- {share.std().item() / len(shares) ** 0.5:.1f} %"


if __name__ == "__main__":
    main()
