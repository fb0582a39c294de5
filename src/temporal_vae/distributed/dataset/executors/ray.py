"""Actors of a Ray cluster: Ray Data's `map_batches` over the table of tasks, on a pool of them.

Ray moves work away from what dies, and starts it again there. How many workers a task took with it we count ourselves,
in an actor beside the driver: Ray counts its attempts to reach a dead machine too. A task that is done twice writes the
same files twice. What is done is known from them and the ledger alone; Ray keeps nothing from run to run.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
import socket
import threading
import traceback
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import islice
from typing import Any

from temporal_vae.distributed.dataset.executors import (
    MOST_DEATHS,
    Deaths,
    Executor,
    Job,
    MakeWorker,
    Result,
    Task,
    make_worker,
)
from temporal_vae.distributed.dataset.executors.local import share_of
from temporal_vae.distributed.dataset.executors.processes import WorkerError
from temporal_vae.engine import cores
from temporal_vae.errors import InputError, TemporalVaeError, one_line

_CORES_EACH = 2
"""Of a worker, where machines have them and there are no more workers than pairs: one reads meanwhile."""

_STORE = 128 << 20
"""Bytes of a local Ray's object store: descriptions of clips and what became of them are all that is in it."""

_KNOCK = 10.0  # seconds for a cluster to answer; Ray itself tries for minutes and then ends the process
_IN_HAND = 2  # tasks that a worker has at a time, one of them waiting

_FIRST = 10
"""Tasks for each worker that are taken at first: how long they take says how large the others should be."""


@dataclass(frozen=True, kw_only=True)
class RayExecutor(Executor):
    """Works in the actors of a Ray cluster.

    Its machines need this package, and the videos and a model in a folder under the same paths; DEST must be a folder
    that all of them share, or a URL.

    Args:
        address: of an existing cluster, as `host:port` or `auto`; None is that of `RAY_ADDRESS`, or else a Ray of this
            machine that lives as long as the run.
        concurrency: workers at the most; None is as many as the cluster has room for when the run begins. Where there
            is less room, fewer work, until there is more.
        gpus: of each worker, also parts of one; None is one where the model computes on `cuda`, else none. A device of
            `auto` takes one where the cluster has any.
        make: what makes a worker of a job, in each actor; must be importable there.

    Raises:
        InputError: values out of range, or no Ray.
    """

    address: str | None = None
    concurrency: int | None = None
    gpus: float | None = None
    make: MakeWorker = make_worker

    def __post_init__(self) -> None:
        if self.concurrency is not None and self.concurrency < 1:
            raise InputError(f"concurrency={self.concurrency}: at least 1 worker")
        if self.gpus is not None and self.gpus < 0:
            raise InputError(f"gpus={self.gpus}: of each worker, from 0 up")
        if find_spec("ray") is None:
            raise InputError("Ray is not installed; pip install 'temporal-vae[ray]'")

    def at_once(self) -> int:
        """See `Executor.at_once`. Where it is not given, the cluster is asked."""
        if self.concurrency is not None:
            return self.concurrency
        with _connected(self.address):
            return self._pool("auto").size

    def run(self, job: Job[Task, Result], tasks: Iterable[Task]) -> Generator[Result, None, None]:
        """See `Executor.run`. Ray Data maps whole tables, so tasks are taken in two goes: a few, then all others."""
        with _connected(self.address):
            pool, left = self._pool(job.model.device), iter(tasks)
            deaths: Deaths[Task, Result] = Deaths(job)
            waiting = list(islice(left, pool.size * _FIRST))
            while waiting:
                again: list[Task] = []
                with closing(_mapped(self.make, _anywhere(job), waiting, pool)) as outcomes:
                    for task, results in outcomes:
                        yield from results
                        if not results:
                            more, given_up = deaths.after(task, MOST_DEATHS)  # which the actors counted
                            again += more
                            if given_up is not None:
                                yield given_up
                waiting = again + list(left)

    def _pool(self, device: str) -> _Pool:
        """Workers that the cluster has room for.

        Raises:
            InputError: there is none for any.
        """
        import ray

        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        largest, total, gpus = (
            kind(node.get(name, 0) for node in nodes)
            for kind, name in ((max, "CPU"), (sum, "CPU"), (sum, "GPU"))
        )
        each = self.gpus
        if each is None:
            each = 1 if device.startswith("cuda") or (device == "auto" and gpus) else 0
        cpus = min(_CORES_EACH, largest, total // (self.concurrency or 1))
        cpus = max(1, int(cpus)) if not each else 1
        room = sum(_fits(node, cpus, each) for node in nodes)
        if room < 1:
            raise InputError(
                f"Ray: no machine of the cluster has room for a worker of {cpus} CPU and {each:g} GPU "
                f"(there are {total:g} CPU, {gpus:g} GPU); add machines, or ask for less"
            )
        return _Pool(size=self.concurrency or room, cpus=cpus, gpus=each)


@dataclass(frozen=True, kw_only=True)
class _Pool:
    """Actors: how many, and what Ray sets aside for each."""

    size: int
    cpus: int
    gpus: float


class Worker:
    """An actor of the pool. It loads the model with its first task: what goes wrong there is told like all else.

    Args:
        make: of a job, what does a task.
        job: what it is made of.
        attempts: the actor `Attempts`.
        pool: which it belongs to.
    """

    def __init__(self, make: MakeWorker, job: Job[Any, Any], attempts: Any, pool: _Pool) -> None:
        self._make, self._job, self._attempts, self._pool = make, job, attempts, pool
        self._work: Callable[[Any], Any] | None = None

    def __call__(self, row: dict[str, Any]) -> dict[str, list[Any]]:
        """Do the task of a row: its result in a list, or an error that ends the run.

        The list is empty where the task took as many workers with it as it may.
        """
        index, task = int(row["index"][0]), pickle.loads(row["task"][0])
        found: list[Any] | TemporalVaeError
        try:
            found = self._results(index, task)
        except TemporalVaeError as error:
            found = error
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{os.path.basename(last.filename)}:{last.lineno}"
            wrong = f"Ray: a worker failed at {place} ({type(error).__name__}: {one_line(error)}); report it"
            found = WorkerError(wrong)
        return {"index": [index], "found": [pickle.dumps(found)]}

    def _results(self, index: int, task: Any) -> list[Any]:
        if self._work is None:
            if not self._ask("start"):
                raise WorkerError(
                    "Ray: workers die while they load the model; see whether it fits into memory, and Ray's logs"
                )
            self._work = self._make(_shared(self._job, self._pool))
            self._ask("started")
        if self._ask("begin", index) > MOST_DEATHS:
            return []
        result = self._work(task)
        self._ask("end", index)
        return [result]

    def _ask(self, question: str, *arguments: int) -> Any:
        import ray

        return ray.get(getattr(self._attempts, question).remote(*arguments))


class Attempts:
    """An actor beside the driver that knows what workers began and did not end.

    Args:
        workers: how many there may be at a time.
    """

    def __init__(self, workers: int) -> None:
        self._starting, self._most = 0, workers + MOST_DEATHS
        self._begun: dict[int, int] = {}

    def start(self) -> bool:
        """A worker is about to load the model. False: enough of them have died over that."""
        self._starting += 1
        return self._starting <= self._most

    def started(self) -> None:
        """A worker has loaded it."""
        self._starting = 0

    def begin(self, index: int) -> int:
        """A worker begins a task: the how manieth."""
        self._begun[index] = self._begun.get(index, 0) + 1
        return self._begun[index]

    def end(self, index: int) -> None:
        """A worker is done with a task, and lives."""
        self._begun.pop(index, None)
        self._starting = 0  # the model fits: machines come and go


def _fits(node: dict[str, float], cpus: float, gpus: float) -> int:
    """How many workers a machine has room for."""
    room = node.get("CPU", 0) // cpus
    return int(min(room, node.get("GPU", 0) // gpus) if gpus else room)


def _anywhere(job: Job[Task, Result]) -> Job[Task, Result]:
    """The job on whichever GPU Ray gives to a worker."""
    is_numbered = job.model.device.startswith("cuda:")
    return replace(job, model=replace(job.model, device="cuda")) if is_numbered else job


def _shared(job: Job[Task, Result], pool: _Pool) -> Job[Task, Result]:
    """The job of a worker on this machine, with its share of what is not set."""
    _, memory = share_of(job.model.device, max(1, min(pool.size, cores() // pool.cpus)))
    memory = memory if job.memory_limit is None else job.memory_limit
    return replace(job, threads=job.threads or pool.cpus, memory_limit=memory)


def _mapped(
    make: MakeWorker, job: Job[Task, Result], tasks: list[Task], pool: _Pool
) -> Generator[tuple[Task, list[Result]], None, None]:
    """Tasks with what became of them, as they are done: a list of the result, an empty one if workers died over it."""
    import pyarrow as pa
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    attempts = ray.remote(Attempts).options(num_cpus=0, scheduling_strategy=here).remote(pool.size)
    rows = [{"index": [index], "task": [pickle.dumps(task)]} for index, task in enumerate(tasks)]
    with _quiet():
        from ray.data import ActorPoolStrategy, from_blocks

        dataset = from_blocks([pa.table(row) for row in rows]).map_batches(
            Worker,
            batch_size=1,
            fn_constructor_args=(make, job, attempts, pool),
            compute=ActorPoolStrategy(
                size=min(pool.size, len(tasks)), max_tasks_in_flight_per_actor=_IN_HAND
            ),
            num_cpus=pool.cpus,
            num_gpus=pool.gpus,
        )
        found = iter(dataset.iter_rows())
        try:
            for row in found:
                results = pickle.loads(row["found"])
                if isinstance(results, TemporalVaeError):
                    raise results
                yield tasks[row["index"]], results
        except ray.exceptions.RayError as error:
            last = str(error).strip().splitlines()[-1].strip()  # of a traceback
            raise WorkerError(f"Ray: a worker failed ({last[:300]}); its logs say more") from error
        finally:
            found.close()


@contextmanager
def _connected(address: str | None) -> Iterator[None]:
    """Within the block this process drives a cluster; if it does already, that one.

    Raises:
        InputError: no cluster at `address`.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # who encodes what is nobody else's business
    import ray

    if ray.is_initialized():
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    _knock(address)
    alone = {"include_dashboard": False, "object_store_memory": _STORE} if address == "local" else {}
    with _signals_kept():
        try:
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **alone)
        except (OSError, ValueError, RuntimeError) as error:
            raise InputError(
                f"Ray at {address}: {one_line(error)}; it takes the same version of Ray, and RAY_AUTH_MODE=token where "
                "the cluster has a token"
            ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Raise `InputError` where nobody listens at `host:port`."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "/" in host:
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK).close()
    except OSError as error:
        reason = (error.strerror or one_line(error)).lower()
        raise InputError(
            f"Ray at {address}: nobody answers ({reason}); start a cluster with `ray start --head`, or leave the "
            "address out for one of this machine"
        ) from error


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Ray sets a handler of SIGTERM where it starts; the one before it stays."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        with suppress(TypeError):  # one that was not set from Python
            signal.signal(signal.SIGTERM, before)


@contextmanager
def _quiet() -> Iterator[None]:
    """Ray Data without bars and remarks: who calls it shows how far it is."""
    with warnings.catch_warnings():  # of settings of its own that it gives up
        warnings.simplefilter("ignore", DeprecationWarning)
        from ray.data import DataContext

        context, logger = DataContext.get_current(), logging.getLogger("ray.data")
    bars, level = context.enable_progress_bars, logger.level
    context.enable_progress_bars = False
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        context.enable_progress_bars = bars
        logger.setLevel(level)
