import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lightning_stiffness.errors import StiffnessError
from lightning_stiffness.functional.label_score import (
    LOSS_WEIGHT,
    SHARPNESS,
    label_evidence,
    label_margin,
    label_quality,
    suggested_labels,
)
from tests.unchecked import unchecked_types

NAN = math.nan
MATRICES = arrays(float, (5, 3), elements=st.integers(-999, 999).map(lambda number: number / 1000)).map(torch.as_tensor)
TARGETS = torch.tensor([0, 1, 2, 0, 1])


def margin_by_loops(evidence, targets):
    margins = []
    for row, target in zip(evidence.tolist(), targets.tolist(), strict=True):
        rivals = [value for label, value in enumerate(row) if label != target and not math.isnan(value)]
        margins.append(row[target] - max(rivals) if rivals else NAN)
    return torch.tensor(margins, dtype=evidence.dtype)


@given(evidence=MATRICES)
def test_the_margin_is_that_of_the_loops(evidence):
    assert torch.allclose(label_margin(evidence, TARGETS), margin_by_loops(evidence, TARGETS))


@given(alignment=MATRICES, losses=arrays(float, (5, 3), elements=st.floats(0.01, 9), unique=True).map(torch.as_tensor))
def test_the_unit_of_the_loss_does_not_matter(alignment, losses):
    assert torch.allclose(label_evidence(alignment, losses), label_evidence(alignment, 7 * losses), atol=1e-9)


@given(alignment=MATRICES, losses=arrays(float, (5, 3), elements=st.floats(0.01, 9), unique=True).map(torch.as_tensor))
def test_evidence_is_the_formula(alignment, losses):
    spreads = [sorted(row)[1] - sorted(row)[0] for row in losses.tolist()]
    expected = alignment - LOSS_WEIGHT * losses / (sum(spreads) / len(spreads))
    assert torch.allclose(label_evidence(alignment, losses), expected)


@given(evidence=MATRICES)
def test_quality_is_in_its_range_and_says_what_the_suggestion_says(evidence):
    quality, suggested = label_quality(evidence, TARGETS), suggested_labels(evidence, TARGETS)
    assert bool(((quality >= 0) & (quality <= 1)).all())
    assert torch.equal(quality < 0.5, suggested != TARGETS)
    assert torch.allclose(quality, torch.sigmoid(label_margin(evidence, TARGETS) / SHARPNESS))


@given(evidence=MATRICES, order=st.permutations(range(3)))
def test_the_numbers_of_the_classes_do_not_matter(evidence, order):
    renamed = torch.empty_like(evidence)
    renamed[:, list(order)] = evidence
    assert torch.allclose(label_margin(renamed, torch.tensor(order)[TARGETS]), label_margin(evidence, TARGETS))


def test_where_nothing_can_be_said():
    evidence = torch.tensor([[NAN, 0.2, 0.1], [0.3, NAN, NAN], [0.3, NAN, 0.1], [NAN, NAN, NAN]])
    targets = torch.tensor([0, 0, 0, 1])
    margins = label_margin(evidence, targets)
    assert margins.isnan().tolist() == [True, True, False, True]
    assert margins[2] == pytest.approx(0.2)
    assert torch.equal(suggested_labels(evidence, targets), targets)
    assert label_quality(evidence, targets).isnan().tolist() == [True, True, False, True]


def test_losses_that_are_all_alike_or_have_one_class_say_nothing():
    alignment = torch.tensor([[0.5, 0.1]])
    evidence = label_evidence(alignment, torch.zeros(1, 2))
    assert torch.equal(evidence, alignment)
    assert torch.equal(label_evidence(alignment[:, :1], torch.ones(1, 1)), alignment[:, :1])
    assert label_margin(alignment[:, :1], torch.zeros(1, dtype=torch.long)).isnan().all()


def test_shapes_and_targets_must_fit():
    with unchecked_types(), pytest.raises(StiffnessError, match=r"shape of alignment, \(1, 2\)"):
        label_evidence(torch.zeros(1, 2), torch.zeros(1, 3))
    with pytest.raises(StiffnessError, match="at least one sample"):
        label_evidence(torch.zeros(0, 2), torch.zeros(0, 2))
    with pytest.raises(StiffnessError, match=r"targets must lie in \[0, 2\)"):
        label_quality(torch.zeros(1, 2), torch.tensor([2]))
    with unchecked_types(), pytest.raises(StiffnessError, match="must be integers"):
        suggested_labels(torch.zeros(1, 2), torch.tensor([0.0]))
