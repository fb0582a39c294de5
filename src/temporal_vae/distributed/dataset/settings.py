"""What is asked of a dataset: all that changes a number, or which clips there are."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from fractions import Fraction
from typing import Any, Literal

from temporal_vae.errors import InputError

FORMAT_VERSION = 1
"""Of clips, their identities and what describes them."""

DTYPES = ("float32", "bfloat16", "float16")
Pick = Literal["all", "head", "uniform"]
Short = Literal["drop", "keep"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How videos are cut into clips, and clips encoded.

    Attributes:
        clip_frames: frames of a clip.
        stride: frames from the start of a clip to that of the next; None is `clip_frames`.
        fps: frames per second to resample to; None keeps those of the source.
        pick: which clips of a video: `all`, the `head`, or `uniform`: spread evenly.
        clips: how many of a video, of `head` and `uniform`.
        short: what becomes of fewer frames than a clip has: `drop`, or `keep` as a shorter clip.
        area: pixels of a clip, about; its size is the bucket nearest to the video's aspect.
        size: `(width, height)` of all clips.
        multiple: of which the sides of buckets are multiples; None is chosen by the area.
        dtype: to compute in.
        latent_dtype: to store in; None is that of computation.
        sample: seed of samples to store; None stores means and log-variances.
        background: colour behind transparent pixels.
        hdr: `map` or `keep`, as in `VideoReader`.
        damaged: `error` leaves a damaged video out, `keep` takes what can be decoded.
        deinterlace: `auto` or `never`, as in `VideoReader`.

    Raises:
        InputError: a value out of range, or two that exclude each other.
    """

    clip_frames: int = 25
    stride: int | None = None
    fps: Fraction | None = None
    pick: Pick = "all"
    clips: int = 1
    short: Short = "drop"
    area: int | None = None
    size: tuple[int, int] | None = None
    multiple: int | None = None
    dtype: str = "float32"
    latent_dtype: str | None = None
    sample: int | None = None
    background: str = "black"
    hdr: str = "map"
    damaged: str = "error"
    deinterlace: str = "auto"

    def __post_init__(self) -> None:
        for name in ("clip_frames", "stride", "clips", "area", "multiple"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name}={value}: at least 1")
        if self.fps is not None and self.fps <= 0:
            raise InputError(f"fps={self.fps}: frames per second, above 0")
        if self.size is not None and min(self.size) < 1:
            raise InputError(f"size={self.size}: width and height are at least 1 pixel")
        if self.area is not None and self.size is not None:
            raise InputError(f"area={self.area} and size={self.size}: choose buckets of an area or one size")
        choices = {
            "pick": ("all", "head", "uniform"),
            "short": ("drop", "keep"),
            "hdr": ("map", "keep"),
            "damaged": ("error", "keep"),
            "deinterlace": ("auto", "never"),
            "dtype": DTYPES,
            "latent_dtype": (None, *DTYPES),
        }
        for name, allowed in choices.items():
            if (value := getattr(self, name)) not in allowed:
                raise InputError(f"{name}={value!r}: choose {', '.join(filter(None, allowed))}")

    @property
    def step(self) -> int:
        """Frames from the start of a clip to that of the next."""
        return self.stride or self.clip_frames

    @property
    def stored_dtype(self) -> str:
        """The dtype of stored latents."""
        return self.latent_dtype or self.dtype

    @property
    def reading(self) -> dict[str, str]:
        """Options of `VideoReader` that change a pixel."""
        return {name: getattr(self, name) for name in ("background", "hdr", "damaged", "deinterlace")}

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of the tensors that are stored of a clip."""
        return ("mean", "logvar") if self.sample is None else ("sample",)

    def numbers(self) -> dict[str, Any]:
        """What changes the numbers of a clip whose span and size are known; for JSON."""
        return {
            "format_version": FORMAT_VERSION,
            "resize": "cover, centre, lanczos",
            "dtype": self.dtype,
            "latent_dtype": self.stored_dtype,
            "sample": self.sample,
            **self.reading,
        }

    def to_json(self) -> dict[str, Any]:
        """All fields, for JSON; fractions as `"num/den"`."""
        values = asdict(self)
        values["fps"] = None if self.fps is None else str(self.fps)
        values["size"] = None if self.size is None else list(self.size)
        return values

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Settings:
        """Read what `to_json` wrote.

        Raises:
            InputError: a field that is not known, as a later release may write.
        """
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise InputError(f"settings: {', '.join(unknown)} is of another release; update this one")
        given = dict(values)
        given["fps"] = None if given.get("fps") is None else Fraction(given["fps"])
        given["size"] = None if given.get("size") is None else tuple(given["size"])
        return cls(**given)


def digest(value: Any) -> str:
    """SHA-256 of a value's canonical JSON, as hexadecimal digits."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()
