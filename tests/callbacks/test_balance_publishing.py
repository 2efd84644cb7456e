"""What a balancer leaves beside the logs and in the loggers, in a whole run."""

import io
import math

import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from PIL import Image

from lightning_stiffness.balance import load_readings
from lightning_stiffness.callbacks import balance_publishing, panels
from lightning_stiffness.callbacks.balancer import ClassGroupingBalancer
from tests.callbacks.modules import QUIET, Validated, trainer
from tests.callbacks.test_balance_observing import _affordable, fit, validation  # noqa: F401  # a fixture for all
from tests.callbacks.test_balancer import data
from tests.loggers.events import card, events_of, points

pytestmark = [*QUIET, pytest.mark.filterwarnings("ignore:Experiment logs directory")]
PICTURES = [
    f"balancing/{tag}" for tag in ("absorbed_classes", "fighting_classes", "recall_of_each_class", "sacrificed_classes")
]


def run_with(logger, **options):
    return fit(Validated(), val=validation(), trainer_options={"logger": logger, "log_every_n_steps": 1}, **options)[0]


@pytest.mark.slow
def test_a_run_shows_four_pictures_and_a_table(tmp_path, monkeypatch):
    monkeypatch.setattr(panels, "EXPECTED_SECONDS", math.inf)  # none is affordable but at the end
    logger = TensorBoardLogger(tmp_path, name="", version="run")
    balancer = run_with(logger)
    events = events_of(logger)
    assert sorted(tag for tag in events.Tags()["images"] if tag.startswith("balancing/")) == PICTURES
    for tag in PICTURES:
        (picture,) = events.Images(tag)
        assert Image.open(io.BytesIO(picture.encoded_image_string)).size[0] > 300
    step, text = card(events, "balancing/classes")
    assert step == 15
    assert text.count("|") > 40
    shares = [(reading.step - 1, reading.sacrificed_share) for reading in balancer.readings]
    assert points(events, "balancing/sacrificed") == [(step, pytest.approx(share)) for step, share in shares]
    assert len(points(events, "balancing/balanced_accuracy_at_natural_frequencies")) == 3


def test_the_readings_lie_beside_the_logs(tmp_path):
    balancer = run_with(CSVLogger(tmp_path, name="", version="run"))
    found = load_readings(tmp_path / "run" / "balancing.jsonl")
    assert [reading.step for reading in found] == [reading.step for reading in balancer.readings]
    assert [path.name for path in (tmp_path / "run").glob("*.jsonl")] == ["balancing.jsonl"]


@pytest.mark.slow
def test_numbers_alone(tmp_path):
    logger = TensorBoardLogger(tmp_path, name="", version="run")
    run_with(logger, panels=False)
    tags = events_of(logger).Tags()
    assert "balancing/sacrificed" in tags["scalars"]
    assert tags["images"] == []
    assert not [tag for tag in tags["tensors"] if tag.startswith("balancing/")]


@pytest.mark.slow
def test_a_folder_of_its_own_where_an_older_file_is_replaced(tmp_path):
    run_with(False, save_dir=str(tmp_path))
    run_with(False, save_dir=str(tmp_path), epochs=1, max_readings=1)
    assert [reading.epoch for reading in load_readings(tmp_path / "balancing.jsonl")] == [1.0]


@pytest.mark.slow
def test_no_file_where_there_is_no_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_with(False)
    ClassGroupingBalancer(max_readings=1, save_dir=str(tmp_path))
    run = trainer([ClassGroupingBalancer(save_dir=str(tmp_path))], fast_dev_run=True)
    run.fit(Validated(), data(), validation())
    assert list(tmp_path.rglob("*.jsonl")) == []


def test_a_full_disk_is_said_once(tmp_path, monkeypatch):
    def full(path, readings):
        raise OSError("no space left")

    monkeypatch.setattr(balance_publishing, "save_readings", full)
    with pytest.warns(UserWarning, match="cannot be written to .*no space left") as said:
        balancer = run_with(False, save_dir=str(tmp_path))
    assert len([one for one in said if "cannot be written" in str(one.message)]) == 1
    assert len(balancer.readings) == 3


@pytest.mark.slow
def test_a_picture_that_fails_is_said_once(tmp_path, monkeypatch):
    def broken(readings):
        raise ValueError("no colour")

    monkeypatch.setitem(balance_publishing.BALANCE_PICTURES, "absorbed_classes", broken)
    logger = TensorBoardLogger(tmp_path, name="", version="run")
    with pytest.warns(UserWarning, match="'absorbed_classes' cannot be drawn .*no colour"):
        run_with(logger)
    assert len(events_of(logger).Tags()["images"]) == 3
