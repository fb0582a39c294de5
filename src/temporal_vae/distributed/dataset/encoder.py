"""What workers of `encode-dataset` do: the clips of a batch through the model and into one shard."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from fractions import Fraction
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from temporal_vae.autoencoders.loading import load_named
from temporal_vae.distributed.dataset.encode_job import Batch, ClipTask, EncodeJob, Failure, Report
from temporal_vae.distributed.dataset.identity import model_digest, settings_digest
from temporal_vae.distributed.dataset.places import open_place
from temporal_vae.distributed.dataset.reading import ClipReader
from temporal_vae.distributed.dataset.sampling import draw
from temporal_vae.distributed.dataset.settings import FORMAT_VERSION
from temporal_vae.distributed.dataset.shards import Record, write_shard
from temporal_vae.errors import InputError, MediaError, MemoryLimitError, TemporalVaeError, one_line
from temporal_vae.media.frames import Frames
from temporal_vae.streams import stream
from temporal_vae.video.coder import Coder
from temporal_vae.video.latents import ModelIdentity

_Read = tuple[ClipTask, Frames, tuple[Fraction, ...]]


class Encoder:
    """Encodes batches: reads ahead while it computes, and writes a shard before it reports.

    Raises:
        TemporalVaeError: a model that cannot be loaded, or is not the one that was planned with.
    """

    def __init__(self, job: EncodeJob) -> None:
        if job.threads is not None:
            torch.set_num_threads(job.threads)
        self._job, self._settings = job, job.settings
        self._vae = load_named(
            job.model.name, job.model.subfolder, dtype=job.settings.dtype, device=job.model.device
        )
        self._identity = ModelIdentity.of(self._vae)
        if model_digest(self._identity) != job.model.identity:
            raise InputError(
                f"{job.model.name}: is another model here than where the run began; copy it anew"
            )
        self._digest = settings_digest(job.settings, job.model.identity)
        self._place = open_place(job.dest)
        self._coders: dict[tuple[int, int], Coder] = {}

    def __call__(self, batch: Batch) -> Report:
        """Encode a batch. What is wrong with a clip is a failure of it.

        Raises:
            MediaError: the shard can't be written.
            MemoryLimitError: out of memory.
        """
        failed: list[Failure] = []
        try:
            with closing(stream(self._encode, self._read(batch.clips, failed))) as encoded:
                done = list(encoded)
            records = [each for each in done if isinstance(each, Record)]
            failed += [each for each in done if isinstance(each, Failure)]
            shard = write_shard(self._place, self._job.format, records) if records else None
        except (MemoryError, torch.OutOfMemoryError) as error:
            raise MemoryLimitError(
                f"out of memory ({one_line(error)}); set a memory limit, or fewer workers"
            ) from error
        except TemporalVaeError:  # of which some are an OSError too
            raise
        except OSError as error:
            raise MediaError(f"a batch of clips can't be encoded ({one_line(error)})") from error
        return Report(batch=batch.number, shard=shard, failed=tuple(failed))

    def _read(self, clips: tuple[ClipTask, ...], failed: list[Failure]) -> Iterator[_Read]:
        with closing(ClipReader(self._settings.reading)) as reader:
            for task in sorted(clips, key=lambda task: (task.path, task.start)):
                try:
                    self._coder(task.size).together  # noqa: B018  (whether a frame fits into the limit)
                    frames, times = reader.read(task)
                except MemoryError:
                    raise
                except Exception as error:  # damaged files bring libraries to raise anything
                    failed.append(_failure(task, error))
                else:
                    yield task, frames, times

    def _encode(self, read: _Read) -> Record | Failure:
        task, frames, times = read
        try:
            mean, logvar = self._posterior(frames)
        except MemoryLimitError as error:
            return _failure(task, error)
        stored = getattr(torch, self._settings.stored_dtype)
        if self._settings.sample is None:
            tensors = {"mean": mean.to(stored), "logvar": logvar.to(stored)}
        else:
            tensors = {"sample": draw(mean, logvar, self._settings.sample, task.identity).to(stored)}
        if not all(values.isfinite().all() for values in tensors.values()):
            reason = f"{task.source}: latents at {float(task.start):.3f} s are not finite in {self._settings.dtype}"
            return Failure(identity=task.identity, path=task.path, reason=f"{reason}; use float32")
        return Record(identity=task.identity, tensors=tensors, meta=self._describe(task, times, mean))

    def _posterior(self, frames: Frames) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of frames `(t, h, w, 3)`, as `encode_video` gives them."""
        coder = self._coder((frames.shape[2], frames.shape[1]))
        together = coder.together
        parts = [coder.encode(frames[first : first + together]) for first in range(0, len(frames), together)]
        mean, logvar = (
            torch.cat([values(part).cpu() for part in parts])
            for values in (attrgetter("mean"), attrgetter("logvar"))
        )
        return mean, logvar

    def _coder(self, size: tuple[int, int]) -> Coder:
        if size not in self._coders:
            width, height = size
            self._coders[size] = Coder(self._vae, height, width, memory_limit=self._job.memory_limit)
        return self._coders[size]

    def _describe(self, task: ClipTask, times: tuple[Fraction, ...], latents: Tensor) -> dict[str, Any]:
        """What is known of a clip, for JSON; fractions as `"num/den"`."""
        return {
            "format_version": FORMAT_VERSION,
            "identity": task.identity,
            "source": task.source,
            "source_sha256": task.source_sha256,
            "start": str(task.start),
            "end": str(task.end),
            "timestamps": [str(time) for time in times],
            "fps": str(task.rate),
            "frames": task.frames,
            "original": list(task.original),
            "box": [str(side) for side in task.box],
            "size": list(task.size),
            "latents": list(latents.shape),
            "dtype": self._settings.stored_dtype,
            "scaling_factor": self._vae.config.get("scaling_factor"),
            "shift_factor": self._vae.config.get("shift_factor"),
            "model": {
                "name": self._identity.name,
                "config": self._identity.config,
                "config_sha256": self._identity.config_sha256,
            },
            "settings": self._digest,
            "columns": task.columns,
        }


def _failure(task: ClipTask, error: Exception) -> Failure:
    limited = isinstance(error, MemoryLimitError)
    reason = f"{task.source}: {one_line(error)}" if limited else one_line(error)
    return Failure(identity=task.identity, path=task.path, reason=reason, passing=limited)
