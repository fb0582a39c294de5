"""Frames of clips. Neighbours of one video are read in one go, others from the key frame before them.

What is read by seeking is what is read straight through: times tell which frames they are, and where they are not those
of the plan, the video is read again from its beginning.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image

from temporal_vae.distributed.dataset.encode_job import ClipTask
from temporal_vae.errors import MediaError
from temporal_vae.media.container import Picture
from temporal_vae.media.frames import Frames
from temporal_vae.media.reader import VideoReader
from temporal_vae.media.timing import at_rate

_NEAR = (
    250  # frames that are decoded to get to the next clip, rather than sought: a usual distance of key frames
)

Box = tuple[Fraction, Fraction, Fraction, Fraction]


class ClipReader:
    """Reads clip after clip; cheapest in the order of their videos and of their starts.

    Args:
        reading: options of `VideoReader`.
    """

    def __init__(self, reading: dict[str, str]) -> None:
        self._reading = reading
        self._track: _Track | None = None

    def read(self, task: ClipTask) -> tuple[Frames, tuple[Fraction, ...]]:
        """Frames `(t, h, w, 3)` of a clip in its size, and their times.

        Raises:
            MediaError: a file that can't be read, or is not the one that was planned.
        """
        try:
            found = self._read(task, keep_track=True)
            if not _is_planned(found, task):
                found = self._read(task, keep_track=False)
        except BaseException:
            self.close()
            raise
        if not _is_planned(found, task):
            self.close()
            raise MediaError(
                f"{task.source}: the frames at {float(task.start):.3f} s are not those that were planned; "
                "if the file is whole, report it"
            )
        return np.stack([frame for _, frame in found]), tuple(time for time, _ in found)

    def close(self) -> None:
        """Close the video in hand."""
        if self._track is not None:
            self._track.close()
            self._track = None

    def _read(self, task: ClipTask, *, keep_track: bool) -> list[tuple[Fraction, Frames]]:
        if stamp_of(task.path) != task.stamp:
            raise MediaError(f"{task.source}: the file changed since it was planned; run again")
        if self._track is None or not keep_track or not self._track.leads_to(task):
            self.close()
            # What is kept of a damaged file is counted from its beginning.
            seek = keep_track and self._reading.get("damaged") != "keep"
            self._track = _Track(task, self._reading, task.read_from if seek else Fraction(0))
        return self._track.take(task)


class _Track:
    """A video that is being read, from the beginning of a clip on."""

    def __init__(self, task: ClipTask, reading: dict[str, str], read_from: Fraction) -> None:
        self._first = task
        self._reader = VideoReader(task.path, **reading)  # type: ignore[arg-type]  # options, by name
        self._stream: Iterator[Picture] = self._reader.pictures(read_from)
        if task.fps is not None:
            self._stream = at_rate(
                self._stream, task.fps, self._reader.info.rate, lambda: self._reader.last_shown, task.start
            )
        self._held: list[tuple[Fraction, Frames]] = []  # the last clip
        self._rendered: tuple[object, Frames] | None = None

    def close(self) -> None:
        self._reader.close()

    def leads_to(self, task: ClipTask) -> bool:
        """Whether reading on gets to a clip, and soon."""
        first = self._first
        alike = (task.path, task.fps, task.box, task.size) == (first.path, first.fps, first.box, first.size)
        if not alike or not self._held or task.start < self._held[0][0]:
            return False
        if task.fps is not None and ((task.start - first.start) * task.fps).denominator != 1:
            return False  # resampled from another beginning
        return (task.start - self._held[-1][0]) * task.rate <= _NEAR

    def take(self, task: ClipTask) -> list[tuple[Fraction, Frames]]:
        """Times and frames of a clip; fewer where the video is over."""
        taken = [(time, frame) for time, frame in self._held if time >= task.start][: task.frames]
        while len(taken) < task.frames:
            time, render = next(self._stream, (None, None))
            if time is None or render is None:
                break
            if time >= task.start:
                if self._rendered is None or self._rendered[0] is not render:
                    self._rendered = render, fitted(render(), task.box, task.size)
                taken.append((time, self._rendered[1]))
        self._held = taken
        return taken


def fitted(frame: Frames, box: Box, size: tuple[int, int]) -> Frames:
    """A part of a frame `(h, w, 3)`, given in pixels as left, top, right and bottom, scaled to `(width, height)`."""
    left, top, right, bottom = box
    width, height = size
    if (right - left == width and bottom - top == height) and left.denominator == top.denominator == 1:
        return np.ascontiguousarray(frame[int(top) : int(bottom), int(left) : int(right)])
    part = tuple(map(float, box))
    return np.array(Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS, box=part))  # type: ignore[arg-type]


def stamp_of(path: str | Path) -> str:
    """What tells a file from another of the same name without reading it: size, times and number; of all its files.

    Raises:
        OSError: a file that is not there.
    """
    place = Path(path)
    files = sorted(place.iterdir()) if place.is_dir() else [place]
    facts = [(file.name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)
             for file in files for stat in [file.stat()]]  # fmt: skip
    return hashlib.sha256(repr(facts if place.is_dir() else facts[0][1:]).encode()).hexdigest()[:32]


def _is_planned(found: list[tuple[Fraction, Frames]], task: ClipTask) -> bool:
    return len(found) == task.frames and (found[0][0], found[-1][0]) == (task.start, task.last)
