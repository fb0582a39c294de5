"""Who works: processes of this machine, the actors of a Ray cluster, or this process as one of several ranks.

The core hands out the tasks of a job and enters the results that come back. An executor only decides where the job's
workers run; with all of them the results are the same. What crosses from process to process is plain data.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from temporal_vae.distributed.dataset.share import Share

Task = TypeVar("Task")
Result = TypeVar("Result")

MOST_DEATHS = 3
"""Workers that a task may take with it before it is cut into pieces, and that a piece may take alone."""


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """The model that workers load.

    Attributes:
        name: a folder (as an absolute path), a hub id, or `embedded`.
        subfolder: of the autoencoder inside of it.
        device: as torch names it; `cuda` without a number is a GPU of its own for each worker, as far as there are, and
            `auto` is that where the machine of the worker has one.
        identity: what `identity.model_digest` must give of the loaded model.
    """

    name: str
    subfolder: str | None
    device: str
    identity: str


@dataclass(frozen=True, kw_only=True)
class Job(ABC, Generic[Task, Result]):
    """What is to be done with tasks, and what a worker is made of.

    Attributes:
        model: the model.
        memory_limit: bytes that one worker may take above the loaded model; None is what the planner finds free.
        threads: of torch in one worker; None leaves them.
    """

    model: ModelSpec
    memory_limit: int | None = None
    threads: int | None = None

    @abstractmethod
    def worker(self) -> Callable[[Task], Result]:
        """What does one task after the other. What it raises ends the run."""

    @abstractmethod
    def identities(self, task: Task) -> tuple[str, ...]:
        """Of all that a task does."""

    @abstractmethod
    def apart(self, task: Task) -> list[Task]:
        """A task in pieces of one identity each."""

    @abstractmethod
    def given_up(self, task: Task, deaths: int) -> Result:
        """What becomes of a piece over which so many workers died."""


MakeWorker = Callable[[Any], Callable[[Any], Any]]


def make_worker(job: Job[Task, Result]) -> Callable[[Task], Result]:
    """The worker of a job."""
    return job.worker()


class Executor(ABC):
    """Where tasks are done.

    Attributes:
        together: whether this is one of several that run at the same time, and wait at the end until all are done.
    """

    together: bool = False

    @property
    def share(self) -> Share:
        """Which part of the work this is; all of it, unless several do the same."""
        return Share()

    @abstractmethod
    def at_once(self) -> int:
        """How many tasks are done at the same time."""

    @abstractmethod
    def run(self, job: Job[Task, Result], tasks: Iterable[Task]) -> Generator[Result, None, None]:
        """Do tasks and give their results, in any order.

        Tasks are taken as workers need them, at most two for each. One whose worker died is given out again (see
        `Deaths`), so that it may come back in pieces. Closing the iterator ends the workers.

        Raises:
            TemporalVaeError: workers that cannot be started, or what one of them raised.
        """

    def meet(self) -> None:  # noqa: B027  (where there are no others, there is nobody to meet)
        """Wait until all are here that run at the same time, before one looks for what another has done."""


class Deaths(Generic[Task, Result]):
    """Counts workers that died over a task of a job, and says what to do next."""

    def __init__(self, job: Job[Task, Result]) -> None:
        self._job = job
        self._counts: dict[tuple[str, ...], int] = {}

    def after(self, task: Task, deaths: int = 1) -> tuple[list[Task], Result | None]:
        """The tasks to give out in the place of one over which workers died, or the result that ends it.

        A task comes again, after the third death in pieces; a piece that took three workers with it is given up.
        """
        key = self._job.identities(task)
        count = self._counts[key] = self._counts.get(key, 0) + deaths
        if count < MOST_DEATHS:
            return [task], None
        if len(key) > 1:
            return self._job.apart(task), None
        return [], self._job.given_up(task, count)
