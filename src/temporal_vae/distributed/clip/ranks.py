"""The ranks of a `torch.distributed` group, as the engine asks for them: `engine.Peers` over gloo or NCCL."""

from __future__ import annotations

import hashlib
import socket
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from temporal_vae import engine
from temporal_vae.distributed.clip.board import Board
from temporal_vae.engine import Part
from temporal_vae.errors import InputError

TIMEOUT = 300.0
"""Seconds that a rank may give no sign of life, or come no further, before the others give up."""
_FOREVER = timedelta(days=365)  # for a transfer: the board says when to give up
_NOTHING = 2**31 - 1  # tag of a message that nobody sends

Message = tuple[int, Tensor]
_runs: defaultdict[str, int] = defaultdict(int)  # by group: how often its ranks have met


class Ranks:
    """All ranks of a group at work on one thing.

    Attributes:
        rank: this one, in the group.
        count: how many there are.
        sent, received: bytes so far.
    """

    def __init__(self, group: Any, board: Board) -> None:
        self._group, self._board = group, board
        self.rank, self.count = dist.get_rank(group), dist.get_world_size(group)
        self.sent = self.received = 0
        self._direct = "nccl" in str(dist.get_backend_config(group))  # from one GPU to another

    def exchange(
        self, sent: Sequence[Message], received: Sequence[Message], *, patient: bool = False
    ) -> Callable[[], None]:
        """Begin to send tensors to ranks and to receive from them; what is returned waits for all of it.

        With `patient`, those who send may take their time, as long as they are alive.

        Raises:
            RankError: at once or by what is returned: a rank died, failed or stands still.
        """
        self._board.check()
        self.sent += sum(tensor.nbytes for _, tensor in sent)
        self.received += sum(tensor.nbytes for _, tensor in received)
        going = [(rank, self._outside(tensor)) for rank, tensor in sent]
        coming = [(rank, tensor, self._room(tensor)) for rank, tensor in received]
        asked = [dist.P2POp(dist.irecv, room, self._global(rank), self._group) for rank, _, room in coming]
        asked += [dist.P2POp(dist.isend, tensor, self._global(rank), self._group) for rank, tensor in going]
        with self._board.explaining():  # a connection that is broken already
            works = dist.batch_isend_irecv(asked) if asked else []

        def wait() -> None:
            for (rank, _, _), work in zip(coming, works, strict=False):
                self._board.wait(partial(work.wait, _FOREVER), None if patient else rank)
            if going:
                self._board.wait(lambda: [work.wait(_FOREVER) for work in works[len(coming) :]], going[0][0])
            for _, tensor, room in coming:
                if room.data_ptr() != tensor.data_ptr():
                    tensor.view(torch.uint8).copy_(room)

        return wait

    def everyone(self, values: Tensor, ranks: Sequence[int] | None = None) -> list[Tensor]:
        """A few values of each rank, of all or of some, in their order."""
        ranks = range(self.count) if ranks is None else ranks
        others = [rank for rank in ranks if rank != self.rank]
        rooms = {rank: torch.empty_like(values) for rank in others}
        self.exchange([(rank, values) for rank in others], list(rooms.items()))()
        return [values if rank == self.rank else rooms[rank] for rank in ranks]

    def free_memory(self, device: torch.device) -> list[int]:
        """Bytes that each rank may take of what is free: those of a machine share its memory."""
        host = int.from_bytes(hashlib.sha256(socket.gethostname().encode()).digest()[:6], "big")
        own = torch.tensor([engine.free_memory(device), host], dtype=torch.float64)
        found = [(int(free), host) for free, host in torch.stack(self.everyone(own)).tolist()]
        hosts = [host for _, host in found]
        return [free // (hosts.count(host) if device.type == "cpu" else 1) for free, host in found]

    def agree(self, what: str, value: bytes) -> None:
        """Raise `InputError` on all ranks unless all of them have the same value."""
        digest = torch.frombuffer(bytearray(hashlib.sha256(value).digest()), dtype=torch.uint8)
        found = self.everyone(digest)
        strange = [rank for rank, other in enumerate(found) if not torch.equal(other, found[0])]
        if strange:
            raise InputError(
                f"{what} differs between ranks: rank {strange[0]} has another than rank 0; give all ranks the same"
            )

    def share(self, part: Part, members: Sequence[int]) -> Sharers:
        """Those of the ranks that share a clip."""
        return Sharers(self, part, members)

    @contextmanager
    def working(self) -> Iterator[None]:
        """Within this, what the engine does is a sign of progress."""
        with engine.reporting(self._board.listening(engine.listener_now())):
            yield

    def _global(self, rank: int) -> int:
        return rank if self._group is None else dist.get_global_rank(self._group, rank)

    def _outside(self, tensor: Tensor) -> Tensor:
        """As bytes where the group takes them: in the memory of the host, unless GPUs speak to each other."""
        raw = tensor.contiguous().view(torch.uint8)
        return raw if self._stays(tensor) else raw.to(self._device(tensor))

    def _room(self, tensor: Tensor) -> Tensor:
        raw = tensor.view(torch.uint8)
        return raw if self._stays(tensor) else torch.empty_like(raw, device=self._device(tensor))

    def _stays(self, tensor: Tensor) -> bool:
        return tensor.device.type == self._device(tensor).type

    def _device(self, tensor: Tensor) -> torch.device:
        if self._direct:
            return tensor.device if tensor.is_cuda else torch.device("cuda", torch.cuda.current_device())
        return torch.device("cpu")


class Sharers:
    """The ranks that share a clip: `engine.Peers`."""

    def __init__(self, ranks: Ranks, part: Part, members: Sequence[int]) -> None:
        self.part, self._ranks, self._members = part, ranks, members

    def exchange(self, sent: Sequence[Message], received: Sequence[Message]) -> Callable[[], None]:
        """As `Ranks.exchange`, with the ranks by their places in the clip."""
        sent, received = (
            [(self._members[rank], tensor) for rank, tensor in some] for some in (sent, received)
        )
        return self._ranks.exchange(sent, received)

    def everyone(self, values: Tensor) -> list[Tensor]:
        """As `Ranks.everyone`, of those that share the clip."""
        return self._ranks.everyone(values, self._members)


@contextmanager
def together(group: Any = None, *, timeout: float = TIMEOUT) -> Iterator[Ranks]:
    """The ranks of a group, by default all, for as long as they work on something; all of them call this.

    Raises:
        InputError: `torch.distributed` was not begun, or this process is not in the group.
    """
    if not dist.is_available() or not dist.is_initialized():
        raise InputError("no ranks: call torch.distributed.init_process_group first, or start with torchrun")
    if dist.get_rank(group) < 0:
        raise InputError("this process is not in the group of ranks; call it on those that are")
    if timeout <= 0:
        raise InputError(f"timeout={timeout}: seconds above 0")
    store, name = _store(group)
    _runs[name] += 1
    rank, count = dist.get_rank(group), dist.get_world_size(group)
    run, give_up = f"{name}/{_runs[name]}", partial(_break, group)
    with Board(store, run, rank, count, timeout=timeout, give_up=give_up) as board:
        yield Ranks(group, board)


def _break(group: Any) -> None:
    """Close the connections of a group: gloo does so when a transfer takes longer than it may.

    The transfer has a tag of its own: gloo ends the process where it gets a message of another size than it waits for.
    """
    other = (dist.get_rank(group) + 1) % dist.get_world_size(group)
    other = other if group is None else dist.get_global_rank(group, other)
    if "nccl" not in str(dist.get_backend_config(group)):
        with suppress(RuntimeError):
            work = dist.irecv(torch.empty(1, dtype=torch.uint8), other, group, tag=_NOTHING)
            assert work is not None
            work.wait(timedelta(milliseconds=1))


def _store(group: Any) -> tuple[Any, str]:
    """The store of a group, and the group's name."""
    from torch.distributed import distributed_c10d as c10d

    chosen = group if group is not None else dist.group.WORLD
    return c10d._get_default_store(), str(getattr(chosen, "group_name", "default"))
