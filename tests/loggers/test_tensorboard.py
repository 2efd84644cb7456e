"""What a run shows in TensorBoard, read back from its file."""

import io
import math
from dataclasses import replace
from pathlib import Path

import matplotlib
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure
from PIL import Image
from tensorboard.plugins.hparams.metadata import EXPERIMENT_TAG, parse_experiment_plugin_data

from lightning_stiffness import StiffnessMonitor
from lightning_stiffness.callbacks.panels import Panels
from lightning_stiffness.figures.dashboard import DASHBOARD
from lightning_stiffness.history import History
from lightning_stiffness.loggers import RunCard, boards_of
from tests.callbacks.modules import QUIET, Rich, Validated, loader, trainer
from tests.figures.pictures import NAMES, detailed_history
from tests.loggers.events import card, events_of, layout, points
from tests.toy_history import Toy, toy_history

pytestmark = QUIET

HISTORY = detailed_history(epochs=2, toy=Toy(3, 6, class_names=("cat", "sea lion", "a/b")))


def board_of(tmp_path, name="stiffness", **options):
    logger = TensorBoardLogger(tmp_path, name="", version="run", **options)
    (board,) = boards_of([logger], name)
    return board


def card_of(history, hyperparameters=()):
    return RunCard(history.probe, {"model": "Net", "signals": "none"}, dict(hyperparameters))


def shown(board, history):
    board.begin(card_of(history))
    for count in range(1, len(history) + 1):
        board.reading(history[:count], 10 * count)
    board.end(history)
    return events_of(board.logger)


def test_a_run_begins_with_charts_and_a_card(tmp_path):
    board = board_of(tmp_path)
    board.begin(card_of(HISTORY))
    events = events_of(board.logger)
    (title, charts), *others = layout(events).items()
    assert (title, others) == ("stiffness", [])
    band = ("Margin", ["stiffness/within", "stiffness_band/within_low", "stiffness_band/within_high"])
    assert charts["within classes, with 2 standard errors"] == band
    assert "within each class" in charts
    step, text = card(events, "stiffness/about")
    assert step == 0
    assert "How to read this" in text
    assert "| model | Net |" in text
    assert events.Tags()["scalars"] == []


def test_readings_have_bands_classes_and_histograms(tmp_path):
    events = shown(board_of(tmp_path), HISTORY)
    expected = {f"stiffness_class/{name}" for name in ("cat", "sea lion", "a/b")}
    expected |= {f"stiffness_band/{name}_{side}" for name in ("within", "between") for side in ("low", "high")}
    assert set(events.Tags()["scalars"]) == expected
    for name in ("within", "between"):
        for side, sign in (("low", -1), ("high", 1)):
            values = HISTORY.series(name) + sign * 2 * HISTORY.series(f"{name}_se")
            found = points(events, f"stiffness_band/{name}_{side}")
            assert [step for step, _ in found] == [10, 20, 30]
            assert [value for _, value in found] == pytest.approx(values.tolist(), rel=1e-6)
    for label, name in enumerate(("cat", "sea lion", "a/b")):
        values = [float(reading.cosine.matrix[label, label]) for reading in HISTORY]
        assert [value for _, value in points(events, f"stiffness_class/{name}")] == pytest.approx(values, rel=1e-6)


@pytest.mark.parametrize("name", ["within", "between"])
def test_histograms_hold_every_pair_in_its_place(name, tmp_path):
    events = shown(board_of(tmp_path), HISTORY)
    assert events.Tags()["histograms"] == ["stiffness/pairs_within", "stiffness/pairs_between"]
    for event, reading in zip(events.Histograms(f"stiffness/pairs_{name}"), HISTORY, strict=True):
        counts = getattr(reading.detail, f"{name}_counts")
        found, whole = event.histogram_value, torch.zeros(40)
        places = [round((limit + 1) * 20) - 1 for limit in found.bucket_limit]
        whole[places] = torch.tensor(found.bucket).float()
        assert whole.tolist() == counts.tolist()
        assert found.num == counts.sum()
        assert found.bucket[0] > 0
        assert found.bucket[-1] > 0
        assert found.bucket_limit[0] - found.min == pytest.approx(0.05)
        assert found.max == found.bucket_limit[-1]


def test_many_classes_have_a_picture_and_no_curves(tmp_path):
    events = shown(board_of(tmp_path), toy_history([0.5], toy=Toy(26, 2)))
    assert not any(tag.startswith("stiffness_class") for tag in events.Tags()["scalars"])
    assert "within each class" not in layout(events)["stiffness"]


def test_what_is_not_known_is_left_out_or_nan(tmp_path):
    history = toy_history([0.5], toy=Toy(3, missing=(1,)))
    reading = replace(history[0], cosine=replace(history[0].cosine, within_se=math.nan))
    events = shown(board_of(tmp_path), History(history.probe, [reading]))
    assert not any("class/1" in tag for tag in events.Tags()["scalars"])
    assert events.Tags()["histograms"] == []
    ((step, value),) = points(events, "stiffness_band/within_low")  # a chart with bands wants them at each step
    assert step == 10
    assert math.isnan(value)


def test_no_pairs_are_no_histogram(tmp_path):
    detail = replace(HISTORY[0].detail, between_counts=torch.zeros(40))
    events = shown(board_of(tmp_path), History(HISTORY.probe, [replace(HISTORY[0], detail=detail)]))
    assert events.Tags()["histograms"] == ["stiffness/pairs_within"]


def test_signals_get_their_chart_when_they_come(tmp_path):
    signals = {"leave_one_out_loss": 1.0}
    history = History(HISTORY.probe, [HISTORY[0], *(replace(reading, signals=signals) for reading in HISTORY[1:])])
    board = board_of(tmp_path)
    board.begin(card_of(history))
    board.reading(history[:1], 10)
    title = "leave-one-out: loss and error as if unseen"
    assert title not in layout(events_of(board.logger))["stiffness"]
    board.reading(history[:2], 20)
    board.reading(history, 30)
    assert title in layout(events_of(board.logger))["stiffness"]


def test_two_monitors_and_the_user_share_a_run(tmp_path):
    logger = TensorBoardLogger(tmp_path, name="", version="run")
    logger.experiment.add_custom_scalars({"mine": {"loss": ("Multiline", ["loss"])}})
    for board in [*boards_of([logger], "stiffness"), *boards_of([logger], "val")]:
        shown(board, HISTORY)
    found = layout(events_of(logger))
    assert list(found) == ["mine", "stiffness", "val"]
    assert found["val"]["within and between"] == ("Multiline", ["val/(within|between)$"])
    assert {"val_class/cat", "stiffness_class/cat"} < set(events_of(logger).Tags()["scalars"])


def test_a_prefix_of_the_logger_is_part_of_the_charts(tmp_path):
    events = shown(board_of(tmp_path, prefix="p"), HISTORY)
    charts = layout(events)["stiffness"]
    _, tags = charts["within classes, with 2 standard errors"]
    assert tags == ["p-stiffness/within", "p-stiffness_band/within_low", "p-stiffness_band/within_high"]
    assert set(tags[1:]) < set(events.Tags()["scalars"])
    assert charts["within each class"] == ("Multiline", ["p\\-stiffness_class/"])


@pytest.mark.slow
@pytest.mark.parametrize("classes", [3, 100])
def test_pictures_are_small_and_true(classes, tmp_path):
    history = detailed_history(1, Toy(classes, 2, class_names=NAMES[:classes]))
    board, before = board_of(tmp_path), dict(matplotlib.rcParams)
    for tag, draw in DASHBOARD.items():
        figure = draw(history)
        density = figure.dpi
        board.picture(tag, figure, 7)
        assert figure.dpi == density
    assert dict(matplotlib.rcParams) == before
    events = events_of(board.logger)
    assert events.Tags()["images"] == [f"stiffness/{tag}" for tag in DASHBOARD]
    for tag in events.Tags()["images"]:
        (image,) = events.Images(tag)
        picture = Image.open(io.BytesIO(image.encoded_image_string)).convert("RGB")
        assert (image.step, picture.size) == (7, (image.width, image.height))
        assert picture.getpixel((0, 0)) == (255, 255, 255)
        assert len(image.encoded_image_string) < 60_000
        assert len(picture.getcolors(1 << 20)) > 20


def test_the_colours_of_a_picture_are_those_of_its_figure(tmp_path):
    figure = Figure(figsize=(2.0, 1.0))
    figure.add_axes((0.25, 0.0, 0.5, 1.0)).set(facecolor="#0072B2", xticks=[], yticks=[])
    board = board_of(tmp_path)
    board.picture("blue", figure, 1)
    (image,) = events_of(board.logger).Images("stiffness/blue")
    picture = Image.open(io.BytesIO(image.encoded_image_string)).convert("RGB")
    assert picture.size == (140, 70)
    assert picture.getpixel((70, 35)) == pytest.approx((0x00, 0x72, 0xB2), abs=8)


def test_a_stop_is_a_card_and_a_number(tmp_path):
    board = board_of(tmp_path)
    board.stopped({"epoch": 2.5, "signal": 0.4, "criterion": "Rule()"}, "Training stops after 2.5 epochs. Why.", 25)
    events = events_of(board.logger)
    step, text = card(events, "stiffness/decision")
    assert step == 25
    assert text.startswith("### Training stops after 2.5 epochs\n\n- Why.")
    assert points(events, "stiffness/stopped_epoch") == [(25, 2.5)]


def columns(logger):
    metadata = events_of(logger).SummaryMetadata(EXPERIMENT_TAG)
    experiment = parse_experiment_plugin_data(metadata.plugin_data.content)
    return [info.name for info in experiment.hparam_infos], [info.name.tag for info in experiment.metric_infos]


def test_stiffness_is_beside_registered_hyperparameters(tmp_path):
    board = board_of(tmp_path)
    board.prepare({"rate": 0.1}, ["stiffness", "val"])
    (other,) = boards_of([board.logger], "val")
    other.prepare({"rate": 0.1}, ["stiffness", "val"])
    board.logger.log_hyperparams({"rate": 0.1})
    stiffness = [f"{name}/{key}" for name in ("stiffness", "val") for key in ("within", "between", "stopped_epoch")]
    assert columns(board.logger) == (["rate"], ["hp_metric", *stiffness])


@pytest.mark.slow
def test_columns_are_those_of_all_monitors_of_a_run(tmp_path):
    logger, module = TensorBoardLogger(tmp_path, name="", version="run"), Rich()
    module.save_hyperparameters({"rate": 0.1})
    monitors = [StiffnessMonitor(probe_size=18, name=name, panels=name != "c") for name in "abc"]
    trainer(monitors, logger=logger, max_epochs=1).fit(module, loader(), loader(30, shuffle=False))
    found = ["hp_metric", *(f"{name}/{key}" for name in "ab" for key in ("within", "between", "stopped_epoch"))]
    assert columns(logger) == (["rate"], found)


def test_the_users_own_table_of_hyperparameters_is_left_alone(tmp_path):
    board = board_of(tmp_path, default_hp_metric=False)
    board.prepare({"rate": 0.1}, ["stiffness"])
    board.logger.log_hyperparams({"rate": 0.1}, {"my_score": 0.0})
    assert columns(board.logger) == (["rate"], ["my_score"])
    nothing = board_of(tmp_path / "none")
    nothing.prepare({}, ["stiffness"])
    assert EXPERIMENT_TAG not in events_of(nothing.logger).Tags()["tensors"]


def trained(tmp_path, panels):
    torch.manual_seed(3)
    logger, module = TensorBoardLogger(tmp_path, name="", version=f"panels_{panels}"), Rich()
    monitor = StiffnessMonitor(probe_size=18, panels=panels)
    trainer([monitor], logger=logger, log_every_n_steps=1).fit(module, loader(), loader(30, shuffle=False))
    events = events_of(logger)
    own = {tag: points(events, tag) for tag in events.Tags()["scalars"] if not tag.startswith("stiffness")}
    return module.state_dict(), torch.get_rng_state(), own, events.Tags()


@pytest.mark.slow
def test_training_and_the_users_metrics_are_the_same_with_panels(tmp_path):
    weights, state, own, tags = trained(tmp_path, panels=True)
    other_weights, other_state, other_own, other_tags = trained(tmp_path, panels=False)
    assert all(torch.equal(weights[name], other_weights[name]) for name in weights)
    assert torch.equal(state, other_state)
    assert own == other_own
    assert len(own) > 3
    assert tags["images"]
    assert not other_tags["images"]
    assert not other_tags["histograms"]
    assert not any(tag.startswith(("stiffness_", "custom")) for tag in (*other_tags["scalars"], *other_tags["tensors"]))


@pytest.mark.slow
def test_cross_mode_shows_both_kinds_of_pairs(tmp_path):
    logger = TensorBoardLogger(tmp_path, name="", version="run")
    monitor = StiffnessMonitor(probe_size=15, mode="cross")
    trainer([monitor], logger=logger, max_epochs=1).fit(Validated(), loader(), loader(30, shuffle=False))
    events = events_of(logger)
    assert "stiffness/train_within" in events.Tags()["scalars"]
    assert any("train_within" in title for title in layout(events)["stiffness"])


@pytest.mark.slow
def test_a_long_run_of_many_classes_is_a_small_file(tmp_path):
    board, history = board_of(tmp_path), detailed_history(99, Toy(100, 4, class_names=NAMES))
    panels = Panels([board.logger], "stiffness", is_full=True)
    panels.begin(card_of(history))
    for count in range(1, len(history) + 1):
        panels.reading(history[:count], 10 * count)
    panels.end(history, 1000)
    events = events_of(board.logger)
    size = sum(path.stat().st_size for path in Path(board.logger.log_dir).iterdir())
    assert len(events.Images("stiffness/class_matrix")) == 12
    assert len(events.Histograms("stiffness/pairs_within")) == 100
    assert size < 3_000_000
