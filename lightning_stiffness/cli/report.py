"""`lightning-stiffness report`: what saved histories say."""

import argparse
from pathlib import Path
from typing import Any

_DESCRIPTION = """\
Reads the histories that StiffnessMonitor wrote beside the logs of runs (stiffness.jsonl)
and prints for each of them what was measured, and when each criterion for stopping would
have stopped the run: shadow stopping, after the fact. A criterion is judged if the history
has its signal: validation criteria need val_loss among what the run logged, others a
signal of the monitor, StiffnessMonitor(signals=["leave_one_out"]). Let a run go on to its
end to compare criteria on it.
"""
_EXAMPLES = """\
examples:
  lightning-stiffness report lightning_logs
      all runs below the folder
  lightning-stiffness report lightning_logs/version_3 --picture run.png
      one run, with its curves and the stops
  lightning-stiffness report a.jsonl b.jsonl --criterion leave-one-out stiffness-drop
      two histories, judged by two criteria
"""


def add(commands: Any) -> None:
    """Adds the command to the parser."""
    report = commands.add_parser(
        "report",
        help="what saved histories say, and when each criterion would have stopped their runs",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    report.set_defaults(run=_run)
    report.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folder of runs, or history file (.jsonl)")
    report.add_argument(
        "--picture",
        type=Path,
        metavar="FILE",
        help="draw the run into this file (.png, .pdf, .svg); numbered if several",
    )
    report.add_argument(
        "--criterion", nargs="+", action="extend", metavar="NAME",
        help="judge by these only, as leave-one-out or StiffnessDrop; an unknown name lists all",
    )  # fmt: skip


def _run(options: argparse.Namespace) -> int:
    from lightning_stiffness.saved_runs import report_runs  # noqa: PLC0415 (--help must not wait for matplotlib)

    report_runs(options.runs, options.criterion, options.picture)
    return 0
