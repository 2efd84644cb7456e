"""Two processes of one training, started as torchrun starts them, but forked from one that has imported everything."""

import json
import multiprocessing
import os
from collections.abc import Callable
from multiprocessing import connection
from pathlib import Path
from typing import Any

import torch

_FORKING = multiprocessing.get_context("forkserver")
# Imports take longer than all else; where the server cannot make them, each process makes its own.
_FORKING.set_forkserver_preload(["lightning.pytorch", "lightning_stiffness.callbacks.balancer", "tests.processes"])


def in_processes(function: Callable[..., None], *arguments: Any, folder: Path, count: int = 2) -> None:
    """Calls a function of a module in each of them, with the ranks in the environment; what they print is in a folder.

    Raises:
        AssertionError: One ended with an error, or none has ended for twenty minutes; with what they printed.
    """
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # on a port of its own
    logs = [folder / f"printed{rank}.txt" for rank in range(count)]
    running = [
        _FORKING.Process(target=_one, args=(rank, count, store.port, logs[rank], function, arguments))
        for rank in range(count)
    ]
    for process in running:
        process.start()
    waiting = list(running)
    while waiting and connection.wait([process.sentinel for process in waiting], 1200):
        waiting = [process for process in waiting if process.is_alive()]
        if any(process.exitcode for process in running):  # the others wait for it
            break
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
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"  # that of the process which has started them
    torch.set_num_threads(1)
    function(*arguments)
