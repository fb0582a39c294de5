"""Who encodes: processes of this machine, the actors of a Ray cluster, or this process as one of several ranks.

The core hands out batches of clips and commits the reports that come back. An executor only decides where an `Encoder`
runs; all of them give the same result. What crosses from process to process is plain data, and is defined here.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Protocol

from temporal_vae.distributed.dataset.settings import Settings

if TYPE_CHECKING:  # processes that only look at files need no torch
    from temporal_vae.distributed.dataset.shards import Format, ShardInfo

MOST_DEATHS = 3
"""Workers that a batch may take with it before its clips are tried one by one, and that a clip may take alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipTask:
    """One clip to encode.

    Attributes:
        identity: see `identity.identity_of`.
        path: the file to read.
        source: the file as the source names it, for people.
        source_sha256: hash of its content.
        stamp: what `probing.stamp_of` told when the file was probed; another one is another file.
        start: seconds of the first frame.
        last: seconds of the last frame.
        end: seconds at which the last frame is over.
        frames: how many.
        fps: frames per second to resample to; None keeps the frames of the source.
        rate: nominal frames per second of the clip.
        read_from: seconds of the source's frame at which to begin reading; a few frames before `start`.
        original: `(width, height)` of the source's frames.
        box: what is encoded of them: left, top, right and bottom in pixels.
        size: `(width, height)` to scale it to.
        columns: those of the first row that lists the clip.
    """

    identity: str
    path: str
    source: str
    source_sha256: str
    stamp: str
    start: Fraction
    last: Fraction
    end: Fraction
    frames: int
    fps: Fraction | None
    rate: Fraction
    read_from: Fraction
    original: tuple[int, int]
    box: tuple[Fraction, Fraction, Fraction, Fraction]
    size: tuple[int, int]
    columns: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Clips that one worker encodes, and that become one shard."""

    number: int
    clips: tuple[ClipTask, ...]


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A clip that could not be encoded, and why."""

    identity: str
    path: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Report:
    """What became of a batch: each of its clips is in the shard or among those that failed.

    Attributes:
        batch: number of the batch.
        shard: where the clips are, on the disk by now; None where all failed.
        failed: the others.
        error: what is wrong with more than a clip (a full disk, a memory limit), in one line: the run ends.
    """

    batch: int
    shard: ShardInfo | None = None
    failed: tuple[Failure, ...] = ()
    error: str | None = None


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
class Job:
    """What a worker is made of.

    Attributes:
        model: the model; its dtype is that of the settings.
        settings: of the dataset.
        dest: folder of the dataset, a path or URL.
        format: of shards.
        memory_limit: bytes that one worker may take above the loaded model; None is what the planner finds free.
        threads: of torch in one worker; None leaves them.
    """

    model: ModelSpec
    settings: Settings
    dest: str
    format: Format
    memory_limit: int | None = None
    threads: int | None = None


class Executor(Protocol):
    """Where batches are encoded."""

    @property
    def workers(self) -> int:
        """How many batches are encoded at the same time."""

    def run(self, job: Job, batches: Iterable[Batch]) -> Generator[Report, None, None]:
        """Encode batches and report each of them, in any order.

        Batches are taken as workers need them, at most two for each. A batch whose worker died is given out again (see
        `Deaths`), so that its clips may come back in several reports. Closing the iterator ends the workers.

        Raises:
            TemporalVaeError: workers that cannot be started, or a model that cannot be loaded.
        """


class Deaths:
    """Counts workers that died over a batch, and says what to do next."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, ...], int] = {}

    def after(self, batch: Batch) -> tuple[list[Batch], Report | None]:
        """The batches to give out in the place of one whose worker died, or the report that ends it.

        A batch comes again, after the third death clip by clip; a clip that took three workers with it alone fails.
        """
        key = tuple(clip.identity for clip in batch.clips)
        count = self._counts[key] = self._counts.get(key, 0) + 1
        if count < MOST_DEATHS:
            return [batch], None
        if len(batch.clips) > 1:
            return [replace(batch, clips=(clip,)) for clip in batch.clips], None
        (clip,) = batch.clips
        reason = f"{clip.source}: a worker died {count} times while it encoded this clip; look at the file"
        failure = Failure(identity=clip.identity, path=clip.path, reason=reason)
        return [], Report(batch=batch.number, failed=(failure,))
