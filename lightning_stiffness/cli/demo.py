"""`lightning-stiffness demo`: the main job on real data."""

import argparse
from pathlib import Path
from typing import Any

from lightning_stiffness.errors import StiffnessError

_DESCRIPTION = """\
Trains a small network on scikit-learn's handwritten digits (no download), some of
whose labels are made wrong, until StiffnessEarlyStopping stops it; then trains the
same without a stop. Prints what the stop was worth on unseen digits with right labels,
writes a picture and an HTML page, and leaves TensorBoard logs. Takes about half a minute.
"""


def add(commands: Any) -> None:
    """Adds the command to the parser."""
    demo = commands.add_parser(
        "demo",
        help="train on digits with wrong labels until the stop; table and picture",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    demo.set_defaults(run=_run)
    demo.add_argument(
        "--output", type=Path, default=Path("stiffness_demo"), help="folder for logs and picture (%(default)s)"
    )
    demo.add_argument("--epochs", type=int, default=60, help="length of the run that is not stopped (%(default)s)")
    demo.add_argument("--samples", type=int, default=1000, help="training digits, 200 to 1600 (%(default)s)")
    demo.add_argument("--wrong-labels", type=float, default=0.2, help="share of wrong training labels (%(default)s)")
    demo.add_argument("--seed", type=int, default=0, help="of split, wrong labels and training (%(default)s)")


def _run(options: argparse.Namespace) -> int:
    try:
        from lightning_stiffness.demo import DemoSettings, run_demo  # noqa: PLC0415 (--help must not wait for Lightning)
    except ModuleNotFoundError as cause:
        raise StiffnessError(f"The demo needs {cause.name}: pip install 'lightning-stiffness[demo]'.") from cause
    run_demo(DemoSettings(options.output, options.epochs, options.samples, options.wrong_labels, options.seed))
    return 0
