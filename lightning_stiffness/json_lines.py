"""JSON lines that hold tensors, written so that a crash leaves at worst a torn last line."""

import base64
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lightning_stiffness.errors import StiffnessError


def encode(record: Mapping[str, Any]) -> bytes:
    r"""Return one line: nan as null, tensors as base64 in single precision.

    Example:
        >>> encode({"loss": math.nan, "matrix": torch.ones(1, 1)})
        b'{"loss":null,"matrix":{"shape":[1,1],"dtype":"float32","data":"AACAPw=="}}\n'
    """
    return json.dumps(_plain(record), allow_nan=False, separators=(",", ":")).encode() + b"\n"


def read(path: Path) -> list[Any]:
    """Return the records of a file, with lists for tuples and nan for None, without a torn last line.

    Raises:
        StiffnessError: a line before the last one is damaged (it is named).
    """
    records = [_decoded(line) for line in path.read_bytes().removesuffix(b"\n").split(b"\n")]
    if isinstance(records[-1], _Damage):
        del records[-1]
    for number, record in enumerate(records, start=1):
        if isinstance(record, _Damage):
            raise StiffnessError(f"{path}, line {number}: damaged ({record.error}). Delete it to go on without it.")
    return records


def format_of(path: Path) -> str | None:
    """Return what the first line of a file says that its format is; None if it says nothing."""
    try:
        with path.open("rb") as file:
            header = json.loads(file.readline())
    except (OSError, ValueError):
        return None
    return header.get("format") if isinstance(header, dict) else None


def replace(path: Path, content: bytes) -> None:
    """Write a file; whoever reads it meanwhile, or after a crash, finds the old content or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        _write(draft, "wb", content)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def extend(path: Path, line: bytes) -> None:
    """Add a line to a file; it is on the disk when this returns."""
    _write(path, "ab", line)


def is_extensible(path: Path) -> bool:
    """Return whether a line can be added: the file exists, is not empty and its last line is whole."""
    if not path.exists() or path.stat().st_size == 0:
        return False
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() == b"\n"


@dataclass(frozen=True)
class _Damage:
    error: Exception


def _decoded(line: bytes) -> Any:
    try:
        return _revive(json.loads(line))
    except (TypeError, ValueError) as error:
        return _Damage(error)


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        array = value.detach().cpu().numpy().astype("<f4")
        return {"shape": [*array.shape], "dtype": "float32", "data": base64.b64encode(array.tobytes()).decode()}
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else {"infinity": math.copysign(1, value)}
    return value


def _revive(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return math.nan if value is None else value
    if value.keys() == {"infinity"}:
        return math.inf * value["infinity"]
    if value.keys() == {"shape", "dtype", "data"}:
        flat = np.frombuffer(base64.b64decode(value["data"]), dtype=np.dtype(value["dtype"]).newbyteorder("<"))
        return torch.from_numpy(flat.astype(value["dtype"]).reshape(value["shape"]))
    return {key: _revive(entry) for key, entry in value.items()}


def _write(path: Path, mode: Literal["ab", "wb"], content: bytes) -> None:
    with path.open(mode) as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
