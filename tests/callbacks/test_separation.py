import pytest
import torch
import torch.nn.functional as F

from lightning_stiffness.batching import take
from lightning_stiffness.callbacks.neutrality import measuring
from lightning_stiffness.callbacks.training_step import TrainingStepLoss
from lightning_stiffness.errors import MixedSamplesError
from tests.callbacks.step_oracle import assert_parallel, gradients, naive_gradients, prepared
from tests.callbacks.step_zoo import (
    CLASSES,
    ZOO,
    BackgroundClass,
    ClassOfWeightZero,
    MaskByHand,
    Net,
    Sum,
    plain_batch,
)
from tests.callbacks.step_zoo_slow import MISSING_LABELS, SLOW, Penalty, TwoTasks


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


def missing_labels_alone(module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The losses of samples with two tasks, by a loop: a task without a label adds nothing."""
    losses = []
    for features, label in zip(module.body(x), y, strict=True):
        loss = F.cross_entropy(module.head(features), label)
        if label > 0:
            loss = loss + 0.3 * F.cross_entropy(module.second(features), (label - 1) * 2 % CLASSES)
        losses.append(loss)
    return torch.stack(losses)


@pytest.mark.filterwarnings("ignore:The loss of training_step could not be split:UserWarning")
@pytest.mark.parametrize("kind", MISSING_LABELS)
@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_a_sample_without_a_label_adds_nothing_to_that_task(kind, n):
    module, (x, y) = prepared(kind), plain_batch(n)
    with measuring(module):
        losses, expected = TrainingStepLoss()(module, (x, y)), missing_labels_alone(module, x, y)
        torch.testing.assert_close(losses, expected, rtol=1e-12, atol=0)
        assert_parallel(gradients(module, losses), gradients(module, expected), tolerance=1e-12)


@pytest.mark.parametrize("kind", [BackgroundClass, ClassOfWeightZero, MaskByHand])
@pytest.mark.parametrize("n", [1, 4])
def test_samples_that_are_not_counted_have_no_loss_and_no_gradient(kind, n):
    module, (x, y) = prepared(kind), plain_batch(n)
    with measuring(module):
        losses = TrainingStepLoss()(module, (x, 0 * y))
        assert not losses.any()
        assert not any(row.any() for row in gradients(module, losses))


class OnlySomeCount(Sum):
    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self(x), y, reduction="sum", ignore_index=0)


@pytest.mark.parametrize("kind", [OnlySomeCount, BackgroundClass])
def test_samples_that_are_not_counted_do_not_decide_how_others_are_read(kind):
    module, (x, y), loss = prepared(kind), plain_batch(6), TrainingStepLoss()
    with measuring(module):
        loss(module, (x, 0 * y))
        torch.testing.assert_close(loss(module, (x, y)), TrainingStepLoss()(module, (x, y)))
        expected = F.cross_entropy(module(x), y, reduction="none", ignore_index=0)
        factor = 1 if kind is OnlySomeCount else 6 / int((y > 0).sum())
        torch.testing.assert_close(loss(module, (x, y)), factor * expected)


def test_what_was_run_one_by_one_stays_so():
    module, (x, y), loss = prepared(TwoTasks), plain_batch(6), TrainingStepLoss()
    with measuring(module):
        assert "Cat" not in loss(module, (x, y.clamp(min=1))).grad_fn.name()
        with pytest.warns(UserWarning, match="one sample at a time"):
            loss(module, (x, y))
        assert "Cat" in loss(module, (x, y.clamp(min=1))).grad_fn.name()


def test_a_weight_with_as_many_rows_as_there_are_samples_is_no_sample():
    module, batch = prepared(Penalty), plain_batch(8)  # the first layer is [8, 6]
    with measuring(module):
        with pytest.warns(UserWarning, match="penalty on weights"):
            losses = TrainingStepLoss()(module, batch)
        assert_parallel(gradients(module, losses), naive_gradients(module, batch, 8))


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
