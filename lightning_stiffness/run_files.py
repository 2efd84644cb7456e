"""What a run leaves beside its logs, in one place: readings, verdicts, settings, small pictures of the probe."""

import base64
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from lightning_stiffness import json_lines
from lightning_stiffness.balance import BALANCE, BalanceReading, is_balance, load_readings
from lightning_stiffness.errors import StiffnessError
from lightning_stiffness.history import History, ProbeSummary

PROBE: Final = "_probe.json"
DECISION: Final = "_decision.json"
SHADOW: Final = "_shadow.json"


@dataclass(frozen=True, eq=False)
class RunFiles:
    """All that is known of a run from its files.

    Attributes:
        path: The file of the history, `<name>.jsonl`.
        history: The readings.
        settings: How it was measured and trained, by the words of the run; empty where it was not saved.
        thumbnails: A PNG of each row sample of the probe; empty where its inputs are no images.
        decision: The verdict of StiffnessEarlyStopping, as it was saved; None without one.
        shadow: What ShadowStopping has saved; None without one.
        balance: The readings of a ClassGroupingBalancer; empty without one.
    """

    path: Path
    history: History
    settings: Mapping[str, Any] = field(default_factory=dict)
    thumbnails: Sequence[bytes] = ()
    decision: Mapping[str, Any] | None = None
    shadow: Mapping[str, Any] | None = None
    balance: Sequence[BalanceReading] = ()

    @classmethod
    def load(cls, path: "str | os.PathLike[str]") -> "RunFiles":
        """Read a history and what stands beside it; what is missing or damaged beside it is left out.

        The file of a balancer alone makes a run, too, with an empty history.

        Raises:
            StiffnessError: As `History.load`.
            FileNotFoundError: There is no such history.
        """
        path = Path(path)
        if is_balance(path):
            readings = load_readings(path)
            return cls(path, _empty_history(readings), balance=readings)
        probe = _read(path, PROBE) or {}
        pictures = [base64.b64decode(picture) for picture in probe.get("thumbnails", ())]
        history = History.load(path)
        fits = len(pictures) == len(history.probe.ids)
        return cls(
            path,
            history,
            probe.get("settings", {}),
            pictures if fits else (),
            _read(path, DECISION),
            _read(path, SHADOW),
            _balance_beside(path),
        )


def save_probe(history_path: Path, settings: Mapping[str, Any], thumbnails: Sequence[bytes]) -> None:
    """Write settings and pictures beside a history.

    Raises:
        OSError: It cannot be written.
    """
    pictures = [base64.b64encode(picture).decode() for picture in thumbnails]
    record = {"settings": dict(settings), "thumbnails": pictures}
    json_lines.replace(_beside(history_path, PROBE), json.dumps(record, indent=1).encode() + b"\n")


def _empty_history(readings: Sequence[BalanceReading]) -> History:
    names = readings[-1].class_names if readings else None
    return History(ProbeSummary("train", len(readings[-1].counts) if readings else 0, (), math.nan, names))


def _balance_beside(history_path: Path) -> Sequence[BalanceReading]:
    try:
        return load_readings(history_path.with_name(BALANCE))
    except (OSError, StiffnessError):
        return ()


def _beside(history_path: Path, ending: str) -> Path:
    return history_path.with_name(history_path.stem + ending)


def _read(history_path: Path, ending: str) -> dict[str, Any] | None:
    try:
        found = json.loads(_beside(history_path, ending).read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
