"""PSNR, SSIM and flicker over the frames of a video, as drawings."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from temporal_vae.metrics import QualityMeter
from temporal_vae.video.report.drawing import Area, Dot, Drawing, Line, Point, Shape, Text
from temporal_vae.video.report.words import clock

_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 8, 18, 36  # around what is plotted
_LANE = 16  # above it, for infinite values
_PER_COLUMN = 2  # units of width that a column of several frames has at least
_NARROWEST = 5  # units of width of a clip that is still marked
_NAMED = 46  # units of width of a clip that is named
_FILE = (900, 190)  # size of each chart in a file


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """What all charts of a video share.

    Attributes:
        stamps: seconds of each frame.
        clips: first frame of each clip, and the first after it; empty where there is but one clip.
    """

    stamps: Sequence[float]
    clips: Sequence[tuple[int, int]] = ()

    @property
    def fades(self) -> list[tuple[int, int]]:
        """Frames that successive clips share, with the first that is the later clip's alone."""
        return [(later[0], earlier[1]) for earlier, later in zip(self.clips, self.clips[1:], strict=False)]


@dataclass(frozen=True, kw_only=True)
class Series:
    """One figure of each frame.

    Attributes:
        name: of the figure.
        unit: that it is measured in; may be empty.
        values: one for each frame; not a number where there is none, and infinite where frames are identical.
        digits: behind the point.
        least: where the scale begins, if that is fixed.
        most: where it ends at the latest.
    """

    name: str
    unit: str
    values: Sequence[float]
    digits: int
    least: float | None = None
    most: float | None = None

    @property
    def known(self) -> list[float]:
        """The values that are finite numbers."""
        return [value for value in self.values if math.isfinite(value)]

    @property
    def title(self) -> str:
        """Name and unit."""
        return f"{self.name} ({self.unit})" if self.unit else self.name

    def number(self, value: float) -> str:
        """A value for people, without its unit."""
        if math.isnan(value):
            return "none"
        return "∞" if math.isinf(value) else f"{value:.{self.digits}f}"

    def text(self, value: float) -> str:
        """A value for people."""
        return f"{self.number(value)} {self.unit}".rstrip()


@dataclass(frozen=True, kw_only=True)
class Column:
    """What a chart shows of successive frames: their least, mean and most value, of those that have one."""

    start: int
    stop: int
    least: float
    mean: float
    most: float


def series_of(quality: QualityMeter) -> tuple[Series, Series, Series]:
    """PSNR, SSIM and flicker."""
    return (
        Series(name="PSNR", unit="dB", values=quality.psnr, digits=2),
        Series(name="SSIM", unit="", values=quality.ssim, digits=4, most=1.0),
        Series(name="Flicker", unit="levels", values=[math.nan, *quality.flicker], digits=2, least=0.0),
    )


def columns(values: Sequence[float], most: int) -> list[Column]:
    """The values in no more than so many columns of equally many frames; no extreme is lost."""
    step = max(1, math.ceil(len(values) / max(1, most)))
    found = []
    for start in range(0, len(values), step):
        part = [value for value in values[start : start + step] if not math.isnan(value)]
        finite = [value for value in part if math.isfinite(value)]
        mean = sum(finite) / len(finite) if finite else math.inf
        least, high = (min(part), max(part)) if part else (math.nan, math.nan)
        stop = min(start + step, len(values))
        found.append(Column(start=start, stop=stop, least=least, mean=mean if part else math.nan, most=high))
    return found


def charts_drawing(series: Sequence[Series], timeline: Timeline) -> Drawing:
    """All charts above one another, for a file."""
    width, height = _FILE
    margin, title, shapes = 16, 26, list[Shape]()
    for index, one in enumerate(series):
        top = margin + index * (height + title)
        shapes.append(Text((margin, top + 13), one.title, "title"))
        shapes += chart(one, timeline, width=width, height=height).moved(margin, top + title - 8)
    return Drawing(width + 2 * margin, len(series) * (height + title) + margin, shapes)


def chart(
    series: Series, timeline: Timeline, *, width: int, height: int, marks: Sequence[int] = ()
) -> Drawing:
    """One figure over time, with the clips behind it.

    Args:
        series: the figure.
        timeline: of the video.
        width: of the drawing.
        height: of the drawing.
        marks: frames that are pointed out, by their place in this list, counted from 1.
    """
    if not [value for value in series.values if not math.isnan(value)]:
        return Drawing(width, height, [Text((width / 2, height / 2), "no figures", "muted", "middle")])
    plot = _Plot(series, timeline, width, height)
    return Drawing(
        width,
        height,
        [
            *plot.clips(),
            *plot.scale(),
            *plot.ticks(),
            *plot.curve(),
            *plot.first_frames(),
            *plot.marks(marks),
        ],
    )


class _Plot:
    """Where values and frames lie in a chart, and what is drawn of them."""

    def __init__(self, series: Series, timeline: Timeline, width: int, height: int) -> None:
        self._series, self._timeline = series, timeline
        self._count = len(series.values)
        self._left, self._right = _LEFT, width - _RIGHT
        self._endless = any(map(math.isinf, series.values))
        self._top, self._bottom = _TOP + (_LANE if self._endless else 0), height - _BOTTOM
        self._low, self._high = _range(series)

    def clips(self) -> Iterator[Shape]:
        """Every other clip shaded, cross-fades darker, a line where a clip begins."""
        clips = self._timeline.clips
        if not clips or self._place(clips[1][0]) - self._place(0) < _NARROWEST:
            return
        for number, (start, stop) in enumerate(clips):
            if number % 2:
                yield self._block(start, stop, "clip")
        for start, stop in self._timeline.fades:
            if stop > start:
                yield self._block(start, stop, "fade")
        for number, (start, stop) in enumerate(clips):
            x = self._place(start)
            if number:
                yield Line([(x, _TOP - 10), (x, self._bottom)], "edge")
            if self._place(stop) - x >= _NAMED:
                yield Text((x + 4, _TOP - 3), f"clip {number + 1}")

    def scale(self) -> Iterator[Shape]:
        """Lines across, with what they stand for."""
        step = _nice((self._high - self._low) / 4)
        first, last = math.ceil(self._low / step - 1e-9), math.floor(self._high / step + 1e-9)
        ticks = [number * step for number in range(first, last + 1)]
        digits = next(d for d in range(9) if all(abs(round(tick, d) - tick) < 1e-9 for tick in ticks))
        for value in ticks:
            y = self._height(value)
            yield Line([(self._left, y), (self._right, y)], "grid")
            yield Text((self._left - 6, y + 4), f"{value:.{digits}f}", "muted", "end")
        if self._endless:
            y = self._height(math.inf)
            yield Line([(self._left, y), (self._right, y)], "grid")
            yield Text((self._left - 6, y + 4), "∞", "muted", "end")

    def ticks(self) -> Iterator[Shape]:
        """Numbers and times of frames, below."""
        step = max(1, math.ceil(_nice(self._count / max(2, (self._right - self._left) / 95))))
        numbered, timed = self._bottom + 18, self._bottom + 31
        yield Text((self._left - 6, numbered), "frame", "muted", "end")
        yield Text((self._left - 6, timed), "time", "muted", "end")
        for frame in range(0, self._count, step):
            x = self._middle(frame)
            anchor = (
                "middle"
                if self._left + 14 < x < self._right - 14
                else "start"
                if x < self._right - 14
                else "end"
            )
            yield Line([(x, self._bottom), (x, self._bottom + 4)], "edge")
            yield Text((x, numbered), f"{frame:,}", "muted", anchor)
            yield Text((x, timed), clock(self._timeline.stamps[frame], 1), "muted", anchor)

    def curve(self) -> Iterator[Shape]:
        """The means, and how far the frames of each column spread around them."""
        found = columns(self._series.values, int((self._right - self._left) / _PER_COLUMN))
        for known, group in groupby(found, key=lambda column: not math.isnan(column.mean)):
            run = list(group)
            if not known:
                continue
            xs = [(self._place(column.start) + self._place(column.stop)) / 2 for column in run]
            if run[0].stop - run[0].start > 1:
                above = [(x, self._height(column.most)) for x, column in zip(xs, run, strict=True)]
                below = [(x, self._height(column.least)) for x, column in zip(xs, run, strict=True)]
                yield Area([*above, *reversed(below)], "spread")
            points = [(x, self._height(column.mean)) for x, column in zip(xs, run, strict=True)]
            yield Line(points, "line") if len(points) > 1 else Dot(points[0], 3, "line")

    def first_frames(self) -> Iterator[Shape]:
        """Of flicker, what the change from clip to clip does: a dot on each frame of it."""
        clips = self._timeline.clips
        if self._series.least is None or not clips or self._place(clips[1][0]) - self._place(0) < _NARROWEST:
            return
        for start, stop in self._timeline.fades:
            for frame in range(start, min(stop + 1, self._count)):
                yield Dot(self._point(frame), 2.6, "first")

    def marks(self, frames: Sequence[int]) -> Iterator[Shape]:
        """Numbered dots."""
        for number, frame in enumerate(frames, start=1):
            x, y = self._point(frame)
            yield Dot((x, y), 3.4, "mark")
            yield Text((x, y + 15), str(number), "mark", "middle")

    def _place(self, frame: int) -> float:
        """Where a frame begins."""
        return self._left + frame / self._count * (self._right - self._left)

    def _middle(self, frame: int) -> float:
        return (self._place(frame) + self._place(frame + 1)) / 2

    def _height(self, value: float) -> float:
        if math.isinf(value):
            return _TOP + _LANE / 2
        share = (value - self._low) / (self._high - self._low)
        return self._bottom - share * (self._bottom - self._top)

    def _point(self, frame: int) -> Point:
        return self._middle(frame), self._height(self._series.values[frame])

    def _block(self, start: int, stop: int, role: str) -> Area:
        left, right = self._place(start), self._place(stop)
        return Area([(left, _TOP), (right, _TOP), (right, self._bottom), (left, self._bottom)], role)


def _range(series: Series) -> tuple[float, float]:
    """Where a scale begins and ends: all values have some room."""
    known = series.known or [0.0]
    low, high = min(known), max(known)
    room = max(high - low, 0.02 if series.most == 1 else 1.0) * 0.12
    least = low - 2 * room if series.least is None else series.least
    return least, high + room if series.most is None else min(high + room, series.most)


def _nice(step: float) -> float:
    """The next of 1, 2, 2.5, 5, 10, … from `step` up."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= step * (1 - 1e-9))
