import math
from dataclasses import replace

import pytest

from lightning_stiffness.history import History
from lightning_stiffness.report.figures import (
    MOST_BARS,
    class_figure,
    comparison_figures,
    curve_figures,
    distance_figure,
    logged_names,
    marks_of,
    pair_figures,
    signal_figures,
)
from tests.report.runs import DECISION, batch_run, complete_run, detailed, plain_run, undefined_run
from tests.toy_history import Toy, measured_history, overfitting_history, toy_history


def titles(figures):
    return [figure.title for figure in figures]


@pytest.mark.slow
def test_a_run_shows_what_it_has():
    assert titles(curve_figures(complete_run())) == [
        "Stiffness over training",
        "Loss",
        "What else the run logged",
        "Does it carry over?",
    ]
    assert titles(curve_figures(batch_run())) == ["Stiffness over training", "Loss"]
    grouped = overfitting_history(3, Toy(num_classes=4, superclasses=(0, 0, 1, 1)))
    assert titles(curve_figures(plain_run(grouped)))[-1] == "Super-classes"


def test_stop_and_restored_weights_are_marked():
    assert marks_of(complete_run(decision=DECISION)) == {"stop, epoch 9": 9.0, "weights restored, epoch 4": 4.0}
    assert marks_of(complete_run(decision={**DECISION, "stopped": False, "restored_epoch": None})) == {}
    assert marks_of(complete_run()) == {}


def test_losses_and_metrics_are_told_apart_those_of_unseen_data_first():
    columns = {name: [0.5] for name in ("train_acc", "val_acc", "train_loss", "val_loss", "lr-Adam", "epoch")}
    history = measured_history(logged={**columns, "never": [math.nan]})
    assert logged_names(history) == (["val_loss", "train_loss"], ["val_acc", "train_acc"])


def test_signals_have_words_and_the_two_losses_one_chart():
    figures = signal_figures(complete_run())
    assert "Estimated loss on unseen samples" in titles(figures)
    assert "Loss of the samples that are followed" not in titles(figures)
    assert signal_figures(batch_run()) == []
    assert titles(signal_figures(plain_run(measured_history(signals={"my_signal": [0.1, 0.2]})))) == ["my_signal"]


def test_of_many_classes_the_ends_are_shown():
    few = class_figure(toy_history([0.5, 0.4]))
    assert "lowest" not in few.caption
    many = class_figure(overfitting_history(3, Toy(num_classes=50, per_class=2)))
    assert f"The {MOST_BARS // 2} lowest and highest of 50." in many.caption
    assert class_figure(undefined_run().history) is None


def test_histograms_are_of_the_first_middle_and_last_reading():
    assert titles(pair_figures(complete_run(9).history)) == ["Epoch 0", "Epoch 4", "Epoch 9"]
    assert pair_figures(batch_run().history) == []


@pytest.mark.parametrize(("crossing", "words"), [(0.6, "at a distance of 0.6"), (3.0, "beyond the data")])
def test_a_critical_length_is_given_inside_the_data_only(crossing, words):
    assert words in distance_figure(detailed(overfitting_history(4), crossing=crossing)).caption


def test_without_distances_there_is_no_figure():
    history = detailed(overfitting_history(2))
    bare = [replace(reading, detail=replace(reading.detail, distance=None)) for reading in history]
    assert distance_figure(History(history.probe, bare)) is None
    assert distance_figure(overfitting_history(2)) is None


def test_runs_are_compared_by_what_more_than_one_of_them_logged():
    runs = {"a": complete_run().history, "b": complete_run().history, "c": batch_run().history}
    assert titles(comparison_figures(runs))[3:] == ["val_loss", "val_acc"]
    assert len(comparison_figures({"a": runs["a"], "c": runs["c"]})) == 3
