"""What a call of the model can work with: said before anything is computed, in words of the caller."""

from __future__ import annotations

from numbers import Integral
from typing import Any

from torch import Tensor

from temporal_vae.errors import ConfigError, InputError
from temporal_vae.model.blocks import GROUPS

DOWN_BLOCK = "DownEncoderBlock2D"
"""Type of every level of the encoder."""

_AXES = "(frames, channels, height, width)"


def check_config(
    *,
    down_block_types: tuple[str, ...],
    block_out_channels: tuple[int, ...],
    scaling_factor: float,
    **counts: int,
) -> None:
    """Raise `ConfigError` for values from which no network can be built; `counts` are whole numbers from 1 up."""
    for name, count in counts.items():
        if not _is_count(count):
            raise ConfigError(f"configuration: {name}={count!r} must be a whole number of at least 1")
    levels = {"down_block_types": down_block_types, "block_out_channels": block_out_channels}
    for name, values in levels.items():
        if not isinstance(values, (list, tuple)):
            raise ConfigError(f"configuration: {name}={values!r} must be a list with one entry per level")
    if len(down_block_types) != len(block_out_channels) or not block_out_channels:
        raise ConfigError(
            f"configuration: down_block_types has {len(down_block_types)} entries and block_out_channels "
            f"{len(block_out_channels)}; give one of each per level, at least one level"
        )
    for block in down_block_types:
        if block != DOWN_BLOCK:
            raise ConfigError(
                f"configuration: down_block_types holds {block!r}; every level is a {DOWN_BLOCK!r}"
            )
    for width in block_out_channels:
        if not _is_count(width) or width % GROUPS:
            raise ConfigError(
                f"configuration: block_out_channels holds {width!r}; each must be a positive multiple of {GROUPS}, "
                "the number of groups of every norm"
            )
    if not isinstance(scaling_factor, (int, float)) or not scaling_factor > 0:
        raise ConfigError(f"configuration: scaling_factor={scaling_factor!r} must be a number above 0")


def check_frames(x: Any, *, channels: int | None, smallest: int) -> None:
    """Raise `InputError` unless `x` can be encoded; `smallest` is the least height and width in pixels."""
    _check_batch("encode", x, channels)
    if min(x.shape[-2:]) < smallest:
        raise InputError(
            f"encode: frames of {x.shape[-2]}x{x.shape[-1]} are too small; "
            f"pad them to at least {smallest}x{smallest} pixels"
        )


def check_latents(z: Any, num_frames: Any, *, channels: int | None) -> None:
    """Raise `InputError` unless `z` can be decoded as clips of `num_frames`."""
    _check_batch("decode", z, channels)
    if not _is_count(num_frames) or z.shape[0] % num_frames:
        raise InputError(
            f"decode: a batch of {z.shape[0]} latents is not made of clips of num_frames={num_frames}; "
            "pass the number of frames of each clip, a whole number that divides the batch"
        )


def channels_into(part: Any) -> int | None:
    """How many channels an encoder or decoder takes; None for one that is wrapped so that nobody can tell."""
    channels = getattr(getattr(part, "conv_in", None), "in_channels", None)
    return channels if isinstance(channels, int) else None


def _check_batch(call: str, x: Any, channels: int | None) -> None:
    if not isinstance(x, Tensor):
        raise InputError(f"{call}: got a {type(x).__name__}; pass a float tensor {_AXES}")
    if x.ndim != 4:
        raise InputError(
            f"{call}: got {x.ndim} axes, {tuple(x.shape)}; pass {_AXES}, the frames of all clips on the first axis"
        )
    if not x.is_floating_point():
        raise InputError(f"{call}: got {x.dtype}; pass a float tensor, frames as values in [-1, 1]")
    if channels is not None and x.shape[1] != channels:
        raise InputError(
            f"{call}: got {x.shape[1]} channels, {tuple(x.shape)}; this model takes {channels}: {_AXES}"
        )
    if x.numel() == 0:
        raise InputError(
            f"{call}: got an empty tensor {tuple(x.shape)}; pass at least one frame of one pixel"
        )


def _is_count(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 1
