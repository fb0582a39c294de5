"""What a report keeps of the frames that pass by: a few, made small, and the sum of all errors."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from temporal_vae.media.frames import Frames

DETAIL = 144, 72  # width and height in pixels of what is shown enlarged
_FACTORS = (16, 8, 4, 2, 1)  # by which differences are amplified
_BRIGHT = 230  # levels that few amplified differences exceed
_BLOCK = 16  # pixels of the side of what is compared to find it
_QUALITY = 90  # of JPEG
_STEPS = (1, 2, 5)  # the ends of scales, times a power of ten
_HEAT = ((8, 8, 20), (58, 18, 92), (140, 41, 99), (219, 82, 60), (250, 160, 40), (252, 244, 190))

Item = TypeVar("Item")


class Weakest(Generic[Item]):
    """Keeps the items of lowest score in a series, no two of them close to each other.

    Args:
        most: how many are kept at most.
        apart: least distance of their numbers.
    """

    def __init__(self, most: int, apart: int) -> None:
        self._most, self._apart = most, apart
        self._kept: dict[int, tuple[float, Item]] = {}

    def wants(self, number: int, score: float) -> bool:
        """Whether an item is to be added, rather than those that are kept."""
        last = max(self._kept, default=-self._apart)
        if number - last < self._apart:
            return score < self._kept[last][0]
        return len(self._kept) < self._most or score < self._best()[1]

    def add(self, number: int, score: float, item: Item) -> None:
        """Keep an item that is wanted; numbers come in order."""
        last = max(self._kept, default=-self._apart)
        if number - last < self._apart:
            del self._kept[last]
        elif len(self._kept) == self._most:
            del self._kept[self._best()[0]]
        self._kept[number] = score, item

    def ranked(self) -> list[tuple[int, Item]]:
        """What is kept, the lowest score first."""
        order = sorted(self._kept, key=lambda number: (self._kept[number][0], number))
        return [(number, self._kept[number][1]) for number in order]

    def _best(self) -> tuple[int, float]:
        number = max(self._kept, key=lambda number: (self._kept[number][0], number))
        return number, self._kept[number][0]


class ErrorMap:
    """Mean absolute error of each pixel over all frames, in 8-bit levels."""

    def __init__(self) -> None:
        self._sum: NDArray[np.float32] | None = None
        self._count = 0

    def add(self, error: Frames) -> None:
        """Add the absolute error of a frame, `(h, w, 3)`."""
        mean = error.mean(axis=2, dtype=np.float32)
        self._sum = mean if self._sum is None else np.add(self._sum, mean, out=self._sum)
        self._count += 1

    def mean(self) -> NDArray[np.float32]:
        """`(h, w)`."""
        assert self._sum is not None
        return self._sum / np.float32(self._count)


@dataclass(frozen=True, kw_only=True)
class Shot:
    """One frame of source and result, or a part of one.

    Attributes:
        source: as it was.
        result: as it became.
        error: their absolute difference.
        place: of a part, column and row of its first pixel.
    """

    source: Image.Image
    result: Image.Image
    error: Image.Image
    place: tuple[int, int] | None = None


def shot(source: Frames, result: Frames, error: Frames, size: tuple[int, int]) -> Shot:
    """A whole frame, `(h, w, 3)` each, in a size of `(width, height)`."""
    return Shot(source=_resized(source, size), result=_resized(result, size), error=_resized(error, size))


def detail(source: Frames, result: Frames, error: Frames) -> Shot | None:
    """The part that differs most, where frames are large enough that it shows more than the whole; `(h, w, 3)` each."""
    (height, width), (across, down) = error.shape[:2], DETAIL
    if width < 2 * across or height < 2 * down:
        return None
    levels = Image.fromarray(error.mean(axis=2).astype(np.uint8)).reduce(_BLOCK)
    row, column = np.unravel_index(np.asarray(levels).argmax(), (levels.height, levels.width))
    left = _within(int(column) * _BLOCK + (_BLOCK - across) // 2, width - across)
    top = _within(int(row) * _BLOCK + (_BLOCK - down) // 2, height - down)
    part = np.s_[top : top + down, left : left + across]
    cut = (Image.fromarray(np.ascontiguousarray(frame[part])) for frame in (source, result, error))
    return Shot(source=next(cut), result=next(cut), error=next(cut), place=(left, top))


def amplification(shots: Iterable[Shot]) -> int:
    """How many times differences can be amplified for all but a few of their pixels to stay within the scale."""
    most = max(float(np.quantile(np.asarray(shot.error), 0.998)) for shot in shots)
    return next((factor for factor in _FACTORS if most * factor <= _BRIGHT), 1)


def amplified(error: Image.Image, factor: int) -> Image.Image:
    """A difference as it is shown."""
    return error.point([min(level * factor, 255) for level in range(256)] * 3)


def fitted(width: int, height: int, pixel_aspect: float, most: int) -> tuple[int, int]:
    """Width and height as they are shown, no side longer than `most`."""
    across = width * pixel_aspect
    scale = min(1.0, most / max(across, height))
    return max(1, round(across * scale)), max(1, round(height * scale))


def heat(levels: NDArray[np.float32], size: tuple[int, int]) -> tuple[Image.Image, float]:
    """A map of errors in colours, and the error that the brightest stands for."""
    end = _scale_end(float(np.quantile(levels, 0.995)))
    places = np.linspace(0, 255, len(_HEAT))
    colors = np.stack([np.interp(np.arange(256), places, channel) for channel in zip(*_HEAT, strict=True)], 1)
    indices = (levels * (255 / end)).clip(0, 255).astype(np.uint8)
    small = np.asarray(Image.fromarray(indices).resize(size, _kernel(indices, size)))
    return Image.fromarray(np.rint(colors).astype(np.uint8)[small]), end


def heat_colors() -> list[str]:
    """The colours of the scale, from no error to the most, as CSS."""
    return [f"rgb({red} {green} {blue})" for red, green, blue in _HEAT]


def as_uri(picture: Image.Image, *, exact: bool = False) -> str:
    """A picture inside of a page: JPEG without subsampled colours, or PNG where it is to be exact."""
    buffer = io.BytesIO()
    if exact:
        picture.save(buffer, format="PNG", optimize=True)
    else:
        picture.save(buffer, format="JPEG", quality=_QUALITY, subsampling=0)
    kind = "png" if exact else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def errors(source: Frames, result: Frames) -> Iterator[Frames]:
    """Absolute error of each frame."""
    for first, second in zip(source, result, strict=True):
        yield np.abs(first.astype(np.int16) - second).astype(np.uint8)


def _resized(frame: Frames, size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(frame).resize(size, _kernel(frame, size))


def _kernel(frame: NDArray[np.uint8], size: tuple[int, int]) -> Image.Resampling:
    """Means of pixels where a picture gets smaller; where it is stretched, nothing is invented."""
    return (
        Image.Resampling.BOX
        if size[0] * size[1] < frame.shape[0] * frame.shape[1]
        else Image.Resampling.NEAREST
    )


def _scale_end(level: float) -> float:
    """A round number from `level` up; of a map without errors, one level."""
    if level <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(level))
    return next(power * step for step in (*_STEPS, 10) if power * step >= level)


def _within(place: int, most: int) -> int:
    return min(max(place, 0), most)
