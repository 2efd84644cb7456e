import re

from lightning_stiffness.report.matrix_chart import HEAT
from lightning_stiffness.report.theme import DARK, HEAT_LIGHT, LIGHT, contrast, css_variables, heat


def test_light_and_dark_have_the_same_variables():
    names = [re.findall(r"--([\w-]+):", css_variables(is_dark)) for is_dark in (False, True)]
    assert names[0] == names[1]
    assert f"heat-{HEAT - 1}" in names[0]


def test_text_is_readable_on_paper():
    for colors in (LIGHT, DARK):
        for name in ("ink", "muted", "accent"):
            assert contrast(colors[name], colors["paper"]) >= 4.5, name
            assert contrast(colors[name], colors["wash"]) >= 4.5, name


def test_numbers_are_readable_on_their_cells():
    for is_dark in (False, True):
        colors = dict(re.findall(r"--([\w-]+): (#\w+);", css_variables(is_dark)))
        for index in range(HEAT):
            for scale in ("heat", "fight"):
                assert contrast(colors[f"on-{scale}-{index}"], colors[f"{scale}-{index}"]) >= 4.5


def test_heat_runs_from_end_to_end_through_the_middle():
    steps = heat(HEAT_LIGHT)
    assert (steps[0], steps[HEAT // 2], steps[-1]) == (HEAT_LIGHT[0], HEAT_LIGHT[2], HEAT_LIGHT[-1])
