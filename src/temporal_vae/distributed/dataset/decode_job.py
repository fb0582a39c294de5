"""What workers of `decode-dataset` are given and give back: latents to decode, and what became of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

from temporal_vae.autoencoders.base import Autoencoder
from temporal_vae.distributed.dataset.executors import Job
from temporal_vae.distributed.dataset.identity import model_digest
from temporal_vae.distributed.dataset.planning import Kind
from temporal_vae.distributed.dataset.settings import digest
from temporal_vae.distributed.dataset.shards import Format
from temporal_vae.errors import InputError
from temporal_vae.video.coder import CLIP_FRAMES
from temporal_vae.video.latents import ENCODING, ModelIdentity

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
class Outcome:
    """What became of a task: a video that is on the disk, or why there is none.

    Attributes:
        identity: of the task.
        frames: of the video.
        seconds: that the video lasts, at its nominal rate.
        reason: why these latents can't be decoded.
        kind: `failed`, or `unreadable` where another time might be better: a shard is gone, or out of reach.
        passing: whether the next run should try it again unasked.
    """

    identity: str
    frames: int = 0
    seconds: float = 0.0
    reason: str | None = None
    kind: Kind = "failed"
    passing: bool = False


@dataclass(frozen=True, kw_only=True)
class DecodeJob(Job[DecodeTask, Outcome]):
    """What a worker of `decode-dataset` is made of.

    Attributes:
        settings: how to decode.
        digest: what `settings.digest` gives of the model.
        source: folder of the latents.
        dest: folder of the videos.
        folder: in `dest`, of this run's videos.
    """

    settings: DecodeSettings
    digest: str
    source: str
    dest: str
    folder: str

    def video_of(self, identity: str) -> str:
        """The file of a clip in `dest`."""
        return f"{self.folder}/{identity}{self.settings.suffix}"

    def worker(self) -> Callable[[DecodeTask], Outcome]:
        """See `Job.worker`."""
        from temporal_vae.distributed.dataset.decoder import Decoder

        return Decoder(self)

    def identities(self, task: DecodeTask) -> tuple[str, ...]:
        """See `Job.identities`."""
        return (task.identity,)

    def apart(self, task: DecodeTask) -> list[DecodeTask]:
        """See `Job.apart`."""
        return [task]

    def given_up(self, task: DecodeTask, deaths: int) -> Outcome:
        """See `Job.given_up`."""
        reason = f"{task.path}: a worker died {deaths} times while it decoded these latents"
        return Outcome(identity=task.identity, reason=reason)


def _decoder_probe(vae: Autoencoder) -> list[float]:
    """A few values of every tensor of the decoder."""
    return [
        value
        for name, weight in vae.named_parameters()
        if name.partition(".")[0] not in ENCODING
        for value in weight.detach().flatten()[:_PROBED].float().tolist()
    ]
