"""Pictures through Pillow: one image, an animation (GIF, WebP, PNG, AVIF), or a series of image files."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL import __version__ as PILLOW

from temporal_vae.errors import MediaError, file_name
from temporal_vae.media.color import SRGB, flatten
from temporal_vae.media.container import Picture
from temporal_vae.media.decoding import check_pixels, tell_losses
from temporal_vae.media.frames import Color, Frames, VideoInfo
from temporal_vae.media.hdr import USUAL_PEAK, is_hdr, tone_map
from temporal_vae.media.profiles import declared_color, to_srgb

STILL_RATE = Fraction(24)
"""Frames per second of what has none: images and folders of them."""

IMAGE_SUFFIXES = {".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
_ORIENTATION = 0x0112  # EXIF tag; 5 and above swap width and height
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_JPEG_STREAMS = {".mjpeg", ".mjpg"}
_ANIMATED = {"AVIF", "GIF", "PNG", "WEBP"}
_SHORTEST = Fraction(1, 100)  # seconds; shorter delays are shown for a tenth, as browsers do
_SAMPLED = 12
"""Frames of an animation whose delays give its average rate; finding out all of them would mean decoding all."""

_MILLISECOND = Fraction(1, 1000)


def is_image(path: Path) -> bool:
    """Whether a file's first bytes are those of an image that Pillow reads, and not of a bare stream of JPEG images."""
    if path.suffix.lower() in _JPEG_STREAMS:
        return False
    head = _head(path)
    starts = (b"GIF8", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"BM")
    # FFmpeg would take a tile of a HEIC photograph for the whole; Pillow opens it with a plugin, or says that it can't.
    brands = (b"ftypavif", b"ftypavis", b"ftypheic", b"ftypheix", b"ftyphevc", b"ftypmif1", b"ftypmsf1")
    return head.startswith(starts) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP") or head[4:12] in brands


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(16)


class ImageSource:
    """One image file, still or animated.

    Args:
        path: an existing file.
        background: uint8 `(3,)`, shown through transparent parts.
        max_pixels: larger pictures are refused before they are decoded.
        map_hdr: show PQ and HLG as BT.709.
        keep_damaged: deliver the frames of an animation that come before damage, and say so.

    Attributes:
        last_shown: time of the last frame that `pictures` gave, and for how many seconds it is shown.
        info: what the file is; the rate of an animation is the average of its first frames.

    Raises:
        MediaError: not an image, damaged, or too large.
    """

    def __init__(
        self,
        path: Path,
        background: Frames,
        max_pixels: int,
        map_hdr: bool = True,
        *,
        keep_damaged: bool = False,
    ) -> None:
        self._path, self._background, self._max_pixels = path, background, max_pixels
        self._keep = keep_damaged
        self.last_shown: tuple[Fraction, Fraction] | None = None
        with _opened(path, max_pixels) as image:
            color = declared_color(path, image.format)
            self._hdr = color if map_hdr and is_hdr(color) else None
            self._first = 1 if image.info.get("default_image") else 0  # a PNG's picture for want of animation
            count = getattr(image, "n_frames", 1) - self._first if image.format in _ANIMATED else 1
            self._count = max(count, 1)
            rate = self._average_rate(image)
            width, height = upright_size(image)
            self.info = VideoInfo(
                path=str(path),
                codec=(image.format or "image").lower(),
                height=height,
                width=width,
                rate=rate,
                frames=self._count,
                duration=self._count / rate,
                time_base=_MILLISECOND if self._count > 1 else 1 / rate,
                color=color,
            )

    def _average_rate(self, image: Image.Image) -> Fraction:
        if self._count == 1:
            return STILL_RATE
        shown = min(self._count, _SAMPLED)
        delays = Fraction(0)
        for index in range(self._first, self._first + shown):
            try:
                image.seek(index)
                image.load()
            except Exception:  # of a dozen types; `pictures` raises it, after the frames before
                if index == self._first:
                    raise
                shown = index - self._first
                break
            delays += _delay(image)
        return shown / delays

    def pictures(self, start: Fraction) -> Iterator[Picture]:
        """All pictures; `start` makes no difference, as no animation can be entered half-way."""
        time = Fraction(0)
        with _opened(self._path, self._max_pixels) as image:
            for index in range(self._first, self._first + self._count):
                try:
                    if self._count > 1:
                        image.seek(index)
                    pixels = upright_pixels(image, self._path, self._background, self._hdr)
                except Exception as error:  # of a dozen types
                    if not self._keep or index == self._first:
                        raise
                    reason = " ".join(str(error).split())
                    tell_losses(self._path, reason, kept=index - self._first, expected=self._count)
                    return
                if self._count > 1:
                    self.last_shown = time, _delay(image)
                yield time, partial(_itself, pixels)
                time += _delay(image)


class ImageSeries:
    """Image files as the frames of a video, in natural order: frame2 before frame10.

    Args:
        paths: the files.
        name: what the user gave, for messages.
        rate: frames per second.
        background: uint8 `(3,)`, shown through transparent parts.
        max_pixels: larger pictures are refused before they are decoded.
        map_hdr: show PQ and HLG as BT.709.

    Attributes:
        info: what the series is; its colour is that of the first.
        paths: the images among the files, in order.

    Raises:
        MediaError: no image among the files, sizes that differ, a damaged file.
    """

    def __init__(
        self,
        paths: list[Path],
        name: str,
        rate: Fraction,
        background: Frames,
        max_pixels: int,
        map_hdr: bool = True,
    ) -> None:
        found = (path for path in paths if path.suffix.lower() in IMAGE_SUFFIXES)
        self.paths = tuple(sorted(found, key=_natural))
        self._background, self._max_pixels, self._map_hdr = background, max_pixels, map_hdr
        self.last_shown: tuple[Fraction, Fraction] | None = None  # nothing tells
        if not self.paths:
            raise MediaError(
                f"{name}: no images there ({', '.join(sorted(IMAGE_SUFFIXES))}); give a folder with some"
            )
        width, height = self._common_size()
        self.info = VideoInfo(
            path=name,
            codec="images",
            height=height,
            width=width,
            rate=rate,
            frames=len(self.paths),
            duration=len(self.paths) / rate,
            time_base=1 / rate,
            color=self._color_of_first(),
        )

    def pictures(self, start: Fraction) -> Iterator[Picture]:
        """Pictures from `start` seconds on, or from one before."""
        rate = self.info.rate
        for index in range(max(0, int(start * rate) - 1), len(self.paths)):
            yield index / rate, partial(self._render, self.paths[index])

    def _render(self, path: Path) -> Frames:
        with _opened(path, self._max_pixels) as image:
            color = declared_color(path, image.format) if self._map_hdr else SRGB
            pixels = upright_pixels(image, path, self._background, color if is_hdr(color) else None)
        height, width = pixels.shape[:2]
        if (width, height) != (self.info.width, self.info.height):  # turned by a tag behind the pixels
            raise _unequal(self.paths[0], (self.info.width, self.info.height), path, (width, height))
        return pixels

    def _color_of_first(self) -> Color:
        with _opened(self.paths[0], self._max_pixels) as image:
            return declared_color(self.paths[0], image.format)

    def _common_size(self) -> tuple[int, int]:
        """Look at the head of each file, so that a picture that does not fit is found before any work."""
        first: tuple[int, int] | None = None
        for path in self.paths:
            with _opened(path, self._max_pixels) as image:
                size = upright_size(image, load=False)
            first = first or size
            if size != first:
                raise _unequal(self.paths[0], first, path, size)
        assert first is not None
        return first


def _unequal(
    first: Path, first_size: tuple[int, int], other: Path, other_size: tuple[int, int]
) -> MediaError:
    return MediaError(
        f"{file_name(first)} is {first_size[0]}x{first_size[1]} and {file_name(other)} is "
        f"{other_size[0]}x{other_size[1]}; frames of a video have one size: resize or remove one of them"
    )


@contextmanager
def _opened(path: Path, max_pixels: int) -> Iterator[Image.Image]:
    """An image whose size is checked; whatever Pillow raises while it is in use becomes a `MediaError`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # max_pixels decides
            image = Image.open(path)
        with image:
            check_pixels(*image.size, path, max_pixels)
            yield image
    except MediaError:
        raise
    except Image.DecompressionBombError:
        raise MediaError(f"{file_name(path)}: the image is larger than Pillow opens; scale it down") from None
    except Exception as error:  # Pillow's plugins raise a dozen types on damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, UnidentifiedImageError) and _head(path)[4:8] == b"ftyp":
            reason = f"Pillow {PILLOW} opens AVIF from 11.3 on, HEIC with pillow-heif, and neither if damaged"
        raise MediaError(
            f"{file_name(path)}: not a readable image ({reason}); copy or export it again"
        ) from error


def upright_pixels(image: Image.Image, path: Path, background: Frames, hdr: Color | None) -> Frames:
    """The current picture, upright sRGB `(h, w, 3)`. The high byte stays of 16-bit colours.

    `hdr` is the colour of a picture of PQ or HLG that is to be mapped.
    """
    icc, turn = image.info.get("icc_profile"), _TURNS.get(_orientation(image))
    if image.mode.startswith("I"):  # 16-bit grey, in some versions of Pillow widened to 32 bits
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise MediaError(f"{file_name(path)}: 32-bit grey values; convert it to 8 or 16 bits")
        image = Image.fromarray((values >> 8).astype(np.uint8))
    elif image.mode == "F":
        raise MediaError(
            f"{file_name(path)}: floating-point values of unknown range; convert it to 8 or 16 bits"
        )
    shown = to_srgb(image, None if hdr else icc, path)
    pixels = np.array(shown if turn is None else shown.transpose(turn))
    if hdr:
        pixels[..., :3] = tone_map(pixels[..., :3] * np.uint16(257), hdr, USUAL_PEAK)
    return flatten(pixels, background) if shown.mode == "RGBA" else pixels


def _orientation(image: Image.Image) -> int:
    """How a picture lies, 1 to 8 as in EXIF.

    AVIF is turned by its boxes `irot` and `imir` alone, which Pillow hands on as EXIF in the place of the file's own
    (ISO/IEC 23000-22: EXIF and XMP only tell). Of the others, Pillow finds EXIF and XMP.
    """
    if image.format != "AVIF":
        return int(image.getexif().get(_ORIENTATION, 1))
    exif = Image.Exif()
    exif.load(image.info.get("exif", b""))
    return int(exif.get(_ORIENTATION, 1))


def upright_size(image: Image.Image, load: bool = True) -> tuple[int, int]:
    """`(width, height)` once turned upright. A PNG may hold its orientation behind the pixels: `load` looks there."""
    known = load or image.format != "PNG" or "exif" in image.info
    turned = known and _orientation(image) >= 5
    return image.size[::-1] if turned else image.size


def _delay(image: Image.Image) -> Fraction:
    """Seconds for which the current picture of an animation is shown."""
    seconds = Fraction(round(image.info.get("duration") or 0)) * _MILLISECOND
    return seconds if seconds > _SHORTEST else Fraction(1, 10)


def _natural(path: Path) -> list[tuple[int, int, str]]:
    """Sort key that reads runs of digits as numbers."""
    parts = re.findall(r"\d+|\D+", str(path))
    return [
        (0, int(part), part) if part.isascii() and part.isdigit() else (1, 0, part.lower()) for part in parts
    ]


def _itself(pixels: Frames) -> Frames:
    return pixels
