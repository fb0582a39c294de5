"""What processes of decode-dataset run: the latents of one clip, or of one latent file, into one video."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from fractions import Fraction
from math import lcm
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from temporal_vae.autoencoders.base import Autoencoder
from temporal_vae.autoencoders.loading import load_named
from temporal_vae.distributed.dataset.executors import ModelSpec
from temporal_vae.distributed.dataset.identity import model_digest
from temporal_vae.distributed.dataset.places import Place, open_place
from temporal_vae.distributed.dataset.planning import Kind
from temporal_vae.distributed.dataset.sampling import draw
from temporal_vae.distributed.dataset.settings import digest
from temporal_vae.distributed.dataset.shards import Format, Record, read_record
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
from temporal_vae.video.coder import CLIP_FRAMES, Coder
from temporal_vae.video.latents import ENCODING, ModelIdentity
from temporal_vae.video.pipeline import decode_video

SUFFIXES = {"h264": ".mp4", "ffv1": ".mkv", "gif": ".gif"}
_PROBED = 4  # values of each tensor of a decoder


@dataclass(frozen=True, kw_only=True)
class DecodeSettings:
    """What changes a pixel of the videos, or their files.

    Attributes:
        dtype: to compute in.
        codec: `h264` (.mp4), `ffv1` (.mkv, lossless) or `gif`.
        crf: quality of H.264, 0 (best) to 51.
        sample: seed of samples to decode; None decodes means. Stored samples are decoded as they are.
        clip_frames: frames of a latent file that are decoded as one clip; None for all. A clip of a dataset is one.

    Raises:
        InputError: a value out of range.
    """

    dtype: str = "float32"
    codec: str = "h264"
    crf: int = 18
    sample: int | None = None
    clip_frames: int | None = CLIP_FRAMES

    def __post_init__(self) -> None:
        if self.codec not in SUFFIXES:
            raise InputError(f"codec={self.codec!r}: choose {', '.join(SUFFIXES)}")
        if not 0 <= self.crf <= 51:
            raise InputError(f"crf={self.crf}: 0 (best) to 51")
        if self.clip_frames is not None and self.clip_frames < 1:
            raise InputError(f"clip_frames={self.clip_frames}: at least 1, or None for all")

    @property
    def suffix(self) -> str:
        """Of the videos."""
        return SUFFIXES[self.codec]

    def digest(self, vae: Autoencoder) -> str:
        """Hash of the settings and the model, its decoder included."""
        model = {"identity": model_digest(ModelIdentity.of(vae)), "decoder": _decoder_probe(vae)}
        values = asdict(self) | ({} if self.codec == "h264" else {"crf": None})
        return digest({"settings": values, "model": model})


@dataclass(frozen=True, kw_only=True)
class DecodeTask:
    """One video to make.

    Attributes:
        identity: of the clip, or the first 32 digits of the hash of a latent file; what the video is called.
        path: for people: the video that a clip is of, or the latent file.
        shard: where the latents lie, from the folder of the source.
        format: of the shard; None is a latent file.
        at: where in the shard.
    """

    identity: str
    path: str
    shard: str
    format: Format | None = None
    at: tuple[int, int] = (0, 0)


@dataclass(frozen=True, kw_only=True)
class DecodeJob:
    """What a worker is made of.

    Attributes:
        model: to decode with.
        settings: how.
        digest: what `settings.digest` gives of the model.
        source: folder of the latents.
        dest: folder of the videos.
        folder: in `dest`, of this run's videos.
        memory_limit: bytes that one worker may take above the loaded model; None is what the planner finds free.
        threads: of torch in one worker; None leaves them.
    """

    model: ModelSpec
    settings: DecodeSettings
    digest: str
    source: str
    dest: str
    folder: str
    memory_limit: int | None = None
    threads: int | None = None

    def video_of(self, identity: str) -> str:
        """The file of a clip in `dest`."""
        return f"{self.folder}/{identity}{self.settings.suffix}"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a task: a video that is on the disk, or why there is none.

    Attributes:
        identity: of the task.
        frames: of the video.
        seconds: that the video lasts, at its nominal rate.
        reason: why these latents can't be decoded.
        kind: `failed`, or `unreadable` where another time might be better: a shard is gone, or out of reach.
    """

    identity: str
    frames: int = 0
    seconds: float = 0.0
    reason: str | None = None
    kind: Kind = "failed"


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
            MemoryLimitError: the clip can't be decoded within the limit, or the memory there is.
        """
        try:
            with self._dest.scratch(self._job.folder) as folder:
                video = folder / f"video{self._job.settings.suffix}"
                frames, rate = self._decode(task, video)
                self._dest.take(video, self._job.video_of(task.identity))
        except _Unfit as error:
            return Outcome(identity=task.identity, reason=one_line(error), kind=error.kind)
        except (MemoryError, torch.OutOfMemoryError) as error:
            raise MemoryLimitError(
                f"{task.path}: out of memory; set a memory limit, or fewer workers"
            ) from error
        return Outcome(identity=task.identity, frames=frames, seconds=float(frames / rate))

    def _decode(self, task: DecodeTask, video: Path) -> tuple[int, Fraction]:
        """Write a video; how many frames it has, and its rate."""
        if task.format is None:
            return self._decode_file(task, video)
        with _unfit():
            record = read_record(self._source, task.shard, task.format, task.identity, task.at)
            clip = _Clip.of(record, self._model, self._vae.spatial_factor)
        settings = self._job.settings
        latents = clip.latents
        if settings.sample is not None and clip.logvar is not None:
            latents = draw(latents, clip.logvar, settings.sample, task.identity)
        frames = self._frames(latents, clip.size)
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
            with _unfit():
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
            except LatentFileError as error:
                raise _Unfit(error) from error
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

    def __init__(self, error: TemporalVaeError) -> None:
        super().__init__(str(error))
        self.kind: Kind = "unreadable" if isinstance(error, MediaError) else "failed"


@contextmanager
def _unfit() -> Iterator[None]:
    try:
        yield
    except (LatentFileError, MediaError) as error:
        raise _Unfit(error) from error


@contextmanager
def at_hand(place: Place, name: str) -> Iterator[Path]:
    """A file of a place under a local name.

    Raises:
        MediaError: it can't be read.
    """
    if place.local is not None:
        yield place.local / name
        return
    with place.scratch("") as folder:
        path = folder / name.rpartition("/")[2]
        path.write_bytes(place.read(name))
        yield path


def _decoder_probe(vae: Autoencoder) -> list[float]:
    """A few values of every tensor of the decoder."""
    return [
        value
        for name, weight in vae.named_parameters()
        if name.partition(".")[0] not in ENCODING
        for value in weight.detach().flatten()[:_PROBED].float().tolist()
    ]
