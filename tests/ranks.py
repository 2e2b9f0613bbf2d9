"""Several connected processes on this machine, as a launcher would start them, without importing anything twice."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["paribus.training.loop", "paribus.studies.progress", "tests.small"])


def start_ranks(world: int, target: Callable[..., object], *arguments: Any) -> list[BaseProcess]:
    """`target(*arguments)` in `world` processes that find each other as ranks 0 to world - 1."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    processes = [SERVER.Process(target=_be, args=(rank, world, port, target, arguments)) for rank in range(world)]
    for process in processes:
        process.start()
    return processes


def join(processes: list[BaseProcess], seconds: float = 120) -> list[int | None]:
    """Exit codes; None for one that did not end by itself, and is killed."""
    codes = []
    for process in processes:
        process.join(seconds)
        codes.append(process.exitcode)
        process.kill()
        process.join()
    return codes


def _be(rank: int, world: int, port: int, target: Callable[..., object], arguments: tuple[Any, ...]) -> None:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world),
        LOCAL_WORLD_SIZE=str(world),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        GLOO_SOCKET_IFNAME="lo",
    )
    target(*arguments)


def command(arguments: list[str], output: Path) -> None:
    """The command line in this process, what it prints going to the file `output`."""
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    from paribus.cli import main

    raise SystemExit(main(arguments))
