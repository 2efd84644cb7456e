import io

import pytest
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from tensorboard.plugins.hparams.metadata import EXPERIMENT_TAG, parse_experiment_plugin_data

from lightning_stiffness.loggers.tensorboard_events import add_columns, add_layout, add_png
from tests.loggers.events import events_of, layout

LINES = {"lines": ("Multiline", ["a/.*"])}
BAND = {"band": ("Margin", ["b/x", "b/low", "b/high"])}


@pytest.fixture
def logger(tmp_path):
    return TensorBoardLogger(tmp_path, name="", version="run")


def test_layouts_of_several_stand_beside_each_other(logger):
    logger.experiment.add_custom_scalars({"user's own": LINES})
    add_layout(logger.experiment, "first", BAND)
    add_layout(logger.experiment, "second", LINES)
    assert layout(events_of(logger)) == {"user's own": LINES, "first": BAND, "second": LINES}


def test_a_layout_replaces_the_one_of_its_title(logger):
    add_layout(logger.experiment, "first", BAND)
    add_layout(logger.experiment, "second", LINES)
    add_layout(logger.experiment, "first", LINES)
    assert layout(events_of(logger)) == {"second": LINES, "first": LINES}


def test_a_run_that_is_taken_up_again_keeps_its_layouts(logger, tmp_path):
    add_layout(logger.experiment, "first", BAND)
    logger.finalize("success")
    again = TensorBoardLogger(tmp_path, name="", version="run")
    add_layout(again.experiment, "second", LINES)
    assert layout(events_of(again)) == {"first": BAND, "second": LINES}


def test_a_picture_is_written_as_it_is(logger):
    file = io.BytesIO()
    Image.new("RGB", (5, 3), "red").save(file, "png")
    add_png(logger.experiment, "a/picture", file.getvalue(), (5, 3), 7)
    (image,) = events_of(logger).Images("a/picture")
    assert (image.step, image.width, image.height) == (7, 5, 3)
    assert image.encoded_image_string == file.getvalue()


def test_columns_have_the_names_that_lightning_writes(logger):
    parameters = {"rate": 0.1, "deep": {"size": 3, "kinds": ["a", "b"]}, "none": None, "empty": {}, "flag": True}
    logger.log_hyperparams(parameters)
    lightnings = parse_experiment_plugin_data(events_of(logger).SummaryMetadata(EXPERIMENT_TAG).plugin_data.content)
    ours = TensorBoardLogger(logger.save_dir, name="", version="other")
    add_columns(ours.experiment, parameters, ["hp_metric", "a/b"])
    found = parse_experiment_plugin_data(events_of(ours).SummaryMetadata(EXPERIMENT_TAG).plugin_data.content)
    assert [(info.name, info.type) for info in found.hparam_infos] == [
        (info.name, info.type) for info in lightnings.hparam_infos
    ]
    assert len(found.hparam_infos) >= 5
    assert [info.name.tag for info in found.metric_infos] == ["hp_metric", "a/b"]
