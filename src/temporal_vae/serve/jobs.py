"""Jobs: videos that people send, one computed at a time, and what became of each for an hour.

Everything a job has lies in a folder of its own, which is removed with it; all folders together are bounded.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from http import HTTPStatus
from pathlib import Path
from threading import Lock
from time import monotonic
from typing import Any, Literal

from temporal_vae import engine
from temporal_vae.errors import TemporalVaeError, one_line
from temporal_vae.serve.desk import Task
from temporal_vae.serve.queries import JobOptions
from temporal_vae.serve.refusals import Refusal, busy, stopping, too_large
from temporal_vae.serve.settings import Settings

logger = logging.getLogger(__name__)

State = Literal["receiving", "queued", "running", "done", "failed", "cancelled"]
ENDED = ("done", "failed", "cancelled")
_LOOKED_AT = 1.0  # seconds between two looks at the disk


class Cancelled(Refusal):
    """Nobody wants the results of a job any more."""

    def __init__(self) -> None:
        super().__init__(HTTPStatus.GONE, "cancelled")


@dataclass(eq=False)
class Job:
    """A video on its way.

    Attributes:
        id: which nobody guesses: who knows it may read and cancel the job.
        folder: of the job's files.
        reserved: bytes of the disk that its upload may take.
        options: what was asked for.
        name: of the source, as the client knows it.
        done, total: multiply-adds; the latter None while nobody knows.
        plans: how clips are encoded and decoded.
        results: files, by what they are.
    """

    folder: Path
    reserved: int
    options: JobOptions = field(default_factory=lambda: JobOptions.model_validate({}))
    id: str = field(default_factory=lambda: secrets.token_urlsafe(12))
    name: str = ""
    source: Path = Path()
    state: State = "receiving"
    done: int = 0
    total: int | None = None
    plans: tuple[engine.Plan, ...] = ()
    error: str | None = None
    results: dict[str, Path] = field(default_factory=dict)
    task: Task = field(default_factory=Task)
    began: float | None = None
    ended: float | None = None
    expires: datetime | None = None

    def progress(self, done: int, total: int | None) -> None:
        """Note how far it is; raises where it was called off."""
        self.task.check()
        self.done, self.total = done, total

    def describe(self, position: int) -> dict[str, Any]:
        """For clients."""
        seconds = 0.0 if self.began is None else (self.ended or monotonic()) - self.began
        left = None
        if self.state == "running" and self.total and self.done:
            left = round(seconds * (self.total - self.done) / self.done, 1)
        return {
            "id": self.id,
            "name": self.name,
            "state": self.state,
            "position": position,
            "done": self.done,
            "total": self.total,
            "seconds": round(seconds, 1),
            "seconds_left": left,
            "plan": {plan.task: _plan(plan) for plan in self.plans} or None,
            "error": self.error,
            "expires": self.expires and self.expires.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "results": {name: f"./jobs/{self.id}/results/{path.name}" for name, path in self.results.items()},
        }


def _as_known(message: str, job: Job) -> str:
    """An error with the client's own name of the file, and no path of this machine."""
    for path in (str(job.source), job.source.name):
        message = message.replace(path, job.name)
    return message.replace(f"{job.folder}/", "")


def _plan(plan: engine.Plan) -> dict[str, Any]:
    return {
        "peak": plan.peak,
        "memory_limit": plan.memory_limit,
        "work": plan.work,
        "rung": plan.rung,
        "spilled": plan.spill_bytes,
        "text": str(plan),
    }


class Jobs:
    """All jobs of a server.

    Args:
        folder: for their files; empty.
        settings: how many, for how long, how large.
        work: makes the results of a job and notes them in it; in a thread.
        ended: told the state in which a job ended.
    """

    def __init__(
        self, folder: Path, settings: Settings, work: Callable[[Job], None], ended: Callable[[str], None]
    ) -> None:
        self._folder, self._settings, self._work, self._ended = folder, settings, work, ended
        self._jobs: dict[str, Job] = {}
        self._lock = Lock()
        self._closed = False
        self._looked = 0.0
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="temporal-vae job")

    def receive(self, nbytes: int) -> Job:
        """A place for a job whose upload takes so many bytes.

        Raises:
            Refusal: too many jobs, no room, or the server is stopping.
        """
        if self._closed:
            raise stopping()
        self.sweep()
        with self._lock:
            pending = [job for job in self._jobs.values() if job.state not in ENDED]
            if len(pending) >= self._settings.jobs:
                raise busy(f"{len(pending)} jobs wait or run already; send this again later", 30)
            self._make_room(nbytes)
            job = Job(folder=self._folder / secrets.token_hex(8), reserved=nbytes)
            job.folder.mkdir()
            self._jobs[job.id] = job
        return job

    def begin(self, job: Job) -> None:
        """Let a job that was received wait for its turn.

        Raises:
            Refusal: the server is stopping.
        """
        with self._lock:
            if self._closed:
                raise stopping()
            job.state, job.reserved = "queued", 0
            self._executor.submit(self._run, job)

    def get(self, key: str) -> Job:
        """The job of this id; one that is being received is nobody's yet.

        Raises:
            Refusal: there is none, or no more.
        """
        self.sweep()
        job = self._jobs.get(key)
        if job is None or job.state == "receiving":
            kept = self._settings.results_seconds / 60
            raise Refusal(
                HTTPStatus.NOT_FOUND,
                f"there is no job {key[:40]}; results are kept for {kept:g} minutes, send the video again",
            )
        return job

    def describe(self, job: Job) -> dict[str, Any]:
        """For clients, with its position among those that wait."""
        waiting = [other for other in self._all() if other.state in ("queued", "running")]
        return job.describe(waiting.index(job) if job in waiting else 0)

    def remove(self, job: Job) -> None:
        """Cancel what goes on, and remove all files."""
        job.task.call_off(Cancelled())
        with self._lock:
            self._jobs.pop(job.id, None)
            if job.state in ("receiving", "queued"):
                self._end(job, "cancelled")
            if job.state in ENDED:
                shutil.rmtree(job.folder, ignore_errors=True)

    def sweep(self) -> None:
        """Remove what is too old."""
        with self._lock:
            for job in self._all():
                if job.ended is not None and monotonic() - job.ended > self._settings.results_seconds:
                    self._forget(job)

    def close(self) -> None:
        """Begin nothing new; the job that runs goes on."""
        with self._lock:
            self._closed = True
            for job in self._all():
                if job.state == "receiving":
                    job.task.call_off(stopping())
                elif job.state == "queued":
                    self._end(job, "failed", stopping().detail)

    def call_off(self) -> None:
        """End the job that runs."""
        self.close()
        for job in self._all():
            job.task.call_off(stopping())

    def end(self) -> None:
        """Call everything off, and wait until nothing goes on any more."""
        self.call_off()
        self._executor.shutdown(wait=True, cancel_futures=True)

    def check_room(self, job: Job) -> None:
        """Raise where the files of a job that runs leave no room; to be called often.

        Raises:
            Refusal: they take more than is left when all results of others are gone.
        """
        if monotonic() - self._looked < _LOOKED_AT:
            return
        self._looked = monotonic()
        with self._lock:
            self._make_room(0)

    def _run(self, job: Job) -> None:
        """What a thread does with a job, whatever comes of it."""
        with self._lock:
            if job.state != "queued":
                return
            job.state, job.began = "running", monotonic()
        try:
            self._work(job)
            with self._lock:
                self._make_room(0)
            self._end(job, "done")
        except Cancelled:
            self._end(job, "cancelled")
        except (Refusal, TemporalVaeError) as error:
            job.results = {}
            self._end(job, "failed", _as_known(one_line(error), job))
        except BaseException as error:
            logger.exception("job %s", job.id)
            self._end(
                job, "failed", f"an error of the server ({type(error).__name__}), which its log tells more of"
            )
        finally:
            with self._lock:
                if job.id not in self._jobs or not job.results:
                    shutil.rmtree(job.folder, ignore_errors=True)

    def _end(self, job: Job, state: State, error: str | None = None) -> None:
        job.ended, job.error = monotonic(), error
        job.expires = datetime.now(timezone.utc) + timedelta(seconds=self._settings.results_seconds)
        job.state = state
        self._ended(state)

    def _make_room(self, nbytes: int) -> None:
        """Forget the oldest results, until there is room for so many bytes more."""
        limit = self._settings.results_limit
        done = sorted((job for job in self._all() if job.state == "done"), key=lambda job: job.ended or 0)
        while self._taken() + nbytes > limit:
            if not done:
                raise too_large(
                    f"the files of all jobs would take more than {engine.readable(limit)}; send a shorter or smaller "
                    "video, or start the server with more --results-limit"
                )
            self._forget(done.pop(0))

    def _taken(self) -> int:
        """Bytes of all files, and of those that are on their way."""
        taken = sum(job.reserved for job in self._all())
        for folder, _, names in os.walk(self._folder):  # which passes over folders that are removed meanwhile
            for name in names:
                with suppress(OSError):  # it has another name meanwhile
                    taken += os.path.getsize(os.path.join(folder, name))
        return taken

    def _forget(self, job: Job) -> None:
        self._jobs.pop(job.id, None)
        shutil.rmtree(job.folder, ignore_errors=True)

    def _all(self) -> list[Job]:
        return list(self._jobs.values())
