"""Processes of this machine, the default: nothing else needs to be installed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from temporal_vae.distributed.dataset.executors import (
    Deaths,
    Executor,
    Job,
    MakeWorker,
    Result,
    Task,
    make_worker,
)
from temporal_vae.distributed.dataset.executors.processes import Died, in_processes
from temporal_vae.engine import cores
from temporal_vae.engine.resources import best_device, free_memory

_SHARED = 0.8
"""Of the free memory, what workers share where no limit is set: the rest is for videos and what torch holds beside."""

_CORES_EACH = 2  # of a worker on a CPU, by default: one reads while the other computes


@dataclass(frozen=True, kw_only=True)
class LocalExecutor(Executor):
    """Works in processes of this machine.

    Args:
        workers: how many; on a CPU they share its cores, on GPUs they take one after the other in turn.
        make: what makes a worker of a job, in each of them; must be picklable.
    """

    workers: int
    make: MakeWorker = make_worker

    def at_once(self) -> int:
        """See `Executor.at_once`."""
        return self.workers

    def run(self, job: Job[Task, Result], tasks: Iterable[Task]) -> Generator[Result, None, None]:
        """See `Executor.run`."""
        make = partial(_worker, self.make, self._shared(job))
        again: deque[Task] = deque()
        deaths = Deaths(job)
        with closing(in_processes(make, tasks, self.workers, again)) as outcomes:
            for outcome in outcomes:
                if isinstance(outcome, Died):
                    tasks_again, result = deaths.after(outcome.task)
                    again.extend(tasks_again)
                    if result is not None:
                        yield result
                else:
                    yield outcome.result

    def _shared(self, job: Job[Task, Result]) -> Job[Task, Result]:
        """The job of one worker, with its share of what is not set."""
        threads, memory = share_of(job.model.device, self.workers)
        memory = memory if job.memory_limit is None else job.memory_limit
        return replace(job, threads=job.threads or threads, memory_limit=memory)


def share_of(device: str, workers: int) -> tuple[int, int | None]:
    """Threads of torch and bytes of memory for one of several workers: of the cores, and of the memory of the machine.

    Memory is None where one worker has it for itself, or a GPU.
    """
    place = torch.device(device_of(device))
    shared = workers > 1 and place.type == "cpu"
    memory = int(free_memory(place) * _SHARED / workers) if shared else None
    return max(1, torch.get_num_threads() // workers), memory


def default_workers(device: str) -> int:
    """How many workers this machine takes: one for each GPU, or for each pair of cores."""
    if torch.device(device_of(device)).type == "cuda":
        return max(1, torch.cuda.device_count())
    return max(1, cores() // _CORES_EACH)


def device_of(device: str, number: int = 0) -> str:
    """The device of a worker of this number: GPUs in turn, unless one is named."""
    device = best_device() if device == "auto" else device
    if device != "cuda" or not torch.cuda.is_available():
        return device
    return f"cuda:{number % torch.cuda.device_count()}"


def _worker(make: MakeWorker, job: Job[Any, Any], number: int) -> Callable[[Any], Any]:
    return make(replace(job, model=replace(job.model, device=device_of(job.model.device, number))))
