import subprocess
import sys

import pytest

from lightning_stiffness import __version__
from lightning_stiffness.cli import main


def test_version(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out.strip() == __version__


def test_without_a_command_it_says_what_there_is(capsys):
    with pytest.raises(SystemExit) as end:
        main([])
    assert end.value.code == 2
    assert "required" in capsys.readouterr().err


def test_as_a_module():
    command = [sys.executable, "-m", "lightning_stiffness.cli", "--version"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == __version__
