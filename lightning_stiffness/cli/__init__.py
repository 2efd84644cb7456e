"""The command line, `lightning-stiffness demo | report`. It parses arguments and calls the package."""

import argparse
import sys
from collections.abc import Sequence

from lightning_stiffness import __version__
from lightning_stiffness.cli import demo, doctor, report
from lightning_stiffness.errors import StiffnessError

_DESCRIPTION = """\
Gradient stiffness for PyTorch Lightning: two samples are stiff to each other when a
gradient step on one also lowers the loss of the other.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: Those of the command, without its name; of the process when not given.

    Returns:
        The exit status: 0, or 2 where something is missing or out of range.
    """
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except StiffnessError as error:
        print(f"lightning-stiffness: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "lightning-stiffness", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(title="commands", required=True)
    for command in (demo, doctor, report):
        command.add(commands)
    return parser
