from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset, random_split

from lightning_stiffness.labels import ambiguous_tensors, balanced_positions, labels_of, unambiguous_labels_of


class Stored(Dataset[Any]):
    """Five samples that must not be loaded, with whatever attributes."""

    def __init__(self, **attributes: Any) -> None:
        for name, value in attributes.items():
            setattr(self, name, value)

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: Any) -> Any:
        raise AssertionError("a sample was loaded")


class Table(Stored):
    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            return self.columns[key]
        return super().__getitem__(key)


Y = [3, 1, 2, 0, 1]


@pytest.mark.parametrize("name", ["targets", "labels"])
@pytest.mark.parametrize(
    "stored",
    [Y, tuple(Y), np.array(Y), np.array(Y, dtype=np.uint8), torch.tensor(Y), torch.tensor(Y).unsqueeze(1)],
    ids=repr,
)
def test_stored_labels(name, stored):
    found = labels_of(Stored(**{name: stored}))
    assert found.dtype == torch.int64
    assert found.tolist() == Y


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"targets": torch.tensor(Y).double()},
        {"targets": Y[:4]},
        {"targets": torch.eye(5, dtype=torch.int64)},
        {"labels": ["a", "b", "c", "d", "e"]},
        {"labels": [[0, 1], [1], [2], [0], []]},
        {"targets": None},
        {"targets": {"boxes": 1}},
        {"features": torch.zeros(5, 2)},
    ],
    ids=repr,
)
def test_what_is_no_label_per_sample_is_none(attributes):
    assert labels_of(Stored(**attributes)) is None


def test_class_names_under_labels_do_not_hide_the_targets():
    assert labels_of(Stored(labels=["cat", "dog"], targets=Y)).tolist() == Y
    assert labels_of(Stored(targets=["cat", "dog"], labels=Y)).tolist() == Y


def test_property_that_fails_is_none():
    class Broken(Stored):
        @property
        def targets(self) -> Any:
            raise RuntimeError("download first")

    assert labels_of(Broken()) is None


def test_dataset_without_a_length_is_none():
    assert labels_of(object()) is None
    assert labels_of(iter([1])) is None


@pytest.mark.parametrize("name", ["label", "labels"])
@pytest.mark.parametrize("listing", ["column_names", "features"])
def test_column_of_a_table(name, listing):
    table = Table(columns={name: Y}, **{listing: {name: "ClassLabel"} if listing == "features" else ["text", name]})
    assert labels_of(table).tolist() == Y


def test_column_is_read_from_a_table_only():
    class Fussy(Stored):
        def __getitem__(self, key: Any) -> Any:
            raise AssertionError("asked for a column")

    assert labels_of(Fussy()) is None


def test_column_of_text_labels_is_none():
    assert labels_of(Table(columns={"label": list("abcde")}, column_names=["label"])) is None


def test_through_any_nesting():
    first, second = TensorDataset(torch.zeros(5, 2), torch.tensor(Y)), Stored(targets=np.array(Y) + 10)
    nested = Subset(ConcatDataset([Subset(first, [4, 0]), second]), [6, 0, 1, 2])
    assert labels_of(nested).tolist() == [11, 1, 3, 13]


def test_through_random_split():
    whole = TensorDataset(torch.zeros(5, 2), torch.tensor(Y))
    part, rest = random_split(whole, [3, 2], generator=torch.Generator().manual_seed(0))
    assert labels_of(part).tolist() == [int(part[i][1]) for i in range(3)]
    assert sorted(labels_of(part).tolist() + labels_of(rest).tolist()) == sorted(Y)


def test_subset_of_array_positions():
    assert labels_of(Subset(Stored(targets=Y), np.array([4, 0]))).tolist() == [1, 3]


def test_unknown_part_makes_the_whole_unknown():
    assert labels_of(ConcatDataset([Stored(targets=Y), Stored()])) is None
    assert labels_of(Subset(Stored(), [0])) is None


@pytest.mark.parametrize("y", [torch.zeros(5), torch.zeros(5, 3, dtype=torch.int64)])
def test_second_tensor_that_is_no_label_is_none(y):
    assert labels_of(TensorDataset(torch.zeros(5, 2), y)) is None


def test_labels_that_could_be_either_tensor():
    other, y = torch.tensor([0, 0, 0, 1, 1]), torch.tensor(Y)
    clear = TensorDataset(torch.zeros(5, 2), y, torch.zeros(5))
    unclear = TensorDataset(torch.zeros(5, 2), other, y.unsqueeze(1), torch.zeros(5))
    assert unambiguous_labels_of(clear).tolist() == Y
    for data in (unclear, Subset(unclear, [0, 1]), ConcatDataset([clear, unclear])):
        assert ambiguous_tensors(data) == (1, 2)
        assert unambiguous_labels_of(data) is None
    unclear.targets = y
    assert unambiguous_labels_of(unclear).tolist() == Y


def test_single_tensor_is_none():
    assert labels_of(TensorDataset(torch.tensor(Y))) is None


class_counts = st.lists(st.integers(0, 30), min_size=1, max_size=6).filter(lambda counts: sum(counts) > 0)


@given(counts=class_counts, size=st.integers(2, 80), seed=st.integers(0, 1000))
def test_balance(counts, size, seed):
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))]
    chosen = balanced_positions(labels, size, torch.Generator().manual_seed(seed)).tolist()
    got = [sum(int(labels[i]) == c for i in chosen) for c in range(len(counts))]

    assert len(set(chosen)) == len(chosen)
    assert labels[chosen].tolist() == sorted(labels[chosen].tolist())
    assert all(share >= min(2, available) for share, available in zip(got, counts, strict=True))
    at_least_two = sum(min(2, available) for available in counts)
    assert len(chosen) == max(at_least_two, min(size, sum(counts)))
    cut = [share for share, available in zip(got, counts, strict=True) if share < available]
    if cut:  # nobody has more than one above a class that was cut short
        assert max(got) - min(cut) <= 1
    assert chosen == balanced_positions(labels, size, torch.Generator().manual_seed(seed)).tolist()


def test_different_seeds_choose_different_samples():
    labels = torch.arange(1000) % 10
    draws = {tuple(balanced_positions(labels, 50, torch.Generator().manual_seed(s)).tolist()) for s in range(5)}
    assert len(draws) == 5


def test_every_sample_is_as_likely_as_another_of_its_class():
    labels = torch.tensor([0] * 10 + [1] * 5)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.zeros(15)
    for _ in range(2000):
        drawn[balanced_positions(labels, 8, generator)] += 1
    # 4 of 10 and 4 of 5; the standard error of a share is at most .011
    torch.testing.assert_close(drawn / 2000, torch.tensor([0.4] * 10 + [0.8] * 5), atol=0.05, rtol=0)


def test_negative_and_sparse_classes_are_classes():
    labels = torch.tensor([-1, 900, -1, 900, -1])
    assert labels[balanced_positions(labels, 4, torch.Generator())].tolist() == [-1, -1, 900, 900]


def test_nothing_is_chosen_from_nothing():
    assert len(balanced_positions(torch.zeros(0, dtype=torch.int64), 4, torch.Generator())) == 0
