import math
from dataclasses import replace

import pytest
import torch

from lightning_stiffness.history import History
from lightning_stiffness.report import advice as rules
from lightning_stiffness.report.advice import RULES, advice
from tests.report.runs import batch_run, complete_run, undefined_run
from tests.toy_history import Toy, measured_history, overfitting_history, toy_history, toy_probe

EMPTY = History(toy_probe())


def changed(history, **fields):
    return History(history.probe, [replace(reading, **fields) for reading in history])


def with_matrix(matrix, names=None, readings=3):
    """A history whose every class matrix is this one."""
    matrix = torch.tensor(matrix, dtype=torch.float64)
    toy = Toy(num_classes=len(matrix), class_names=names)
    off = float(matrix[~torch.eye(len(matrix), dtype=torch.bool)].nanmean())
    history = toy_history([0.5] * readings, toy=toy)
    return History(history.probe, [replace(r, cosine=replace(r.cosine, matrix=matrix, between=off)) for r in history])


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize(
    "history",
    [
        EMPTY,
        toy_history([0.5]),
        undefined_run().history,
        batch_run().history,
        complete_run().history,
        toy_history([0.5] * 4, toy=Toy(num_classes=1)),
    ],
    ids=["empty", "one", "undefined", "batch", "complete", "one class"],
)
def test_every_rule_answers_every_history(rule, history):
    said = rule(history)
    assert said is None or (said.title and said.meaning.endswith(".") and "nan" not in said.meaning)


def test_what_may_have_to_be_done_comes_first():
    kinds = [said.kind for said in advice(complete_run(40).history)]
    assert kinds == sorted(kinds, key=("watch", "good", "note").index)
    assert kinds[0] == "watch"


def test_too_few_readings():
    assert "no reading" in rules.too_few(EMPTY).meaning
    assert rules.too_few(toy_history([0.5, 0.4])) is not None
    assert rules.too_few(toy_history([0.5] * 3)) is None


def test_memorising_needs_a_clear_drop_and_a_falling_loss():
    said = rules.memorising(overfitting_history(20))
    assert "at epoch 2" in said.meaning
    assert "labels" in said.action
    falling = [0.8, 0.7, 0.6]
    assert rules.memorising(toy_history(falling, [1.0, 0.8, 0.6])) is not None
    assert rules.memorising(toy_history(falling, [1.0, 1.1, 1.2])) is None  # it unlearns
    assert rules.memorising(toy_history([0.80, 0.79, 0.79], [1.0, 0.8, 0.6])) is None  # too small
    noisy = toy_history(falling, [1.0, 0.8, 0.6], Toy(standard_error=0.3))
    assert rules.memorising(noisy) is None  # within its error


def test_a_run_that_still_learns_and_one_without_a_drop():
    assert rules.still_learning(toy_history([0.3, 0.4, 0.5], [1.0, 0.9, 0.8])) is not None
    assert rules.still_learning(toy_history([0.3, 0.4, 0.5], [1.0, 0.7, 0.8])) is None
    assert rules.still_learning(toy_history([0.5, 0.4, 0.3])) is None
    assert "0.490" in rules.no_change(toy_history([0.48, 0.5, 0.49])).meaning
    assert rules.no_change(overfitting_history(20)) is None


def test_worse_on_unseen_data_is_told_by_its_loss():
    rising = [1.0, 0.5, 0.6, 0.7, 0.8]
    assert "epoch 1" in rules.unseen_worse(measured_history(logged={"val_loss": rising})).meaning
    assert rules.unseen_worse(measured_history(logged={"train_loss": rising})) is None
    assert rules.unseen_worse(measured_history(logged={"val_acc": rising})) is None
    assert rules.unseen_worse(measured_history(logged={"val_loss": [1.0, 0.5, 0.51, 0.5, 0.6]})) is None  # one spike


def test_classes_that_learn_together():
    history = with_matrix([[0.5, 0.3, 0.1], [0.3, 0.5, 0.1], [0.1, 0.1, 0.5]], ("cat", "dog", "car"))
    assert "cat and dog" in rules.shared(history).meaning
    assert "cat and dog (0.30)" in rules.lumped(history).meaning
    apart = with_matrix([[0.5, -0.1, -0.1], [-0.1, 0.5, -0.1], [-0.1, -0.1, 0.5]])
    assert rules.shared(apart) is None
    assert rules.lumped(apart) is None


def test_a_class_with_little_in_common():
    matrix = torch.diag(torch.tensor([0.5, 0.6, 0.1, 0.55])).tolist()
    assert rules.weak_class(with_matrix(matrix, ("a", "b", "odd", "d"))).meaning.startswith("Samples of odd (0.10)")
    assert rules.weak_class(toy_history([0.5] * 3)) is None


def test_a_saturated_sign():
    history = toy_history([0.5] * 3)
    sure = History(history.probe, [replace(r, sign=replace(r.sign, within=1.0)) for r in history])
    assert rules.usual_start(sure).kind == "note"
    assert rules.usual_start(history) is None


def test_samples_without_gradient_large_errors_missing_classes_and_cost():
    history = toy_history([0.5] * 3)
    assert rules.many_zeros(changed(history, zero_fraction=0.25)).meaning.startswith("25 %")
    assert rules.many_zeros(changed(history, zero_fraction=math.nan)) is None
    assert rules.large_errors(toy_history([0.5] * 3, toy=Toy(standard_error=0.1))) is not None
    assert rules.large_errors(history) is None
    assert rules.classes_missing(toy_history([0.5] * 3, toy=Toy(missing=(1,)))).meaning.startswith("1 of 3")
    dear = History(history.probe, [replace(r, seconds=1.0, elapsed=2.0 * (r.epoch + 1)) for r in history])
    assert "every_n_epochs=10" in rules.high_cost(dear).action
    assert rules.high_cost(history) is None


def test_a_gap_between_training_and_validation():
    assert rules.generalisation_gap(complete_run(20).history).kind == "watch"
    same = measured_history(signals={"train_within": [0.5] * 4})
    assert rules.generalisation_gap(same) is None


def test_batches_are_said_to_be_noisy():
    assert rules.batches_are_noisy(batch_run().history) is not None
    assert rules.batches_are_noisy(toy_history([0.5])) is None
