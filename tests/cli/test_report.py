from pathlib import Path

import pytest

from lightning_stiffness.cli import main
from tests.toy_history import overfitting_history


def test_help_of_the_report_teaches_by_examples(capsys):
    with pytest.raises(SystemExit) as end:
        main(["report", "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert "examples:" in text
    assert text.count("lightning-stiffness report") >= 4
    assert 'StiffnessMonitor(signals=["leave_one_out"])' in text


def test_report_passes_its_arguments_on(monkeypatch, tmp_path):
    from lightning_stiffness import saved_runs

    seen = []
    monkeypatch.setattr(saved_runs, "report_runs", lambda *arguments: seen.append(arguments))
    assert main(["report", "a", "b", "--criterion", "x", "y", "--criterion", "z", "--picture", "c.png"]) == 0
    assert main(["report", "a"]) == 0
    assert seen == [([Path("a"), Path("b")], ["x", "y", "z"], Path("c.png")), ([Path("a")], None, None)]


def test_report_of_a_saved_run(capsys, tmp_path):
    overfitting_history(8).save(tmp_path / "version_0" / "stiffness.jsonl")
    assert main(["report", str(tmp_path), "--picture", str(tmp_path / "run.png"), "--criterion", "stiffness-drop"]) == 0
    assert "StiffnessDrop" in capsys.readouterr().out
    assert (tmp_path / "run.png").stat().st_size > 10_000


def test_report_of_nothing_is_one_line(capsys, tmp_path):
    assert main(["report", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.startswith("lightning-stiffness: There is no file or folder")
