import dataclasses
from collections import UserDict
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_stiffness.errors import StiffnessError
from lightning_stiffness.targets import as_class_targets, target_place, targets_of, with_targets


class Pair(NamedTuple):
    x: Tensor
    y: Tensor


class Labelled(NamedTuple):
    labels: Tensor
    x: Tensor


@dataclasses.dataclass(frozen=True)
class FrozenSample:
    x: Tensor
    y: Tensor


Y = torch.tensor([2, 0, 1])
X = torch.zeros(3, 4)


@pytest.mark.parametrize(
    "batch",
    [
        (X, Y),
        [X, Y, "extra"],
        (X, Y.unsqueeze(1)),
        (X, Y.to(torch.uint8)),
        (X, [2, 0, 1]),
        (X, Y.numpy()),
        ((X, X > 0), Y),
        {"x": X, "labels": Y},
        {"x": X, "label": Y},
        {"x": X, "targets": Y},
        {"x": X, "target": Y},
        {"x": X, "y": Y},
        UserDict(x=X, labels=Y),
        Pair(X, Y),
        Labelled(Y, X),
        FrozenSample(X, Y),
    ],
    ids=repr,
)
def test_targets_are_found(batch):
    found = targets_of(batch)
    assert found.dtype == torch.int64
    assert found.tolist() == [2, 0, 1]


def test_boolean_targets_are_two_classes():
    assert targets_of((X, torch.tensor([True, False, True]))).tolist() == [1, 0, 1]


def test_read_only_arrays_are_read_without_a_warning():
    array = np.array([0, 1, 2])
    array.flags.writeable = False
    assert as_class_targets(array, 3).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "targets",
    [
        torch.tensor([0.0, 1.0, 2.0]),
        torch.eye(3),
        torch.eye(3, dtype=torch.int64),
        torch.tensor(1),
        ["a", "b", "c"],
        np.array(["a", "b", "c"]),
        np.array([0, 1, None]),
        "abc",
        None,
    ],
    ids=repr,
)
def test_what_is_no_class_label_is_refused(targets):
    with pytest.raises(StiffnessError, match=r"3 integers, one for each sample; found .*soft.*pass targets="):
        targets_of((X, targets))


def test_labels_of_another_number_than_the_first_tensor_has_rows():
    with pytest.raises(StiffnessError, match=r"must be 7 integers.*found int64 tensor \[3\].*batch_first=True"):
        targets_of((torch.zeros(7, 3, 2), torch.tensor([0, 1, 0])))


@pytest.mark.parametrize("batch", [X, (X,), {"x": X, "z": Y}, [X]], ids=repr)
def test_missing_targets_list_what_was_found(batch):
    with pytest.raises(StiffnessError, match=r"labels, label, targets, target, y; found .*\[3, 4\].*Pass targets="):
        targets_of(batch)


def test_several_candidates_for_targets_are_not_guessed_at():
    tokens, lengths, labels = torch.zeros(4, 7), torch.tensor([7, 3, 2, 5]), torch.tensor([0, 1, 0, 1])
    with pytest.raises(StiffnessError, match=r"2 candidates, elements 1, 2 of the batch. Pass targets=.*batch\[2\]"):
        targets_of((tokens, lengths, labels))
    assert torch.equal(targets_of((tokens, labels, torch.rand(4))), labels)
    assert torch.equal(targets_of((tokens, labels, ["a", "b", "c", "d"])), labels)


@pytest.mark.parametrize(
    ("batch", "place"),
    [
        ((torch.zeros(2, 3), torch.tensor([0, 1])), 1),
        ({"x": torch.zeros(2, 3), "target": torch.tensor([0, 1]), "labels": torch.tensor([1, 1])}, "labels"),
    ],
)
def test_the_place_of_the_targets(batch, place):
    assert target_place(batch) == place


@pytest.mark.parametrize(
    "labels",
    [torch.tensor([0, 1]), torch.tensor([[0], [1]], dtype=torch.uint8), [0, 1], np.array([0, 1], dtype=np.int32)],
)
def test_other_targets_take_the_place_and_the_type_of_the_old_ones(labels):
    batch = {"x": torch.zeros(2, 3), "y": labels}
    changed = with_targets(batch, torch.tensor([4, 2]))
    assert type(changed["y"]) is type(labels)
    assert getattr(changed["y"], "dtype", None) == getattr(labels, "dtype", None)
    assert targets_of(changed).tolist() == [4, 2]
    assert targets_of(batch).tolist() == [0, 1]
    assert changed["x"] is batch["x"]


def test_what_is_no_target_is_not_exchanged():
    with pytest.raises(StiffnessError, match="not class labels"):
        with_targets((torch.zeros(2), torch.zeros(2)), torch.tensor([0, 1]))
