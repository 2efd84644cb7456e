import json
import math
import re

import pytest

from lightning_stiffness.history import History
from lightning_stiffness.report import page, write_page
from lightning_stiffness.report.page import as_script, compare
from lightning_stiffness.report.words import DASH
from tests.browser import browser, needs_browser, waited
from tests.report.runs import (
    DECISION,
    EVIL,
    SHADOW,
    batch_run,
    complete_run,
    detailed,
    plain_run,
    undefined_run,
)
from tests.toy_history import Toy, overfitting_history, toy_history, toy_probe

MEGABYTE = 1_000_000
CELL = "return stiffnessReport.views['run0-matrix'].signal('frame')"
NUMBERS = "return [...document.querySelectorAll('#run0-matrix .mark-text text')].map(text => text.textContent)"
BACKGROUND = "return getComputedStyle(document.body).backgroundColor"
PRESSED = "return document.getElementById('theme').ariaPressed"
PAUSE = "if (play.ariaPressed === 'true' && frame <= 1) return false; play.click(); return play.ariaPressed === 'false'"
FILL = "return getComputedStyle(document.querySelector('#run0-matrix .layer_1_marks path')).fill"


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    run = complete_run(decision=DECISION, shadow=SHADOW)
    return write_page([run], tmp_path_factory.mktemp("single") / "report.html")


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    toy = Toy(num_classes=4, class_names=EVIL, superclasses=(0, 0, 1, 1), missing=(3,))
    runs = [
        complete_run(toy=toy, name="evil<b>"),
        batch_run(),
        undefined_run(),
        plain_run(History(toy_probe()), "empty"),
    ]
    return write_page(runs, tmp_path_factory.mktemp("several") / "report.html")


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("browser")) as found:
        found.execute_cdp_cmd("Network.enable", {})
        found.execute_cdp_cmd("Network.emulateNetworkConditions", {
            "offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0,
        })  # fmt: skip
        yield found


def opened(driver, path):
    """Shows a page and waits for all of its charts."""
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})
    driver.get(path.as_uri())
    until(driver, "return document.documentElement.dataset.ready !== undefined")
    return driver


def until(driver, script, holds=bool):
    """What a script sees once it is as wished: the page hears of the browser, and draws, a frame later."""
    found = waited(lambda: driver.execute_script(script), holds)
    assert holds(found), f"{script}: {found}"
    return found


def click(driver, selector):
    """By script, for the page scrolls smoothly, and a pointer would miss."""
    element = driver.find_element("css selector", selector)
    driver.execute_script("arguments[0].click()", element)
    return element


def charts_of(text):
    return json.loads(re.search(r'id="charts">(.*?)</script>', text, re.DOTALL)[1])


def test_the_page_is_whole_and_names_nothing_outside(single):
    text = single.read_text()
    own = re.sub(r'<script type="module">.*?</script>', "", text, flags=re.DOTALL)
    assert not re.search(r'(src|href)="(?!#|data:)', own)
    assert "url(" not in own
    assert own.count("<h1>") == 1
    for words in (
        "What is stiffness?",
        "What it means and what to try",
        "candidates",
        "Shadow stopping",
        "Mine&lt;b&gt;",
    ):
        assert words in own
    assert "Net&lt;b&gt;" in own
    keys = set(charts_of(text))
    assert keys == {match.removesuffix('"') for match in re.findall(r'class="chart" id="([^"]+)', text)}


@pytest.mark.slow
def test_names_cannot_leave_their_place(several):
    text = several.read_text()
    assert "<script>alert" not in text
    assert "evil&lt;b&gt;" in text
    assert charts_of(text)["run0-matrix"]["params"]


def test_json_in_a_script_is_escaped_and_stays_the_same():
    value = {"<a>": "</script><!-- & \u2028 '\"", "b": [1, None]}
    assert not {*"<>&\u2028"} & {*as_script(value)}
    assert json.loads(as_script(value)) == value


@pytest.mark.slow
def test_a_title_of_ones_own():
    assert "<h1>Weight &lt;decay&gt;</h1>" in page([complete_run(2)], "Weight <decay>")


@pytest.mark.slow
def test_each_run_is_tracked():
    seen = []
    page([complete_run(2), batch_run()], track=lambda runs: (seen.append(run.path) or run for run in runs))
    assert len(seen) == 2


def test_rows_of_the_comparison():
    runs = [complete_run(decision=DECISION), undefined_run(), plain_run(History(toy_probe()))]
    rows = compare(runs, ["a", "b", "c"]).rows
    assert rows[0][0] == "a"
    assert rows[0][6:] == ("epoch 9", "5.0 %")
    assert rows[1][2] == DASH
    assert rows[2] == ("c", *[DASH] * 7)
    assert all("nan" not in cell for row in rows for cell in row)


@pytest.mark.slow
@pytest.mark.parametrize(("classes", "limit"), [(10, 5), (100, 8)])
def test_a_hundred_readings_stay_small(tmp_path, classes, limit):
    run = plain_run(detailed(overfitting_history(99, Toy(num_classes=classes, per_class=2))))
    size = write_page([run], tmp_path / "report.html").stat().st_size
    print(f"100 readings of {classes} classes: {size / MEGABYTE:.2f} MB")
    assert size < limit * MEGABYTE


@needs_browser
@pytest.mark.slow
def test_the_page_opens_from_disk_without_a_word_in_the_console(driver, single):
    opened(driver, single)
    assert driver.get_log("browser") == []
    body = driver.find_element("tag name", "body").text
    assert "Stopped after 9 epochs. It ends with the weights of epoch 4." in body
    drawn = driver.execute_script(
        "return [...document.querySelectorAll('.chart')].map(c => !!c.querySelector('svg path'))"
    )
    assert drawn
    assert all(drawn)
    labels = driver.execute_script("return [...document.querySelectorAll('.chart')].map(chart => chart.ariaLabel)")
    assert all(labels)
    pictures = driver.execute_script("return [...document.images].map(i => [i.alt, i.naturalWidth])")
    assert pictures
    assert all(alt and width == 8 for alt, width in pictures)


@needs_browser
@pytest.mark.slow
def test_the_slider_moves_by_keyboard_and_by_script(driver, single):
    from selenium.webdriver.common.keys import Keys

    opened(driver, single)
    last = driver.execute_script(NUMBERS)
    slider = driver.find_element("css selector", "input[type=range]")
    slider.send_keys(Keys.ARROW_LEFT)
    until(driver, CELL, lambda frame: frame == 8)
    slider.send_keys(Keys.HOME)
    until(driver, CELL, lambda frame: frame == 0)
    assert until(driver, NUMBERS, lambda numbers: ".45" in numbers) != last
    until(driver, "return document.querySelector('output').innerText.startsWith('epoch 0, within 0.45')")
    assert slider.get_attribute("aria-valuetext").startswith("epoch 0,")
    driver.execute_script(
        "const s = document.querySelector('input[type=range]'); s.value = 9; s.dispatchEvent(new Event('input'))"
    )
    until(driver, NUMBERS, lambda numbers: numbers == last)
    assert driver.get_log("browser") == []


@needs_browser
@pytest.mark.slow
def test_order_sign_and_play(driver, several):
    opened(driver, several)
    view = "stiffnessReport.views['run0-matrix']"
    axis = "return [...document.querySelectorAll('#run0-matrix .role-axis-label text')].map(t => t.textContent)"
    for order in ("given", "super", "tree"):
        click(driver, f"#run0 input[value={order}]")
        assert driver.execute_script(f"return {view}.signal('order')") == order
        if order == "given":
            until(driver, axis, lambda names: names and names[0].startswith("<script>"))
    click(driver, "#run0 input[type=checkbox]")
    assert driver.execute_script("return stiffnessReport.views['run0-stiffness'].signal('show_sign')") is True
    play = click(driver, "#run0 [data-play]")
    assert play.get_attribute("aria-pressed") == "true"
    until(driver, f"const play = document.querySelector('#run0 [data-play]'), frame = {view}.signal('frame');{PAUSE}")
    assert play.get_attribute("aria-pressed") == "false"
    assert driver.get_log("browser") == []


@needs_browser
@pytest.mark.slow
@pytest.mark.parametrize(
    ("chart", "place", "words"),
    [
        ("run0-stiffness", (100, 20), ["within classes", "±", "loss of the probe"]),
        ("run0-matrix", (-150, -120), ["with class", "stiffness"]),
    ],
)
def test_a_pointer_shows_numbers(driver, single, chart, place, words):
    from selenium.webdriver.common.action_chains import ActionChains

    opened(driver, single)
    slot = driver.find_element("css selector", f"#{chart} svg")
    driver.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", slot)
    ActionChains(driver).move_to_element_with_offset(slot, *place).move_by_offset(3, 0).perform()
    text = until(driver, "return document.querySelector('.vg-tooltip.visible')?.innerText")
    assert all(word in text for word in words)
    assert "undefined" not in text


@needs_browser
@pytest.mark.slow
def test_dark_colours_by_the_system_and_by_the_button(driver, single):
    opened(driver, single)
    driver.execute_script("localStorage.clear()")
    light, cell = driver.execute_script(BACKGROUND), driver.execute_script(FILL)
    features = [{"name": "prefers-color-scheme", "value": "dark"}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    until(driver, BACKGROUND, lambda colour: colour != light)
    until(driver, FILL, lambda colour: colour != cell)
    until(driver, PRESSED, lambda pressed: pressed == "true")
    click(driver, "#theme")
    until(driver, BACKGROUND, lambda colour: colour == light)
    until(driver, PRESSED, lambda pressed: pressed == "false")
    driver.execute_script("localStorage.clear()")


@needs_browser
@pytest.mark.slow
def test_several_runs_fold_and_print_shows_all(driver, several):
    opened(driver, several)
    assert driver.get_log("browser") == []
    visible = "return [...document.querySelectorAll('details.run')].map(d => d.open)"
    assert driver.execute_script(visible) == [True, False, False, False]
    driver.execute_script("location.hash = '#run1'")
    until(driver, "return document.getElementById('run1').open")
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    until(driver, "return [...document.querySelectorAll('details')].every(d => d.open)")
    hidden = "return [...document.querySelectorAll('.bar, .controls .time, fieldset')].every(e => !e.offsetHeight)"
    until(driver, hidden)
    heights = "return [...document.querySelectorAll('.chart svg')].map(s => s.clientHeight)"
    until(driver, heights, lambda found: found and all(height > 50 for height in found))
    until(driver, BACKGROUND, lambda colour: colour == "rgb(255, 255, 255)")
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    until(driver, "return !document.getElementById('run2').open")


@needs_browser
@pytest.mark.slow
def test_a_narrow_screen_needs_no_scrolling_sideways(driver, several):
    size = {"width": 420, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    opened(driver, several)
    until(driver, "return document.documentElement.scrollWidth", lambda width: width == 420)
    driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_run_without_anything_is_a_page():
    text = page([plain_run(toy_history([math.nan]))])
    assert "Too few readings" in text
    assert ">nan" not in text
    assert "Nothing was measured yet" in page([plain_run(History(toy_probe()))])
