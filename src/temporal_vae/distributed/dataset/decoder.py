"""What workers of `decode-dataset` do: the latents of one clip, or of one latent file, into one video."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from math import lcm
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from temporal_vae.autoencoders.loading import load_named
from temporal_vae.distributed.dataset.decode_job import DecodeJob, DecodeTask, Outcome
from temporal_vae.distributed.dataset.places import Place, open_place
from temporal_vae.distributed.dataset.planning import Kind
from temporal_vae.distributed.dataset.sampling import draw
from temporal_vae.distributed.dataset.shards import Record, read_record
from temporal_vae.errors import (
    InputError,
    LatentFileError,
    MediaError,
    MemoryLimitError,
    TemporalVaeError,
    one_line,
)
from temporal_vae.media.frames import Frames
from temporal_vae.media.writer import VideoWriter
from temporal_vae.video.coder import Coder
from temporal_vae.video.latents import ModelIdentity
from temporal_vae.video.pipeline import decode_video


class Decoder:
    """Decodes one task after the other.

    Raises:
        TemporalVaeError: a model that cannot be loaded, or is not the one that the run began with.
    """

    def __init__(self, job: DecodeJob) -> None:
        if job.threads is not None:
            torch.set_num_threads(job.threads)
        self._job = job
        self._source, self._dest = open_place(job.source), open_place(job.dest)
        model, dtype = job.model, job.settings.dtype
        self._vae = load_named(model.name, model.subfolder, dtype=dtype, device=model.device)
        self._model = ModelIdentity.of(self._vae)
        if job.settings.digest(self._vae) != job.digest:
            raise InputError(f"{model.name}: is another model by now than where the run began; run again")
        self._coders: dict[tuple[int, int], Coder] = {}

    def __call__(self, task: DecodeTask) -> Outcome:
        """Make one video. What is wrong with its latents is told; what is wrong with more than these is raised.

        Raises:
            MediaError: the video can't be written.
            MemoryLimitError: out of memory.
        """
        try:
            with self._dest.scratch(self._job.folder) as folder:
                video, name = folder / f"video{self._job.settings.suffix}", self._job.video_of(task.identity)
                try:
                    frames, rate = self._decode(task, video)
                except MediaError as error:  # of a name that nobody knows
                    raise MediaError(str(error).replace(str(video), self._dest.shown(name))) from error
                self._dest.take(video, name)
        except _Unfit as error:
            kind: Kind = "unreadable" if isinstance(error.reason, MediaError) else "failed"
            passing = not isinstance(error.reason, LatentFileError)
            return Outcome(identity=task.identity, reason=one_line(error), kind=kind, passing=passing)
        except (MemoryError, torch.OutOfMemoryError) as error:
            raise MemoryLimitError(
                f"{task.path}: out of memory; set a memory limit, or fewer workers"
            ) from error
        return Outcome(identity=task.identity, frames=frames, seconds=float(frames / rate))

    def _decode(self, task: DecodeTask, video: Path) -> tuple[int, Fraction]:
        """Write a video; how many frames it has, and its rate."""
        if task.format is None:
            return self._decode_file(task, video)
        with _unfit(task):
            record = read_record(self._source, task.shard, task.format, task.identity, task.at)
            clip = _Clip.of(record, self._model, self._vae.spatial_factor)
        settings = self._job.settings
        latents = clip.latents
        if settings.sample is not None and clip.logvar is not None:
            latents = draw(latents, clip.logvar, settings.sample, task.identity)
        try:
            frames = self._frames(latents, clip.size)
        except MemoryLimitError as error:
            raise _Unfit(task, error) from error
        with VideoWriter(
            video, rate=clip.rate, codec=settings.codec, crf=settings.crf, time_base=clip.time_base
        ) as writer:
            writer.write(frames, clip.timestamps)
        return len(frames), clip.rate

    def _frames(self, latents: Tensor, size: tuple[int, int]) -> Frames:
        """Frames `(t, h, w, 3)` of one clip."""
        width, height = size
        if (width, height) not in self._coders:
            self._coders[width, height] = Coder(self._vae, height, width, memory_limit=self._job.memory_limit)
        coder = self._coders[width, height]
        together = coder.clip_frames(None, 0) or len(latents)  # pictures, as many as cost the least
        starts = range(0, len(latents), together)
        return np.concatenate([coder.decode(latents[first : first + together]) for first in starts])

    def _decode_file(self, task: DecodeTask, video: Path) -> tuple[int, Fraction]:
        settings = self._job.settings
        with ExitStack() as stack:
            with _unfit(task):
                path = stack.enter_context(at_hand(self._source, task.shard))
            try:
                info = decode_video(
                    path,
                    video,
                    vae=self._vae,
                    clip_frames=settings.clip_frames,
                    sample_seed=settings.sample,
                    memory_limit=self._job.memory_limit,
                    codec=settings.codec,
                    crf=settings.crf,
                )
            except (LatentFileError, MemoryLimitError) as error:
                raise _Unfit(task, error) from error
        return len(info.timestamps), info.rate


@dataclass(frozen=True, kw_only=True, eq=False)
class _Clip:
    """The latents of a record, `(t, z, h, w)`, and what a video of them is like."""

    latents: Tensor
    logvar: Tensor | None
    size: tuple[int, int]
    rate: Fraction
    timestamps: tuple[Fraction, ...]
    time_base: Fraction

    @classmethod
    def of(cls, record: Record, model: ModelIdentity, factor: int) -> _Clip:
        """Check a record.

        Raises:
            LatentFileError: latents of another model, or none.
        """
        meta = record.meta
        try:
            if meta["model"]["config_sha256"] != model.config_sha256:
                raise ValueError(
                    f"was made by model {meta['model']['name']!r} "
                    f"(config {meta['model']['config_sha256'][:8]}), not by {model.name!r} "
                    f"(config {model.config_sha256[:8]}); decode with the model that encoded"
                )
            latents = record.tensors["mean" if "mean" in record.tensors else "sample"]
            width, height = map(int, meta["size"])
            times = tuple(map(Fraction, meta["timestamps"]))
            shape = len(times), model.config["latent_channels"], -(-height // factor), -(-width // factor)
            if tuple(latents.shape) != shape or not latents.is_floating_point():
                raise ValueError(f"holds latents {tuple(latents.shape)} where {shape} belong")
            if not latents.isfinite().all():
                raise ValueError("holds values that are not finite")
            return cls(
                latents=latents,
                logvar=record.tensors.get("logvar"),
                size=(width, height),
                rate=Fraction(meta["fps"]),
                timestamps=times,
                time_base=Fraction(1, lcm(*(time.denominator for time in times))),
            )
        except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
            raise LatentFileError(f"clip {record.identity}: {one_line(error)}") from error


class _Unfit(TemporalVaeError):
    """Latents that can't be decoded, while others can."""

    def __init__(self, task: DecodeTask, reason: TemporalVaeError) -> None:
        super().__init__(f"{task.path}: {reason}" if isinstance(reason, MemoryLimitError) else str(reason))
        self.reason = reason


@contextmanager
def _unfit(task: DecodeTask) -> Iterator[None]:
    try:
        yield
    except (LatentFileError, MediaError) as error:
        raise _Unfit(task, error) from error


@contextmanager
def at_hand(place: Place, name: str) -> Iterator[Path]:
    """A file of a place under a local name.

    Raises:
        MediaError: it can't be read.
        MemoryLimitError: it is on another machine, and there is no room for it on this one.
    """
    if place.local is not None:
        yield place.local / name
        return
    data = place.read(name)
    with place.scratch("") as folder:
        path = folder / name.rpartition("/")[2]
        try:
            path.write_bytes(data)
        except OSError as error:
            raise MemoryLimitError(
                f"{place.shown(name)}: the temporary folder {folder.parent} has no room for it "
                f"({(error.strerror or str(error)).lower()}); make room, or set TMPDIR to a folder with room"
            ) from error
        yield path
