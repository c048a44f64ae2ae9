"""Processes that train tiny runs: forked from one server that has imported everything already."""

import multiprocessing
import os
import socket
import sys
import traceback
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from typing import Any

import pytest
from tiny_training import use_made_up_world

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tiny_training", "pixeldance.training.loop"])


def run_together(count: int, function: Callable[..., None], *arguments: Any) -> list[int | None]:
    """Call a function in ``count`` processes that know of each other; returns the exit codes."""
    started = start_together(count, function, *arguments)
    for process in started:
        process.join(600)
        if process.is_alive():
            process.kill()
    return [process.exitcode for process in started]


def start_together(count: int, function: Callable[..., None], *arguments: Any) -> list[BaseProcess]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        _CONTEXT.Process(target=_call, args=(rank, count, port, function, *arguments))
        for rank in range(count)
    ]
    for process in processes:
        process.start()
    return list(processes)


def _call(rank: int, count: int, port: int, function: Callable[..., None], *arguments: Any) -> None:
    """What torchrun would have set, and a world of made-up pictures."""
    if count > 1:
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(count),
            "LOCAL_WORLD_SIZE": str(count),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
    use_made_up_world(pytest.MonkeyPatch())
    try:
        function(*arguments)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
