"""Frames of the items that a run learns from, read where they are needed; small videos are kept decoded."""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path

import numpy as np

from temporal_vae.errors import MediaError
from temporal_vae.training.scenes import render_scene
from temporal_vae.training.sources import Item
from temporal_vae.video.frames import Frames, VideoInfo
from temporal_vae.video.reader import VideoReader
from temporal_vae.video.timing import at_rate

SCENE_FRAMES, SCENE_SIDE = 16, 192
"""Length of a rendered scene, and its height and width in pixels."""

_ROUNDING = Fraction(1, 1000)  # by which containers round time stamps


class Unfit(Exception):
    """An item that is whole but too short or too small for what is asked: another one is drawn."""


@dataclass(frozen=True, kw_only=True)
class Held:
    """A decoded item: frames `(t, h, w, 3)` and their times in seconds."""

    frames: Frames
    times: tuple[Fraction, ...]


class Library:
    """Reads stretches of items. What it returns depends on what is asked and on the files alone, never on history.

    Args:
        capacity: bytes of decoded videos to keep.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._held: OrderedDict[tuple[Item, int | None], Held] = OrderedDict()
        self._infos: dict[Path, VideoInfo] = {}
        self._broken: dict[Path | tuple[Item, int | None], str] = {}  # what failed once fails again

    def info(self, item: Item) -> VideoInfo:
        """What the headers of a file tell; `MediaError` if it cannot be opened, at once the second time."""
        assert item.path is not None
        if item.path in self._broken:
            raise MediaError(self._broken[item.path])
        if item.path not in self._infos:
            try:
                with VideoReader(item.path) as reader:
                    self._infos[item.path] = reader.info
            except MediaError as error:
                self._broken[item.path] = str(error)
                raise
        return self._infos[item.path]

    def stretch(
        self, item: Item, *, frames: int, at: float, rate: float | None = None, side: int | None = None
    ) -> Frames:
        """Successive frames `(frames, h, w, 3)` of an item; those of a still picture are all the same.

        Args:
            item: what to read.
            frames: how many.
            at: where the stretch begins, from 0 (as early as may be) to 1 (as late as may be).
            rate: frames per second to resample to; None is the item's own.
            side: pixels to scale the shorter side to; None, or more than it has, leaves it.

        Raises:
            MediaError: a file that is missing or damaged.
            Unfit: too few frames.
        """
        if item.path is None:
            return self._scene(item, frames, at, side)
        info = self.info(item)
        size = _scaled(info, side)
        if info.frames == 1:
            still = self._whole(item, side, size).frames
            return np.broadcast_to(still[:1], (frames, *still.shape[1:]))
        exact_rate = None if rate is None else Fraction(rate).limit_denominator(1001)
        first = _begin(item, info, frames, exact_rate or info.rate, at)
        taken = self._pictures(item, first, frames, exact_rate, side, size)
        pictures = [picture for _, picture in islice(taken, frames)]
        if len(pictures) < frames:
            raise Unfit
        return np.stack(pictures)

    def _pictures(
        self,
        item: Item,
        first: Fraction,
        frames: int,
        rate: Fraction | None,
        side: int | None,
        size: tuple[int, int],
    ) -> Iterator[tuple[Fraction, Frames]]:
        info = self.info(item)
        if self._fits(info, size):
            held = self._whole(item, side, size)
            begin = bisect_left(held.times, first - _ROUNDING)
            pictures = zip(held.times[begin:], held.frames[begin:], strict=True)
            return pictures if rate is None else at_rate(pictures, rate, info.rate)
        assert item.path is not None
        with VideoReader(item.path, start=first, frames=frames, fps=rate, size=size) as reader:
            return iter([(time, picture) for picture, time in reader])

    def _fits(self, info: VideoInfo, size: tuple[int, int]) -> bool:
        return info.frames is not None and info.frames * size[0] * size[1] * 3 <= self._capacity

    def _whole(self, item: Item, side: int | None, size: tuple[int, int]) -> Held:
        key = item, side
        if key in self._broken:
            raise MediaError(self._broken[key])
        if key not in self._held:
            assert item.path is not None
            try:
                with VideoReader(item.path, size=size) as reader:
                    pictures = list(reader)
            except MediaError as error:
                self._broken[key] = str(error)
                raise
            frames = np.stack([picture for picture, _ in pictures])
            self._keep(key, Held(frames=frames, times=tuple(time for _, time in pictures)))
        self._held.move_to_end(key)
        return self._held[key]

    def _scene(self, item: Item, frames: int, at: float, side: int | None) -> Frames:
        if frames > SCENE_FRAMES:
            raise Unfit
        side = side or SCENE_SIDE
        key = item, side
        if key not in self._held:
            drawn = render_scene(item.scene, frames=SCENE_FRAMES, height=side, width=side)
            self._keep(key, Held(frames=drawn, times=()))
        self._held.move_to_end(key)
        first = int(at * (SCENE_FRAMES - frames + 1))
        return self._held[key].frames[first : first + frames]

    def _keep(self, key: tuple[Item, int | None], held: Held) -> None:
        self._held[key] = held
        while (
            len(self._held) > 1 and sum(each.frames.nbytes for each in self._held.values()) > self._capacity
        ):
            self._held.popitem(last=False)


def _scaled(info: VideoInfo, side: int | None) -> tuple[int, int]:
    """`(width, height)` with the shorter side scaled down to `side`."""
    if side is None or side >= min(info.width, info.height):
        return info.width, info.height
    scale = Fraction(side, min(info.width, info.height))
    return round(info.width * scale), round(info.height * scale)


def _begin(item: Item, info: VideoInfo, frames: int, rate: Fraction, at: float) -> Fraction:
    """Seconds at which a stretch of `frames` begins; `Unfit` if the item is shorter than that."""
    end = Fraction(item.end) if item.end is not None else info.duration
    if end is None:
        return Fraction(item.start)  # nothing tells how long it is: only its beginning is used
    room = end - Fraction(item.start) - frames / rate
    if room < -_ROUNDING:
        raise Unfit
    return Fraction(item.start) + max(room, Fraction(0)) * Fraction(at)
