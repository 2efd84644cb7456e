import random
import warnings
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from lightning_stiffness.batching import take
from lightning_stiffness.callbacks.neutrality import measuring
from lightning_stiffness.callbacks.training_step import TrainingStepLoss, resolve_loss, resolve_targets
from lightning_stiffness.errors import MixedSamplesError, StiffnessError
from lightning_stiffness.loss_head import double_precision_loss_heads

FEATURES, CLASSES, POSITIONS = 6, 4, 3
CLASS_WEIGHTS = torch.tensor([0.5, 1.0, 2.0, 4.0], dtype=torch.float64)


class Net(LightningModule):
    """Two layers with dropout and batch norm, and plain cross-entropy; the zoo differs from it in one thing each."""

    outputs = CLASSES

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.5))
        self.head = nn.Linear(8, self.outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        return F.cross_entropy(self(x), y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def classes(n: int) -> Tensor:
    return torch.arange(n) % CLASSES


def plain_batch(n: int) -> tuple[Tensor, Tensor]:
    return torch.randn(n, FEATURES, dtype=torch.float64, generator=torch.Generator().manual_seed(n)), classes(n)


def binary_batch(n: int) -> tuple[Tensor, Tensor]:
    return plain_batch(n)[0], (classes(n) % 2).double()


def token_batch(n: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n)
    x = torch.randn(n, POSITIONS, FEATURES, dtype=torch.float64, generator=generator)
    return x, torch.randint(0, CLASSES, (n, POSITIONS), generator=generator)


ZOO: dict[str, tuple[type[LightningModule], Any]] = {}


def separable(batch: Any = plain_batch):
    """Adds a module to the zoo of those whose losses are split without running samples one by one."""

    def add(module: type[LightningModule]) -> type[LightningModule]:
        ZOO[module.__name__] = module, batch
        return module

    return add


separable()(Net)


@separable()
class WeightedModule(Net):
    def training_step(self, batch, batch_idx):
        x, y = batch
        return nn.CrossEntropyLoss(weight=CLASS_WEIGHTS)(self(x), y)


@separable()
class LabelSmoothing(Net):
    def training_step(self, batch):
        x, y = batch
        return F.cross_entropy(self(x), y, label_smoothing=0.1, weight=CLASS_WEIGHTS)


@separable(lambda n: (plain_batch(n)[0], torch.where(classes(n) == 1, -100, classes(n))))
class IgnoreIndex(Net):
    def training_step(self, batch, _):
        x, y = batch
        return F.cross_entropy(self(x), y)


@separable()
class LogSoftmaxInForward(Net):
    def forward(self, x):
        return F.log_softmax(super().forward(x), dim=1)

    def training_step(self, *args):
        x, y = args[0]
        assert args[1] == 0
        return F.nll_loss(self(x), y)


@separable(binary_batch)
class BinaryColumn(Net):
    outputs = 1

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.binary_cross_entropy_with_logits(self(x), y[:, None])


@separable(binary_batch)
class BinarySqueezed(Net):
    outputs = 1

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.binary_cross_entropy_with_logits(self(x).squeeze(), y)


@separable()
class MultiLabel(Net):
    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.binary_cross_entropy_with_logits(self(x), F.one_hot(y, CLASSES).double())


@separable()
class AuxiliaryHead(Net):
    def __init__(self):
        super().__init__()
        self.second = nn.Linear(8, CLASSES)

    def training_step(self, batch, batch_idx):
        x, y = batch
        features = self.body(x)
        return F.cross_entropy(self.head(features), y) + 0.3 * F.cross_entropy(self.second(features), y)


@separable()
class FocalByHand(Net):
    def training_step(self, batch, batch_idx):
        x, y = batch
        entropy = F.cross_entropy(self(x), y, reduction="none")
        return ((1 - torch.exp(-entropy)) ** 2 * entropy).mean()


@separable()
class FunctionOfTheMean(Net):
    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self(x), y).exp() / 2


@separable()
class OwnLogSoftmax(Net):
    def training_step(self, batch, batch_idx):
        x, y = batch
        scores = self(x)
        return -(scores - scores.logsumexp(1, keepdim=True))[torch.arange(len(y)), y].mean()


@separable()
class Sum(Net):
    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self(x), y, reduction="sum")


@separable()
class SumOverSize(Net):
    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self(x), y, reduction="none").sum() / len(y)


@separable()
class NestedMeans(Net):
    def training_step(self, batch, batch_idx):
        x, y = batch
        losses = F.cross_entropy(self(x), y, reduction="none")
        return (losses * 2).mean() + 0.5 * losses.mean()


@separable(token_batch)
class Tokens(Net):
    def forward(self, x):
        return self.head(torch.tanh(self.body[0](x)))

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self(x).flatten(0, 1), y.flatten())


@separable(token_batch)
class TokensInImageOrder(Tokens):
    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self(x).transpose(1, 2), y)


@separable(token_batch)
class TokensTimeFirst(Tokens):
    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self(x).transpose(0, 1).flatten(0, 1), y.T.flatten())


@separable(token_batch)
class TokensIgnored(Tokens):
    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self(x).flatten(0, 1), torch.where(y == 0, -100, y).flatten())


@separable()
class Dictionary(Net):
    def training_step(self, batch, batch_idx):
        x, y = batch
        scores = self(x)
        return {"loss": F.cross_entropy(scores, y), "scores": scores.detach()}


@separable(lambda n: dict(zip(("input", "labels"), plain_batch(n), strict=True)))
class PopsFromTheBatch(Net):
    def training_step(self, batch, batch_idx):
        y = batch.pop("labels")
        return F.cross_entropy(self(batch["input"].mul_(0.5)), y)


@separable()
class AlreadyPerSample(Net):
    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self(x), y, reduction="none")


@separable()
class Logs(Net):
    def __init__(self):
        super().__init__()
        self.accuracy = MulticlassAccuracy(num_classes=CLASSES)
        self.seen = []
        self.calls = 0

    def training_step(self, batch, batch_idx):
        x, y = batch
        scores = self(x)
        loss = F.cross_entropy(scores, y)
        self.accuracy(scores, y)
        self.log("accuracy", self.accuracy, prog_bar=True)
        self.log_dict({"loss": loss, "noise": torch.rand(()), "more": random.random() + np.random.rand()})  # noqa: NPY002
        self.print("step", self.calls)
        self.seen.append(loss.detach())
        self.calls += 1
        return loss


SLOW: dict[str, tuple[type[LightningModule], Any]] = {}


def one_by_one(batch: Any = plain_batch):
    def add(module: type[LightningModule]) -> type[LightningModule]:
        SLOW[module.__name__] = module, batch
        return module

    return add


@one_by_one()
class Penalty(Net):
    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self(x), y) + 0.1 * sum(p.square().sum() for p in self.parameters())


@one_by_one()
class NormPenalty(Net):
    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self(x), y) + 0.1 * self.head.weight.norm()


@one_by_one()
class Unwatched(Net):
    def training_step(self, batch, batch_idx):
        x, y = batch
        losses = F.cross_entropy(self(x), y, reduction="none")
        return torch.dot(losses, torch.full_like(losses, 1 / len(y)))


@one_by_one()
class WeightedAndAuxiliary(AuxiliaryHead):
    """The share of a sample's first term depends on the classes of the others, that of the second does not."""

    def training_step(self, batch, batch_idx):
        x, y = batch
        features = self.body(x)
        first = F.cross_entropy(self.head(features), y, weight=CLASS_WEIGHTS)
        return first + 0.3 * F.cross_entropy(self.second(features), y)


@one_by_one()
class SameNoiseForAll(Net):
    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self(x + 0.1 * torch.randn_like(x)), y)


@one_by_one(token_batch)
class PackedTokens(Tokens):
    """Nine values of six samples' eighteen, or twelve, are dropped: sometimes a multiple of the samples remains."""

    def training_step(self, batch, batch_idx):
        x, y = batch
        lengths = (y[:, 0] % POSITIONS) + 1
        kept = torch.arange(POSITIONS) < lengths[:, None]
        return F.cross_entropy(self(x)[kept], y[kept])


@one_by_one()
class AnotherWayForFew(Net):
    def training_step(self, batch, batch_idx):
        x, y = batch
        losses = F.cross_entropy(self(x), y, reduction="none")
        return losses.mean() if len(y) < 4 else (losses.sum() / len(y) + losses.mean()) / 2


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


@pytest.mark.parametrize("n", [2, 4, 6])
@pytest.mark.parametrize("name", ZOO)
def test_gradients_are_those_of_samples_alone(name, n):
    kind, batch_of = ZOO[name]
    module, batch = prepared(kind), batch_of(n)
    with measuring(module):
        losses = TrainingStepLoss()(module, batch)
        assert losses.shape == (n,)
        assert_parallel(gradients(module, losses), naive_gradients(module, batch, n))


@pytest.mark.filterwarnings("ignore:The loss of training_step could not be split:UserWarning")
@pytest.mark.parametrize("n", [2, 4, 6, 8])  # 8 as the rows of the first weight
@pytest.mark.parametrize("name", SLOW)
def test_gradients_are_those_of_samples_alone_where_samples_run_one_by_one(name, n):
    kind, batch_of = SLOW[name]
    module, batch = prepared(kind), batch_of(n)
    with measuring(module):
        losses = TrainingStepLoss()(module, batch)
        assert_parallel(gradients(module, losses), naive_gradients(module, batch, n), tolerance=1e-12)


@pytest.mark.parametrize("name", SLOW)
def test_running_one_by_one_is_said_once(name):
    kind, batch_of = SLOW[name]
    module, loss = prepared(kind), TrainingStepLoss()
    with measuring(module):
        with pytest.warns(UserWarning, match=r"one sample at a time.*stiffness_step"):
            loss(module, batch_of(6))
        loss(module, batch_of(8))


@pytest.mark.parametrize(
    "name", ["Net", "LogSoftmaxInForward", "OwnLogSoftmax", "Sum", "SumOverSize", "Dictionary", "Logs"]
)
@pytest.mark.parametrize("n", [1, 5])
def test_losses_are_cross_entropies(name, n):
    module, (x, y) = prepared(ZOO[name][0]), plain_batch(n)
    with measuring(module):
        losses = TrainingStepLoss()(module, (x, y))
        torch.testing.assert_close(losses, F.cross_entropy(module(x), y, reduction="none"), rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", sorted(set(ZOO) - {"Sum", "AlreadyPerSample"}))
def test_the_mean_loss_has_the_gradient_of_the_total(name):
    kind, batch_of = ZOO[name]
    module, batch = prepared(kind), batch_of(5)
    with measuring(module):
        mean = TrainingStepLoss()(module, batch).mean()
        output = module.training_step(take(batch, range(5)), *([] if name == "LabelSmoothing" else [0]))
        total = output["loss"] if isinstance(output, dict) else output
        (found,), (expected,) = gradients(module, mean[None]), gradients(module, total[None])
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    if name != "FunctionOfTheMean":
        torch.testing.assert_close(mean, total, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ["Net", "BinarySqueezed", "Penalty", "Sum"])
def test_a_batch_of_one_is_the_training_step_itself(name):
    kind, batch_of = {**ZOO, **SLOW}[name]
    module, batch = prepared(kind), batch_of(1)
    with measuring(module):
        losses = TrainingStepLoss()(module, batch)
        assert losses.shape == (1,)
        assert_parallel(gradients(module, losses), naive_gradients(module, batch, 1))


def test_a_weight_with_as_many_rows_as_there_are_samples_is_no_sample():
    module, batch = prepared(Penalty), plain_batch(8)  # the first layer is [8, 6]
    with measuring(module):
        with pytest.warns(UserWarning, match="penalty on weights"):
            losses = TrainingStepLoss()(module, batch)
        assert_parallel(gradients(module, losses), naive_gradients(module, batch, 8))


def test_what_was_tried_once_is_remembered():
    class Counting(Net):
        sizes: tuple[int, ...] = ()

        def training_step(self, batch, batch_idx):
            type(self).sizes += (len(batch[1]),)
            return super().training_step(batch, batch_idx)

    module, loss = prepared(Counting), TrainingStepLoss()
    with measuring(module):
        for n in (6, 5):
            loss(module, plain_batch(n))
    assert Counting.sizes == (6, 2, 2, 2, 5)


def fitted_net(scale: float, x: Tensor) -> tuple[Net, Net, Tensor]:
    """A net in float64 and the same in float32, sure of the classes that come with them."""
    exact, single = prepared(Net), prepared(Net, torch.float32)
    exact.head.weight.data *= scale
    single.load_state_dict({name: value.float() for name, value in exact.state_dict().items()})
    exact.load_state_dict(single.state_dict())
    with measuring(exact), torch.no_grad():
        return exact, single, exact(x).argmax(dim=1)


def test_float32_losses_of_fitted_samples_have_exact_gradients_in_double_heads():
    x = plain_batch(40)[0].float()
    with_heads, without, seen = [], [], []
    for scale in (20.0, 60.0, 180.0):
        exact, single, y = fitted_net(scale, x.double())
        with measuring(exact), measuring(single):
            reference = TrainingStepLoss()(exact, (x.double(), y))
            fitted = [i for i, value in enumerate(reference.tolist()) if 1e-8 < value < 1e-4]
            expected = gradients(exact, reference[fitted])
            with double_precision_loss_heads():
                close = gradients(single, TrainingStepLoss()(single, (x, y))[fitted])
            plain = gradients(single, TrainingStepLoss()(single, (x, y))[fitted])
        with_heads += [distance(*pair) for pair in zip(close, expected, strict=True)]
        without += [distance(*pair) for pair in zip(plain, expected, strict=True)]
        seen += fitted
    assert len(seen) >= 10
    assert max(with_heads) < 1e-6
    assert max(without) > 1e-3


def distance(first: Tensor, second: Tensor) -> float:
    return 1 - float(F.cosine_similarity(first.double(), second.double(), dim=0))


@pytest.mark.parametrize("namespace", ["lightning.pytorch", "pytorch_lightning"])
def test_attached_modules_of_both_namespaces(namespace, tmp_path):
    library = pytest.importorskip(namespace)

    class Attached(library.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(FEATURES, CLASSES)

        def training_step(self, batch, batch_idx):
            x, y = batch
            assert len(self.trainer.optimizers) == 1
            rate = self.optimizers().param_groups[0]["lr"]
            loss = F.cross_entropy(self.layer(x), y)
            self.log("rate", rate)
            return loss

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    found = []

    class Measure(library.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            with measuring(pl_module):
                found.append(resolve_loss(pl_module)(pl_module, batch))

    trainer = library.Trainer(
        max_steps=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        default_root_dir=tmp_path,
        callbacks=[Measure()],
    )
    x, y = plain_batch(8)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated", category=FutureWarning)
        trainer.fit(Attached(), DataLoader(TensorDataset(x.float(), y), batch_size=4))
    assert [losses.shape for losses in found] == [(4,), (4,)]


@pytest.mark.parametrize("precision", ["64-true", "bf16-true", "bf16-mixed"])
def test_the_precision_of_the_trainer_is_kept_but_autocast_is_off(precision, tmp_path):
    class MakesTensors(LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(FEATURES, CLASSES)

        def training_step(self, batch, batch_idx):
            x, y = batch
            scores = self.layer(x) @ torch.eye(CLASSES)
            assert scores.dtype == self.layer.weight.dtype
            return F.cross_entropy(scores, y)

    trainer = Trainer(
        precision=precision, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    module = trainer.precision_plugin.convert_module(MakesTensors())
    x, y = plain_batch(6)
    with measuring(module):
        losses = TrainingStepLoss(trainer)(module, (x.to(module.layer.weight.dtype), y))
    assert losses.shape == (6,)
    assert torch.get_default_dtype() == torch.float32


def test_compiled_training_steps_are_split():
    module, batch = prepared(Net), plain_batch(5)
    expected = TrainingStepLoss()
    module.training_step = torch.compile(module.training_step, backend="eager")
    with measuring(module):
        losses = expected(module, batch)
        torch.testing.assert_close(losses, F.cross_entropy(module(batch[0]), batch[1], reduction="none"))


def test_losses_of_one_work_inside_vmap():
    module, (x, y) = prepared(Net), plain_batch(5)
    loss = TrainingStepLoss()
    names, values = zip(*((name, p.detach()) for name, p in module.named_parameters()), strict=True)

    class Call(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = module

        def forward(self, x, y):
            return loss(self.inner, (x[None], y[None]))[0]

    call = Call()

    def of(parameters, x, y):
        return torch.func.functional_call(
            call, dict(zip((f"inner.{n}" for n in names), parameters, strict=True)), (x, y)
        )

    with measuring(module), double_precision_loss_heads():
        found = torch.func.vmap(torch.func.grad(of), in_dims=(None, 0, 0))(values, x, y)
        expected = gradients(module, loss(module, (x, y)))
    stacked = torch.cat([part.flatten(1) for part in found], dim=1)
    torch.testing.assert_close(stacked, torch.stack(expected), rtol=1e-10, atol=1e-12)


class Contrastive(Net):
    def training_step(self, batch, batch_idx):
        x, _ = batch
        codes = self(x)
        return F.cross_entropy(codes @ codes.T, torch.arange(len(codes)))


class BatchStatistics(Net):
    def training_step(self, batch, batch_idx):
        x, _ = batch
        codes = self(x)
        return (codes.T @ codes / len(codes) - torch.eye(CLASSES)).square().sum()


@pytest.mark.parametrize("kind", [Contrastive, BatchStatistics])
@pytest.mark.parametrize("n", [4, 8])
def test_losses_that_mix_samples_are_refused(kind, n):
    module = prepared(kind)
    with measuring(module), pytest.raises(MixedSamplesError, match="stiffness_step"):
        TrainingStepLoss()(module, plain_batch(n))


class ReturnsNone(Net):
    def training_step(self, batch, batch_idx):
        return None


class ReturnsText(Net):
    def training_step(self, batch, batch_idx):
        return {"lost": 1}


class OddShape(Net):
    def training_step(self, batch, batch_idx):
        return self(batch[0])


class Detached(Net):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx).detach()


class NotFinite(Net):
    """Of classes 0, 1, 2, 3, 0 the third is lost."""

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(torch.where(y[:, None] == 2, torch.nan, self(x)), y)


class Manual(Net):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False


class TakesIterator(Net):
    def training_step(self, dataloader_iter):
        return None


class Missing(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (ReturnsNone, r"found None.*stiffness_step"),
        (ReturnsText, r"found dict with \['lost'\]"),
        (OddShape, r"one loss per sample, \[5\]; found shape \[5, 4\].*stiffness_step"),
        (Detached, "gradient"),
        (NotFinite, "nan for sample 2"),
        (Manual, r"automatic_optimization is False.*stiffness_step.*loss=callable"),
        (TakesIterator, r"dataloader_iter.*stiffness_step"),
        (Missing, r"Missing has no training_step.*stiffness_step"),
    ],
)
def test_what_cannot_be_measured_is_said(kind, message):
    module = prepared(kind)
    with measuring(module), pytest.raises(StiffnessError, match=message):
        TrainingStepLoss()(module, plain_batch(5))


@pytest.mark.parametrize("kind", [Manual, TakesIterator, Missing])
def test_what_cannot_be_measured_is_said_before_the_first_batch(kind):
    with pytest.raises(StiffnessError, match="stiffness_step"):
        resolve_loss(prepared(kind))


def test_frozen_modules_are_refused():
    module = prepared(Net).requires_grad_(False)
    with measuring(module), pytest.raises(StiffnessError, match="frozen"):
        TrainingStepLoss()(module, plain_batch(5))


def test_a_step_that_fails_alone_and_in_copies_shows_its_own_error():
    class Fails(Net):
        def training_step(self, batch, batch_idx):
            raise ValueError(f"{len(batch[1])} samples")

    module = prepared(Fails)
    with measuring(module), pytest.raises(ValueError, match=r"^1 samples"):
        TrainingStepLoss()(module, plain_batch(1))


class OwnStep(Net):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def stiffness_step(self, batch):
        x, y = batch
        return F.cross_entropy(self(x), y, reduction="none"), y + 1


def test_a_stiffness_step_comes_before_the_training_step():
    module, batch = prepared(OwnStep), plain_batch(5)
    with measuring(module):
        losses = resolve_loss(module)(module, batch)
        torch.testing.assert_close(losses, F.cross_entropy(module(batch[0]), batch[1], reduction="none"))
        targets = resolve_targets(module)(batch)
    assert torch.equal(targets, batch[1] + 1)
    assert not targets.requires_grad


def test_given_functions_come_first():
    module, (x, y) = prepared(OwnStep), plain_batch(5)
    loss = resolve_loss(module, lambda module, batch: module(batch[0]).square().sum(1))
    with measuring(module):
        torch.testing.assert_close(loss(module, (x, y)), module(x).square().sum(1))
    assert torch.equal(resolve_targets(module, lambda batch: batch[1] * 0)((x, y)), y * 0)


def test_targets_are_those_of_the_batch_by_default():
    batch = plain_batch(5)
    assert torch.equal(resolve_targets(prepared(Net))(batch), batch[1])


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda module, batch: module(batch[0]).mean(), r"\[5\]; found shape \[\]"),
        (lambda module, batch: 3.0, "found float"),
        (lambda module, batch: module(batch[0])[:, 0].detach(), "gradient"),
        (lambda module, batch: module(batch[0])[:, 0] / 0 * 0, r"nan for sample 0 of the batch \(5 of 5"),
    ],
)
def test_given_losses_are_checked(loss, message):
    module = prepared(Net)
    with measuring(module), pytest.raises(StiffnessError, match=message):
        resolve_loss(module, loss)(module, plain_batch(5))


def test_a_stiffness_step_must_return_a_pair():
    class One(Net):
        def stiffness_step(self, batch):
            return self(batch[0])[:, 0]

    module = prepared(One)
    with measuring(module), pytest.raises(StiffnessError, match="pair"):
        resolve_loss(module)(module, plain_batch(5))


def test_neither_batch_nor_random_state_is_changed():
    module, batch = prepared(PopsFromTheBatch), ZOO["PopsFromTheBatch"][1](5)
    before, state = {name: value.clone() for name, value in batch.items()}, torch.get_rng_state()
    with measuring(module):
        TrainingStepLoss()(module, batch)
        assert torch.equal(torch.get_rng_state(), state)
    assert list(batch) == list(before)
    assert all(torch.equal(batch[name], before[name]) for name in before)


def test_readings_repeat_although_random_numbers_are_drawn():
    module, batch = prepared(SameNoiseForAll), plain_batch(4)
    with measuring(module), pytest.warns(UserWarning, match="random numbers"):
        first, second = TrainingStepLoss()(module, batch), TrainingStepLoss()(module, batch)
    assert torch.equal(first, second)
