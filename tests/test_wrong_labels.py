import copy
import csv
import io

import lightning as L
import pytest
import torch
from rich.console import Console
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from lightning_stiffness.errors import MixedSamplesError, StiffnessError
from lightning_stiffness.functional.label_score import label_evidence, label_quality
from lightning_stiffness.gram import GramEngine
from lightning_stiffness.targets import with_targets
from lightning_stiffness.wrong_labels import LabelScores, average_scores, score_labels
from tests.oracle import cross_entropy


class Classifier(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.network = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3))

    def training_step(self, batch, batch_idx):
        loss = nn.functional.cross_entropy(self.network(batch[0]), batch[1])
        self.log("loss", loss)
        return loss


def clusters(size=120, wrong=6, seed=0):
    """Three clusters; the first labels are wrong."""
    generator = torch.Generator().manual_seed(seed)
    true = torch.randint(0, 3, (size,), generator=generator)
    inputs = 2 * torch.eye(4)[true] + 0.5 * torch.randn(size, 4, generator=generator)
    given = true.clone()
    given[:wrong] = (given[:wrong] + 1) % 3
    return TensorDataset(inputs, given), true


def trained(data, steps=120):
    torch.manual_seed(1)
    module = Classifier()
    optimizer = torch.optim.Adam(module.parameters(), 1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module.network(data.tensors[0]), data.tensors[1]).backward()
        optimizer.step()
    return module


@pytest.fixture(scope="module")
def scored():
    with torch.random.fork_rng():
        data, true = clusters()
        module = trained(data)
        return module, data, true, score_labels(module, data, progress=False)


def test_flipped_labels_are_the_worst_and_get_their_true_one(scored):
    _, data, true, scores = scored
    assert sorted(scores.worst(6).tolist()) == list(range(6))
    assert torch.equal(scores.suggested[:6], true[:6])
    assert scores.is_issue[:6].all()
    assert torch.equal(scores.given, data.tensors[1])
    assert torch.equal(scores.ids, torch.arange(120))
    assert bool(((scores.score >= 0) & (scores.score <= 1)).all())
    assert bool((scores.own_alignment[:6] < scores.rival_alignment[:6]).all())


def test_it_is_the_formula_on_what_the_engine_measures(scored):
    module, data, _, scores = scored
    evaluated = copy.deepcopy(module).eval()

    def losses(model, batch):
        return cross_entropy(model.network, batch)

    batches = [tuple(data.tensors)]
    found = GramEngine(evaluated, losses).class_alignment(batches, 3, relabel=with_targets)
    evidence = label_evidence(found.matrix, found.losses.double())
    assert torch.allclose(scores.evidence, evidence, atol=1e-4)
    assert torch.allclose(scores.score, label_quality(evidence, data.tensors[1]), atol=1e-3)
    assert torch.allclose(scores.loss.float(), losses(evaluated, batches[0]).detach().float(), atol=1e-5)


def test_nothing_is_left_behind(scored):
    module, data, _, _ = scored
    module.train()
    before, states = copy.deepcopy(module.state_dict()), torch.get_rng_state()
    score_labels(module, data, progress=False)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert torch.equal(states, torch.get_rng_state())
    assert all(part.training for part in module.modules())
    assert all(parameter.grad is None or parameter.requires_grad for parameter in module.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["shuffled loader", "data module", "small batches", "one class more"])
def test_where_the_data_come_from_does_not_matter(scored, kind):
    module, data, _, scores = scored

    class Data(L.LightningDataModule):
        def train_dataloader(self):
            return DataLoader(data, 16, shuffle=True)

    given = {"shuffled loader": DataLoader(data, 16, shuffle=True, drop_last=True), "data module": Data()}
    options = {"small batches": {"batch_size": 50}, "one class more": {"num_classes": 3}}
    found = score_labels(module, given.get(kind, data), progress=False, **options.get(kind, {}))
    assert torch.allclose(found.evidence, scores.evidence, atol=1e-4)


def test_a_plain_module_with_a_loss_and_batches_that_are_mappings():
    class Named(Dataset):
        def __init__(self):
            self.data, _ = clusters(40)

        def __len__(self):
            return 40

        def __getitem__(self, index):
            return {"x": self.data[index][0], "label": int(self.data[index][1])}

    model = nn.Linear(4, 3)

    def losses(module, batch):
        return nn.functional.cross_entropy(module(batch["x"]), batch["label"], reduction="none")

    assert score_labels(model, Named(), loss=losses, progress=False).evidence.shape == (40, 3)
    with pytest.raises(StiffnessError, match="Pass loss=lambda module, batch"):
        score_labels(model, Named())


def test_labels_in_another_place_need_relabel():
    data, _ = clusters(30)
    swapped = TensorDataset(data.tensors[1], data.tensors[0])
    model = nn.Linear(4, 3)
    options = {
        "loss": lambda module, batch: cross_entropy(module, (batch[1], batch[0])),
        "targets": lambda batch: batch[0],
        "progress": False,
    }
    with pytest.raises(StiffnessError, match=r"Pass relabel=callable\(batch, labels \[n\]\)"):
        score_labels(model, swapped, **options)
    found = score_labels(model, swapped, relabel=lambda batch, labels: [labels, batch[1]], **options)
    expected = score_labels(model, data, loss=cross_entropy, progress=False)
    assert torch.allclose(found.evidence, expected.evidence, atol=1e-4)


def test_losses_that_compare_samples_are_refused():
    data, _ = clusters(30)
    with pytest.raises(MixedSamplesError):
        score_labels(nn.Linear(4, 3), data, loss=lambda module, batch: (x := module(batch[0])) @ x.sum(0) + batch[1])


def test_a_class_of_one_sample_is_not_called_wrong():
    inputs = torch.randn(9, 4)
    data = TensorDataset(inputs, torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 2]))
    with pytest.warns(UserWarning, match="look wrong"):  # of an untrained model
        scores = score_labels(nn.Linear(4, 3), data, loss=cross_entropy, progress=False)
    assert scores.own_alignment[8].isnan()
    assert scores.score[8] == 1
    assert scores.suggested[8] == 2
    assert not scores.score.isnan().any()


def test_the_csv_has_the_columns_of_cleanlab(scored, tmp_path):
    _, _, _, scores = scored
    scores.to_csv(tmp_path / "scores.csv")
    rows = list(csv.DictReader((tmp_path / "scores.csv").read_text().splitlines()))
    assert list(rows[0])[:5] == ["id", "is_label_issue", "label_score", "given_label", "predicted_label"]
    assert [row["is_label_issue"] for row in rows] == [str(bool(flag)) for flag in scores.is_issue]
    assert [float(row["label_score"]) for row in rows] == scores.score.tolist()
    assert [int(row["predicted_label"]) for row in rows] == scores.suggested.tolist()


@pytest.mark.filterwarnings("ignore")
def test_cleanlab_reads_it(scored, tmp_path):
    pytest.importorskip("cleanlab")
    pandas = pytest.importorskip("pandas")
    from cleanlab.classification import CleanLearning
    from cleanlab.rank import find_top_issues
    from sklearn.linear_model import LogisticRegression

    _, data, _, scores = scored
    scores.to_csv(tmp_path / "scores.csv")
    frame = pandas.read_csv(tmp_path / "scores.csv")
    assert sorted(find_top_issues(frame["label_score"].to_numpy(), top=6).tolist()) == list(range(6))
    inputs, labels = (part.numpy() for part in data.tensors)
    learning = CleanLearning(LogisticRegression()).fit(inputs, labels, label_issues=frame)
    assert learning.get_label_issues()["is_label_issue"].sum() == int(scores.is_issue.sum())


@pytest.mark.slow
def test_the_average_of_readings(scored):
    module, data, _, scores = scored
    other = score_labels(trained(data, 20), data, progress=False)
    mean = average_scores([scores, other])
    assert torch.allclose(mean.evidence, (scores.evidence + other.evidence) / 2)
    assert mean.seconds == pytest.approx(scores.seconds + other.seconds)
    less, _ = clusters(40)
    with pytest.raises(StiffnessError, match="found 120 and 40 samples"):
        average_scores([scores, score_labels(module, less, progress=False)])
    with pytest.raises(StiffnessError, match="At least one reading"):
        average_scores([])


def test_the_table_shows_the_worst(scored):
    _, _, _, scores = scored
    console = Console(file=io.StringIO(), width=110)
    console.print(scores)
    text = console.file.getvalue()
    assert f"{int(scores.is_issue.sum())} of 120 labels look wrong" in text
    assert "suggested" in text


def test_no_wrong_label_is_an_empty_table():
    evidence = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    scores = LabelScores(torch.arange(2), torch.arange(2), evidence, evidence, -evidence)
    assert scores.__rich__().row_count == 0
    assert not scores.is_issue.any()


def test_the_progress_bar_is_for_terminals(scored, capsys, monkeypatch):
    module, data, _, _ = scored
    score_labels(module, data)
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("FORCE_COLOR", "1")
    score_labels(module, data)
    assert "gradients under each label" in capsys.readouterr().err


def test_a_model_that_has_not_learnt_the_labels_is_told():
    inputs, labels = torch.randn(60, 4), torch.arange(60) % 6
    with pytest.warns(UserWarning, match="more than half: the model has hardly learnt these labels"):
        score_labels(nn.Linear(4, 6), TensorDataset(inputs, labels), loss=cross_entropy, progress=False)
