"""`lightning-stiffness doctor`: whether a model and its data can be measured, and which labels are wrong."""

import argparse
import warnings
from pathlib import Path
from typing import Any

from lightning_stiffness.errors import StiffnessError

_DESCRIPTION = """\
Measures once and says what training with StiffnessMonitor will meet: where losses and
classes are found, whether samples mix, which parameters are covered by which route, what
a reading costs beside a forward and backward pass, and which settings fit. With --labels
it scores the label of every sample of the data by the gradients of the trained model.
"""
_EPILOG = """\
MODULE and BATCH are `package.module:name` or `script.py:name`: an object, or a class or
function that is called without arguments to make it. MODULE makes a LightningModule;
BATCH a batch, a DataLoader, a Dataset or a LightningDataModule.

examples:
  lightning-stiffness doctor train.py:make_model train.py:make_loader
      both made by functions of a script, whose last lines are under `if __name__ == "__main__"`
  lightning-stiffness doctor project.models:Classifier project.data:Digits
      a LightningModule and a LightningDataModule of an importable package
  lightning-stiffness doctor train.py:make_model train.py:data --checkpoint last.ckpt --labels scores.csv
      which labels are probably wrong, by a trained model; scores.csv has the columns that cleanlab uses

exit status: 0 if it can be measured, 1 if not (the report says why), 2 where something is missing.
"""


def add(commands: Any) -> None:
    """Adds the command to the parser."""
    doctor = commands.add_parser(
        "doctor",
        help="can this model be measured, how and at what cost; which labels are wrong",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    doctor.set_defaults(run=_run)
    doctor.add_argument("module", metavar="MODULE", help="what makes the model, such as train.py:make_model")
    doctor.add_argument("batch", metavar="BATCH", help="what makes a batch or the data, such as train.py:make_loader")
    doctor.add_argument("--checkpoint", type=Path, metavar="FILE", help="weights to load, as Lightning saves them")
    doctor.add_argument("--samples", type=int, default=200, help="how many are measured (%(default)s)")
    doctor.add_argument("--num-classes", type=int, help="number of classes (the largest label + 1)")
    doctor.add_argument("--labels", type=Path, metavar="FILE", help="score all labels of the data, into this CSV file")


def _run(options: argparse.Namespace) -> int:
    from rich.console import Console  # noqa: PLC0415 (--help must not wait for Lightning)

    from lightning_stiffness.doctor import diagnose  # noqa: PLC0415
    from lightning_stiffness.named_objects import (  # noqa: PLC0415
        load_data,
        load_module,
        run_user_code,
        with_checkpoint,
    )

    if options.samples < 2:
        raise StiffnessError(f"--samples must be at least 2; found {options.samples}.")
    console = Console()
    module, data = load_module(options.module), load_data(options.batch)
    if options.checkpoint is not None:
        with_checkpoint(module, options.checkpoint)
    choices = {"samples": options.samples, "num_classes": options.num_classes}
    found = run_user_code(lambda: diagnose(module, data, **choices), f"The measurement of {options.module}")
    console.print(found)
    if not found.is_measurable:
        return 1
    if options.labels is not None:
        _score_labels(module, data, options, console)
    return 0


def _score_labels(module: Any, data: Any, options: argparse.Namespace, console: Any) -> None:
    from rich.markup import escape  # noqa: PLC0415

    from lightning_stiffness.named_objects import run_user_code  # noqa: PLC0415
    from lightning_stiffness.wrong_labels import score_labels  # noqa: PLC0415

    with warnings.catch_warnings(record=True) as caught:
        scores = run_user_code(
            lambda: score_labels(module, data, num_classes=options.num_classes),
            f"Scoring the labels of {options.batch}",
        )
    try:
        scores.to_csv(options.labels)
    except OSError as cause:
        raise StiffnessError(f"The scores could not be written: {cause}.") from cause
    console.print(scores)
    for one in caught:
        console.print(f"[yellow]note: {escape(str(one.message))}[/yellow]")
    console.print(f"All scores: {options.labels}", soft_wrap=True)
