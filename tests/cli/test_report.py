import importlib.util
import webbrowser
from pathlib import Path

import pytest

from lightning_stiffness.cli import main
from tests.toy_history import overfitting_history


@pytest.fixture
def run(tmp_path):
    overfitting_history(8).save(tmp_path / "logs" / "version_0" / "stiffness.jsonl")
    return tmp_path / "logs"


def test_help_of_the_report_teaches_by_examples(capsys):
    with pytest.raises(SystemExit) as end:
        main(["report", "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert "examples:" in text
    assert text.count("lightning-stiffness report") >= 6
    assert 'StiffnessMonitor(signals=["leave_one_out"])' in text
    assert "-o report.html" in text


def test_report_passes_its_arguments_on(monkeypatch, tmp_path):
    from lightning_stiffness import saved_runs

    seen = []
    monkeypatch.setattr(saved_runs, "report_runs", lambda *arguments: seen.append(arguments))
    assert main(["report", "a", "b", "--criterion", "x", "y", "--criterion", "z", "--picture", "c.png"]) == 0
    assert main(["report", "a"]) == 0
    assert seen == [([Path("a"), Path("b")], ["x", "y", "z"], Path("c.png")), ([Path("a")], None, None)]


def test_report_of_a_saved_run(capsys, run, tmp_path):
    assert main(["report", str(run), "--picture", str(tmp_path / "run.png"), "--criterion", "stiffness-drop"]) == 0
    assert "StiffnessDrop" in capsys.readouterr().out
    assert (tmp_path / "run.png").stat().st_size > 10_000


def test_report_of_nothing_is_one_line(capsys, tmp_path):
    assert main(["report", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.startswith("lightning-stiffness: There is no file or folder")


@pytest.mark.slow
def test_a_page_is_written_and_its_place_is_printed(capsys, run, tmp_path):
    page = tmp_path / "new" / "report.html"
    assert main(["report", str(run), "-o", str(page), "--title", "My <runs>", "--criterion", "stiffness-drop"]) == 0
    assert capsys.readouterr().out == f"Page: {page}\n"
    text = page.read_text()
    assert "<h1>My &lt;runs&gt;</h1>" in text
    assert "StiffnessDrop" in text
    assert "ConfirmedDrop" not in text


@pytest.mark.slow
def test_several_runs_in_one_page_with_a_picture_and_shown_at_once(capsys, monkeypatch, run, tmp_path):
    overfitting_history(3).save(run / "version_1" / "stiffness.jsonl")
    shown = []
    monkeypatch.setattr(webbrowser, "open", shown.append)
    page, picture = tmp_path / "report.html", tmp_path / "run.png"
    assert main(["report", str(run), "-o", str(page), "--open", "--picture", str(picture)]) == 0
    assert shown == [page.as_uri()]
    assert "<h1>2 runs</h1>" in page.read_text()
    assert (tmp_path / "run_2.png").exists()
    assert f"Page: {page}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-o", "report.pdf"], "The page must end in .html, but is called report.pdf."),
        (["--open"], "say where to write it, -o report.html"),
        (["--title", "x"], "say where to write it, -o report.html"),
    ],
)
def test_what_cannot_be_meant_is_one_line(capsys, run, arguments, words):
    assert main(["report", str(run), *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_missing_packages_are_one_line(capsys, monkeypatch, run, tmp_path):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "altair" else find(name, *rest)
    )
    assert main(["report", str(run), "-o", str(tmp_path / "report.html")]) == 2
    assert capsys.readouterr().err == (
        "lightning-stiffness: The page needs altair, which is not installed: "
        "pip install 'lightning-stiffness[report]'.\n"
    )
    assert not (tmp_path / "report.html").exists()
