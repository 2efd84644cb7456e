"""A workspace and a report for Weights & Biases, built from code: what the monitor logs, arranged and explained.

They need the extra `workspaces` and, to be saved, a server; nothing else of the package does.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final

from lightning_stiffness.errors import StiffnessError

STEP: Final = "trainer/global_step"
PINNED: Final = ("within.last", "within.max", "between.last", "loss.min", "stopped_epoch", "best_epoch")
LINES: Final = {"step": "step", "lineKey": "lineKey", "lineVal": "lineVal"}  # columns of wandb.plot.line_series


@dataclass(frozen=True)
class Topic:
    """A part of the dashboard.

    Attributes:
        title: its heading.
        text: what it shows and how to read it, in Markdown.
        panels: of wandb-workspaces.
    """

    title: str
    text: str
    panels: list[Any]


def stiffness_workspace(entity: str, project: str, name: str = "stiffness", *, save: bool = False) -> Any:
    """The dashboard of a project as a `wandb_workspaces.workspaces.Workspace`, to be looked at, changed and saved.

    It shows all runs of the project that a `StiffnessMonitor` has logged to W&B, one section for each question, with
    words on how to read it.

    Args:
        entity: User or team that owns the project.
        project: Where the runs are.
        name: That of the monitor, the first part of all logged names.
        save: Save it to the server, which makes a new view of the project. Otherwise call `.save()` yourself.

    Raises:
        StiffnessError: The extra `workspaces` is missing, or it cannot be saved.

    Example:
        >>> stiffness_workspace("my-team", "digits").sections[0].name  # doctest: +SKIP
        'Stiffness'
    """
    workspaces, reports = _packages()
    sections = [
        workspaces.Section(
            name=topic.title,
            panels=[reports.MarkdownPanel(markdown=topic.text), *topic.panels],
            is_open=True,
            panel_settings=workspaces.SectionPanelSettings(x_axis=STEP),
        )
        for topic in _topics(reports, name)
    ]
    workspace = workspaces.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=sections,
        settings=workspaces.WorkspaceSettings(x_axis=STEP),
        runset_settings=workspaces.RunsetSettings(pinned_columns=[f"summary:{name}/{key}" for key in PINNED]),
    )
    return _saved(workspace, f"{entity}/{project}") if save else workspace


def stiffness_report(
    entity: str, project: str, name: str = "stiffness", *, title: str = "Gradient stiffness", save: bool = False
) -> Any:
    """The same as a document, a `wandb_workspaces.reports.v2.Report`: text between charts, for others to read.

    Args:
        entity: User or team that owns the project.
        project: Where the runs are.
        name: That of the monitor, the first part of all logged names.
        title: Of the report.
        save: Save it to the server. Otherwise call `.save()` yourself, or `.save(draft=True)`.

    Raises:
        StiffnessError: The extra `workspaces` is missing, or it cannot be saved.

    Example:
        >>> stiffness_report("my-team", "digits").title  # doctest: +SKIP
        'Gradient stiffness'
    """
    reports = _packages()[1]
    blocks: list[Any] = [reports.TableOfContents()]
    for topic in _topics(reports, name):
        runs = reports.Runset(entity=entity, project=project, name="runs")
        grid = reports.PanelGrid(runsets=[runs], panels=topic.panels)
        blocks += [reports.H2(text=topic.title), reports.MarkdownBlock(text=topic.text), grid]
    report = reports.Report(entity=entity, project=project, title=title, blocks=blocks, width="fluid")
    return _saved(report, f"{entity}/{project}") if save else report


def _topics(reports: Any, name: str) -> list[Topic]:
    parts: tuple[Callable[[Any, str], Topic], ...] = (_stiffness, _classes, _loss, _verdict, _cost)
    return [part(reports, name) for part in parts]


def _stiffness(reports: Any, name: str) -> Topic:
    text = (
        "**within**: mean cosine of the gradients of two samples of the same class. Near 1, what is learned from one "
        "sample of a class is right for all; falling, samples are learned one by one. **between**: the same for two "
        "classes. Below 0 they push each other away, above 0 they share what is learned. Bands are 2 standard errors "
        "over the samples of the probe: how far a value would move with other samples, not with another run."
    )
    return Topic(
        "Stiffness",
        text,
        [
            *(_band(reports, name, kind) for kind in ("within", "between")),
            _chart(reports, f"{name}/within_and_between_chart", "Within and between, with 2 standard errors", "epoch"),
            _curve(reports, "Sign instead of cosine", [f"{name}/within_sign", f"{name}/between_sign"]),
            _chart(reports, f"{name}/pair_cosines_chart", "Cosines of the pairs, last reading", "cosine"),
            reports.MediaBrowser(title="Cosines of the pairs", media_keys=[f"{name}/pair_cosines"]),
        ],
    )


def _classes(reports: Any, name: str) -> Topic:
    text = (
        "Entry a, b of the **class matrix** is the mean cosine of a sample of class a with another one of class b: red "
        "classes help each other, blue ones are in each other's way. **Groups** are classes that are stiffer to each "
        "other than to the rest. A class whose own value falls first is the one that is learned by heart."
    )
    pictures = {"class_matrix": "Class matrix (move the slider)", "within_of_each_class": "Within each class"}
    return Topic(
        "Classes",
        text,
        [
            *(reports.MediaBrowser(title=title, media_keys=[f"{name}/{tag}"]) for tag, title in pictures.items()),
            _chart(reports, f"{name}/within_each_class_chart", "Stiffness within each class", "epoch"),
            reports.WeavePanelSummaryTable(table_name=f"{name}/class_groups_table"),
            reports.WeavePanelSummaryTable(table_name=f"{name}/class_matrix_table"),
        ],
    )


def _loss(reports: Any, name: str) -> Topic:
    text = (
        "Losses and stiffness on one axis. While the loss of the probe falls and stiffness holds, the network learns "
        "what samples share. Where the loss goes on falling and stiffness within classes falls too, it memorises."
    )
    losses = reports.LinePlot(title="All losses of the runs", x=STEP, metric_regex=".*loss.*", smoothing_type="none")
    own = _curve(reports, "Loss of the probe", [f"{name}/loss"])
    return Topic("Loss beside stiffness", text, [own, losses, _band(reports, name, "within")])


def _verdict(reports: Any, name: str) -> Topic:
    text = (
        "Where `StiffnessEarlyStopping` stopped a run, why, and the epoch whose weights it held for the best "
        f"(`{name}/stop_reason`, `{name}/criterion` and more are in the summary of a run). Empty without a stop."
    )
    numbers = {"stopped_epoch": "Stopped after epoch", "best_epoch": "Best weights, epoch"}
    return Topic(
        "Verdict",
        text,
        [
            *(reports.BarPlot(title=title, metrics=[f"{name}/{key}"]) for key, title in numbers.items()),
            reports.WeavePanelSummaryTable(table_name=f"{name}/decision"),
        ],
    )


def _cost(reports: Any, name: str) -> Topic:
    text = "Seconds that a reading took, and all readings of a run together; samples whose gradient is exactly zero."
    return Topic(
        "Cost",
        text,
        [
            _curve(reports, "Seconds a reading", [f"{name}/seconds"]),
            reports.BarPlot(title="Seconds of all readings", metrics=[f"{name}/measuring_seconds"]),
            _curve(reports, "Share of zero gradients", [f"{name}/zero_fraction"]),
        ],
    )


def _curve(reports: Any, title: str, metrics: list[str]) -> Any:
    return reports.LinePlot(title=title, x=STEP, y=metrics, smoothing_type="none")


def _band(reports: Any, name: str, kind: str) -> Any:
    """A metric with the limits of its band, which W&B computes."""
    value, error = f"${{{name}/{kind}}}", f"${{{name}/{kind}_se}}"
    return reports.LinePlot(
        title=f"Stiffness {kind} classes, with 2 standard errors",
        x=STEP,
        custom_expressions=[value, f"{value} + 2 * {error}", f"{value} - 2 * {error}"],
        smoothing_type="none",
    )


def _chart(reports: Any, key: str, title: str, axis: str) -> Any:
    """What `wandb.plot.line_series` has logged under a key."""
    return reports.CustomChart(
        query={"summaryTable": {"tableKey": f"{key}_table"}},
        chart_name="wandb/lineseries/v0",
        chart_fields=LINES,
        chart_strings={"title": title, "xname": axis},
    )


def _packages() -> tuple[Any, Any]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # pydantic's, of how wandb-workspaces 0.4 validates
            return import_module("wandb_workspaces.workspaces"), import_module("wandb_workspaces.reports.v2")
    except ImportError as cause:
        raise StiffnessError(
            f"Workspaces and reports need the package wandb-workspaces, which is not installed ({cause}). "
            "Install it with: pip install 'lightning-stiffness[workspaces]'"
        ) from None


def _saved(made: Any, place: str) -> Any:
    try:
        made.save()
    except Exception as cause:
        said = (str(cause).splitlines() or [""])[0]
        raise StiffnessError(
            f"The {type(made).__name__.lower()} cannot be saved to {place} ({type(cause).__name__}: {said}). "
            "It needs a W&B server and a login: run `wandb login` first, and check that the project is yours."
        ) from None
    return made
