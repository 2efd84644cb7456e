import pytest

from lightning_stiffness.cli import main


def test_help_teaches(capsys):
    with pytest.raises(SystemExit) as end:
        main(["demo", "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert "handwritten digits" in text
    for option in ("--output", "--epochs", "--samples", "--wrong-labels", "--seed"):
        assert option in text


def test_bad_values_are_one_line_not_a_traceback(capsys, tmp_path):
    assert main(["demo", "--samples", "5", "--output", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("lightning-stiffness: samples must lie between 200 and 1600")


def test_demo_passes_its_arguments_on(monkeypatch, tmp_path):
    from lightning_stiffness import demo

    seen = []
    monkeypatch.setattr(demo, "run_demo", seen.append)
    assert main(["demo", "--epochs", "7", "--wrong-labels", "0.3", "--seed", "4", "--output", str(tmp_path)]) == 0
    assert seen == [demo.DemoSettings(tmp_path, 7, 1000, 0.3, 4)]
