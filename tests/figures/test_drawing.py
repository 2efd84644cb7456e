"""What holds for every picture."""

import inspect
import io
import subprocess
import sys
from itertools import pairwise

import matplotlib
import pytest

from lightning_stiffness import figures
from lightning_stiffness.errors import StiffnessError
from lightning_stiffness.figures.balancing import BALANCE_PICTURES
from lightning_stiffness.history import History
from lightning_stiffness.stopping import StiffnessDrop, shadow
from tests.figures.pictures import CURVES, HISTORIES, detailed_history, rendered, texts
from tests.toy_balance import toy_readings
from tests.toy_history import Toy, toy_history, toy_probe

DRAWN = {
    "within_and_between": lambda history: figures.within_and_between(history, 1.0),
    "class_matrix": lambda history: figures.class_matrix(history[-1].cosine.matrix, history.probe.class_names),
    "class_matrices": figures.class_matrices,
    "stopping_signal": lambda history: figures.stopping_signal(history, StiffnessDrop()),
    "shadow_summary": lambda history: figures.shadow_summary(history, shadow(history, {"drop": StiffnessDrop()})),
    "latest_class_matrix": figures.latest_class_matrix,
    "within_of_each_class": figures.within_of_each_class,
    "training_summary": lambda history: figures.training_summary(CURVES, history, history, history[-1].epoch),
}
# These need details, which only some histories have.
OF_PAIRS = {
    "pair_cosines": figures.pair_cosines,
    "stiffness_against_distance": figures.stiffness_against_distance,
}


def test_every_figure_function_is_tested_here():
    public = {name for name in figures.__all__ if inspect.isfunction(getattr(figures, name))}
    assert public == {*DRAWN, *OF_PAIRS, *BALANCE_PICTURES}


ALL_HISTORIES = [
    pytest.param(history, id=name, marks=[] if name in ("ten classes", "nothing defined") else pytest.mark.slow)
    for name, history in HISTORIES.items()
]


@pytest.mark.parametrize("history", ALL_HISTORIES)
@pytest.mark.parametrize("name", DRAWN)
@pytest.mark.slow
def test_every_figure_draws_every_history_and_leaves_no_settings(name, history):
    before = dict(matplotlib.rcParams)
    figure = DRAWN[name](history)
    figure.savefig(io.BytesIO(), dpi=40)
    assert dict(matplotlib.rcParams) == before
    assert figure.axes
    assert all(axes.get_title(loc="left") or axes.get_ylabel() for axes in figure.axes)


@pytest.mark.parametrize("draw", OF_PAIRS.values(), ids=OF_PAIRS)
def test_pictures_of_pairs_leave_no_settings(draw):
    before = dict(matplotlib.rcParams)
    assert rendered(draw(detailed_history())).axes
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("draw", BALANCE_PICTURES.values(), ids=BALANCE_PICTURES)
def test_pictures_of_balance_leave_no_settings(draw):
    before = dict(matplotlib.rcParams)
    assert rendered(draw(toy_readings(2))).axes
    assert dict(matplotlib.rcParams) == before


def test_names_of_lines_stay_beside_the_axes():
    history = toy_history([0.5, 0.9], toy=Toy(10, class_names=tuple("abcdefghij")))
    (axes,) = rendered(figures.within_of_each_class(history)).axes
    places = [text.xy[1] for text in axes.texts]
    assert len(texts(axes)) == 10
    assert max(places) <= 1.0
    assert min(second - first for first, second in pairwise(sorted(places))) == pytest.approx(0.075)


@pytest.mark.slow
def test_pyplot_is_never_imported():
    code = "import sys, lightning_stiffness.figures; sys.exit('matplotlib.pyplot' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "draw", [*OF_PAIRS.values(), *(DRAWN[name] for name in DRAWN if name not in ("class_matrix", "training_summary"))]
)
def test_an_empty_history_is_no_picture(draw):
    with pytest.raises(StiffnessError, match="at least one reading"):
        draw(History(toy_probe()))
