from dataclasses import replace

import pytest

from lightning_stiffness.figures.dashboard import DASHBOARD
from lightning_stiffness.history import History
from tests.figures.pictures import HISTORIES, detailed_history, rendered

TAGS = ["class_matrix", "within_of_each_class", "pair_cosines", "stiffness_against_distance"]


def test_the_pictures_and_their_tags():
    assert list(DASHBOARD) == TAGS
    assert all(rendered(draw(detailed_history())) for draw in DASHBOARD.values())


@pytest.mark.parametrize("history", HISTORIES.values(), ids=HISTORIES)
def test_what_a_history_does_not_have_is_no_picture(history):
    assert [tag for tag, draw in DASHBOARD.items() if draw(history) is not None] == TAGS[:2]


def test_inputs_without_distances_have_no_picture_of_them():
    detailed = detailed_history(0)
    reading = replace(detailed[0], detail=replace(detailed[0].detail, distance=None))
    shown = [tag for tag, draw in DASHBOARD.items() if draw(History(detailed.probe, [reading])) is not None]
    assert shown == TAGS[:3]
