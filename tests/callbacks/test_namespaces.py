"""Lightning comes as two packages; the callbacks work with the one that the program imported."""

import subprocess
import sys
from pathlib import Path

import pytest

from lightning_stiffness import StiffnessEarlyStopping, StiffnessError, StiffnessMonitor

FIT = """
import sys, warnings
warnings.simplefilter("ignore")
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset
{imports}

class Classifier(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 3)
    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self.layer(batch[0]), batch[1])
        self.log("loss", loss)
        return loss
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

quiet = ["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"]
options = dict(max_epochs=4, accelerator="cpu", **dict.fromkeys(quiet, False))
says = lambda history: Decision(len(history) == 3, "enough")
monitor, stopper = StiffnessMonitor(probe_size=12), StiffnessEarlyStopping(criterion=says)
trainer = L.Trainer(callbacks=[stopper, monitor], **options)
data = DataLoader(TensorDataset(torch.randn(30, 4), torch.arange(30) % 3), batch_size=10)
try:
    trainer.fit(Classifier(), data)
except StiffnessError as error:
    print("refused:", error)
else:
    print(len(monitor.history), trainer.current_epoch, trainer.early_stopping_callbacks == [stopper])
{check}
"""
OURS = "from lightning_stiffness import Decision, StiffnessEarlyStopping, StiffnessError, StiffnessMonitor"


def output_of(imports: str, check: str = "") -> str:
    result = subprocess.run(
        [sys.executable, "-c", FIT.format(imports=imports, check=check)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout.strip()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("imports", "package"),
    [
        (f"import pytorch_lightning as L\n{OURS}", "pytorch_lightning"),
        (f"import lightning.pytorch as L\n{OURS}", "lightning.pytorch"),
        (f"{OURS}\nimport lightning as L", "lightning.pytorch"),
        (f"import pytorch_lightning as L\nimport lightning_stiffness.metrics\n{OURS}", "pytorch_lightning"),
    ],
)
def test_a_program_with_either_package_imports_that_one_alone(imports, package):
    check = 'print([name for name in ("lightning.pytorch", "pytorch_lightning") if name in sys.modules])'
    assert output_of(imports, check).splitlines() == ["3 2 True", f"['{package}']"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "imports",
    [
        f"{OURS}\nStiffnessMonitor\nimport pytorch_lightning as L",
        f"import lightning\nimport pytorch_lightning as L\n{OURS}",
    ],
)
def test_a_program_that_mixes_them_is_told(imports):
    answer = output_of(imports)
    assert answer.startswith("refused: The callbacks are built on 'lightning', but the Trainer is one of 'pytorch_li")
    assert "before lightning_stiffness" in answer


@pytest.mark.parametrize("callback", [StiffnessMonitor, StiffnessEarlyStopping])
def test_the_other_trainer_is_refused(callback, tmp_path: Path):
    other = pytest.importorskip("pytorch_lightning")
    trainer = other.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu", default_root_dir=tmp_path)
    with pytest.raises(StiffnessError, match="Import only one of the two packages"):
        callback().setup(trainer, None, "fit")
