"""Ranks as processes of this machine, with gloo between them."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

START, ANSWER = 120, 120  # seconds


class Processes:
    """Ranks that do as they are told, one thing after the other; a context manager.

    The first `n` of them form a group for every `n`.
    """

    def __init__(self, count: int) -> None:
        context = multiprocessing.get_context("spawn")
        port = free_port()
        self._ends, self.processes = [], []
        for rank in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, rank, count, port), daemon=True)
            process.start()
            theirs.close()
            self._ends.append(ours)
            self.processes.append(process)

    def __enter__(self) -> Processes:
        for rank in range(len(self._ends)):
            assert self.answer(rank, START) == "ready"
        return self

    def __exit__(self, *exception: object) -> None:
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join()

    def ask(self, count: int, work: Callable[..., Any], *arguments: Any) -> None:
        """Let the first `count` ranks call `work(group, *arguments)`."""
        for end in self._ends[:count]:
            end.send((count, work, arguments))

    def answer(self, rank: int, timeout: float = ANSWER) -> Any:
        """What a rank returned; an exception that it raised is returned too."""
        if not self._ends[rank].poll(timeout):
            raise TimeoutError(f"rank {rank} has not answered for {timeout} s")
        return self._ends[rank].recv()

    def run(self, count: int, work: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Let the first `count` ranks work; what each returned."""
        self.ask(count, work, *arguments)
        results = [self.answer(rank) for rank in range(count)]
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return results


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _serve(end: Connection, rank: int, count: int, port: int) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(count),
        TEMPORAL_VAE_ENGINE="always",
    )  # fmt: skip
    dist.init_process_group("gloo")
    groups = {size: dist.new_group(list(range(size))) for size in range(1, count + 1)}
    end.send("ready")
    with suppress(EOFError):
        while True:
            size, work, arguments = end.recv()
            try:
                end.send(work(groups[size], *arguments))
            except BaseException as error:
                end.send(error)
