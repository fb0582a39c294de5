"""Ranks as threads of this process: what the engine asks of others, without a network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import Queue
from threading import Lock
from typing import TypeVar

import torch

from temporal_vae.engine import Part

Result = TypeVar("Result")
WAIT = 60  # seconds that a test gives another rank


class Mail:
    """What the ranks of a clip send each other."""

    def __init__(self) -> None:
        self._boxes: dict[tuple[int, int, int], Queue[torch.Tensor]] = {}
        self._lock = Lock()

    def box(self, source: int, target: int, number: int) -> Queue[torch.Tensor]:
        """For one message."""
        with self._lock:
            return self._boxes.setdefault((source, target, number), Queue())


class ThreadPeers:
    """`engine.Peers` of one thread; counts the bytes that it sends and receives."""

    def __init__(self, part: Part, mail: Mail) -> None:
        self.part, self._mail = part, mail
        self.sent = self.received = 0
        self._sent, self._received = ([0] * part.ranks for _ in range(2))  # messages, to and from each rank

    def exchange(
        self, sent: Sequence[tuple[int, torch.Tensor]], received: Sequence[tuple[int, torch.Tensor]]
    ) -> Callable[[], None]:
        for rank, tensor in sent:
            self.sent += tensor.nbytes
            self._mail.box(self.part.rank, rank, self._sent[rank]).put(tensor.clone())
            self._sent[rank] += 1
        expected = []
        for rank, tensor in received:
            self.received += tensor.nbytes
            expected.append((tensor, self._mail.box(rank, self.part.rank, self._received[rank])))
            self._received[rank] += 1

        def wait() -> None:
            for tensor, box in expected:
                tensor.copy_(box.get(timeout=WAIT))

        return wait

    def everyone(self, values: torch.Tensor) -> list[torch.Tensor]:
        others = [rank for rank in range(self.part.ranks) if rank != self.part.rank]
        rooms = {rank: torch.empty_like(values) for rank in others}
        self.exchange([(rank, values) for rank in others], list(rooms.items()))()
        return [values if rank == self.part.rank else rooms[rank] for rank in range(self.part.ranks)]


def on_ranks(counts: Sequence[int], work: Callable[[ThreadPeers], Result]) -> list[Result]:
    """What each rank makes of its part of a clip, side by side."""
    mail = Mail()
    with ThreadPoolExecutor(len(counts)) as pool:
        everyone = [ThreadPeers(Part(counts=tuple(counts), rank=rank), mail) for rank in range(len(counts))]
        return [future.result(WAIT) for future in [pool.submit(work, peers) for peers in everyone]]
