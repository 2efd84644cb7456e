import base64
import json
import math
import os

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_stiffness import json_lines
from lightning_stiffness.errors import StiffnessError

RECORD = {"loss": 0.1, "nested": {"name": "cat", "tensor": torch.tensor([[0.5, math.nan]])}, "steps": [1, 2]}


def written(tmp_path, *lines):
    path = tmp_path / "records.jsonl"
    path.write_bytes(b"".join(lines))
    return path


def test_a_line_is_strict_json_with_arrays_that_numpy_reads():
    line = json_lines.encode(RECORD)
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    plain = json.loads(line, parse_constant=pytest.fail)
    array = plain["nested"]["tensor"]
    assert (array["shape"], array["dtype"]) == ([1, 2], "float32")
    assert plain["nested"]["name"] == "cat"
    decoded = np.frombuffer(base64.b64decode(array["data"]), "<f4").reshape(array["shape"])
    assert decoded[0, 0] == 0.5
    assert math.isnan(decoded[0, 1])


def test_read_gives_back_what_was_encoded(tmp_path):
    record = json_lines.read(written(tmp_path, json_lines.encode(RECORD)))[0]
    assert record["loss"] == 0.1
    assert record["steps"] == [1, 2]
    assert torch.equal(record["nested"]["tensor"].nan_to_num(7), torch.tensor([[0.5, 7.0]]))


@given(st.floats())
def test_every_float_survives(value):
    line = json_lines.encode({"value": value})
    found = json_lines._decoded(line)["value"]
    assert found == value or (math.isnan(found) and math.isnan(value))


@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0), (2, 3)])
def test_every_shape_survives_and_can_be_written_to(tmp_path, shape):
    tensor = torch.arange(math.prod(shape), dtype=torch.float64).reshape(shape)
    found = json_lines.read(written(tmp_path, json_lines.encode({"tensor": tensor})))[0]["tensor"]
    assert torch.equal(found, tensor.float())
    found += 1


def test_a_torn_last_line_is_left_out_wherever_it_is_torn(tmp_path):
    whole, last = json_lines.encode({"name": "\N{SNOWMAN}"}), json_lines.encode({"name": "\N{SNOWMAN}", "loss": 1.5})
    for length in range(len(last)):
        records = json_lines.read(written(tmp_path, whole, last[:length]))
        assert len(records) == (2 if length == len(last) - 1 else 1), last[:length]


def test_an_empty_file_has_no_records(tmp_path):
    assert json_lines.read(written(tmp_path)) == []


@pytest.mark.parametrize(
    "damage",
    [
        b'{"loss": 0.\n',
        b"\n",
        b"\x00\x00\n",
        b"\xff\n",
        b'{"shape":[2],"dtype":"float32","data":"AA"}\n',
        b'{"shape":[2],"dtype":"float32","data":null}\n',
        b'{"shape":[2],"dtype":"no such","data":""}\n',
    ],
)
def test_damage_in_the_middle_names_the_line(tmp_path, damage):
    line = json_lines.encode({"loss": 1.0})
    path = written(tmp_path, line, damage, line)
    with pytest.raises(StiffnessError, match=r"records\.jsonl, line 2: damaged"):
        json_lines.read(path)


def test_replace_makes_folders_and_leaves_no_draft(tmp_path):
    path = tmp_path / "a" / "b" / "file"
    json_lines.replace(path, b"old")
    json_lines.replace(path, b"new")
    assert path.read_bytes() == b"new"
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]


def test_a_failed_replace_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    json_lines.replace(path, b"old")

    def fail(descriptor):
        raise OSError("the disk is full")

    monkeypatch.setattr(json_lines.os, "fsync", fail)
    with pytest.raises(OSError, match="full"):
        json_lines.replace(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_all_is_with_the_system_when_it_is_told_to_write_it_to_the_disk(tmp_path, monkeypatch):
    sizes = []
    monkeypatch.setattr(json_lines.os, "fsync", lambda descriptor: sizes.append(os.fstat(descriptor).st_size))
    path = tmp_path / "file"
    json_lines.replace(path, b"1\n")
    json_lines.extend(path, b"2\n")
    assert path.read_bytes() == b"1\n2\n"
    assert sizes == [2, 4]


def test_replace_never_opens_the_old_file(tmp_path):
    path = tmp_path / "file"
    json_lines.replace(path, b"old")
    with path.open("rb") as reader:
        json_lines.replace(path, b"new")
        assert reader.read() == b"old"


@pytest.mark.parametrize(("content", "answer"), [(b"", False), (b"1\n", True), (b"1\n2", False)])
def test_only_whole_lines_can_be_extended(tmp_path, content, answer):
    assert json_lines.is_extensible(written(tmp_path, content)) is answer
    assert not json_lines.is_extensible(tmp_path / "missing")


def test_a_file_says_its_format_in_its_first_line(tmp_path):
    path = tmp_path / "lines.jsonl"
    assert json_lines.format_of(path) is None
    for content, expected in ((b'{"format":"mine"}\n{', "mine"), (b"[1]\n", None), (b"\xff\n", None), (b"{}", None)):
        path.write_bytes(content)
        assert json_lines.format_of(path) == expected
