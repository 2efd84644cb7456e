"""Sums of pairs with their counts."""

import pytest
import torch

from lightning_stiffness.functional.tally import Tally, class_sums, membership, pair_tally, summation_dtype


def test_a_pair_that_does_not_count_adds_nothing() -> None:
    tally = pair_tally(torch.tensor([[float("nan"), 2.0]]))
    assert tally.total.tolist() == [[0.0, 2.0]]
    assert tally.count.tolist() == [[0.0, 1.0]]


def test_tallies_add_subtract_and_average() -> None:
    first = Tally(torch.tensor([6.0, 0.0]), torch.tensor([3.0, 0.0]))
    second = Tally(torch.tensor([1.0, 4.0]), torch.tensor([1.0, 1.0]))
    assert first.mean[0] == 2
    assert first.mean[1].isnan()
    assert (first + second).mean.tolist() == [1.75, 4.0]
    assert (first + second - second).total.tolist() == first.total.tolist()
    assert second.map(torch.sum).mean == 2.5


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_membership_marks_the_class_of_each_sample(dtype: torch.dtype) -> None:
    assert membership(torch.tensor([2, 0], dtype=dtype), 3).tolist() == [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]


def test_sums_are_made_in_float64_where_there_is_one() -> None:
    assert summation_dtype(torch.device("cpu")) == summation_dtype(torch.device("cuda")) == torch.float64
    assert summation_dtype(torch.device("mps")) == torch.float32


@pytest.mark.parametrize("dim", [0, 1, -1])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_class_sums_are_those_of_a_product_with_the_members(dim: int, device: str) -> None:
    values, targets = torch.arange(12.0).reshape(3, 4).double(), torch.tensor([2, 0, 2, 1])
    values = values.T if dim == 0 else values
    found = class_sums(values.to(device), targets.to(device), 5, dim)
    if device == "meta":  # the way of other devices, of which only shapes are known here
        assert found.shape == ((5, 3) if dim == 0 else (3, 5))
        return
    members = membership(targets, 5)
    assert torch.equal(found, members.T @ values if dim == 0 else values @ members)
