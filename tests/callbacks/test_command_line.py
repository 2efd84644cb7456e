"""LightningCLI builds both callbacks from YAML, and prints the YAML that builds them again."""

import sys
from pathlib import Path

import pytest
import yaml
from lightning.pytorch.cli import LightningCLI

from lightning_stiffness import StiffnessDrop, StiffnessEarlyStopping, StiffnessMonitor
from lightning_stiffness.callbacks.shadow_stopping import ShadowStopping
from lightning_stiffness.stopping import All, ConfirmedDrop, LabelWave, LeaveOneOut
from tests.callbacks.modules import QUIET, Classifier, loader

pytestmark = [
    *QUIET,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:LightningCLI's args parameter is intended"),
]

CONFIG = """
trainer:
  accelerator: cpu
  max_epochs: 3
  logger: false
  enable_checkpointing: false
  enable_progress_bar: false
  enable_model_summary: false
  callbacks:
    - class_path: lightning_stiffness.StiffnessMonitor
      init_args:
        every_n_steps: 4
        probe_size: 15
        mode: train
        class_names: [a, b, c]
        superclasses: [0, 0, 1]
        loss: tests.callbacks.test_command_line.losses
        targets: tests.callbacks.test_command_line.targets
    - class_path: lightning_stiffness.StiffnessEarlyStopping
      init_args:
        patience: 2
        criterion:
          class_path: lightning_stiffness.StiffnessDrop
          init_args:
            drop: 0.1
            warmup: 1
"""


class WithData(Classifier):
    def __init__(self, rate: float = 0.05) -> None:
        super().__init__(rate=rate)

    def train_dataloader(self):
        return loader()


def losses(module, batch):
    return (module(batch[0]) - batch[0][:, :3]).square().mean(dim=1)


def targets(batch):
    return batch[1]


RESTORING = """
trainer:
  accelerator: cpu
  max_epochs: 2
  logger: false
  enable_checkpointing: false
  enable_progress_bar: false
  enable_model_summary: false
  callbacks:
    - class_path: lightning_stiffness.callbacks.shadow_stopping.ShadowStopping
      init_args:
        criteria:
          drop:
            class_path: lightning_stiffness.StiffnessDrop
            init_args:
              drop: 0.2
          labels:
            class_path: lightning_stiffness.stopping.LabelWave
          both:
            class_path: lightning_stiffness.stopping.All
            init_args:
              criteria:
                - class_path: lightning_stiffness.ConfirmedDrop
                  init_args:
                    confirmation:
                      class_path: lightning_stiffness.LeaveOneOut
                      init_args:
                        patience: 2
                - class_path: lightning_stiffness.StiffnessDrop
        metrics: [train_loss_epoch]
    - class_path: lightning_stiffness.StiffnessEarlyStopping
      init_args:
        restore: best
        grace_epochs: 1.5
        grace_steps: 3
        source:
          class_path: lightning_stiffness.StiffnessMonitor
          init_args:
            probe_size: 15
            name: other
        criterion:
          class_path: lightning_stiffness.stopping.LeaveOneOut
          init_args:
            patience: 7
            guard: null
"""


def run(*arguments: str) -> LightningCLI:
    return LightningCLI(WithData, args=["fit", *arguments], save_config_callback=None, seed_everything_default=False)


def callbacks_of(cli: LightningCLI) -> tuple[StiffnessMonitor, StiffnessEarlyStopping]:
    found = {type(callback): callback for callback in cli.trainer.callbacks}
    return found[StiffnessMonitor], found[StiffnessEarlyStopping]


def assert_as_configured(cli: LightningCLI) -> None:
    monitor, stopper = callbacks_of(cli)
    assert (monitor.every_n_steps, monitor.probe_size, monitor.class_names) == (4, 15, ("a", "b", "c"))
    assert monitor.loss is losses
    assert monitor.targets is targets
    assert stopper.patience == 2
    assert stopper.criterion == StiffnessDrop(drop=0.1, warmup=1)
    assert stopper.history is monitor.history
    assert len(monitor.history) == 7
    assert cli.trainer.early_stopping_callbacks == [stopper]


@pytest.mark.slow
def test_a_file_of_both_callbacks_comes_back_from_print_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG)
    assert_as_configured(run("--config", str(path)))
    capsys.readouterr()
    with pytest.raises(SystemExit):
        run("--config", str(path), "--print_config")
    printed = capsys.readouterr().out
    arguments = yaml.safe_load(printed)["trainer"]["callbacks"][0]["init_args"]
    assert arguments["seed"] == 0
    assert arguments["name"] == "stiffness"
    path.write_text(printed)
    assert_as_configured(run("--config", str(path)))


def assert_restoring(cli: LightningCLI) -> None:
    found = {type(callback): callback for callback in cli.trainer.callbacks}
    shadow, stopper = found[ShadowStopping], found[StiffnessEarlyStopping]
    assert shadow.criteria == {
        "drop": StiffnessDrop(drop=0.2),
        "labels": LabelWave(),
        "both": All(ConfirmedDrop(confirmation=LeaveOneOut(patience=2)), StiffnessDrop()),
    }
    assert shadow.verdicts.best.keys() == {"train_loss_epoch"}
    assert (stopper.restore, stopper.grace_epochs, stopper.grace_steps) == ("best", 1.5, 3)
    assert stopper.criterion == LeaveOneOut(patience=7, guard=None)
    assert len(stopper.history) == len(shadow.history) == 3
    assert stopper.history[-1].signals.keys() >= {"leave_one_out_error"}
    assert shadow.history[-1].signals.keys() >= {"prediction_changes"}


@pytest.mark.slow
def test_shadows_signals_and_restoring_come_back_from_print_config(tmp_path, capsys):
    path = tmp_path / "config.yaml"
    path.write_text(RESTORING)
    assert_restoring(run("--config", str(path)))
    capsys.readouterr()
    with pytest.raises(SystemExit):
        run("--config", str(path), "--print_config")
    path.write_text(capsys.readouterr().out)
    assert_restoring(run("--config", str(path)))


@pytest.mark.slow
def test_callbacks_from_the_shell():
    cli = run(
        "--trainer.accelerator=cpu", "--trainer.max_epochs=1", "--trainer.logger=false",
        "--trainer.enable_checkpointing=false", "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false",
        "--trainer.callbacks+=StiffnessMonitor", "--trainer.callbacks.probe_size=15",
        "--trainer.callbacks+=StiffnessEarlyStopping", "--trainer.callbacks.patience=2.5",
    )  # fmt: skip
    monitor, stopper = callbacks_of(cli)
    assert len(monitor.history) == 2
    assert stopper.criterion.drop.patience == 2.5


@pytest.mark.slow
@pytest.mark.parametrize(
    "mistake",
    [
        ["--trainer.callbacks+=StiffnessMonitor", "--trainer.callbacks.mode=both"],
        ["--trainer.callbacks+=StiffnessMonitor", "--trainer.callbacks.every_n_epoch=1"],
        ["--trainer.callbacks+=StiffnessEarlyStopping", "--trainer.callbacks.mode=min"],
        ["--trainer.callbacks+=StiffnessEarlyStopping", "--trainer.callbacks.restore=last"],
    ],
)
def test_mistakes_are_found_before_anything_runs(mistake, capsys):
    with pytest.raises(SystemExit):
        run(*mistake)
    assert "callbacks" in capsys.readouterr().err


def test_this_module_can_be_imported_by_its_name():
    assert sys.modules["tests.callbacks.test_command_line"].losses is losses
