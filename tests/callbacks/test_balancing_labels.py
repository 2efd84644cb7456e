"""Labels of batches, and a warning where they are not those by which the classes were counted."""

import warnings

import pytest
import torch
import torch.nn.functional as F

from lightning_stiffness.callbacks.balancing_labels import LabelCheck, batch_labels
from lightning_stiffness.errors import StiffnessError

X, Y = torch.zeros(4, 2), torch.tensor([0, 1, 2, 1])
EXPECTED = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)


def test_labels_are_those_of_the_batch_or_of_the_user():
    assert batch_labels((X, Y), None, is_only_smoothed=True).tolist() == Y.tolist()
    assert batch_labels((X, 0, Y), lambda batch: batch[2], is_only_smoothed=True).tolist() == Y.tolist()


def test_mixed_labels_are_no_reason_to_stop_sampling():
    mixed = X, F.one_hot(Y, 3).float()
    with pytest.raises(
        StiffnessError, match=r"found float32 tensor \[4, 3\].*pass smoothing=0 and shift=False instead"
    ):
        batch_labels(mixed, None, is_only_smoothed=True)
    with pytest.raises(StiffnessError) as refusal:
        batch_labels(mixed, None, is_only_smoothed=False)
    assert "smoothing=0" not in str(refusal.value)


def checked(counts, expected=EXPECTED, given=True, may_read=True):
    check = LabelCheck(len(expected), may_read)
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    for part in labels.split(50):
        check.see((torch.zeros(len(part), 2), part), part if given else None)
    check.end(expected)


@pytest.mark.parametrize("given", [True, False])
def test_other_classes_are_warned_of(given):
    with pytest.warns(UserWarning, match=r"class 2 made up 54.0% of the first epoch instead of 20.0%.*Pass targets="):
        checked([100, 130, 270], given=given)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([250, 150, 100], EXPECTED),
        ([5100, 2900, 2000], EXPECTED),  # 2 standard deviations
        ([52000, 29000, 19000], EXPECTED),  # far beyond chance, but hardly another frequency
        ([4, 0, 0], EXPECTED),  # too few to tell
        ([100, 0], torch.tensor([0.99, 0.01])),
    ],
)
def test_what_chance_does_is_not(counts, expected):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        checked(counts, expected)


def test_labels_that_cannot_or_must_not_be_read_are_left_out():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        checked([0, 0, 500], given=False, may_read=False)
        check = LabelCheck(3, may_read=True)
        for batch in ((X, F.one_hot(Y, 3).float()), (X, Y)):
            check.see(batch, None)
        check.end(EXPECTED)
