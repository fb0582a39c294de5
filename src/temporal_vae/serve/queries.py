"""What clients ask with: the parameters of `remote_decode` and `remote_encode` of diffusers, and a few of our own."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Length = Annotated[int, Field(ge=1, le=2**31 - 1)]
Shape = Annotated[list[Length], Field(min_length=3, max_length=5)]
DType = Literal["float16", "bfloat16", "float32"]


def _not_zero(value: float) -> float:
    if value == 0:
        raise ValueError("latents can't be divided by zero")
    return value


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
    fps: Annotated[float, Field(gt=0, le=1000)] = Field(24, description="mp4: frames per second.")


class EncodeQuery(_Query):
    """Parameters of `POST /encode`; the body is the tensor, or without a shape an image."""

    shape: Shape | None = Field(
        None, description="Of a tensor of pixels in [-1, 1]: (n, c, h, w) or (b, c, t, h, w)."
    )
    dtype: DType | None = Field(None, description="Of the tensor, little-endian.")
