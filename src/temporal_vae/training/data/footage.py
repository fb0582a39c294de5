"""Frames of the items that a run learns from, read where they are needed; small videos are kept decoded."""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path

import numpy as np

from temporal_vae.errors import MediaError
from temporal_vae.media.frames import Frames, VideoInfo, exact
from temporal_vae.media.reader import PastEnd, VideoReader
from temporal_vae.media.timing import at_rate
from temporal_vae.training.data.scenes import render_scene
from temporal_vae.training.data.sources import Item

SCENE_FRAMES, SCENE_SIDE = 16, 192
"""Length of a rendered scene, and its height and width in pixels."""

_ROUNDING = Fraction(1, 1000)  # by which containers round time stamps

Key = tuple[Path | int, int | None]
"""A file or the number of a scene, and the length of the shorter side."""


class Unfit(Exception):
    """An item that is whole but too short or too small for what is asked: another one is drawn."""


class Damaged(MediaError):
    """A file that opens, and is not intact where it was read: found out anew each time, as other stretches may be."""


@dataclass(frozen=True, kw_only=True)
class Held:
    """A decoded item: frames `(t, h, w, 3)` and their times in seconds."""

    frames: Frames
    times: tuple[Fraction, ...]


class Library:
    """Reads stretches of items. What it returns depends on what is asked and on the files alone.

    Whether something was read before, or is small enough to be kept, makes no difference.

    Args:
        capacity: bytes of decoded videos to keep.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity, self._nbytes = capacity, 0
        self._held: OrderedDict[Key, Held] = OrderedDict()
        self._unkept: set[Key] = set()  # damaged or longer than their headers say: read anew each time
        self._infos: dict[Path, VideoInfo] = {}
        self._broken: dict[Path, str] = {}

    def info(self, path: Path) -> VideoInfo:
        """What the headers of a file tell; `MediaError` if it cannot be opened, at once the second time."""
        if path in self._broken:
            raise MediaError(self._broken[path])
        if path not in self._infos:
            try:
                with VideoReader(path) as reader:
                    self._infos[path] = reader.info
            except MediaError as error:
                self._broken[path] = str(error)
                raise
        return self._infos[path]

    def promises(self, item: Item, frames: int, rates: Sequence[float]) -> bool:
        """Whether an item is long enough at one of these rates, or at its own, by what its headers tell."""
        if item.path is None:
            return frames <= SCENE_FRAMES
        info = self.info(item.path)
        fastest = max(rates) if rates else info.rate
        room = _room(item, info, frames, exact(fastest, "rate"))
        return info.frames == 1 or room is None or room >= 0

    def stretch(
        self,
        item: Item,
        *,
        frames: int,
        at: float,
        rate: float | None = None,
        side: int | None = None,
        least: tuple[int, int] = (1, 1),
    ) -> Frames:
        """Successive frames `(frames, h, w, 3)` of an item; those of a still picture are all the same.

        Args:
            item: what to read.
            frames: how many.
            at: where the stretch begins, from 0 (as early as may be) to 1 (as late as may be).
            rate: frames per second to resample to; None is the item's own.
            side: pixels to scale the shorter side to; None, or more than it has, leaves it.
            least: height and width below which frames are of no use.

        Raises:
            MediaError: a file that cannot be opened, or is `Damaged` within the stretch.
            Unfit: too few frames, or smaller ones than `least`.
        """
        if item.path is None:
            return self._scene(item.scene, frames, at, side or SCENE_SIDE, least)
        info = self.info(item.path)
        size = _scaled(info, side)
        if size[1] < least[0] or size[0] < least[1]:
            raise Unfit
        if info.frames == 1:
            (still,) = self._pictures(item.path, Fraction(0), 1, None, side, size)
            return np.broadcast_to(still, (frames, *still.shape))
        exact_rate = None if rate is None else exact(rate, "rate")
        first = _begin(item, info, frames, exact_rate or info.rate, at)
        pictures = self._pictures(item.path, first, frames, exact_rate, side, size)
        if len(pictures) < frames:
            raise Unfit
        return np.stack(pictures)

    def _pictures(
        self,
        path: Path,
        first: Fraction,
        frames: int,
        rate: Fraction | None,
        side: int | None,
        size: tuple[int, int],
    ) -> list[Frames]:
        """Up to `frames` pictures from `first` seconds on."""
        held = self._whole(path, side, size)
        if held is None:
            try:
                with VideoReader(path, start=first, frames=frames, fps=rate, size=size) as reader:
                    return [picture for picture, _ in reader]
            except PastEnd:
                return []
            except MediaError as error:
                raise Damaged(str(error)) from error
        begin = bisect_left(held.times, first - _ROUNDING)
        stream: Iterable[tuple[Fraction, Frames]] = zip(held.times[begin:], held.frames[begin:], strict=True)
        if rate is not None:
            stream = at_rate(stream, rate, self.info(path).rate)
        return [picture for _, picture in islice(stream, frames)]

    def _whole(self, path: Path, side: int | None, size: tuple[int, int]) -> Held | None:
        """All frames of a file, kept; None where they are too many, or not all intact."""
        key, count = (path, side), self.info(path).frames
        room = self._capacity // (size[0] * size[1] * 3)
        if key in self._unkept or count is None or count > room:
            return None
        if key not in self._held:
            try:
                with VideoReader(path, size=size) as reader:
                    pictures = list(islice(reader, room + 1))
            except MediaError:  # stretches that are intact are still of use
                pictures = []
            if not 0 < len(pictures) <= room:
                self._unkept.add(key)
                return None
            frames, times = zip(*pictures, strict=True)
            self._keep(key, Held(frames=np.stack(frames), times=times))
        self._held.move_to_end(key)
        return self._held[key]

    def _scene(self, number: int, frames: int, at: float, side: int, least: tuple[int, int]) -> Frames:
        if frames > SCENE_FRAMES or side < max(least):
            raise Unfit
        key = number, side
        if key not in self._held:
            drawn = render_scene(number, frames=SCENE_FRAMES, height=side, width=side)
            self._keep(key, Held(frames=drawn, times=()))
        self._held.move_to_end(key)
        room = SCENE_FRAMES - frames
        first = min(int(at * (room + 1)), room)
        return self._held[key].frames[first : first + frames]

    def _keep(self, key: Key, held: Held) -> None:
        """Keep one more, and let go of those that were not used for longest."""
        self._held[key] = held
        self._nbytes += held.frames.nbytes
        while self._nbytes > self._capacity and len(self._held) > 1:
            _, oldest = self._held.popitem(last=False)
            self._nbytes -= oldest.frames.nbytes


def _scaled(info: VideoInfo, side: int | None) -> tuple[int, int]:
    """`(width, height)` with the shorter side scaled down to `side`."""
    if side is None or side >= min(info.width, info.height):
        return info.width, info.height
    scale = Fraction(side, min(info.width, info.height))
    return round(info.width * scale), round(info.height * scale)


def _begin(item: Item, info: VideoInfo, frames: int, rate: Fraction, at: float) -> Fraction:
    """Seconds at which a stretch of `frames` begins; `Unfit` if the item is shorter than that."""
    room = _room(item, info, frames, rate)
    if room is None:
        return Fraction(item.start)  # only its beginning is used
    if room < 0:
        raise Unfit
    return Fraction(item.start) + room * Fraction(at)


def _room(item: Item, info: VideoInfo, frames: int, rate: Fraction) -> Fraction | None:
    """Seconds by which an item is longer than `frames`, below 0 if it is shorter; None where nothing tells."""
    ends = [Fraction(end) for end in (info.duration, item.end) if end is not None]
    if not ends:
        return None
    room = min(ends) - Fraction(item.start) - frames / rate
    return Fraction(0) if -_ROUNDING <= room < 0 else room
