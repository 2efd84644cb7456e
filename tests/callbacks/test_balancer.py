"""A fit with a balancer: what it changes in training, what it leaves alone, what it says where it cannot work."""

import copy
import pickle
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningDataModule
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningCLI
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset, WeightedRandomSampler

from lightning_stiffness import StiffnessMonitor
from lightning_stiffness.balanced_loader import ClassRateLoader, make_balanced_loader
from lightning_stiffness.callbacks import balancer as balancers
from lightning_stiffness.errors import StiffnessError
from tests.callbacks.modules import CLASSES, FEATURES, QUIET, Classifier, Validated, blobs, loader, trainer
from tests.callbacks.test_monitor_neutrality import assert_identical, assert_neutral, fitted
from tests.test_balanced_loader import imbalanced

pytestmark = [*QUIET, pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before")]
# What is measured meanwhile has tests of its own, in test_balance_observing.
ClassGroupingBalancer = partial(balancers.ClassGroupingBalancer, max_readings=0, shift=True)
OFF = {"sampling": False, "logits": False, "shift": False, "smoothing": 0.0}
COUNTS = torch.tensor([30, 15, 5])


def data(batch_size=10, shuffle=True, **options):
    return DataLoader(imbalanced(), batch_size=batch_size, shuffle=shuffle, **options)


class Looks(Callback):
    """What the classifier gives in training and in validation, and what goes in."""

    def __init__(self):
        self.labels, self.losses, self.logits, self.hooks = [], [], [], None

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.labels.append(batch[1])
        head = pl_module.net[-1]
        self.hooks = len(head._forward_hooks), len(head._forward_pre_hooks)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(float(outputs["loss"]))


def fit(balancer, module=None, train=None, val=None, callbacks=(), **options):
    module, looks = module or Classifier(), Looks()
    run = trainer([balancer, looks, *callbacks], **options)
    run.fit(module, data() if train is None else train, val)
    return module, looks, run


@pytest.mark.parametrize(("part", "value"), [("sampling", True), ("logits", True), ("shift", True), ("smoothing", 0.1)])
def test_each_part_changes_training(part, value):
    plain = fit(ClassGroupingBalancer(**OFF), train=data(shuffle=part == "sampling"))[0]
    module = fit(
        ClassGroupingBalancer(**{**OFF, part: value}, warmup=0), train=data(shuffle=part == "sampling"), max_epochs=3
    )[0]
    assert not torch.equal(plain.net[-1].weight, module.net[-1].weight)


def test_without_its_parts_training_is_bit_by_bit_the_same(tmp_path):
    assert_neutral([ClassGroupingBalancer(**OFF)], tmp_path)


def test_no_global_random_number_is_drawn(tmp_path):
    balancer = ClassGroupingBalancer(sampling=False, warmup=0)
    without, changed = fitted([], tmp_path), fitted([balancer], tmp_path)
    assert_identical(without["random"], changed["random"])
    assert_identical(without["module"][0], changed["module"][0])  # the order of the samples


def test_hooks_are_gone_afterwards():
    module, looks, run = fit(ClassGroupingBalancer())
    assert looks.hooks == (1, 1)
    assert not module.net[-1]._forward_hooks
    assert not module.net[-1]._forward_pre_hooks
    assert "process_dataloader" not in vars(run.strategy)
    assert "setup_data" not in vars(run.fit_loop)


def test_copies_that_are_made_meanwhile_are_plain():
    class Copies(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            self.made = [copy.deepcopy(pl_module.net), pickle.loads(pickle.dumps(pl_module.net))]
            for made in self.made:
                assert torch.allclose(made(batch[0]), pl_module.net.eval()(batch[0]))
            pl_module.net.train()

    copies = Copies()
    fit(ClassGroupingBalancer(), callbacks=[copies])
    for made in copies.made:
        assert b"stiffness" not in pickle.dumps(made)


def test_hooks_are_gone_after_an_exception():
    class Fails(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            raise RuntimeError("no")

    module, balancer = Classifier(), ClassGroupingBalancer()
    run = trainer([balancer, Fails()])
    with pytest.raises(RuntimeError, match="no"):
        run.fit(module, data())
    assert not module.net[-1]._forward_hooks
    assert "process_dataloader" not in vars(run.strategy)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_is_the_one_of_logit_adjustment(smoothing):
    """One step in the order of the data, against the formula."""
    module = Classifier()
    x, y = next(iter(data(shuffle=False)))
    met = (1 - smoothing) * COUNTS / 50 + smoothing / 3
    expected = F.cross_entropy(module.net(x) + met.log(), y, label_smoothing=smoothing)
    balancer = ClassGroupingBalancer(sampling=False, shift=False, smoothing=smoothing)
    looks = fit(balancer, module, data(shuffle=False))[1]
    assert looks.losses[0] == pytest.approx(float(expected.detach()), rel=1e-6)
    assert torch.allclose(balancer.offsets, met.double().log())


class OwnSmoothing(Classifier):
    """Its own loss smooths labels."""

    def __init__(self):
        super().__init__()
        self.loss = nn.CrossEntropyLoss(label_smoothing=0.3)

    def training_step(self, batch, batch_idx):
        return self.loss(self(batch[0]), batch[1])


def test_labels_are_not_smoothed_twice():
    module = OwnSmoothing()
    x, y = next(iter(data(shuffle=False)))
    met = 0.7 * COUNTS / 50 + 0.1
    expected = F.cross_entropy(module.net(x) + met.log(), y, label_smoothing=0.3)
    balancer = ClassGroupingBalancer(sampling=False, shift=False)
    looks = fit(balancer, module, data(shuffle=False))[1]
    assert looks.losses[0] == pytest.approx(float(expected.detach()), rel=1e-6)
    assert torch.allclose(balancer.offsets, met.double().log())


def test_smoothing_alone_is_a_training_with_smoothed_labels():
    class Smoothed(Classifier):
        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self(batch[0]), batch[1], label_smoothing=0.1)

    expected = fit(ClassGroupingBalancer(**OFF), Smoothed(), data(shuffle=False), max_epochs=3)[0]
    found = fit(ClassGroupingBalancer(**{**OFF, "smoothing": 0.1}), Classifier(), data(shuffle=False), max_epochs=3)[0]
    for name, value in expected.state_dict().items():
        assert torch.allclose(value, found.state_dict()[name], atol=1e-5), name


def test_a_smoothing_that_is_no_share():
    with pytest.raises(StiffnessError, match=r"smoothing must be a share of the labels in \[0, 1\), found 1"):
        ClassGroupingBalancer(smoothing=1.0)


def test_classes_are_drawn_at_rates_between_natural_and_equal():
    balancer = ClassGroupingBalancer()
    _, looks, run = fit(balancer, max_epochs=1)
    rates = COUNTS.double() ** 0.75 / (COUNTS.double() ** 0.75).sum()
    assert torch.allclose(balancer.frequencies, rates)
    found = torch.bincount(torch.cat(looks.labels))
    assert float((found - 50 * rates).abs().max()) < 1
    assert isinstance(run.train_dataloader, ClassRateLoader)


class Module(LightningDataModule):
    def train_dataloader(self):
        return data()

    def val_dataloader(self):
        return DataLoader(imbalanced(), batch_size=10)


def test_a_datamodule_is_balanced_too_and_only_in_training():
    balancer = ClassGroupingBalancer()
    run = trainer([balancer], reload_dataloaders_every_n_epochs=1)
    run.fit(Validated(), datamodule=Module())
    assert isinstance(run.train_dataloader, ClassRateLoader)
    assert not isinstance(run.val_dataloaders, ClassRateLoader)


@pytest.mark.parametrize(
    "made",
    [
        lambda: data(shuffle=False),
        lambda: DataLoader(imbalanced(), 10, sampler=WeightedRandomSampler([1.0] * 30 + [9.0] * 20, 50)),
    ],
)
def test_the_order_of_the_user_is_respected(made, caplog):
    given = made()
    balancer = ClassGroupingBalancer()
    _, looks, run = fit(balancer, train=given, max_epochs=4)
    assert run.train_dataloader is given
    assert "its own sampler is respected" in caplog.text
    drawn = torch.bincount(torch.cat(looks.labels), minlength=3).double() + 1
    expected = COUNTS / 50 if given.sampler.__class__.__name__ == "SequentialSampler" else drawn / drawn.sum()
    assert torch.allclose(balancer.frequencies, expected.double())


def test_a_balanced_loader_of_the_user_is_taken_as_it_is():
    given = make_balanced_loader(data())
    balancer = ClassGroupingBalancer()
    _, _, run = fit(balancer, train=given)
    assert run.train_dataloader is given
    assert balancer.frequencies.tolist() == pytest.approx([1 / 3] * 3)


class Stream(IterableDataset):
    def __iter__(self):
        yield from zip(*imbalanced().tensors, strict=True)


def test_a_stream_is_counted_while_training():
    balancer = ClassGroupingBalancer(num_classes=3)
    fit(balancer, train=DataLoader(Stream(), batch_size=10), max_epochs=1)
    assert torch.allclose(balancer.frequencies, (COUNTS + 1).double() / 53)
    assert balancer.counts is None
    balancer = ClassGroupingBalancer(counts=COUNTS.tolist(), logits=False)
    fit(balancer, train=DataLoader(Stream(), batch_size=10), max_epochs=1)
    assert balancer.counts.tolist() == [30, 15, 5]


def test_evaluation_is_untouched():
    module, balancer = Validated(), ClassGroupingBalancer(warmup=0)
    seen = []

    class Evaluates(Callback):
        def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
            alone = copy.deepcopy(pl_module.net).eval()
            alone[-1]._forward_hooks.clear(), alone[-1]._forward_pre_hooks.clear()
            seen.append(torch.equal(pl_module(batch[0]), alone(batch[0])))

    fit(balancer, module, val=DataLoader(imbalanced(), 25), callbacks=[Evaluates()])
    assert len(seen) >= 4
    assert all(seen)


def test_the_monitor_reads_what_it_would_read_without():
    """It measures in eval mode, where the balancer does nothing."""
    readings = []
    for callbacks in ([], [ClassGroupingBalancer(sampling=False)]):
        monitor = StiffnessMonitor(probe_size=15, every_n_epochs=0)
        trainer([*callbacks, monitor]).fit(Classifier(), data(shuffle=False))
        readings.append(monitor.history[0].cosine.within)
    assert readings[0] == readings[1]


def test_probabilities_for_the_natural_frequencies():
    balancer = ClassGroupingBalancer(shift=False)
    module = fit(balancer, max_epochs=1)[0]
    logits = module(imbalanced().tensors[0]).detach()
    expected = (logits + (COUNTS / 50).log()).softmax(1)
    assert torch.allclose(balancer.natural_probabilities(logits), expected, atol=1e-6)
    sampled = ClassGroupingBalancer(shift=False, logits=False)
    fit(sampled, max_epochs=1)
    met = 0.9 * sampled.frequencies + 0.1 / 3  # with smoothed labels
    expected = (logits + (COUNTS / 50).log() - met.log()).softmax(1)
    assert torch.allclose(sampled.natural_probabilities(logits), expected.float(), atol=1e-6)
    with pytest.raises(StiffnessError, match="Call fit first"):
        ClassGroupingBalancer().natural_probabilities(logits)


@pytest.mark.slow
def test_it_helps_small_classes():
    x, y = blobs(900, noise=2.5, seed=1)
    few = torch.cat([(y == label).nonzero().flatten()[:n] for label, n in enumerate((150, 40, 8))])
    train = TensorDataset(*(part[few] for part in blobs(900, noise=2.5, seed=2)))
    recalls = []
    for balancer in (ClassGroupingBalancer(**OFF), ClassGroupingBalancer()):
        torch.manual_seed(0)
        module = fit(balancer, train=DataLoader(train, 16, shuffle=True), max_epochs=10)[0].eval()
        right = module(x).argmax(1) == y
        recalls.append([float(right[y == label].float().mean()) for label in range(3)])
    plain, balanced = recalls
    assert balanced[2] > plain[2] + 0.05
    assert sum(balanced) > sum(plain)


def test_absorption_is_measured():
    balancer = ClassGroupingBalancer()
    assert balancer.absorption is None
    fit(balancer)
    assert balancer.absorption.shape == (3, 3)
    assert float(balancer.absorption.max()) > 0
    assert balancer.absorption.diagonal().tolist() == [0, 0, 0]


def resumable(folder, resume=None, shuffle=True, epochs=3, **options):
    balancer, module = ClassGroupingBalancer(warmup=0, **options), Classifier()
    checkpoints = ModelCheckpoint(folder, "{step}", save_top_k=-1, every_n_train_steps=1)
    run = trainer([balancer, checkpoints], enable_checkpointing=True, max_epochs=epochs)
    run.fit(module, data(shuffle=shuffle), ckpt_path=resume)
    return module, balancer


@pytest.mark.parametrize("step", [3, 5, 7])
def test_a_run_goes_on_from_its_checkpoint(step, tmp_path):
    module, balancer = resumable(tmp_path)
    again, resumed = resumable(tmp_path, tmp_path / f"step={step}.ckpt")
    assert_identical(dict(module.state_dict()), dict(again.state_dict()))
    assert_identical(balancer.state_dict(), resumed.state_dict())
    state = torch.load(tmp_path / f"step={step}.ckpt", weights_only=True)["callbacks"]
    own = {"counts", "frequencies", "drawn", "natural", "batches", "means"}
    assert state["ClassGroupingBalancer"].keys() == {*own, "readings", "observed"}
    loaded, logits = ClassGroupingBalancer(), torch.randn(2, 3)
    loaded.load_state_dict(state["ClassGroupingBalancer"])
    assert torch.equal(loaded.natural_probabilities(logits), balancer.natural_probabilities(logits))
    loaded.load_state_dict({})


def test_a_second_fit_begins_anew():
    balancer = ClassGroupingBalancer()
    first = fit(balancer)[0]
    second = fit(balancer)[0]
    assert_identical(dict(first.state_dict()), dict(second.state_dict()))
    assert balancer._batches == 10


class Smooth(Classifier):
    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1], label_smoothing=0.1)


class Mixed(Classifier):
    def training_step(self, batch, batch_idx):
        (x, y), share = batch, 0.3
        logits = self(share * x + (1 - share) * x.flip(0))
        return share * F.cross_entropy(logits, y) + (1 - share) * F.cross_entropy(logits, y.flip(0))


class Manual(Classifier):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(F.cross_entropy(self(batch[0]), batch[1]))
        optimizer.step()


class Checkpointed(Classifier):
    def forward(self, x):
        return torch.utils.checkpoint.checkpoint(self.net, x, use_reentrant=False)


@pytest.mark.parametrize(
    ("module", "options", "parts"),
    [
        (Smooth, {}, {}),
        (Mixed, {}, {"shift": False}),
        (Checkpointed, {}, {}),
        (Classifier, {"accumulate_grad_batches": 2}, {}),
        (Classifier, {"precision": "bf16-mixed"}, {}),
        (Classifier, {"precision": "bf16-true"}, {}),
        (Classifier, {"precision": 64}, {}),
        (Classifier, {"max_steps": 7, "max_epochs": -1}, {}),
        (Classifier, {"fast_dev_run": True}, {}),
        (Classifier, {"overfit_batches": 2}, {}),
    ],
)
@pytest.mark.filterwarnings("ignore:You requested to overfit")
def test_ways_of_training(module, options, parts):
    balancer = ClassGroupingBalancer(warmup=0, **parts)
    trained, looks, _ = fit(balancer, module(), **options)
    assert all(bool(value.isfinite().all()) for value in trained.state_dict().values())
    assert balancer._batches == len(looks.labels)


def test_manual_optimisation():
    balancer = ClassGroupingBalancer(warmup=0)
    run = trainer([balancer])
    run.fit(Manual(), data())
    assert balancer._means().seen.sum() == 100


def test_recomputed_forward_passes_get_the_same_shift():
    """The gradient of a checkpointed module is that of the plain one."""
    weights = [fit(ClassGroupingBalancer(warmup=0), kind())[0].state_dict() for kind in (Classifier, Checkpointed)]
    for key, value in weights[0].items():
        assert torch.allclose(value, weights[1][key], atol=1e-6)


@pytest.mark.slow
def test_compiled_modules():
    plain = fit(ClassGroupingBalancer(warmup=0))[0]
    module = Classifier()
    module.net.compile(backend="eager")
    compiled = fit(ClassGroupingBalancer(warmup=0), module)[0]
    for first, second in zip(plain.parameters(), compiled.parameters(), strict=True):
        assert torch.allclose(first, second, atol=1e-6)


@pytest.mark.slow
def test_modules_that_were_compiled_before():
    """Compiled code looks for no hooks: after a plain fit it has to be compiled anew."""
    compiled, once = Validated(), Validated()
    compiled.net.compile(backend="eager")
    validated = DataLoader(imbalanced(), 25)
    for module in (compiled, once):
        start = copy.deepcopy(module.state_dict())
        fit(ClassGroupingBalancer(**OFF), module, val=validated)
        module.load_state_dict(start)
    balancer = balancers.ClassGroupingBalancer(max_readings=1)
    fit(balancer, compiled, val=validated)
    fit(balancers.ClassGroupingBalancer(max_readings=0), once, val=validated)
    for first, second in zip(once.parameters(), compiled.parameters(), strict=True):
        assert torch.allclose(first, second, atol=1e-6)
    assert balancer.readings[-1].recall is not None


@pytest.mark.slow
@pytest.mark.xfail(strict=True, reason="the hooks run uncompiled, so that the graph breaks at the classifier")
def test_modules_compiled_as_one_graph():
    module = Classifier()
    module.net.compile(backend="eager", fullgraph=True)
    fit(ClassGroupingBalancer(), module)


class Two(Classifier):
    def __init__(self):
        super().__init__()
        self.other = nn.Linear(12, CLASSES)


class Functional(Classifier):
    def forward(self, x):
        return F.linear(self.net[:-1](x), self.net[-1].weight, self.net[-1].bias)


class Positions(Classifier):
    def forward(self, x):
        return self.net(x[:, None].expand(-1, 4, -1)).mean(1)


class Views(Classifier):
    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0].repeat(2, 1)), batch[1].repeat(2))


def test_sampling_alone_asks_for_no_classifier():
    balancer = ClassGroupingBalancer(logits=False, shift=False, smoothing=0.0)
    _, looks, _ = fit(balancer, Two(), max_epochs=1)
    assert looks.hooks == (0, 0)
    assert balancer.frequencies[0] == pytest.approx(30**0.75 / (30**0.75 + 15**0.75 + 5**0.75))


def labelled(labels):
    y = torch.tensor(labels)
    return DataLoader(TensorDataset(torch.randn(len(y), FEATURES), y), batch_size=10, shuffle=True)


def unclear():
    x, y = imbalanced().tensors
    return DataLoader(TensorDataset(x, y % 2, y), batch_size=10, shuffle=True)


def soft():
    y = F.one_hot(torch.arange(20) % 3, 3).float()
    return DataLoader(TensorDataset(torch.randn(20, FEATURES), y), batch_size=10)


@pytest.mark.parametrize(
    ("module", "train", "options", "found"),
    [
        (Two, data, {}, r"only Linear layer with 3 outputs; found 2 of 3 .*'net.2' \(3 outputs\), 'other'"),
        (Classifier, data, {"classifier": "head"}, "must be the name of a layer, found 'head'"),
        (Classifier, data, {"classifier": "net.1"}, "must have an output for each of 3 classes, found 12"),
        (lambda: Classifier(5), data, {}, "with 3 outputs; found 0 of 2"),
        (lambda: Classifier(5), data, {"classifier": "net.2"}, "found 0 of classes 3, 4"),
        (Functional, data, {}, "'net.2' must be called in its training mode by training_step, found no call"),
        (Positions, data, {}, r"must be a matrix with a row for each sample, found shape \[10, 4, 12\]"),
        (Positions, data, {"shift": False}, r"must be a matrix with a row for each sample, found shape \[10, 4, 3\]"),
        (Views, data, {}, "each of the 10 labels of the batch, found 20 rows"),
        (Classifier, lambda: labelled([0] * 30 + [2] * 10), {}, "found 0 of class 1"),
        (Classifier, lambda: labelled([0] * 30), {}, "at least two classes"),
        (Classifier, lambda: labelled([0] * 30 + [-1] * 10), {}, "found -1 to 0"),
        (Classifier, lambda: labelled([0, 1, 2, 3] * 9), {"num_classes": 3}, r"in \[0, 3\), found 0 to 3"),
        (Classifier, data, {"counts": [29, 15, 6]}, r"found \[29, 15, 6\] given and \[30, 15, 5\] in the dataset"),
        (Classifier, data, {"counts": [30, 20]}, "Class labels must lie in"),
        (Classifier, lambda: DataLoader(Stream(), 10), {}, "The number of classes must be known"),
        (Classifier, unclear, {}, "found 2 candidates, (tensors|elements) 1, 2"),
        (lambda: Classifier(4), data, {}, "Or pass num_classes=, if there are classes without a training sample"),
        (Classifier, soft, {"num_classes": 3}, "must be 10 integers"),
    ],
)
@pytest.mark.parametrize("sampling", [True, False])
def test_what_cannot_be_balanced(module, train, options, found, sampling):
    module = module()
    with pytest.raises(StiffnessError, match=found):
        fit(ClassGroupingBalancer(sampling=sampling, **options), module, train())
    assert not module.net[-1]._forward_hooks


@pytest.mark.parametrize(
    ("options", "found"),
    [({"warmup": 2}, "warmup must be a share"), ({"counts": [3, 0]}, "found 0 of class 1"), ({"counts": [3]}, "two")],
)
def test_arguments_that_are_none(options, found):
    with pytest.raises(StiffnessError, match=found):
        ClassGroupingBalancer(**options)


def test_labels_may_be_read_by_the_user():
    class Triple(Classifier):
        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self(batch[0]), batch[2])

    x, y = imbalanced().tensors
    train = DataLoader(TensorDataset(x, y * 0, y), batch_size=10)
    balancer = ClassGroupingBalancer(targets=lambda batch: batch[2], counts=[30, 15, 5])
    _, _, run = fit(balancer, Triple(), train)
    assert run.train_dataloader is train
    assert balancer.frequencies.tolist() == pytest.approx([0.6, 0.3, 0.1])
    balancer = ClassGroupingBalancer(targets=lambda batch: batch[2], num_classes=3)
    fit(balancer, Triple(), train, max_epochs=1)
    assert torch.allclose(balancer.frequencies, (COUNTS + 1).double() / 53)


class Weighted(Classifier):
    """A head that knows nothing of its input, under a loss with class weights."""

    def __init__(self, weight=(1.0, 3.0, 9.0), smoothing=0.0, by_function=False):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(FEATURES, 3))
        self.weight = torch.tensor(weight)
        self.loss = None if by_function else nn.CrossEntropyLoss(self.weight, label_smoothing=smoothing)

    def training_step(self, batch, batch_idx):
        logits = self(0 * batch[0])
        return F.cross_entropy(logits, batch[1], self.weight) if self.loss is None else self.loss(logits, batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


@pytest.mark.parametrize("options", [{}, {"smoothing": 0.0}, {"logits": False}])
@pytest.mark.parametrize("own", [0.0, 0.2])
@pytest.mark.slow
def test_probabilities_of_a_network_without_features_are_the_class_frequencies(options, own):
    """Whatever is weighed and smoothed by whom; and the logits are those of equal frequencies, if they are adjusted."""
    balancer = ClassGroupingBalancer(sampling=False, shift=False, **options)
    module = fit(balancer, Weighted(smoothing=own), data(batch_size=50, shuffle=False), max_epochs=120)[0].eval()
    logits = module(torch.zeros(1, FEATURES)).detach()
    assert torch.allclose(balancer.natural_probabilities(logits), COUNTS / 50, atol=2e-3)
    if balancer.logits:
        assert torch.allclose(logits.softmax(1), torch.full((1, 3), 1 / 3), atol=2e-3)


def test_weights_of_a_function_are_seen_too_late():
    with pytest.warns(UserWarning, match=r"found \[0.231, 0.692, 2.077\] in the loss and none in the module"):
        fit(ClassGroupingBalancer(shift=False), Weighted(by_function=True))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_class_that_is_never_drawn(smoothing):
    """It counts as one sample."""
    balancer = ClassGroupingBalancer(rates=torch.tensor([0.5, 0.5, 0.0]), shift=False, smoothing=smoothing)
    fit(balancer)
    met = (1 - smoothing) * torch.tensor([25.0, 25.0, 1.0], dtype=torch.float64) / 51 + smoothing / 3
    assert torch.allclose(balancer.offsets, met.log())


class Cosine(nn.Module):
    """A head that is no Linear layer."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.eye(3))

    def forward(self, x):
        return 5 * F.normalize(x, dim=1) @ F.normalize(self.weight, dim=1).T


class Hidden(Classifier):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(FEATURES, 3), nn.Tanh(), Cosine())


class Binary(Classifier):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(FEATURES, 2), nn.Tanh(), nn.Linear(2, 1))

    def training_step(self, batch, batch_idx):
        return F.binary_cross_entropy_with_logits(self(batch[0])[:, 0], batch[1].float())


@pytest.mark.parametrize(
    ("module", "train", "found"),
    [
        (Hidden, data, "'net.0' must be the logits .* softmax is computed of others"),
        (Binary, lambda: labelled([0] * 30 + [1] * 10), "'net.0' must be the logits .* binary cross entropy"),
    ],
)
def test_a_layer_that_makes_no_logits(module, train, found):
    module = module()
    with pytest.raises(StiffnessError, match=found):
        fit(ClassGroupingBalancer(), module, train())
    assert not module.net[0]._forward_hooks
    with pytest.warns(UserWarning, match=found):
        fit(ClassGroupingBalancer(classifier="net.0"), module, train())
    fit(ClassGroupingBalancer(logits=False, smoothing=0.0), module, train())


def test_a_head_of_another_kind_is_named():
    fit(ClassGroupingBalancer(classifier="net.2"), Hidden())


class Perturbed(Manual):
    """Sharpness-aware minimisation: the gradient that counts is that of a second pass."""

    def training_step(self, batch, batch_idx):
        optimizer, seen = self.optimizers(), []
        for _ in range(2):
            logits = self(batch[0])
            seen.append(logits.detach())
            optimizer.zero_grad()
            self.manual_backward(F.cross_entropy(logits, batch[1]))
        optimizer.step()
        assert torch.equal(*seen)


def test_each_pass_of_a_step_with_several_is_smoothed():
    trainer([ClassGroupingBalancer(smoothing=0.3)]).fit(Perturbed(), data())


def test_it_is_quiet_on_balanced_data():
    balancer = ClassGroupingBalancer(warmup=0)
    fit(balancer, train=loader(60))
    assert balancer.frequencies.tolist() == pytest.approx([1 / 3] * 3)


YAML = """
trainer:
  accelerator: cpu
  max_epochs: 1
  logger: false
  enable_checkpointing: false
  enable_progress_bar: false
  enable_model_summary: false
  callbacks:
    - class_path: lightning_stiffness.callbacks.balancer.ClassGroupingBalancer
      init_args:
        shift: false
        classifier: net.2
        counts: [30, 15, 5]
        rates: lightning_stiffness.functional.class_rates.inverse_frequency_rates
"""


class WithData(Classifier):
    def train_dataloader(self):
        return data()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore:LightningCLI's args parameter is intended")
def test_the_command_line_builds_it(tmp_path, capsys):
    def run(*arguments):
        return LightningCLI(WithData, args=["fit", *arguments], save_config_callback=None, seed_everything_default=0)

    path = tmp_path / "config.yaml"
    path.write_text(YAML)
    for _ in range(2):
        (balancer,) = [found for found in run("--config", str(path)).trainer.callbacks if hasattr(found, "frequencies")]
        assert balancer.frequencies.tolist() == pytest.approx([1 / 3] * 3)
        assert (balancer.shift, balancer.classifier) == (False, "net.2")
        capsys.readouterr()
        with pytest.raises(SystemExit):
            run("--config", str(path), "--print_config")
        path.write_text(capsys.readouterr().out)
