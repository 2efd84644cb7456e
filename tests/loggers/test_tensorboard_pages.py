"""What a person sees in TensorBoard: a real server, a real browser, two runs."""

import re
from urllib.parse import quote

import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger

from lightning_stiffness import StiffnessEarlyStopping, StiffnessMonitor
from tests.browser import browser, needs_browser, waited
from tests.callbacks.modules import QUIET, Validated, loader, trainer
from tests.loggers.stopping import at_fourth_reading
from tests.loggers.tensorboard_server import fetch, seen, tensorboard, text_of

pytestmark = [*QUIET, pytest.mark.slow, needs_browser]
RUNS = ["first", "second"]
CHARTS = {
    *("within classes, with 2 standard errors", "between classes, with 2 standard errors", "within and between"),
    *("sign of the products, within and between", "loss beside within", "within each class"),
    "cost: seconds of each reading",
}
PICTURES = ["class_matrix", "pair_cosines", "stiffness_against_distance", "within_of_each_class"]


class Registered(Validated):
    def __init__(self, rate):
        super().__init__(rate=rate)
        self.save_hyperparameters()


@pytest.fixture(scope="module")
def logdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tensorboard") / "logs"
    for run, rate in zip(RUNS, (0.05, 0.01), strict=True):
        torch.manual_seed(0)
        monitor = StiffnessMonitor(probe_size=30, class_names=("cat", "dog", "sea lion"))
        stopper = StiffnessEarlyStopping(criterion=at_fourth_reading)
        logger = TensorBoardLogger(folder, name="", version=run)
        fit = trainer([monitor, stopper], logger=logger, max_epochs=6, log_every_n_steps=2)
        fit.fit(Registered(rate), loader(), loader(30, shuffle=False))
        assert fit.current_epoch == 3
    return folder


@pytest.fixture(scope="module", params=["true", "false"], ids=["fast", "plain"])
def address(logdir, request):
    """Both of its ways to read files."""
    with tensorboard(logdir, "--load_fast", request.param, "--samples_per_plugin", "images=200") as found:
        yield found


@pytest.fixture(scope="module")
def page(address, tmp_path_factory):
    """Opens a tab until it is as wished (once more if need be: it shows what the server had read), and pictures it."""
    folder = tmp_path_factory.mktemp("pictures")
    with browser(folder, 1500, 1900) as driver:

        def show(tab, satisfied, filtered=""):
            query = f"tagFilter={quote(filtered)}" if filtered else f"tab={tab}"  # another one loads the page anew
            for _ in range(2):
                driver.get(f"{address}/?{query}#{tab}")
                if satisfied(found := waited(lambda: text_of(driver), satisfied)):
                    break
                driver.get("about:blank")  # another fragment alone loads nothing
            assert driver.save_screenshot(str(folder / f"{tab}.png"))
            assert (folder / f"{tab}.png").stat().st_size > 20_000
            return driver, found

        yield show
        thrown = [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]
        assert not [entry for entry in thrown if entry["source"] != "network"]  # what leaving a page breaks off


def drawn(driver, inside, selector, wanted, *keys):
    """A property of what is drawn, as soon as there is enough of it."""
    return waited(lambda: seen(driver, inside, selector, *keys), lambda found: len(found) >= wanted)


def has(words):
    """Whether a text has all of them: a page fills card by card."""
    return lambda text: all(word in text for word in words)


def matches(text):
    """How many tags of all runs the charts have found."""
    return sorted(map(int, re.findall(r"Matches \((\d+)\)", text)))


def cards(text, name):
    """How many cards have a name; one of the ways to read files repeats it as a tag."""
    return text.count(f"stiffness/{name}") - text.count(f"tag: stiffness/{name}")


def test_custom_scalars_show_every_chart_with_its_tags(page):
    # Of two runs: cost and the two bands; within and between; signs; classes; losses.
    wanted = [2, 2, 2, 4, 4, 6, 8]
    is_named = has([*CHARTS, *RUNS])
    driver, text = page("custom_scalars", lambda text: matches(text) == wanted and is_named(text))
    assert matches(text) == wanted
    assert is_named(text)
    for card, charts, lines in (("multi-line", 5, 4 + 4 + 6 + 8 + 2), ("margin", 2, 2 + 2)):
        inside = f"tf-custom-scalar-{card}-chart-card"
        assert len(drawn(driver, inside, "vz-line-chart2", charts, "tagName")) == charts
        assert len(drawn(driver, inside, "path.line", 2 * lines, "tagName")) == 2 * lines  # smoothed, and pale as it is
    assert len(drawn(driver, "tf-custom-scalar-margin-chart-card", "path.area", 4, "tagName")) == 4


def test_time_series_show_the_curves(page):
    names, pattern = ["stiffness /between", "stiffness /within"], "stiffness/(within|between)$"

    def is_drawn(text):
        """Each run is named in the list and in the tables of both cards."""
        return all(name in text for name in names) and all(text.count(run) >= 3 for run in RUNS)

    driver, text = page("timeseries", is_drawn, pattern)
    assert is_drawn(text)
    assert len(drawn(driver, "*", "scalar-card", 2, "tagName")) == 2
    assert len(drawn(driver, "scalar-card", "line-chart", 2, "tagName")) == 2


def test_images_are_there_for_both_runs(page):
    driver, text = page("images", lambda text: all(cards(text, picture) == 2 for picture in PICTURES))
    assert {picture: cards(text, picture) for picture in PICTURES} == dict.fromkeys(PICTURES, 2)
    widths = waited(
        lambda: seen(driver, "tf-image-loader", "img", "naturalWidth"), lambda found: len(found) == 8 and all(found)
    )
    assert len(widths) == 8
    assert all(300 < width < 600 for width in widths)


def test_histograms_are_there_for_both_runs(page):
    names = ("pairs_within", "pairs_between")
    driver, text = page("histograms", lambda text: all(cards(text, name) == 2 for name in names))
    assert all(cards(text, name) == 2 for name in names)
    assert len(drawn(driver, "vz-histogram-timeseries", "path", 4 * 4, "tagName")) >= 4 * 4


def test_text_explains_the_run_and_its_stop(page):
    words = ["How to read this", "memorising begins", "trainable parameters", "Training stops after 3 epochs"]
    _, text = page("text", has([*words, "What to do next"]))
    assert [word for word in words if word not in text] == []


def test_hparams_have_stiffness_beside_them(page, address):
    words = ["rate", "hp_metric", "stiffness/within", "stiffness/between", "stiffness/stopped_epoch", *RUNS]
    _, text = page("hparams", has(words))
    assert [word for word in words if word not in text] == []
    groups = hparams(address)
    assert [group["name"] for group in groups] == RUNS
    assert [group["hparams"]["rate"] for group in groups] == [0.05, 0.01]
    for group in groups:
        values = {value["name"]["tag"]: value["value"] for value in group["metricValues"]}
        assert values["stiffness/stopped_epoch"] == 3
        assert -1 <= values["stiffness/between"] < values["stiffness/within"] <= 1
        assert values["hp_metric"] == -1


def hparams(address):
    question = {"experimentName": "", "allowedStatuses": ["STATUS_SUCCESS", "STATUS_UNKNOWN", "STATUS_RUNNING"]}
    base = f"{address}/experiment/defaultExperimentId/data/plugin/hparams"
    found = fetch(f"{base}/session_groups", {**question, "colParams": [], "startIndex": 0, "sliceSize": 9})
    return sorted(found["sessionGroups"], key=lambda group: group["name"])


def test_layouts_of_both_runs_are_one(address):
    layout = fetch(f"{address}/data/plugin/custom_scalars/layout")
    (category,) = layout["category"]
    assert category["title"] == "stiffness"
    assert {chart["title"] for chart in category["chart"]} == CHARTS
    assert len(category["chart"]) == len(CHARTS)
