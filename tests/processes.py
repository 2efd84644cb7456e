"""Two processes of one training, started as torchrun starts them, but forked from one that has imported everything."""

import json
import multiprocessing
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

_FORKING = multiprocessing.get_context("forkserver")
# Imports take longer than all else; where the server cannot make them, each process makes its own.
_FORKING.set_forkserver_preload(["lightning.pytorch", "lightning_stiffness.callbacks.balancer", "tests.processes"])


def in_processes(function: Callable[..., None], *arguments: Any, folder: Path, count: int = 2) -> None:
    """Calls a function of a module in each of them, with the ranks in the environment; what they print is in a folder.

    Raises:
        AssertionError: One ended with an error, or has not ended after two minutes; with what it printed.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    logs = [folder / f"printed{rank}.txt" for rank in range(count)]
    running = [
        _FORKING.Process(target=_one, args=(rank, count, port, logs[rank], function, arguments))
        for rank in range(count)
    ]
    for process in running:
        process.start()
    for process in running:
        process.join(120)
    ended = [process.exitcode for process in running]
    for process in running:
        process.kill()
        process.join()
    assert ended == [0] * count, (ended, "\n".join(log.read_text()[-3000:] for log in logs if log.exists()))


def seen_by_both(function: Callable[..., None], *arguments: Any, folder: Path) -> list[dict[str, Any]]:
    """What each of the two wrote to `rank0.json` and `rank1.json` in that folder, which the function is given last."""
    in_processes(function, *arguments, folder, folder=folder)
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]


def _one(
    rank: int, count: int, port: int, log: Path, function: Callable[..., None], arguments: tuple[Any, ...]
) -> None:
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "NODE_RANK": 0, "WORLD_SIZE": count}
    os.environ |= {name: str(value) for name, value in ranks.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NCCL_DEBUG": ""}
    torch.set_num_threads(1)
    function(*arguments)
