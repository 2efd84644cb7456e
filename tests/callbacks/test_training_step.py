import warnings

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_stiffness.callbacks.neutrality import measuring
from lightning_stiffness.callbacks.training_step import TrainingStepLoss, resolve_loss, resolve_targets
from lightning_stiffness.errors import StiffnessError
from lightning_stiffness.loss_head import double_precision_loss_heads
from tests.callbacks.step_oracle import gradients, prepared
from tests.callbacks.step_zoo import CLASSES, FEATURES, Net, plain_batch
from tests.callbacks.step_zoo_slow import LittleNoise, SortedByLength


def test_what_was_tried_once_is_remembered():
    class Counting(Net):
        sizes: tuple[int, ...] = ()

        def training_step(self, batch, batch_idx):
            type(self).sizes += (len(batch[1]),)
            return super().training_step(batch, batch_idx)

    module, loss = prepared(Counting), TrainingStepLoss()
    with measuring(module):
        for n in (5, 8, 5):
            loss(module, plain_batch(n))
    assert Counting.sizes == (5, 2, 2, 2, 8, 2, 2, 2, 5)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [(LittleNoise, "it draws random numbers"), (SortedByLength, "it puts the samples in another order")],
)
@pytest.mark.parametrize("n", [5, 30])
def test_why_samples_run_one_by_one(kind, reason, n):
    module = prepared(kind, torch.float32)
    x, y = plain_batch(n)
    with measuring(module), pytest.warns(UserWarning, match=f"{reason}.*one sample at a time"):
        TrainingStepLoss()(module, (x.float(), y))


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
