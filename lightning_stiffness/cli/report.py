"""`lightning-stiffness report`: what saved histories say."""

import argparse
import importlib.util
from pathlib import Path
from typing import Any, Final

_DESCRIPTION = """\
Reads the histories that StiffnessMonitor wrote beside the logs of runs (stiffness.jsonl)
and prints for each of them what was measured, and when each criterion for stopping would
have stopped the run: shadow stopping, after the fact. A criterion is judged if the history
has its signal: validation criteria need val_loss among what the run logged, others a
signal of the monitor, StiffnessMonitor(signals=["leave_one_out"]). Let a run go on to its
end to compare criteria on it. Of a run with a ClassGroupingBalancer it prints what that saw
of each class (balancing.jsonl), with or without a history beside it.

With -o it writes one HTML page instead, for people: curves, classes over time, samples that
stand out, verdicts, the balance of the classes, and what all of that means. It needs no network and opens from disk.
"""
_EXAMPLES = """\
examples:
  lightning-stiffness report lightning_logs
      all runs below the folder, in the terminal
  lightning-stiffness report lightning_logs/version_3 -o report.html --open
      one run as a page, which the browser shows at once
  lightning-stiffness report lightning_logs -o report.html --title "Weight decay"
      all runs in one page, compared
  lightning-stiffness report lightning_logs/version_3 --picture run.png
      one run, with its curves and the stops
  lightning-stiffness report a.jsonl b.jsonl --criterion leave-one-out stiffness-drop
      two histories, judged by two criteria
"""
PAGE_NEEDS: Final = ("altair", "vl_convert", "jinja2")


def add(commands: Any) -> None:
    """Adds the command to the parser."""
    report = commands.add_parser(
        "report",
        help="what saved histories say, in the terminal or as an HTML page",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    report.set_defaults(run=_run)
    report.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folder of runs, or history file (.jsonl)")
    report.add_argument("-o", "--output", type=Path, metavar="FILE.html", help="write an HTML page of all runs")
    report.add_argument("--title", metavar="TEXT", help="of the page; the name of the run when not given")
    report.add_argument("--open", action="store_true", help="show the page in the browser when it is written")
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

    _check(options)
    if options.output is None or options.picture is not None:
        report_runs(options.runs, options.criterion, options.picture)
    if options.output is not None:
        _write_page(options)
    return 0


def _check(options: argparse.Namespace) -> None:
    """Raises StiffnessError for what cannot be meant, or cannot be done, before any work."""
    from lightning_stiffness.errors import StiffnessError  # noqa: PLC0415

    if options.output is None:
        if options.title is not None or options.open:
            raise StiffnessError("--title and --open are about the page: say where to write it, -o report.html.")
        return
    if options.output.suffix.lower() not in (".html", ".htm"):
        raise StiffnessError(f"The page must end in .html, but is called {options.output.name}.")
    missing = [name for name in PAGE_NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        raise StiffnessError(
            f"The page needs {', '.join(missing)}, which is not installed: pip install 'lightning-stiffness[report]'."
        )


def _write_page(options: argparse.Namespace) -> None:
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import track  # noqa: PLC0415

    from lightning_stiffness import report  # noqa: PLC0415
    from lightning_stiffness.saved_runs import chosen_criteria, load_runs  # noqa: PLC0415

    console = Console()
    criteria = None if options.criterion is None else chosen_criteria(options.criterion)
    path = report.write_page(
        load_runs(options.runs),
        options.output,
        options.title,
        criteria,
        lambda runs: track(runs, "Runs", console=console, transient=True, disable=len(runs) < 2),
    )
    console.print(f"Page: {path}", soft_wrap=True, highlight=False, markup=False)
    if options.open:
        import webbrowser  # noqa: PLC0415

        webbrowser.open(path.absolute().as_uri())
