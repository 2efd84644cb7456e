"""One HTML page of some runs, with everything in it: text, charts and what draws them."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import altair
import vl_convert
from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from lightning_stiffness import json_lines
from lightning_stiffness.report.drawing import Spec, look
from lightning_stiffness.report.figures import Figure, comparison_figures
from lightning_stiffness.report.sections import RunSection, run_section
from lightning_stiffness.report.theme import css_variables
from lightning_stiffness.report.words import DASH, number, overhead, peak, percent, run_names, short, signed, with_error
from lightning_stiffness.run_files import RunFiles
from lightning_stiffness.stopping import Criterion

Track = Callable[[Sequence[RunFiles]], Iterable[RunFiles]]


@dataclass(frozen=True)
class Comparison:
    """Several runs side by side: charts, and a row for each."""

    figures: tuple[Figure, ...]
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def write_page(
    runs: Sequence[RunFiles],
    output: Path,
    title: str | None = None,
    criteria: Mapping[str, Criterion] | None = None,
    track: Track = iter,
) -> Path:
    """Writes the page; who opens it meanwhile finds the old one or the new.

    Args:
        runs: at least one.
        output: the file.
        title: of the page; the name of the run, or their number, when not given.
        criteria: to judge the runs by; all that find a signal when not given.
        track: goes through the runs, such as a progress bar.

    Returns:
        The file.
    """
    json_lines.replace(output, page(runs, title, criteria, track).encode())
    return output


def page(
    runs: Sequence[RunFiles],
    title: str | None = None,
    criteria: Mapping[str, Criterion] | None = None,
    track: Track = iter,
) -> str:
    """The page as text; see `write_page`."""
    names = run_names(runs)
    sections = [run_section(run, f"run{index}", names[index], criteria) for index, run in enumerate(track(runs))]
    comparison = compare(runs, names) if len(runs) > 1 else None
    template = _environment().get_template("page.html.jinja")
    return template.render(
        title=title or (names[0] if len(names) == 1 else f"{len(names)} runs"),
        sections=sections,
        comparison=comparison,
        charts=as_script(_charts(sections, comparison)),
        look=as_script(look()),
        light=Markup(css_variables(is_dark=False)),
        dark=Markup(css_variables(is_dark=True)),
        libraries=Markup(libraries()),
        version=version("lightning-stiffness"),
    )


def compare(runs: Sequence[RunFiles], names: Sequence[str]) -> Comparison:
    """Charts of all runs that have readings, and a table of all."""
    histories = {name: run.history for name, run in zip(names, runs, strict=True) if run.history}
    headings = (
        "run",
        "epochs",
        "within: peak",
        "within: end",
        "between: end",
        "probe loss: end",
        "stopped",
        "overhead",
    )
    rows = tuple(_row(name, run) for name, run in zip(names, runs, strict=True))
    return Comparison(tuple(comparison_figures(histories)) if histories else (), headings, rows)


def as_script(value: Any) -> Markup:
    r"""A value as JSON that may stand in a script element, whatever names are in it.

    >>> as_script("</script>")
    Markup('"\\u003c/script\\u003e"')
    """
    text = json.dumps(value, allow_nan=False, separators=(",", ":"), ensure_ascii=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


@cache
def libraries() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script without imports, of the version that Altair writes for if known."""
    wanted = ".".join(altair.VEGALITE_VERSION.split(".")[:2])
    known = wanted if wanted in vl_convert.get_vegalite_versions() else None
    script = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=known)
    return script.replace("</script", "<\\/script")


def _charts(sections: Sequence[RunSection], comparison: Comparison | None) -> dict[str, Spec]:
    found = {f"all-{figure.key}": figure.spec for figure in (comparison.figures if comparison else ())}
    for section in sections:
        found |= {f"{section.key}-{figure.key}": figure.spec for figure in section.figures}
        if section.matrix is not None:
            found[f"{section.key}-matrix"] = section.matrix.spec
    return found


def _row(name: str, run: RunFiles) -> tuple[str, ...]:
    history, decision, top = run.history, run.decision or {}, peak(run.history)
    if not history:
        return (name, *[DASH] * 7)
    last = history[-1]
    highest = f"{number(top.cosine.within)} (epoch {short(top.epoch)})" if top else DASH
    return (
        name,
        short(last.epoch),
        highest,
        with_error(last.cosine.within, last.cosine.within_se),
        with_error(last.cosine.between, last.cosine.between_se),
        short(last.loss),
        f"epoch {short(decision.get('epoch'))}" if decision.get("stopped") else "no",
        percent(overhead(history)),
    )


def _environment() -> Environment:
    folder = files("lightning_stiffness.report")
    loader = FunctionLoader(lambda name: folder.joinpath(name).read_text(encoding="utf-8"))
    found = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    found.filters |= {"fixed": number, "signed": signed}
    return found
