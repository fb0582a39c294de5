"""This process as one of several, started by torchrun or a batch scheduler: each does its share by itself."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, replace
from datetime import timedelta
from time import monotonic, sleep
from typing import Any

from temporal_vae.distributed.dataset.executors import Executor, Job, MakeWorker, Result, Task, make_worker
from temporal_vae.distributed.dataset.executors.local import device_of, share_of
from temporal_vae.distributed.dataset.share import Share
from temporal_vae.errors import InputError, RankError, one_line

_BEGIN = timedelta(minutes=30)  # in which all ranks of a launcher have to be there
_LEAVE = 10.0  # seconds that the first rank, which may keep the store, waits for the others to have met
_stores: list[Any] = []  # where ranks met: one that this process keeps has to live as long as it


@dataclass(frozen=True, kw_only=True)
class RankExecutor(Executor):
    """Does in this process what falls to one of several ranks. They need not run at the same time.

    Args:
        rank: of this process, from 0 on.
        world_size: how many ranks there are.
        local_rank: of this process on its machine, where GPUs are taken in turn.
        local_ranks: how many run on this machine at the same time, and share its memory.
        together: the ranks run at the same time, and each waits at the end until all are done. A launcher that ends all
            ranks as soon as one of them ends with another code than 0 asks for that.
        make: what makes a worker of a job, once.

    Raises:
        InputError: a rank that is none.
    """

    rank: int
    world_size: int
    local_rank: int = 0
    local_ranks: int = 1
    together: bool = False
    make: MakeWorker = make_worker

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise InputError(
                f"rank={self.rank}, world_size={self.world_size}: ranks count from 0 to world_size - 1"
            )

    @property
    def share(self) -> Share:
        """Which part of the work this is."""
        return Share(rank=self.rank, ranks=self.world_size)

    def at_once(self) -> int:
        """See `Executor.at_once`."""
        return 1

    def run(self, job: Job[Task, Result], tasks: Iterable[Task]) -> Generator[Result, None, None]:
        """See `Executor.run`."""
        work: Callable[[Task], Result] | None = None
        model = replace(job.model, device=device_of(job.model.device, self.local_rank))
        memory = job.memory_limit or share_of(job.model.device, self.local_ranks)[1]
        for task in tasks:
            work = work or self.make(replace(job, model=model, memory_limit=memory))
            yield work(task)

    def meet(self) -> None:
        """See `Executor.meet`: by the store of the launcher, where that started several ranks.

        Raises:
            RankError: not all of them are there within half an hour.
        """
        if not self.together or self.world_size == 1 or "MASTER_ADDR" not in os.environ:
            return
        from torch.distributed.rendezvous import rendezvous

        name = f"temporal-vae/meeting {len(_stores)}"
        try:
            store, *_ = next(rendezvous("env://", self.rank, self.world_size, timeout=_BEGIN))
            _stores.append(store)
            store.set(f"{name}/{self.rank}", "")
            store.wait([f"{name}/{rank}" for rank in range(self.world_size)], _BEGIN)
            met, end = store.add(name, 1), monotonic() + _LEAVE
            while self.rank == 0 and met < self.world_size and monotonic() < end:
                sleep(0.05)
                met = store.add(name, 0)
        except RuntimeError as error:
            raise RankError(f"not all of {self.world_size} ranks have begun ({one_line(error)})") from error


def rank_of_launcher() -> RankExecutor | None:
    """The rank that torchrun tells this process, where it started several; None otherwise."""
    world_size = os.environ.get("WORLD_SIZE", "1")
    if not world_size.isdigit() or int(world_size) < 2 or "RANK" not in os.environ:
        return None
    rank, local, here = (
        int(os.environ.get(name, default))
        for name, default in (("RANK", "0"), ("LOCAL_RANK", "0"), ("LOCAL_WORLD_SIZE", "1"))
    )
    return RankExecutor(
        rank=rank, world_size=int(world_size), local_rank=local, local_ranks=here, together=True
    )
