"""What workers of `encode-dataset` are given and give back: batches of clips, and reports of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from temporal_vae.distributed.dataset.executors import Job
from temporal_vae.distributed.dataset.settings import Settings

if TYPE_CHECKING:  # processes that only look at files need no torch
    from temporal_vae.distributed.dataset.shards import Format, ShardInfo


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
    """A clip that could not be encoded, and why.

    Attributes:
        identity: of the clip.
        path: of its file.
        reason: in one line.
        passing: whether the next run should try it again unasked: it was a limit that the clip did not keep.
    """

    identity: str
    path: str
    reason: str
    passing: bool = False


@dataclass(frozen=True, kw_only=True)
class Report:
    """What became of a batch: each of its clips is in the shard or among those that failed.

    Attributes:
        batch: number of the batch.
        shard: where the clips are, on the disk by now; None where all failed.
        failed: the others.
    """

    batch: int
    shard: ShardInfo | None = None
    failed: tuple[Failure, ...] = ()


@dataclass(frozen=True, kw_only=True)
class EncodeJob(Job[Batch, Report]):
    """What a worker of `encode-dataset` is made of.

    Attributes:
        settings: of the dataset; also the model's dtype.
        dest: folder of the dataset, a path or URL.
        format: of shards.
    """

    settings: Settings
    dest: str
    format: Format

    def worker(self) -> Callable[[Batch], Report]:
        """See `Job.worker`."""
        from temporal_vae.distributed.dataset.encoder import Encoder

        return Encoder(self)

    def identities(self, task: Batch) -> tuple[str, ...]:
        """See `Job.identities`."""
        return tuple(clip.identity for clip in task.clips)

    def apart(self, task: Batch) -> list[Batch]:
        """See `Job.apart`."""
        return [replace(task, clips=(clip,)) for clip in task.clips]

    def given_up(self, task: Batch, deaths: int) -> Report:
        """See `Job.given_up`."""
        (clip,) = task.clips
        reason = f"{clip.source}: a worker died {deaths} times while it encoded this clip; look at the file"
        failure = Failure(identity=clip.identity, path=clip.path, reason=reason)
        return Report(batch=task.number, failed=(failure,))
