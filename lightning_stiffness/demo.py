"""The main job on real data: handwritten digits with wrong labels, trained until stiffness says stop, and beyond."""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import Callback, RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from typing_extensions import override

from lightning_stiffness.callbacks import StiffnessEarlyStopping, StiffnessMonitor
from lightning_stiffness.errors import StiffnessError
from lightning_stiffness.figures import Curves, training_summary
from lightning_stiffness.history import History
from lightning_stiffness.report import write_page
from lightning_stiffness.run_files import RunFiles


@dataclass(frozen=True)
class DemoSettings:
    """What can be chosen.

    Attributes:
        output: Folder for the logs, the picture and the page.
        epochs: Length of the run that is not stopped.
        samples: Training samples, of 1797 in all; the others are the test set, with their right labels.
        wrong_labels: Share of the training labels that is replaced by another class.
        seed: Of the split, the wrong labels and the training.
    """

    output: Path = Path("stiffness_demo")
    epochs: int = 60
    samples: int = 1000
    wrong_labels: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        """Checks the ranges."""
        if not 200 <= self.samples <= 1600:
            raise StiffnessError(
                f"samples must lie between 200 and 1600 (there are 1797 digits), found {self.samples}."
            )
        if not 0 <= self.wrong_labels < 1:
            raise StiffnessError(f"wrong_labels is a share in [0, 1), found {self.wrong_labels}.")
        if self.epochs < 1:
            raise StiffnessError(f"epochs must be at least 1, found {self.epochs}.")


class DigitsClassifier(LightningModule):
    """An ordinary classifier, which knows nothing of stiffness."""

    def __init__(self) -> None:
        """A perceptron with two hidden layers."""
        super().__init__()
        self.network = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10))

    @override
    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        inputs, labels = batch
        loss = nn.functional.cross_entropy(self.network(inputs), labels)
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    @override
    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        inputs, labels = batch
        logits = self.network(inputs)
        self.log("test_loss", nn.functional.cross_entropy(logits, labels))
        self.log("test_accuracy", (logits.argmax(1) == labels).float().mean(), prog_bar=True)

    @override
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


@dataclass
class Recorder(Callback):
    """Keeps what was logged at the end of each epoch."""

    epochs: list[float] = field(default_factory=list)
    train_loss: list[float] = field(default_factory=list)
    test_loss: list[float] = field(default_factory=list)
    test_accuracy: list[float] = field(default_factory=list)

    @override
    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.epochs.append(trainer.current_epoch + 1.0)
        for name in ("train_loss", "test_loss", "test_accuracy"):
            getattr(self, name).append(float(trainer.callback_metrics[name]))

    def curves(self) -> Curves:
        """The same, frozen."""
        return Curves(tuple(self.epochs), tuple(self.train_loss), tuple(self.test_loss), tuple(self.test_accuracy))


class _ProgressBar(RichProgressBar):
    """Without the version of the log folder, which says nothing here."""

    @override
    def get_metrics(self, trainer: Any, pl_module: Any) -> dict[str, Any]:
        return {name: value for name, value in super().get_metrics(trainer, pl_module).items() if name != "v_num"}


@dataclass(frozen=True, eq=False)
class DemoResult:
    """What came out.

    Attributes:
        curves: The run that was not stopped.
        full: Its readings.
        stopped: The readings of the run that was stopped.
        stop_epoch: Epochs until the stop; None if it did not come.
        restored_epoch: The epoch whose weights that run ended with.
        reason: Why it stopped, in words.
        picture: The file of the picture.
        page: The file of the page about both runs.
    """

    curves: Curves
    full: History
    stopped: History
    stop_epoch: int | None
    restored_epoch: int
    reason: str
    picture: Path
    page: Path

    def rows(self) -> list[tuple[str, str, str, str]]:
        """Epoch, test accuracy and test loss at the stop, at the end and at the best epoch, in print."""
        accuracy, loss = self.curves.test_accuracy, self.curves.test_loss
        best = max(range(len(accuracy)), key=accuracy.__getitem__)
        places = [("at the end, without a stop", len(accuracy) - 1), ("at the best epoch, seen in hindsight", best)]
        if self.restored_epoch != len(accuracy):
            places.insert(0, ("restored: the weights that it ends with", self.restored_epoch - 1))
        if self.stop_epoch is not None:
            places.insert(0, ("at the stop", self.stop_epoch - 1))
        return [(name, f"{k + 1}", f"{100 * accuracy[k]:.1f} %", f"{loss[k]:.3f}") for name, k in places]


def run_demo(settings: DemoSettings, console: Console | None = None) -> DemoResult:
    """Trains twice, prints a table, writes a picture and a page.

    Args:
        settings: What was chosen.
        console: Where to print; the terminal when not given.

    Returns:
        Curves, readings, and the paths of the picture and the page.

    Raises:
        StiffnessError: scikit-learn, which holds the digits, is not installed.
    """
    with _quiet_lightning():  # what the demo prints should be its own
        return _run(settings, console or Console())


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    logger = logging.getLogger("lightning.pytorch")
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(before)


def _run(settings: DemoSettings, console: Console) -> DemoResult:
    train, test = digits(settings)
    console.print(
        f"[bold]{settings.samples} handwritten digits, {settings.wrong_labels:.0%} of their labels wrong.[/bold] "
        f"First run: until same-class stiffness says stop (at most {settings.epochs} epochs)."
    )
    stopper = StiffnessEarlyStopping()
    stopped = StiffnessMonitor(show_table=False)
    recorder = _fit(settings, "stopped", train, test, [stopped, stopper])
    stop_epoch = len(recorder.epochs) if stopper.stopping_reason_message else None
    restored = next((r.epoch for r in stopped.history or () if r.step == stopper.restored_step), len(recorder.epochs))
    reason = stopper.stopping_reason_message or "There was no reason to stop."
    console.print(reason)
    console.print(f"Second run: the same for all {settings.epochs} epochs, to see what would have come.")
    monitor = StiffnessMonitor(show_table=False)
    curves = _fit(settings, "not_stopped", train, test, [monitor]).curves()
    assert stopped.history is not None
    assert monitor.history is not None
    picture = settings.output / "stiffness_demo.png"
    training_summary(curves, stopped.history, monitor.history, stop_epoch).savefig(picture, dpi=130)
    page = _write_page(settings)
    result = DemoResult(curves, monitor.history, stopped.history, stop_epoch, round(restored), reason, picture, page)
    _report(result, settings, console)
    return result


def digits(settings: DemoSettings) -> tuple[TensorDataset, TensorDataset]:
    """Training digits, some with wrong labels, and test digits.

    Raises:
        StiffnessError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits  # noqa: PLC0415 (only the demo needs it)
    except ImportError as cause:
        raise StiffnessError(
            "The demo takes its digits from scikit-learn, which is not installed: "
            "pip install 'lightning-stiffness[demo]'."
        ) from cause
    inputs, labels = load_digits(return_X_y=True)
    generator = torch.Generator().manual_seed(settings.seed)
    order = torch.randperm(len(inputs), generator=generator)
    x, y = torch.as_tensor(inputs, dtype=torch.float32)[order] / 16, torch.as_tensor(labels)[order]
    given = y[: settings.samples].clone()
    wrong = torch.rand(settings.samples, generator=generator) < settings.wrong_labels
    given[wrong] = (given[wrong] + torch.randint(1, 10, (int(wrong.sum()),), generator=generator)) % 10
    return TensorDataset(x[: settings.samples], given), TensorDataset(x[settings.samples :], y[settings.samples :])


def _write_page(settings: DemoSettings) -> Path:
    runs = [RunFiles.load(settings.output / "logs" / name / "stiffness.jsonl") for name in ("stopped", "not_stopped")]
    title = f"{settings.samples} digits, {settings.wrong_labels:.0%} of the labels wrong"
    return write_page(runs, settings.output / "stiffness_demo.html", title)


def _fit(
    settings: DemoSettings, name: str, train: TensorDataset, test: TensorDataset, callbacks: Sequence[Callback]
) -> Recorder:
    recorder = Recorder()
    seed_everything(settings.seed, verbose=False)
    trainer = Trainer(
        max_epochs=settings.epochs,
        accelerator="cpu",
        callbacks=[*callbacks, recorder, _ProgressBar(refresh_rate=8)],
        logger=TensorBoardLogger(settings.output, name="logs", version=name),
        enable_checkpointing=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=10,
    )
    with warnings.catch_warnings(), _one_thread():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated")  # Lightning 2.6 on torch 2.13
        trainer.fit(DigitsClassifier(), DataLoader(train, 32, shuffle=True), DataLoader(test, 1000))
    return recorder


@contextmanager
def _one_thread() -> Iterator[None]:
    """A network of this size runs faster on one thread than on several, above all on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _report(result: DemoResult, settings: DemoSettings, console: Console) -> None:
    table = Table(
        "", "epoch", "test accuracy", "test loss", title="Right labels on unseen digits", title_justify="left"
    )
    for row in result.rows():
        table.add_row(*row)
    console.print(table)
    cost = sum(reading.seconds for reading in result.stopped) / max(1, len(result.stopped))
    console.print(f"One measurement took {1000 * cost:.0f} ms. Picture: {result.picture}", soft_wrap=True)
    console.print(f"Page, to be opened in a browser: {result.page}", soft_wrap=True)
    console.print(f"Curves: tensorboard --logdir {settings.output / 'logs'}", soft_wrap=True)
