"""Tensors as they travel: raw little-endian bytes, shape and dtype beside them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from temporal_vae.serve.refusals import bad

TENSOR = "tensor/binary"
"""Media type of a tensor, as diffusers names it."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a tensor of clips or pictures lies.

    Attributes:
        clips: how many.
        frames: of each clip.
        channels, height, width: of a frame.
        by_clips: `(b, c, t, h, w)`, rather than `(t, c, h, w)`.
    """

    clips: int
    frames: int
    channels: int
    height: int
    width: int
    by_clips: bool

    @classmethod
    def of(cls, shape: Sequence[int]) -> Layout:
        """What a shape means.

        Raises:
            Refusal: packed latents.
        """
        if len(shape) == 3:
            raise bad(
                f"shape {tuple(shape)}: packed latents (b, n, c) are those of a transformer; unpack them to "
                "(b, c, h, w) first, as the pipeline does before it decodes"
            )
        if len(shape) == 4:
            frames, channels, height, width = shape
            return cls(clips=1, frames=frames, channels=channels, height=height, width=width, by_clips=False)
        clips, channels, frames, height, width = shape
        return cls(clips=clips, frames=frames, channels=channels, height=height, width=width, by_clips=True)

    @property
    def count(self) -> int:
        """Frames of all clips."""
        return self.clips * self.frames

    def to_frames(self, x: Tensor) -> Tensor:
        """As `(b*t, c, h, w)`, the frames of each clip one after the other."""
        return x.transpose(1, 2).flatten(0, 1) if self.by_clips else x

    def from_frames(self, x: Tensor) -> Tensor:
        """Frames `(b*t, c, h, w)` as they came: by clips, if they did."""
        return x.unflatten(0, (self.clips, self.frames)).transpose(1, 2) if self.by_clips else x


def itemsize(dtype: str) -> int:
    """Bytes of a value."""
    return torch.empty(0, dtype=getattr(torch, dtype)).element_size()


def nbytes(shape: Sequence[int], dtype: str) -> int:
    """Bytes of a tensor."""
    return prod(shape) * itemsize(dtype)


def read(body: bytearray, shape: Sequence[int], dtype: str) -> Tensor:
    """A tensor from its bytes, which it shares.

    Raises:
        Refusal: values that are not finite.
    """
    x = torch.frombuffer(body, dtype=getattr(torch, dtype)).reshape(tuple(shape))
    if not is_finite(x):
        raise bad("the tensor holds values that are not finite (NaN or infinite); make it again")
    return x


def is_finite(x: Tensor) -> bool:
    """Whether no value is infinite or not a number; without a copy."""
    least, most = torch.aminmax(x)
    return bool(least.isfinite() and most.isfinite())


def headers(x: Tensor) -> dict[str, str]:
    """What a client reads a tensor by."""
    return {"shape": json.dumps(list(x.shape)), "dtype": str(x.dtype).removeprefix("torch.")}


def content(x: Tensor) -> memoryview:
    """The bytes of a tensor."""
    return memoryview(x.contiguous().cpu().flatten().view(torch.uint8).numpy().data)
