import io

import pytest
import torch
from rich.console import Console

from lightning_stiffness.demo import DemoSettings, digits, run_demo
from lightning_stiffness.errors import StiffnessError

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated"),  # Lightning 2.6 on torch 2.13
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
]


def test_digits_are_split_and_some_labels_wrong():
    train, test = digits(DemoSettings(samples=1000, wrong_labels=0.2))
    clean, same_test = digits(DemoSettings(samples=1000, wrong_labels=0.0))
    assert (len(train), len(test)) == (1000, 797)
    assert torch.equal(train.tensors[0], clean.tensors[0])
    wrong = (train.tensors[1] != clean.tensors[1]).float().mean()
    assert 0.16 < wrong < 0.24
    assert torch.equal(test.tensors[1], same_test.tensors[1])


@pytest.mark.parametrize("settings", [{"samples": 100}, {"wrong_labels": 1.0}, {"epochs": 0}])
def test_settings_out_of_range(settings):
    with pytest.raises(StiffnessError, match=next(iter(settings))):
        DemoSettings(**settings)


@pytest.mark.slow
def test_demo_stops_before_the_network_memorises(tmp_path):
    console = Console(file=io.StringIO(), width=200)
    result = run_demo(DemoSettings(output=tmp_path, epochs=40), console)
    printed = console.file.getvalue()
    accuracy = result.curves.test_accuracy
    assert result.stop_epoch is not None
    assert accuracy[result.stop_epoch - 1] > accuracy[-1] + 0.02
    assert "at the stop" in printed
    assert result.reason in printed
    assert result.picture.stat().st_size > 50_000
    assert "not_stopped" in result.page.read_text()
    # The two runs are one and the same until the stop: watching and stopping change nothing.
    assert result.stopped.series("within").tolist() == result.full[: len(result.stopped)].series("within").tolist()
    assert list((tmp_path / "logs" / "stopped").glob("events*"))
