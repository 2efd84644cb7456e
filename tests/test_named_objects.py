import sys

import pytest
import torch
from torch import nn

from lightning_stiffness.errors import StiffnessError
from lightning_stiffness.named_objects import load_data, load_module, made, run_user_code, with_checkpoint

SCRIPT = """
import torch
from torch import nn
LIMIT = 3
class Net(nn.Linear):
    def __init__(self):
        super().__init__(2, 2)
def make_net():
    return Net()
def fails():
    return 1 / 0
class Wants(nn.Module):
    def __init__(self, width):
        super().__init__()
def batch():
    return torch.zeros(4, 2), torch.zeros(4, dtype=torch.long)
class Holder:
    net = Net()
"""


@pytest.fixture
def script(tmp_path, monkeypatch):
    (tmp_path / "models_of_a_test.py").write_text(SCRIPT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield "models_of_a_test.py"
    for name in ("models_of_a_test", "_script_models_of_a_test"):
        sys.modules.pop(name, None)


def test_objects_classes_and_functions_of_a_script(script):
    assert made(f"{script}:LIMIT", "BATCH") == 3
    assert made(f"{script}:Holder.net", "MODULE").in_features == 2
    assert type(load_module(f"{script}:Net")).__name__ == "Net"
    assert type(load_module(f"{script}:make_net")) is type(load_module(f"{script}:Net"))  # the script runs once
    assert len(load_data(f"{script}:batch")) == 2


def test_those_of_a_module_in_the_working_directory(script):
    assert isinstance(load_module("models_of_a_test:Net"), nn.Linear)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("models_of_a_test.py", "must be package.module:name or script.py:name"),
        (":Net", "must be package.module:name"),
        ("nowhere.py:Net", "there is no nowhere.py"),
        ("no_such_package.models:Net", "No module named 'no_such_package'. Is it installed"),
        ("models_of_a_test.py:make_nets", r"there is no 'make_nets' \(but make_net\)"),
        ("models_of_a_test.py:zzz", r"there is no 'zzz' \(but LIMIT, Net, make_net, fails, Wants, batch\)"),
        ("models_of_a_test.py:fails", r"fails\(\) failed with ZeroDivisionError.*line 11: return 1 / 0"),
        ("models_of_a_test.py:Wants", r"missing 1 required positional argument: 'width'\.$"),
        ("models_of_a_test.py:LIMIT", "models_of_a_test.py:LIMIT is int"),
    ],
)
def test_what_is_wrong_is_one_line(script, name, message):
    with pytest.raises(StiffnessError, match=message) as problem:
        load_module(name)
    assert "\n" not in str(problem.value)
    assert ".." not in str(problem.value)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("raise ValueError('no data.')", "failed with ValueError: no data .*line 1: raise ValueError"),
        ("import sys; sys.exit(3)", "failed with SystemExit: 3"),
        ("def f(:", "failed with SyntaxError: invalid syntax"),
        ("import no_such_package", "No module named 'no_such_package'"),
    ],
)
def test_scripts_that_fail(tmp_path, code, message):
    script = tmp_path / "broken_script.py"
    script.write_text(code)
    with pytest.raises(StiffnessError, match=message):
        made(f"{script}:anything", "MODULE")


def test_data_must_be_data(script):
    with pytest.raises(StiffnessError, match=r"BATCH must be a batch, a DataLoader.*is int"):
        load_data(f"{script}:LIMIT")


def test_our_own_messages_stay_as_they_are():
    def refuse():
        raise StiffnessError("as it is")

    with pytest.raises(StiffnessError, match=r"^as it is$"):
        run_user_code(refuse, "work")


def test_checkpoints(tmp_path):
    model, other = nn.Linear(2, 2), nn.Linear(2, 2)
    for content in ({"state_dict": other.state_dict(), "epoch": 3}, other.state_dict()):
        torch.save(content, tmp_path / "last.ckpt")
        with_checkpoint(model, tmp_path / "last.ckpt")
        assert torch.equal(model.weight, other.weight)
    with pytest.raises(StiffnessError, match=r"there is no none\.ckpt"):
        with_checkpoint(model, tmp_path.joinpath("none.ckpt").relative_to(tmp_path))
    with pytest.raises(StiffnessError, match="must be a checkpoint of Linear; RuntimeError"):
        with_checkpoint(nn.Linear(3, 2), tmp_path / "last.ckpt")
