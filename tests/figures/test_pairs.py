from dataclasses import replace

import pytest

from lightning_stiffness import figures
from lightning_stiffness.errors import StiffnessError
from lightning_stiffness.figures.pairs import has_distances
from lightning_stiffness.history import History
from tests.figures.pictures import HISTORIES, detailed_history, rendered, texts
from tests.toy_history import toy_probe

DETAILED = detailed_history()


def changed(history, **fields):
    """The last reading with another detail."""
    last = history[-1]
    return History(history.probe, [*history[:-1], replace(last, detail=replace(last.detail, **fields))])


def spreads(figure):
    return {patch.get_label(): patch.get_data() for patch in rendered(figure).axes[0].patches if patch.get_label()}


def test_the_spread_of_pairs_is_a_share_of_them():
    figure = figures.pair_cosines(DETAILED)
    steps = spreads(figure)
    assert list(steps) == ["within, epoch 0", "between, epoch 0", "within, epoch 4", "between, epoch 4"]
    for name, counts in (
        ("within", DETAILED[-1].detail.within_counts),
        ("between", DETAILED[-1].detail.between_counts),
    ):
        values, edges, _ = steps[f"{name}, epoch 4"]
        assert values == pytest.approx((counts / counts.sum()).tolist())
        assert edges[[0, -1]].tolist() == [-1, 1]
        assert sum(values) == pytest.approx(1)
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["zero", *steps]


def test_one_reading_is_drawn_once():
    assert list(spreads(figures.pair_cosines(detailed_history(0)))) == ["within, epoch 0", "between, epoch 0"]


def test_without_pairs_of_a_kind_the_other_is_drawn():
    counts = DETAILED[-1].detail.between_counts
    history = changed(DETAILED, between_counts=0 * counts)[4:]
    assert list(spreads(figures.pair_cosines(history))) == ["within, epoch 4"]


def test_distance_shows_the_means_the_line_and_the_critical_length():
    (axes,) = rendered(figures.stiffness_against_distance(DETAILED)).axes
    curve = DETAILED[-1].detail.distance
    lines = {line.get_label(): line for line in axes.lines}
    assert list(lines["mean of the pairs"].get_ydata()) == curve.means.tolist()
    low, high = lines["line"].get_xdata()
    assert [low, high] == [float(curve.edges[0]), float(curve.edges[-1])]
    assert list(lines["line"].get_ydata()) == pytest.approx([(0.5 - low) / 5, (0.5 - high) / 5])
    assert set(lines["critical length"].get_xdata()) == {curve.critical_length}
    assert texts(axes) == ["critical length 0.5"]


def test_a_crossing_outside_the_data_is_no_critical_length():
    (axes,) = rendered(figures.stiffness_against_distance(detailed_history(slope=-0.1))).axes
    assert "critical length" not in {line.get_label() for line in axes.lines}
    assert texts(axes) == ["no critical length: the line does not cross zero within the data"]


def test_histories_without_details_are_refused():
    history = HISTORIES["ten classes"]
    for draw in (figures.pair_cosines, figures.stiffness_against_distance):
        with pytest.raises(StiffnessError, match="needs details of single pairs"):
            draw(history)
    with pytest.raises(StiffnessError, match="needs distances of the inputs"):
        figures.stiffness_against_distance(changed(DETAILED, distance=None))
    assert has_distances(DETAILED)
    for without in (history, changed(DETAILED, distance=None), History(toy_probe())):
        assert not has_distances(without)
