"""This process as one of several, started by torchrun or a batch scheduler: each encodes its share by itself."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, replace

from temporal_vae.distributed.dataset.executors import Batch, Job, Report
from temporal_vae.distributed.dataset.executors.local import MakeEncoder, device_of, make_encoder
from temporal_vae.distributed.dataset.share import Share
from temporal_vae.errors import InputError


@dataclass(frozen=True, kw_only=True)
class RankExecutor:
    """Encodes in this process what falls to one of several ranks. They need not run at the same time.

    Args:
        rank: of this process, from 0 on.
        world_size: how many ranks there are.
        local_rank: of this process on its machine, where GPUs are taken in turn.
        together: the ranks run at the same time, and each waits at the end until all are done. A launcher that ends all
            ranks as soon as one of them ends with another code than 0 asks for that.
        encoder: made once.

    Raises:
        InputError: a rank that is none.
    """

    rank: int
    world_size: int
    local_rank: int = 0
    together: bool = False
    encoder: MakeEncoder = make_encoder
    workers: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise InputError(
                f"rank={self.rank}, world_size={self.world_size}: ranks count from 0 to world_size - 1"
            )

    @property
    def share(self) -> Share:
        """Which part of the work this is."""
        return Share(rank=self.rank, ranks=self.world_size)

    def run(self, job: Job, batches: Iterable[Batch]) -> Generator[Report, None, None]:
        """See `Executor.run`."""
        encode: Callable[[Batch], Report] | None = None
        model = replace(job.model, device=device_of(job.model.device, self.local_rank))
        for batch in batches:
            encode = encode or self.encoder(replace(job, model=model))
            yield encode(batch)


def rank_of_launcher() -> RankExecutor | None:
    """The rank that torchrun tells this process, where it started several; None otherwise."""
    world_size = os.environ.get("WORLD_SIZE", "1")
    if not world_size.isdigit() or int(world_size) < 2 or "RANK" not in os.environ:
        return None
    local = int(os.environ.get("LOCAL_RANK", "0"))
    rank = int(os.environ["RANK"])
    return RankExecutor(rank=rank, world_size=int(world_size), local_rank=local, together=True)
