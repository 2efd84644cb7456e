"""The workspace and the report are built, and go as far as the server's door."""

import json
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from lightning_stiffness import StiffnessError
from lightning_stiffness.loggers.wandb_workspace import stiffness_report, stiffness_workspace
from tests.loggers.offline import offline_wandb

wandb = pytest.importorskip("wandb")
pytest.importorskip("wandb_workspaces", exc_type=ImportError)
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")  # files of wandb's service

SECTIONS = ["Stiffness", "Classes", "Loss beside stiffness", "Verdict", "Cost"]
MAKERS = [stiffness_workspace, stiffness_report]


class Server:
    """Takes what is saved; knows one project."""

    app_url = "https://example.org"
    default_entity = "me"

    def __init__(self) -> None:
        self.saved: list[dict[str, Any]] = []
        self._service_api = self

    def execute_graphql(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        if "upsertView" not in query:
            return {"project": {"internalId": "17"} if variables["projectName"] == "digits" else None}
        self.saved.append(variables)
        view = {"id": "18", "name": "nw-1-v", "displayName": variables["displayName"], "spec": variables["spec"]}
        owner = {"name": variables["projectName"], "entityName": variables["entityName"]}
        return {"upsertView": {"view": {**view, "description": "", "project": owner}}}

    def projects(self, entity: str) -> list[Any]:
        return [SimpleNamespace(name="digits")]


@pytest.fixture
def server(monkeypatch):
    server = Server()
    monkeypatch.setattr(wandb, "Api", lambda: server)
    return server


def test_a_workspace_has_a_section_for_each_question():
    workspace = stiffness_workspace("me", "digits")
    assert (workspace.entity, workspace.project, workspace.name) == ("me", "digits", "stiffness")
    assert [section.name for section in workspace.sections] == SECTIONS
    assert all(section.is_open for section in workspace.sections)
    assert all(section.panels[0].markdown for section in workspace.sections)
    assert workspace.settings.x_axis == "trainer/global_step"


def test_names_follow_the_monitor():
    text = json.dumps(stiffness_workspace("me", "digits", "val_stiffness")._spec)
    assert '"val_stiffness/' in text
    assert '"stiffness/' not in text
    assert "{stiffness/" not in text


def test_bands_are_computed_from_value_and_error():
    panel = stiffness_workspace("me", "digits").sections[0].panels[1]
    assert panel.custom_expressions == [
        "${stiffness/within}",
        "${stiffness/within} + 2 * ${stiffness/within_se}",
        "${stiffness/within} - 2 * ${stiffness/within_se}",
    ]


def test_a_workspace_reaches_the_server(server):
    workspace = stiffness_workspace("me", "digits", save=True)
    (saved,) = server.saved
    assert (saved["entityName"], saved["projectName"], saved["displayName"]) == ("me", "digits", "stiffness")
    sections = json.loads(saved["spec"])["section"]["panelBankConfig"]["sections"]
    assert [section["name"] for section in sections] == SECTIONS
    kinds = {panel["viewType"] for section in sections for panel in section["panels"]}
    assert kinds == {"Markdown Panel", "Run History Line Plot", "Vega2", "Media Browser", "Weave", "Bar Chart"}
    charts = [panel["config"] for section in sections for panel in section["panels"] if panel["viewType"] == "Vega2"]
    assert {chart["panelDefId"] for chart in charts} == {"wandb/lineseries/v0"}
    assert workspace.url.startswith("https://example.org/me/digits")


def test_a_report_reaches_the_server(server):
    report = stiffness_report("me", "digits", title="What it learns", save=True)
    (saved,) = server.saved
    assert saved["displayName"] == "What it learns"
    blocks = json.loads(saved["spec"])["blocks"]
    headings = [block["children"][0]["text"] for block in blocks if block["type"] == "heading"]
    assert headings == SECTIONS
    grids = [block for block in blocks if block["type"] == "panel-grid"]
    assert all(grid["metadata"]["panelBankSectionConfig"]["panels"] for grid in grids)
    assert report.id == "18"


@pytest.mark.parametrize("make", MAKERS)
def test_without_a_login_saving_says_so_in_one_line(make, tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))
    with (
        offline_wandb(tmp_path),
        pytest.raises(StiffnessError, match=r"cannot be saved to me/digits.*wandb login") as error,
    ):
        make("me", "digits", save=True)
    assert len(str(error.value).splitlines()) == 1
    assert error.value.__suppress_context__


def test_a_project_that_is_not_there_is_told(server):
    with pytest.raises(StiffnessError, match=r"report cannot be saved to me/letters.*not found"):
        stiffness_report("me", "letters", save=True)


@pytest.mark.parametrize("make", MAKERS)
def test_without_the_extra_the_error_says_what_to_install(make, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb_workspaces.workspaces", None)
    with pytest.raises(StiffnessError, match=r"pip install 'lightning-stiffness\[workspaces\]'"):
        make("me", "digits")
