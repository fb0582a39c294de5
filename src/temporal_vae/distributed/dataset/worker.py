"""What every executor runs: the clips of a batch through the model and into one shard."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from fractions import Fraction
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from temporal_vae.autoencoders.loading import load_named
from temporal_vae.distributed.dataset.executors import Batch, ClipTask, Failure, Job, Report
from temporal_vae.distributed.dataset.identity import model_digest, settings_digest
from temporal_vae.distributed.dataset.places import open_place
from temporal_vae.distributed.dataset.reading import ClipReader
from temporal_vae.distributed.dataset.sampling import draw
from temporal_vae.distributed.dataset.settings import FORMAT_VERSION
from temporal_vae.distributed.dataset.shards import Record, write_shard
from temporal_vae.errors import InputError, TemporalVaeError, one_line
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

    def __init__(self, job: Job) -> None:
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
        """Encode a batch. What is wrong with a clip is a failure of it; what is wrong with all ends the run."""
        failed: list[Failure] = []
        try:
            with closing(stream(self._encode, self._read(batch.clips, failed))) as encoded:
                done = list(encoded)
            records = [each for each in done if isinstance(each, Record)]
            failed += [each for each in done if isinstance(each, Failure)]
            shard = write_shard(self._place, self._job.format, records) if records else None
        except (TemporalVaeError, OSError, MemoryError, torch.OutOfMemoryError) as error:
            return Report(batch=batch.number, error=one_line(error))
        return Report(batch=batch.number, shard=shard, failed=tuple(failed))

    def _read(self, clips: tuple[ClipTask, ...], failed: list[Failure]) -> Iterator[_Read]:
        with closing(ClipReader(self._settings.reading)) as reader:
            for task in sorted(clips, key=lambda task: (task.path, task.start)):
                try:
                    frames, times = reader.read(task)
                except MemoryError:
                    raise
                except Exception as error:  # damaged files bring libraries to raise anything
                    failed.append(Failure(identity=task.identity, path=task.path, reason=one_line(error)))
                else:
                    yield task, frames, times

    def _encode(self, read: _Read) -> Record | Failure:
        task, frames, times = read
        mean, logvar = self._posterior(frames)
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
        coder = self._coder(frames.shape[1], frames.shape[2])
        together = coder.together
        parts = [coder.encode(frames[first : first + together]) for first in range(0, len(frames), together)]
        mean, logvar = (
            torch.cat([values(part).cpu() for part in parts])
            for values in (attrgetter("mean"), attrgetter("logvar"))
        )
        return mean, logvar

    def _coder(self, height: int, width: int) -> Coder:
        if (height, width) not in self._coders:
            coder = Coder(self._vae, height, width, memory_limit=self._job.memory_limit)
            self._coders[height, width] = coder
        return self._coders[height, width]

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
