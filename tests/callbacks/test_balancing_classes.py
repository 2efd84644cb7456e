import pytest
import torch
from torch import nn

from lightning_stiffness.callbacks.balancing_classes import agreed_counts, outputs_of, require_labels
from lightning_stiffness.errors import StiffnessError


def test_the_number_of_classes_is_that_of_the_outputs():
    assert outputs_of("head", nn.Linear(2, 5), 4) == 5
    assert outputs_of("head", nn.Identity(), 4) == 4
    with pytest.raises(StiffnessError, match="does not tell its number of outputs"):
        outputs_of("head", nn.Identity(), None)
    with pytest.raises(StiffnessError, match="found 2 outputs of 'head' for 3 classes"):
        outputs_of("head", nn.Linear(2, 2), 3)


def test_counts_agree():
    stored = torch.tensor([4, 2])
    assert agreed_counts(None, None, 2) is None
    assert agreed_counts(stored, stored, 2).tolist() == agreed_counts(None, stored, 2).tolist() == [4, 2]
    with pytest.raises(StiffnessError, match="found 0 of class 2"):
        agreed_counts(stored, None, 3)
    with pytest.raises(StiffnessError, match=r"found \[4, 1\] given"):
        agreed_counts(stored, torch.tensor([4, 1]), 2)
    with pytest.raises(StiffnessError, match="each of 3 outputs of the classifier, found 2"):
        agreed_counts(None, stored, 3)
    many = torch.ones(20, dtype=torch.long)
    with pytest.raises(StiffnessError, match=r"\.\.\. \(20 classes\) given"):
        agreed_counts(many + 1, many, 20)


def test_labels_are_classes():
    require_labels(torch.tensor([0, 1]), 2)
    require_labels(torch.zeros(0, dtype=torch.long), 2)
    with pytest.raises(StiffnessError, match=r"\[0, 2\), found 0 to 2"):
        require_labels(torch.tensor([0, 2]), 2)
