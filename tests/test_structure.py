import dataclasses
from collections import OrderedDict, UserDict, defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_sequence

from lightning_stiffness import structure
from lightning_stiffness.errors import StiffnessError


class Pair(NamedTuple):
    x: Tensor
    y: Tensor


@dataclasses.dataclass(frozen=True)
class Frozen:
    x: Tensor
    note: str = dataclasses.field(init=False, default="kept")


class Stubborn(Mapping[str, Any]):
    """A mapping that cannot be made from a dict."""

    def __getitem__(self, key: str) -> Any:
        return {"x": 1}[key]

    def __iter__(self) -> Iterator[str]:
        return iter(["x"])

    def __len__(self) -> int:
        return 1


@pytest.mark.parametrize(
    "value",
    [
        {"x": 1, "y": 2},
        OrderedDict(x=1, y=2),
        UserDict(x=1, y=2),
        defaultdict(list, x=1, y=2),
        [1, 2],
        (1, 2),
        Pair(1, 2),
        Frozen(1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_rebuilt_from_its_own_parts_is_equal_and_another_object(value):
    parts = dict(structure.parts(value))
    result = structure.rebuilt(value, parts)
    assert type(result) is type(value)
    assert result == value
    assert result is not value or isinstance(value, tuple)


def test_rebuilding_leaves_the_original_alone():
    for value in ({"x": 1}, UserDict(x=1), Frozen(1)):
        structure.rebuilt(value, {"x": 2})
        assert dict(structure.parts(value))["x"] == 1


def test_defaultdict_keeps_its_factory():
    assert structure.rebuilt(defaultdict(list, x=1), {"x": 2})["absent"] == []


def test_frozen_dataclass_keeps_fields_that_init_does_not_take():
    assert structure.rebuilt(Frozen(1), {"x": 2}) == Frozen(2)
    assert structure.rebuilt(Frozen(1), {"x": 2}).note == "kept"


def test_unbuildable_mapping_says_what_to_return():
    with pytest.raises(StiffnessError, match=r"Stubborn\(\.\.\.\) failed.*Return a dict"):
        structure.rebuilt(Stubborn(), {"x": 2})


def test_dataclass_type_is_not_a_container():
    assert not structure.is_container(Frozen)
    assert structure.is_container(Frozen(1))


def test_packed_and_nested_tensors_say_what_to_pass():
    with pytest.raises(StiffnessError, match=r"PackedSequence.*Pass the padded tensor"):
        structure.is_container(pack_sequence([torch.ones(3), torch.ones(2)]))
    with pytest.raises(StiffnessError, match=r"nested tensor\. Pad it"):
        list(structure.tensors([nested()]))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (torch.zeros(2, 3, dtype=torch.int16), "int16 tensor [2, 3]"),
        (np.zeros((2, 3)), "float64 array [2, 3]"),
        ([1] * 10, "list(int, int, int, int, int, int, int, int, and 2 more)"),
        (Pair(torch.zeros(1), None), "Pair('x': float32 tensor [1], 'y': NoneType)"),
    ],
)
def test_description(value, expected):
    assert structure.describe(value) == expected


def test_description_never_fails_on_what_cannot_be_indexed():
    assert structure.describe(pack_sequence([torch.ones(3)])) == "PackedSequence"
    assert structure.describe(nested()) == "float32 tensor nested"


def nested() -> Tensor:
    values, offsets = torch.ones(3), torch.tensor([0, 1, 3])
    return torch.nested.nested_tensor_from_jagged(values, offsets)
