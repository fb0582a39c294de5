"""What clients ask with: the parameters of `remote_decode` and `remote_encode` of diffusers, and a few of our own."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from temporal_vae.amounts import parse_memory

Length = Annotated[int, Field(ge=1, le=2**31 - 1)]
Shape = Annotated[list[Length], Field(min_length=3, max_length=5)]
DType = Literal["float16", "bfloat16", "float32"]


def _not_zero(value: float) -> float:
    if value == 0:
        raise ValueError("latents can't be divided by zero; send another number, or nothing")
    return value


def _amount(value: str) -> str:
    parse_memory(value)
    return value


def _size(value: str) -> str:
    if not re.fullmatch(r"[1-9][0-9]{0,4}(x[1-9][0-9]{0,4})?", value):
        raise ValueError("write 320 or 320x180 (width x height, in pixels)")
    return value


def _clip_frames(value: object) -> object:
    """Form fields are text."""
    text = str(value)
    if text != "all" and not (text.isdecimal() and 1 <= int(text) <= 10**6):
        raise ValueError("write a number of frames from 1 up, or all")
    return text if text == "all" else int(text)


Factor = Annotated[float, Field(allow_inf_nan=False), AfterValidator(_not_zero)]
Shift = Annotated[float, Field(allow_inf_nan=False)]


class _Query(BaseModel):
    model_config = ConfigDict(extra="forbid")

    scaling_factor: Factor | None = Field(None, description="What latents of the client are multiplied by.")
    shift_factor: Shift | None = Field(None, description="What was subtracted from them before.")
    do_scaling: bool | None = Field(
        None, description="Without a factor: scale and shift by the numbers of the model's configuration."
    )


class DecodeQuery(_Query):
    """Parameters of `POST /decode`; the body is the tensor."""

    shape: Shape = Field(
        description="Of the tensor: (b, c, t, h, w) are clips, (t, c, h, w) is one, (1, c, h, w) a picture."
    )
    dtype: DType = Field(description="Of the tensor, little-endian.")
    output_type: Literal["pil", "pt", "mp4"] = Field(
        "pil",
        description="pt: a tensor. pil: an image, or where the client accepts tensor/binary, a tensor "
        "(t, c, h, w) in [0, 1]. mp4: a video.",
    )
    image_format: Literal["jpg", "png"] = Field("jpg", description="Of an image.")
    partial_postprocess: bool = Field(False, description="pt: uint8 (n, h, w, c) rather than about [-1, 1].")
    height: Length | None = Field(None, description="Of the pictures in pixels, if the client tells.")
    width: Length | None = Field(None, description="Of the pictures in pixels, if the client tells.")
    fps: Annotated[float, Field(ge=0.01, le=1000)] = Field(24, description="mp4: frames per second.")


class EncodeQuery(_Query):
    """Parameters of `POST /encode`; the body is the tensor, or without a shape an image."""

    shape: Shape | None = Field(
        None, description="Of a tensor of pixels in [-1, 1]: (n, c, h, w) or (b, c, t, h, w)."
    )
    dtype: DType | None = Field(None, description="Of the tensor, little-endian.")


class JobOptions(BaseModel):
    """Fields of `POST /jobs` beside the file."""

    model_config = ConfigDict(extra="forbid")

    clip_frames: Annotated[int | Literal["all"], BeforeValidator(_clip_frames)] = Field(
        25, description="Frames decoded as one clip, or all. It changes the pixels."
    )
    overlap: Annotated[int, Field(ge=0)] = Field(
        0, description="Frames that clips share and cross-fade over."
    )
    memory_limit: Annotated[str, AfterValidator(_amount)] | None = Field(
        None,
        description="What the model may take, such as 1GiB: at most what the server has. The same pixels.",
    )
    size: Annotated[str, AfterValidator(_size)] | None = Field(
        None, description="Scale to WIDTH or WIDTHxHEIGHT pixels."
    )
    frames: Annotated[int, Field(ge=1)] | None = Field(None, description="The most frames to read.")
    start: Annotated[float, Field(ge=0, le=1e6)] = Field(0, description="Seconds to skip at the beginning.")
    fps: Annotated[float, Field(gt=0, le=1000)] | None = Field(
        None, description="Frames per second to resample to."
    )

    @property
    def width_and_height(self) -> tuple[int, int | None] | None:
        """`size` as numbers."""
        if self.size is None:
            return None
        width, _, height = self.size.partition("x")
        return int(width), int(height) if height else None
