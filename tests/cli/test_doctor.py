import csv
import sys

import pytest
import torch

from lightning_stiffness.cli import main

SCRIPT = """
import lightning as L
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

class Net(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)
    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.layer(batch[0]), batch[1])

class Contrastive(Net):
    def training_step(self, batch, batch_idx):
        outputs = self.layer(batch[0])
        return nn.functional.cross_entropy(outputs @ outputs.T, torch.arange(len(outputs)))

class Wide(Net):
    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.layer(batch[0].repeat(1, 2)), batch[1])

def loader():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    inputs = 3 * torch.eye(4)[labels] + torch.randn(60, 4, generator=generator)
    return DataLoader(TensorDataset(inputs, labels), 10, shuffle=True)

def broken():
    return 1 / 0
"""


@pytest.fixture
def user(tmp_path, monkeypatch):
    (tmp_path / "code_of_a_user.py").write_text(SCRIPT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in ("code_of_a_user", "_script_code_of_a_user"):
        sys.modules.pop(name, None)


def names(module="Net", batch="loader"):
    return ["doctor", f"code_of_a_user.py:{module}", f"code_of_a_user.py:{batch}"]


def test_help_teaches(capsys):
    with pytest.raises(SystemExit) as end:
        main(["doctor", "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    for word in ("examples:", "script.py:name", "--labels", "--checkpoint", "exit status"):
        assert word in text


def test_a_report(user, capsys):
    assert main(names()) == 0
    text = capsys.readouterr().out
    assert "Net can be measured" in text
    assert "StiffnessMonitor(num_classes=3" in text


def test_what_cannot_be_measured_is_reported_with_status_one(user, capsys):
    assert main(names("Contrastive")) == 1
    assert "cannot be measured" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (names("Nets"), "there is no 'Nets' (but Net)"),
        (names(batch="broken"), "failed with ZeroDivisionError: division by zero"),
        (names(batch="torch"), "BATCH must be a batch"),
        (names("loader"), "MODULE must be a LightningModule"),
        (names("Wide"), "mat1 and mat2 shapes cannot be multiplied"),
        ([*names(), "--samples", "1"], "--samples must be at least 2"),
        ([*names(), "--checkpoint", "none.ckpt"], "there is no none.ckpt"),
        ([*names(), "--labels", "no_folder/scores.csv"], "The scores could not be written"),
    ],
)
def test_what_is_wrong_is_one_line_and_status_two(user, capsys, arguments, message):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("lightning-stiffness: ")
    assert message in error
    assert error.count("\n") == 1


def test_labels_by_a_trained_model(user, capsys):
    state = {"layer.weight": torch.eye(4)[:3], "layer.bias": torch.zeros(3)}
    torch.save({"state_dict": state}, user / "last.ckpt")
    assert main([*names(), "--checkpoint", "last.ckpt", "--labels", "scores.csv"]) == 0
    assert "of 60 labels look wrong" in capsys.readouterr().out
    rows = list(csv.DictReader((user / "scores.csv").read_text().splitlines()))
    assert [int(row["given_label"]) for row in rows] == [k % 3 for k in range(60)]
