"""What a call of the model can work with: said before anything is computed, in words of the caller."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

from torch import Tensor

from temporal_vae.errors import ConfigError, InputError
from temporal_vae.model.blocks import GROUPS

DOWN_BLOCK, UP_BLOCK = "DownEncoderBlock2D", "UpDecoderBlock2D"
"""Types of the levels of encoders, and of the decoders of images."""
IMAGE_BLOCKS = {
    "down_block_types": (DOWN_BLOCK, "AttnDownEncoderBlock2D"),
    "up_block_types": (UP_BLOCK, "AttnUpDecoderBlock2D"),
}
"""Those of image autoencoders, without and with attentions."""

_AXES = "(frames, channels, height, width)"


def check_config(
    *,
    down_block_types: tuple[str, ...],
    block_out_channels: tuple[int, ...],
    scaling_factor: float,
    **counts: int,
) -> None:
    """Raise `ConfigError` for values from which no network can be built; `counts` are whole numbers from 1 up."""
    _check_counts(**counts)
    _check_levels("down_block_types", down_block_types, block_out_channels, DOWN_BLOCK)
    for width in block_out_channels:
        _check_width(width, GROUPS)
    if not isinstance(scaling_factor, (int, float)) or not scaling_factor > 0:
        raise ConfigError(f"configuration: scaling_factor={scaling_factor!r} must be a number above 0")


def check_image_config(
    *,
    down_block_types: tuple[str, ...],
    up_block_types: tuple[str, ...],
    block_out_channels: tuple[int, ...],
    decoder_block_out_channels: tuple[int, ...] | None,
    norm_num_groups: int,
    act_fn: str,
    sample_size: int | tuple[int, int],
    **counts: int,
) -> None:
    """As `check_config`, for an image autoencoder."""
    _check_counts(norm_num_groups=norm_num_groups, **counts)
    decoder_widths = decoder_block_out_channels or block_out_channels
    levels = (
        ("down_block_types", down_block_types, block_out_channels),
        ("up_block_types", up_block_types, decoder_widths),
    )
    for name, kinds, widths in levels:
        _check_levels(name, kinds, widths, *IMAGE_BLOCKS[name])
    if len(decoder_widths) != len(block_out_channels):
        raise ConfigError(
            f"configuration: decoder_block_out_channels has {len(decoder_widths)} entries and block_out_channels "
            f"{len(block_out_channels)}; encoder and decoder must have as many levels"
        )
    for width in (*block_out_channels, *decoder_widths):
        _check_width(width, norm_num_groups)
    if act_fn not in ("silu", "swish"):
        raise ConfigError(
            f"configuration: act_fn={act_fn!r} must be 'silu', the function of every published model"
        )
    sizes = sample_size if isinstance(sample_size, (list, tuple)) else [sample_size]
    if not all(map(_is_count, sizes)) or not sizes:
        raise ConfigError(f"configuration: sample_size={sample_size!r} must be a number of pixels, or two")


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


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if not _is_count(count):
            raise ConfigError(f"configuration: {name}={count!r} must be a whole number of at least 1")


def _check_levels(name: str, kinds: Sequence[str], widths: Sequence[int], *allowed: str) -> None:
    """That levels are lists of one type and one width each."""
    for key, values in ((name, kinds), ("block_out_channels", widths)):
        if not isinstance(values, (list, tuple)):
            raise ConfigError(f"configuration: {key}={values!r} must be a list with one entry per level")
    if len(kinds) != len(widths) or not widths:
        raise ConfigError(
            f"configuration: {name} has {len(kinds)} entries and block_out_channels {len(widths)}; give one of each "
            "per level, at least one level"
        )
    for kind in kinds:
        if kind not in allowed:
            raise ConfigError(
                f"configuration: {name} holds {kind!r}; every level is a {' or '.join(map(repr, allowed))}"
            )


def _check_width(width: int, groups: int) -> None:
    if not _is_count(width) or width % groups:
        raise ConfigError(
            f"configuration: block_out_channels holds {width!r}; each must be a positive multiple of {groups}, the "
            "number of groups of every norm"
        )


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
