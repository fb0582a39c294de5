"""What image files say of their colours: ICC profiles, and the numbers of ITU-T H.273 that mark PQ and HLG."""

from __future__ import annotations

import logging
from functools import lru_cache
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms

from temporal_vae.errors import file_name
from temporal_vae.media.color import PRIMARIES, SRGB, TRANSFERS, name_of
from temporal_vae.media.frames import Color
from temporal_vae.media.hdr import is_hdr

logger = logging.getLogger(__name__)

_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # of pictures, for each space of profiles
_HEAD = 65536  # bytes in which files say it
_ROUNDING = 1  # levels by which sRGB profiles differ


def declared_color(path: Path, kind: str | None) -> Color:
    """PQ or HLG, where an AVIF, HEIF or PNG file says so; else sRGB."""
    mark, width = (b"cICP", 1) if kind == "PNG" else (b"colrnclx", 2)
    if kind not in ("AVIF", "HEIF", "PNG"):
        return SRGB
    with path.open("rb") as file:
        head = file.read(_HEAD)
    at = head.find(mark) + len(mark)
    numbers = [int.from_bytes(head[at + n * width : at + (n + 1) * width], "big") for n in range(2)]
    primaries, transfer = name_of(PRIMARIES, numbers[0]), name_of(TRANSFERS, numbers[1])
    color = Color(matrix="rgb", range="full", primaries=primaries, transfer=transfer)
    return color if mark in head and is_hdr(color) else SRGB


def to_srgb(image: Image.Image, icc: bytes | None, path: Path) -> Image.Image:
    """RGB or RGBA of a picture whose numbers mean what its profile says.

    Args:
        image: of any mode that Pillow converts to RGB.
        icc: the profile; without one, and where it is damaged or made for other modes, the numbers stay.
        path: for messages.
    """
    transparent = image.has_transparency_data
    plain = image.convert("RGBA" if transparent else "RGB")
    if not icc:
        return plain
    mode = _mode_of(icc)
    if mode is None:
        _tell_damaged(file_name(path))
        return plain
    grey = image.mode in ("1", "L", "LA")
    fits = image.mode == "CMYK" if mode == "CMYK" else grey if mode == "L" else image.mode != "CMYK"
    transform = _transform(icc, mode) if fits else None
    if transform is None:
        return plain
    shown = transform.apply(plain.convert("RGB") if mode == "RGB" else image.convert(mode))
    if transparent:
        shown.putalpha(plain.getchannel("A"))
    return shown


@lru_cache(maxsize=16)
def _mode_of(icc: bytes) -> str | None:
    """The mode of pictures that a profile is for, `None` where it can't be read."""
    try:
        space = ImageCms.ImageCmsProfile(BytesIO(icc)).profile.xcolor_space.strip()
    except (OSError, ImageCms.PyCMSError):
        return None
    return _MODES.get(space)


@lru_cache(maxsize=16)
def _transform(icc: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """What brings pictures of a profile to sRGB; `None` where they are sRGB but for rounding."""
    try:
        profile, srgb = ImageCms.ImageCmsProfile(BytesIO(icc)), ImageCms.createProfile("sRGB")
        transform = ImageCms.buildTransform(profile, srgb, mode, "RGB")
    except (OSError, ImageCms.PyCMSError):
        return None
    if mode == "CMYK":
        return transform
    levels = np.arange(0, 256, 17, dtype=np.uint8)  # 16 of each channel
    samples = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(64, 64, 3)
    image = Image.fromarray(samples).convert(mode)
    change = np.asarray(transform.apply(image)).astype(int) - np.asarray(image.convert("RGB"))
    return transform if np.abs(change).max() > _ROUNDING else None


@lru_cache
def _tell_damaged(name: str) -> None:
    logger.warning("%s: its colour profile can't be used; its colours are taken to be sRGB", name)
