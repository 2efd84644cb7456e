import pytest
import torch
from torch import nn

from lightning_stiffness.callbacks.balancing_classes import agreed_counts, classifier_for, outputs_of, require_labels
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


def test_a_class_that_is_known_of_may_be_without_a_sample():
    stored = torch.tensor([4, 2])
    assert agreed_counts(stored, None, 3, may_be_empty=True).tolist() == [4, 2, 1]
    assert agreed_counts(stored, torch.tensor([4, 2, 1]), 3, may_be_empty=True).tolist() == [4, 2, 1]
    with pytest.raises(StiffnessError, match=r"found \[4, 2, 2\] given and \[4, 2, 1\]"):
        agreed_counts(stored, torch.tensor([4, 2, 2]), 3, may_be_empty=True)


def test_what_to_do_where_no_classifier_is_found():
    module = nn.Sequential(nn.Linear(2, 5), nn.Linear(5, 4))
    assert classifier_for(module, 4, None, None)[0] == "1"
    assert classifier_for(module, None, "1", None)[0] == "1"
    with pytest.raises(StiffnessError, match=r"The number of classes must be known .* Pass num_classes="):
        classifier_for(module, None, None, None)
    with pytest.raises(StiffnessError, match=r"with 3 outputs; found 0 of 2 .* Or pass num_classes=.*, or targets="):
        classifier_for(module, 3, None, None)
    for name, given in ((None, 3), ("2", None)):
        with pytest.raises(StiffnessError) as refusal:
            classifier_for(module, 3, name, given)
        assert "Or pass" not in str(refusal.value)


def test_labels_are_classes():
    require_labels(torch.tensor([0, 1]), 2)
    require_labels(torch.zeros(0, dtype=torch.long), 2)
    with pytest.raises(StiffnessError, match=r"\[0, 2\), found 0 to 2"):
        require_labels(torch.tensor([0, 2]), 2)
