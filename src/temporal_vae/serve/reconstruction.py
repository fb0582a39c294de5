"""What a job does: a video through the model, and everything that there is to see of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from concurrent.futures import CancelledError
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any, TypeVar

from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor

from temporal_vae import engine
from temporal_vae.amounts import parse_memory
from temporal_vae.autoencoders.base import Autoencoder
from temporal_vae.media.frames import Frames
from temporal_vae.media.reader import VideoReader
from temporal_vae.media.trust import check_self_contained
from temporal_vae.serve.desk import Desk
from temporal_vae.serve.jobs import Job
from temporal_vae.serve.queries import JobOptions
from temporal_vae.serve.refusals import bad, stopping, too_large
from temporal_vae.serve.settings import Settings
from temporal_vae.video.coder import Coder
from temporal_vae.video.comparison import comparison_paths
from temporal_vae.video.pipeline import reconstruct_video
from temporal_vae.video.report import report_path

Result = TypeVar("Result")

_CLIPS_HELD = 9  # of source, result and comparison: read ahead, computed, written
_BESIDE = 190  # bytes a pixel for SSIM of a frame and what H.264 looks ahead; docs/memory.md


class Reconstruction:
    """Makes the results of jobs.

    Args:
        vae: the model.
        desk: which gives out turns on it.
        settings: limits.
        check_room: raises where the files of a job take too much of the disk.
    """

    def __init__(
        self, vae: Autoencoder, desk: Desk, settings: Settings, check_room: Callable[[Job], None]
    ) -> None:
        self._vae, self._desk, self._settings, self._check_room = vae, desk, settings, check_room

    def __call__(self, job: Job) -> None:
        """Reconstruct the source of a job; raises what is wrong with it."""
        options, folder = job.options, job.folder
        check_self_contained(job.source)
        selection: dict[str, Any] = {
            "start": options.start,
            "frames": options.frames,
            "fps": options.fps,
            "size": options.width_and_height,
        }
        with VideoReader(job.source, **selection) as reader:
            clip_frames = self._clip_frames(options, reader)
            planned = min(clip_frames, reader.expected_frames or clip_frames)
            still = reader.expected_frames == 1
        suffix = ".png" if still else ".mp4"
        files = {
            "source": folder / f"source{suffix}",
            "result": folder / f"result{suffix}",
            "latents": folder / "latents.safetensors",
            "comparison": folder / "comparison.mp4",
            "sheet": folder / "comparison.png",
            "metrics": folder / "metrics.json",
            "report": folder / "report.html",
        }
        made = folder / "made"
        made.mkdir()
        target = made / files["result"].name
        reconstruct_video(
            job.source,
            target,
            vae=self._vae,
            clip_frames=clip_frames,
            overlap=options.overlap,
            compare=True,
            latents=files["latents"],
            source_copy=files["source"],
            report=files["report"],
            command="",
            memory_limit=self._memory_limit(options),
            progress=partial(self._progress, job),
            coder_type=partial(_TurnCoder, self._desk, job, planned),
            **selection,
        )
        target.rename(files["result"])
        for name, written in zip(("comparison", "sheet"), comparison_paths(target), strict=True):
            written.rename(files[name])
        _rename_in(
            report_path(target), files["metrics"], {"source": job.name, "target": files["result"].name}
        )
        if still:
            files.pop("comparison").unlink()
        shutil.rmtree(made)
        shutil.rmtree(job.source.parent)
        job.results = files

    def _clip_frames(self, options: JobOptions, reader: VideoReader) -> int:
        """How long clips are, where that fits the memory for frames."""
        expected = reader.expected_frames
        if options.clip_frames == "all" and expected is None:
            raise bad("clip_frames=all: the file does not tell how many frames it has; name a number")
        clip_frames = (expected or 1) if options.clip_frames == "all" else options.clip_frames
        pixels = reader.height * reader.width
        held = min(clip_frames, expected or clip_frames)
        taken = pixels * (3 * _CLIPS_HELD * held + _BESIDE)
        if taken > self._settings.frames_limit:
            raise too_large(
                f"{held} frames of {reader.width}x{reader.height} take {engine.readable(taken)} beside the model, and "
                f"this server has {engine.readable(self._settings.frames_limit)} for them; choose a smaller size or "
                "shorter clips"
            )
        return clip_frames

    def _memory_limit(self, options: JobOptions) -> int:
        most = self._settings.compute_limit
        return most if options.memory_limit is None else min(most, parse_memory(options.memory_limit))

    def _progress(self, job: Job, done: int, total: int | None) -> None:
        job.progress(done, total)
        self._check_room(job)
        limit = self._settings.job_seconds
        if job.began is not None and monotonic() - job.began > limit:
            raise bad(f"not done within the server's limit of {limit:g} s for a job; send a shorter video")


def _rename_in(figures: Path, other: Path, names: dict[str, str]) -> None:
    """Write figures to another file, with names that tell nothing of this machine."""
    values = json.loads(figures.read_text()) | names
    other.write_text(json.dumps(values, indent=2) + "\n")


class _TurnCoder(Coder):
    """Takes a turn for each call of the model, so that others come between, and tells the job how it is planned."""

    def __init__(
        self,
        desk: Desk,
        job: Job,
        planned: int,
        vae: Autoencoder,
        height: int,
        width: int,
        **options: Any,
    ) -> None:
        super().__init__(vae, height, width, **options)
        self._desk = desk
        job.plans = self.plans(planned)

    def encode(self, frames: Frames) -> DiagonalGaussianDistribution:
        """As `Coder`, in turn."""
        return self._in_turn(partial(super().encode, frames))

    def decode(self, latents: Tensor) -> Frames:
        """As `Coder`, in turn."""
        return self._in_turn(partial(super().decode, latents))

    def _in_turn(self, function: Callable[[], Result]) -> Result:
        try:
            return self._desk.turn(function).result()
        except CancelledError:
            raise stopping() from None
