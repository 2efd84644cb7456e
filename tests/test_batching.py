import dataclasses
from collections import OrderedDict, UserDict
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.utils.rnn import pack_sequence

from lightning_stiffness.batching import batch_size, join, take, take_unchecked
from lightning_stiffness.errors import StiffnessError


class Pair(NamedTuple):
    x: Tensor
    y: Tensor


class Labelled(NamedTuple):
    label: Tensor
    x: Tensor


@dataclasses.dataclass
class Sample:
    x: Tensor
    names: list[str]
    scale: float = 1.0


@dataclasses.dataclass(frozen=True)
class FrozenSample:
    x: Tensor
    y: Tensor


class Encoding(UserDict[str, Any]):
    """Built the way a tokenizer's output is: further arguments, attributes for keys."""

    def __init__(self, data: dict[str, Any], encodings: Any = None) -> None:
        super().__init__(data)
        self._encodings = encodings

    def __getattr__(self, name: str) -> Any:
        try:
            return self.data[name]
        except KeyError:
            raise AttributeError(name) from None


def batches(n: int) -> dict[str, Any]:
    x, y = torch.arange(n * 3.0).reshape(n, 3), torch.arange(n) % 2
    return {
        "tensor": x,
        "list": [x, y],
        "tuple": (x, y),
        "named tuple": Pair(x, y),
        "dict": {"x": x, "y": y},
        "ordered": OrderedDict(x=x, y=y),
        "encoding": Encoding({"x": x, "y": y}, encodings="kept"),
        "dataclass": Sample(x, [str(i) for i in range(n)]),
        "frozen": FrozenSample(x, y),
        "deep": {"inputs": (x, {"mask": x > 1}), "meta": [{"id": i} for i in range(n)], "y": y},
    }


def flat(value: Any) -> list[Any]:
    """Every leaf in order, tensors as nested lists."""
    if isinstance(value, Tensor):
        return [value.tolist()]
    if dataclasses.is_dataclass(value):
        return flat(list(vars(value).values()))
    if isinstance(value, dict | UserDict):
        return flat(list(value.values()))
    if isinstance(value, list | tuple):
        return [leaf for item in value for leaf in flat(item)]
    return [value]


KINDS = list(batches(2))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_size_counts_the_samples(kind, n):
    assert batch_size(batches(n)[kind]) == n


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data(), n=st.integers(1, 5))
def test_take_matches_the_batch_of_those_samples_alone(kind, data, n):
    indices = data.draw(st.lists(st.integers(0, n - 1), max_size=6))
    batch = batches(n)[kind]
    before = flat(batch)
    by_list, by_tensor = take(batch, indices), take(batch, torch.tensor(indices, dtype=torch.long))
    assert type(by_list) is type(batch)
    assert flat(by_list) == flat(by_tensor)
    assert flat(batch) == before
    tensor = next(iter_tensors(by_list))
    assert tensor.tolist() == [[i * 3.0, i * 3.0 + 1, i * 3.0 + 2] for i in indices]


@pytest.mark.parametrize("kind", KINDS)
@given(n=st.integers(2, 6), start=st.integers(0, 5), stop=st.integers(-6, 6), step=st.integers(1, 3))
def test_slice_takes_what_its_positions_take(kind, n, start, stop, step):
    batch = batches(n)[kind]
    chosen = slice(start, stop, step)
    assert flat(take(batch, chosen)) == flat(take(batch, list(range(n))[chosen]))


@pytest.mark.parametrize("kind", KINDS)
@given(cuts=st.lists(st.integers(1, 3), min_size=1, max_size=4))
def test_join_puts_a_cut_batch_together_again(kind, cuts):
    n = sum(cuts)
    batch = batches(n)[kind]
    ends = torch.tensor(cuts).cumsum(0).tolist()
    joined = join([take(batch, slice(end - cut, end)) for cut, end in zip(cuts, ends, strict=True)])
    assert type(joined) is type(batch)
    assert flat(joined) == flat(batch)


SEQUENCES = [torch.full((length, 2), float(length)) for length in (5, 7, 6)]
LABELS = torch.tensor([0, 1, 0])


@pytest.mark.parametrize(
    ("batch", "size"),
    [
        ((SEQUENCES, LABELS), 3),
        ({"sequences": SEQUENCES, "labels": LABELS}, 3),
        ([[SEQUENCES, LABELS]], 3),
        ((SEQUENCES, [0, 1, 0]), 3),
        ((SEQUENCES, np.array([0, 1, 0])), 3),
        ((SEQUENCES[:1], LABELS[:1]), 1),
        (([LABELS, LABELS], LABELS), 3),  # two views of three samples
        (([LABELS, LABELS], LABELS, torch.ones(2)), 3),  # and class weights
        ([SEQUENCES[0], torch.ones(5)], 5),
        (SEQUENCES, 5),
        (Pair(SEQUENCES[0], LABELS), 5),
    ],
)
def test_lists_of_tensors_have_an_entry_per_sample_where_the_rest_of_the_batch_says_so(batch, size):
    assert batch_size(batch) == size


def test_sequences_of_unequal_length_are_taken_and_joined():
    batch = {"sequences": SEQUENCES, "labels": LABELS}
    taken = take(batch, [2, 0])
    assert [len(one) for one in taken["sequences"]] == [6, 5]
    assert taken["labels"].tolist() == [0, 0]
    assert flat(join([take(batch, [0]), take(batch, [1, 2])])) == flat(batch)


def test_a_sample_taken_twice_comes_twice_and_negative_positions_count_from_the_end():
    assert take(torch.tensor([5, 6, 7]), [0, 0, -1]).tolist() == [5, 5, 7]


def test_lists_of_one_entry_per_sample_follow_their_samples():
    batch = {
        "x": torch.zeros(3, 2),
        "text": ["a", "b", "c"],
        "ids": (7, 8, 9),
        "none": [None] * 3,
        "ragged": [torch.ones(3), torch.ones(1), torch.zeros(2)],
        "array": np.array([10, 20, 30]),
    }
    taken = take(batch, [2, 0])
    assert taken["text"] == ["c", "a"]
    assert taken["ids"] == (9, 7)
    assert taken["none"] == [None, None]
    assert [piece.tolist() for piece in taken["ragged"]] == [[0, 0], [1, 1, 1]]
    assert taken["array"].tolist() == [30, 10]


def test_parts_of_two_samples_are_not_taken_for_two_samples():
    batch = [torch.tensor([[1.0], [2.0]]), [torch.tensor([3, 4]), None], torch.tensor([0, 1])]
    x, (extra, nothing), y = take(batch, [1])
    assert x.tolist() == [[2.0]]
    assert extra.tolist() == [4]
    assert nothing is None
    assert y.tolist() == [1]


def test_a_pair_whose_second_tensor_belongs_to_no_sample_stays_a_pair():
    x, weights = take((torch.zeros(2, 3), torch.arange(7)), [1])
    assert x.shape == (1, 3)
    assert weights.tolist() == list(range(7))


def test_everything_else_is_kept_as_it_is():
    marker = object()
    batch = {"x": torch.zeros(4, 2), "t": torch.tensor(2.0), "weights": torch.ones(9), "text": "four", "any": marker}
    taken = take(batch, [1])
    for name in ("t", "weights", "text", "any"):
        assert taken[name] is batch[name]


def test_first_tensor_decides_the_size():
    assert batch_size({"t": torch.tensor(1.0), "x": torch.zeros(4, 2), "weights": torch.ones(9)}) == 4


def test_given_size_overrules_the_first_tensor():
    weights, x = take([torch.ones(9), torch.arange(4)], [3], size=4)
    assert weights.shape == (9,)
    assert x.tolist() == [3]


def test_mapping_keeps_the_rest_of_its_state():
    assert take(batches(3)["encoding"], [0])._encodings == "kept"


def test_gradients_flow_through_take():
    x = torch.arange(3.0, requires_grad=True)
    take({"x": x}, [2, 2])["x"].sum().backward()
    assert x.grad.tolist() == [0, 0, 2]


def test_no_indices_take_an_empty_batch():
    assert take({"x": torch.zeros(3, 2)}, [])["x"].shape == (0, 2)


@pytest.mark.parametrize("batch", [None, "text", {}, [], {"x": [1, 2]}, (torch.tensor(1.0),), {"x": np.zeros(3)}])
def test_batch_without_samples_is_refused(batch):
    with pytest.raises(StiffnessError, match="first dimension counts the samples; found"):
        batch_size(batch)


def test_packed_sequence_is_refused_wherever_it_is():
    packed = pack_sequence([torch.ones(3), torch.ones(2)])
    for batch in (packed, (packed, torch.tensor([0, 1])), {"y": torch.tensor([0, 1]), "x": packed}):
        with pytest.raises(StiffnessError, match="Pass the padded tensor and its lengths"):
            take(batch, [0])


@pytest.mark.parametrize(
    ("indices", "found"),
    [
        ([3], "found 3 to 3"),
        ([-4], "found -4 to -4"),
        (torch.tensor([0.5]), "float32 tensor"),
        (torch.tensor([True, False, True]), "bool tensor"),
        (torch.tensor([[0, 1]]), r"int64 tensor \[1, 2\]"),
    ],
)
def test_bad_indices_are_refused(indices, found):
    with pytest.raises(StiffnessError, match=f"indices must .*{found}.* Pass"):
        take(torch.zeros(3, 2), indices)


def test_join_keeps_shared_tensors_and_refuses_different_ones():
    mask = torch.eye(5)
    batch = {"x": torch.zeros(2, 3), "mask": mask}
    assert join([batch, {"x": torch.ones(1, 3), "mask": mask.clone()}])["mask"].equal(mask)
    with pytest.raises(StiffnessError, match=r"equal shared tensors.*Pass the probe as one batch"):
        join([batch, {"x": torch.ones(1, 3), "mask": mask + 1}])


@pytest.mark.parametrize(
    "other",
    [
        {"x": torch.zeros(2, 4)},
        {"x": torch.zeros(2, 3), "more": 1},
        {"x": torch.zeros(2, 3, dtype=torch.float64)},
        {"z": torch.zeros(2, 3)},
    ],
)
def test_join_refuses_batches_that_differ(other):
    with pytest.raises(StiffnessError, match="can be joined"):
        join([{"x": torch.zeros(2, 3)}, other])


def test_join_refuses_different_kinds():
    with pytest.raises(StiffnessError, match="can be joined"):
        join([{"x": torch.zeros(2, 3), "y": torch.zeros(2)}, {"x": torch.zeros(2, 3), "y": {"deep": torch.zeros(2)}}])
    with pytest.raises(StiffnessError, match="can be joined"):
        join([{"x": torch.zeros(2, 3), "y": [torch.zeros(2)]}, {"x": torch.zeros(2, 3), "y": torch.zeros(2)}])


def test_join_needs_a_batch():
    with pytest.raises(StiffnessError, match="At least one batch"):
        join([])


def test_join_arrays():
    first, second = ({"x": torch.zeros(n, 1), "id": np.arange(n)} for n in (2, 3))
    assert join([first, second])["id"].tolist() == [0, 1, 0, 1, 2]


def iter_tensors(value: Any) -> Any:
    if isinstance(value, Tensor):
        yield value
    elif dataclasses.is_dataclass(value):
        yield from iter_tensors(list(vars(value).values()))
    elif isinstance(value, dict | UserDict):
        yield from iter_tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from iter_tensors(item)


def test_unchecked_take_can_be_vectorised_and_refuses_what_cannot():
    x = torch.arange(12.0).reshape(4, 3)
    rows = torch.func.vmap(lambda index: take_unchecked({"x": x, "shared": 2}, index[None], 4)["x"].sum())(
        torch.arange(4)
    )
    assert torch.equal(rows, x.sum(1))
    with pytest.raises(RuntimeError):
        torch.func.vmap(lambda index: take_unchecked([x, list("abcd")], index[None], 4)[0])(torch.arange(4))
