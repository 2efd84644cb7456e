"""Positions as the Trainer reports them; test_resume has the real ones."""

import math
from types import SimpleNamespace

import pytest

from lightning_stiffness.callbacks.progress import epochs_completed, is_between_epochs, logged_step, planned_batches


def trainer(epochs, batches, length=10, stepped=0):
    """`epochs` as (started, processed), `batches` as the number done of the epoch."""
    started, processed = epochs
    loop = SimpleNamespace(
        batch_progress=SimpleNamespace(current=SimpleNamespace(processed=batches)), _batches_that_stepped=stepped
    )
    progress = SimpleNamespace(current=SimpleNamespace(started=started, processed=processed))
    return SimpleNamespace(
        num_training_batches=length,
        global_step=-1,
        fit_loop=SimpleNamespace(epoch_progress=progress, epoch_loop=loop),
    )


@pytest.mark.parametrize(
    ("epochs", "batches", "at_epoch_end", "expected"),
    [
        ((0, 0), 0, False, 0.0),  # a fresh run
        ((1, 0), 3, False, 0.3),
        ((3, 2), 9, False, 2.9),
        ((2, 2), 4, False, 2.4),  # Lightning does not count the start of an epoch that is taken up again
        ((1, 1), 10, True, 1.0),
        ((3, 3), 5, True, 2.5),  # an epoch that was cut short
        ((3, 3), 10, False, 3.0),  # resumed from a checkpoint at the end of an epoch
        ((3, 2), 10, False, 3.0),  # and from one after its validation, which was saved before the epoch was counted
    ],
)
def test_epochs_completed(epochs, batches, at_epoch_end, expected):
    assert epochs_completed(trainer(epochs, batches), at_epoch_end) == pytest.approx(expected)


@pytest.mark.parametrize(("epochs", "at_epoch_end", "expected"), [((1, 0), False, 0.0), ((2, 2), True, 2.0)])
@pytest.mark.parametrize("length", [math.inf, 0])
def test_an_epoch_of_unknown_length_counts_when_it_ends(epochs, at_epoch_end, expected, length):
    assert epochs_completed(trainer(epochs, 7, length), at_epoch_end) == expected
    assert not is_between_epochs(trainer(epochs, 7, length))


def test_between_epochs():
    assert is_between_epochs(trainer((3, 3), 10))
    assert not is_between_epochs(trainer((0, 0), 0))
    assert not is_between_epochs(trainer((3, 2), 5))


def test_the_end_of_an_epoch_is_logged_at_its_last_step():
    assert logged_step(trainer((1, 0), 5, stepped=5)) == 5
    assert logged_step(trainer((1, 1), 10, stepped=10), at_epoch_end=True) == 9
    assert logged_step(trainer((1, 1), 0, stepped=0), at_epoch_end=True) == 0


@pytest.mark.parametrize(
    ("steps", "accumulated", "expected"), [(30, 2, 60.0), (0, 1, 0.0), (-1, 4, math.inf), (math.inf, 2, math.inf)]
)
def test_how_long_training_takes(steps, accumulated, expected):
    run = SimpleNamespace(estimated_stepping_batches=steps, accumulate_grad_batches=accumulated)
    assert planned_batches(run) == expected
