"""How a video is cut into clips, and which part of its picture they show. Whole numbers and fractions only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from math import ceil, isqrt

import numpy as np

from temporal_vae.distributed.dataset.probing import Probe
from temporal_vae.distributed.dataset.settings import Settings
from temporal_vae.errors import InputError
from temporal_vae.media.timing import ROUNDING, end_at_rate

MOST_ASPECT = 4
"""Buckets are at most so many times as wide as high, or as high as wide."""

_AHEAD = 2
"""Frames before a clip that are decoded with it: where frames are made of fields, those of its first lie before it."""

_FEW_STEPS = 8  # multiples along the side of a square bucket: so many steps of aspect there are at least
_MULTIPLES = (64, 32, 16, 8)


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """When a clip begins and ends, as in `ClipTask`."""

    start: Fraction
    last: Fraction
    end: Fraction
    frames: int
    read_from: Fraction


@dataclass(frozen=True, kw_only=True, slots=True)
class Cut:
    """The clips of a stretch of video.

    Attributes:
        spans: the clips.
        frames: of the stretch, at the rate of the clips.
        tail: frames behind the last whole clip that are in none.
    """

    spans: list[Span]
    frames: int
    tail: int


class Unfit(Exception):
    """A video whose picture can't be encoded as it is asked."""


def cut(probe: Probe, settings: Settings, start: Fraction | None, end: Fraction | None) -> Cut:
    """Cut a stretch of a video, `start` to `end` in seconds, into clips. A stretch without frames has none."""
    ticks, tick = probe.timeline, probe.tick
    first = 0 if start is None else int(np.searchsorted(ticks, ceil((start - ROUNDING) / tick)))
    stop = len(ticks) if end is None else int(np.searchsorted(ticks, ceil((end - ROUNDING) / tick)))
    if first >= stop:
        return Cut(spans=[], frames=0, tail=0)
    if settings.fps is None:
        count = stop - first
    else:
        limit = end_at_rate(int(ticks[-1]) * tick, probe.shown, settings.fps)
        limit = limit if end is None else min(limit, end - ROUNDING)
        count = max(0, ceil((limit - int(ticks[first]) * tick) * settings.fps))

    def time_of(index: int) -> Fraction:
        return int(ticks[index]) * tick if index < len(ticks) else int(ticks[-1]) * tick + probe.shown

    def span(begin: int, frames: int) -> Span:
        if settings.fps is None:
            here = first + begin
            times = time_of(here), time_of(here + frames - 1), time_of(here + frames)
        else:
            origin = time_of(first)
            at = [origin + (begin + more) / settings.fps for more in (0, frames - 1, frames)]
            times = at[0], at[1], at[2]
            here = int(np.searchsorted(ticks, times[0] // tick, side="right")) - 1
        begins, last, over = times
        read_from = time_of(max(0, here - _AHEAD))
        return Span(start=begins, last=last, end=over, frames=frames, read_from=read_from)

    ranges = pieces(count, settings)
    covered = max((begin + frames for begin, frames in ranges), default=0)
    tail = count - covered if settings.pick == "all" else 0
    return Cut(spans=[span(*each) for each in ranges], frames=count, tail=tail)


def pieces(count: int, settings: Settings) -> list[tuple[int, int]]:
    """First frames and lengths of the clips of `count` frames."""
    length, step = settings.clip_frames, settings.step
    if count < length:
        return [(0, count)] if settings.short == "keep" and count else []
    if settings.pick == "uniform":
        room, most = count - length, settings.clips
        starts = [room // 2] if most == 1 else [(number * room) // (most - 1) for number in range(most)]
        return [(begin, length) for begin in dict.fromkeys(starts)]
    found = [(begin, length) for begin in range(0, count - length + 1, step)]
    behind = found[-1][0] + step
    if settings.short == "keep" and found[-1][0] + length < count and behind < count:
        found.append((behind, count - behind))
    return found if settings.pick == "all" else found[: settings.clips]


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """Which part of a frame is encoded, in which size: see `ClipTask`."""

    box: tuple[Fraction, Fraction, Fraction, Fraction]
    size: tuple[int, int]

    def cut_off(self, width: int, height: int) -> Fraction:
        """The share of a frame that is left out."""
        left, top, right, bottom = self.box
        return 1 - (right - left) * (bottom - top) / (width * height)


@lru_cache(maxsize=4096)
def picture_of(settings: Settings, width: int, height: int, pixel_aspect: Fraction, factor: int) -> Picture:
    """What is encoded of frames of a size.

    A picture is scaled so that it covers its bucket and is cut off evenly at two sides; it is never stretched, but for
    pixels that are not square, which become so. In its own size, it is cut down to multiples of the model's factor.

    Args:
        settings: `area`, `size` and `multiple` of it.
        width: of the frames.
        height: of the frames.
        pixel_aspect: width of their pixels over the height.
        factor: pixels of the model for each latent.

    Raises:
        Unfit: a picture smaller than the factor.
    """
    if settings.size is None and settings.area is None:
        size = width // factor * factor, height // factor * factor
        if not all(size):
            raise Unfit(f"frames of {width}x{height} are smaller than the model's {factor}x{factor} pixels")
        left, top = Fraction((width - size[0]) // 2), Fraction((height - size[1]) // 2)
        return Picture(box=(left, top, left + size[0], top + size[1]), size=size)
    aspect = Fraction(width, height) * pixel_aspect
    size = settings.size or nearest(buckets(settings, factor), aspect)
    scale = max(size[0] / (width * pixel_aspect), Fraction(size[1], height))
    kept_width, kept_height = size[0] / (scale * pixel_aspect), size[1] / scale
    left, top = (width - kept_width) / 2, (height - kept_height) / 2
    return Picture(box=(left, top, width - left, height - top), size=size)


def nearest(sizes: Sequence[tuple[int, int]], aspect: Fraction) -> tuple[int, int]:
    """The size whose aspect is nearest, by the ratio of both; the larger of two."""

    def distance(size: tuple[int, int]) -> tuple[Fraction, int]:
        own = Fraction(*size)
        return max(own / aspect, aspect / own), -size[0] * size[1]

    return min(sizes, key=distance)


@lru_cache
def buckets(settings: Settings, factor: int) -> tuple[tuple[int, int], ...]:
    """Sizes of about an area, of all aspects up to `MOST_ASPECT`, with sides that are multiples of a number.

    Raises:
        InputError: an area of less than one multiple.
    """
    assert settings.area is not None
    area, multiple = settings.area, multiple_of(settings, factor)
    if area < multiple**2:
        raise InputError(f"area={area}: with sides of multiples of {multiple}, it is {multiple**2} at least")
    found = set()
    for side in range(multiple, isqrt(area * MOST_ASPECT) + multiple, multiple):
        other = max(multiple, round(Fraction(area, side * multiple)) * multiple)
        if max(side, other) <= MOST_ASPECT * min(side, other):
            found |= {(side, other), (other, side)}
    return tuple(sorted(found))


def check(settings: Settings, factor: int) -> None:
    """Whether sizes of clips go with the factor of a model.

    Raises:
        InputError: they do not.
    """
    if settings.size is not None and any(side % factor for side in settings.size):
        width, height = settings.size
        raise InputError(f"size={width}x{height}: sides are multiples of {factor} for this model")
    if settings.area is not None:
        buckets(settings, factor)


def multiple_of(settings: Settings, factor: int) -> int:
    """Of which number the sides of buckets are multiples: by default up to 64, and less for small areas.

    Raises:
        InputError: one that the model's factor does not divide.
    """
    if settings.multiple is not None:
        if settings.multiple % factor:
            raise InputError(f"multiple={settings.multiple}: it is a multiple of {factor} for this model")
        return settings.multiple
    fitting = [each for each in _MULTIPLES if settings.area and (each * _FEW_STEPS) ** 2 <= settings.area]
    return max(factor, fitting[0] if fitting else factor)
