"""Videos in, as a stream of upright RGB frames: containers, animations, images, folders and patterns of images."""

from __future__ import annotations

import glob
import logging
from collections.abc import Iterator
from fractions import Fraction
from functools import cache
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image

from temporal_vae.errors import InputError, MediaError, file_name
from temporal_vae.media.color import parse_background
from temporal_vae.media.container import ContainerSource, Picture
from temporal_vae.media.frames import Clip, Frames, VideoInfo, check_cut, exact
from temporal_vae.media.hdr import MAPPED, TRANSFERS_OF_HDR, is_hdr
from temporal_vae.media.images import STILL_RATE, ImageSeries, ImageSource, is_image
from temporal_vae.media.timing import at_rate, starting

logger = logging.getLogger(__name__)

MAX_PIXELS = 2**26
"""Largest picture that is read unless told otherwise: 8192 x 8192."""

Source = ContainerSource | ImageSource | ImageSeries
Size = int | tuple[int, int | None]


class PastEnd(MediaError):
    """A video that is over before the time at which reading was to start."""


class VideoReader:
    """Reads a video as a stream: only the frames in hand are in memory. A context manager; each iteration starts over.

        with VideoReader("in.mp4", start=2.5, frames=50, size=320) as reader:
            for frame, timestamp in reader:  # uint8 (h, w, 3), seconds as a Fraction
                ...
            for clip in reader.clips(25, overlap=4):
                ...

    Time stamps are seconds since the first frame of the source, so with `start=2.5` they begin near 2.5. They are
    the file's own, exactly; those that are missing, repeated or run backwards are set by the nominal rate.

    Args:
        source: a file of any container FFmpeg opens, an image or animation, a folder of images, or a pattern such as
            `"frames/*.png"`. Images come in natural order, at 24 frames per second or at `fps`.
        start: seconds; frames before are left out.
        frames: the most frames to deliver.
        fps: frames per second to resample to: the frame nearest in time is shown, none are mixed.
        size: `(width, height)`, or the width alone to keep the aspect; Lanczos.
        background: colour behind transparent parts, a name, `"#ff8800"` or three numbers.
        hdr: `map` shows PQ and HLG as BT.709, `keep` delivers their signals as they are.
        damaged: `keep` delivers what can be decoded of a damaged file, and counts in a line what is lost.
        deinterlace: `auto` makes frames of the fields of frames that are flagged as interlaced; `never` leaves them.
        max_pixels: larger pictures are refused.

    Attributes:
        info: what the source is.
        files: what is read, none of which may be written over.
        rate, height, width, color: of the frames that come out; `info.color` is that of the file.

    Raises:
        MediaError: a source that is missing, damaged, truncated, too large or has no video. Damage half-way is raised
            after the intact frames before it.
        InputError: an argument out of range.
    """

    def __init__(
        self,
        source: str | Path,
        *,
        start: Fraction | float | str | None = None,
        frames: int | None = None,
        fps: Fraction | float | str | None = None,
        size: Size | None = None,
        background: str | tuple[int, int, int] = "black",
        hdr: str = "map",
        damaged: str = "error",
        deinterlace: str = "auto",
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self._start = exact(start or 0, "start")
        self._fps = None if fps is None else exact(fps, "fps")
        self._frames = frames
        if self._start < 0:
            raise InputError(f"start={start}: seconds from the beginning, 0 or more")
        if self._fps is not None and self._fps <= 0:
            raise InputError(f"fps={fps}: frames per second, above 0")
        if frames is not None and frames < 1:
            raise InputError(f"frames={frames}: at least 1, or None for all")
        if hdr not in ("map", "keep"):
            raise InputError(f"hdr={hdr!r}: choose map or keep")
        if damaged not in ("error", "keep"):
            raise InputError(f"damaged={damaged!r}: choose error or keep")
        if deinterlace not in ("auto", "never"):
            raise InputError(f"deinterlace={deinterlace!r}: choose auto or never")
        self._source = _open(
            source,
            self._fps or STILL_RATE,
            parse_background(background),
            max_pixels,
            hdr == "map",
            keep_damaged=damaged == "keep",
            deinterlace=deinterlace == "auto",
        )
        self.info: VideoInfo = self._source.info
        self._mapped = hdr == "map" and is_hdr(self.info.color)
        self.color = MAPPED if self._mapped else self.info.color
        self.files: tuple[Path, ...] = getattr(self._source, "paths", (Path(source),))
        self.width, self.height = _scaled(self.info, size)
        self.rate = self._fps or self.info.rate
        self._last: Fraction | None = None  # time of the last frame that came out
        self._running: list[Iterator[Any]] = []

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the files of iterations that were not finished."""
        for frames in self._running:
            frames.close()  # type: ignore[attr-defined]  # a generator
        self._running.clear()

    def pictures(self, start: Fraction = Fraction(0)) -> Iterator[Picture]:
        """Times of the source's own frames from `start` on, and what renders each in its own size.

        For whoever needs the times alone, which costs no conversion of colours, or chooses frames by them. `frames`,
        `fps` and `size` are of no meaning here. None come where the source is over before `start`.
        """
        pictures = starting(self._source.pictures(start), start)
        self._running.append(pictures)
        return pictures

    @property
    def last_shown(self) -> Fraction | None:
        """Seconds for which the last of `pictures` so far is shown; None before the first."""
        return (self._source.last_shown or (None, None))[1]

    @property
    def last_duration(self) -> Fraction | None:
        """Seconds for which the last frame that came out is shown; `None` where the file does not tell."""
        time, shown = self._source.last_shown or (None, None)
        return shown if self._fps is None and time == self._last else None

    @property
    def expected_frames(self) -> int | None:
        """How many frames will come, by what the headers tell: an estimate for progress, `None` if they don't tell."""
        count = self.info.frames
        if count is None:
            return self._frames
        count = max(1, round((count / self.info.rate - self._start) * self.rate))
        return count if self._frames is None else min(count, self._frames)

    def __iter__(self) -> Iterator[tuple[Frames, Fraction]]:
        """Yields `(frame, timestamp)`: uint8 `(h, w, 3)`, seconds."""
        frames = self._read()
        self._running.append(frames)
        return frames

    def clips(self, clip_frames: int | None = None, overlap: int = 0) -> Iterator[Clip]:
        """Yields successive clips; each shares `overlap` frames with the one before, the last may be shorter.

        `clip_frames=None` is one clip of all frames: the one call whose memory grows with the video. The cut is that
        of `clip_starts`.
        """
        check_cut(clip_frames, overlap)
        held: list[tuple[Frames, Fraction]] = []
        new = 0
        for picture in self:
            if clip_frames is not None and len(held) == clip_frames:
                yield self._clip(held)
                held, new = held[clip_frames - overlap :], 0
            held.append(picture)
            new += 1
        if new:
            yield self._clip(held)

    def _clip(self, held: list[tuple[Frames, Fraction]]) -> Clip:
        frames, timestamps = zip(*held, strict=True)
        return Clip(frames=np.stack(frames), timestamps=timestamps, rate=self.rate, color=self.color)

    def _read(self) -> Iterator[tuple[Frames, Fraction]]:
        if self._mapped:
            kind = TRANSFERS_OF_HDR[self.info.color.transfer]
            _tell(self.info.path, f"{kind} is mapped to BT.709; --hdr keep (hdr='keep') leaves it as it is")
        if self.info.color.matrix == "ycgco":
            _tell(self.info.path, "YCgCo is read as BT.601, as FFmpeg's scaler does; colours may be off")
        stream: Iterator[Picture] = starting(self._source.pictures(self._start), self._start)
        if self._fps is not None:
            stream = at_rate(stream, self._fps, self.info.rate, lambda: self.last_shown)
        count = 0
        for timestamp, render in islice(stream, self._frames):
            self._last = timestamp
            yield self._resize(render()), timestamp
            count += 1
        if not count:
            raise PastEnd(
                f"{file_name(self.info.path)}: no frame at or after {float(self._start)} s; choose an earlier start"
            )

    def _resize(self, frame: Frames) -> Frames:
        if frame.shape[:2] == (self.height, self.width):
            return frame
        resized = Image.fromarray(frame).resize((self.width, self.height), Image.Resampling.LANCZOS)
        return np.array(resized)


@cache  # once for each file
def _tell(path: str, what: str) -> None:
    logger.warning("%s: %s", file_name(path), what)


def _open(
    source: str | Path,
    rate: Fraction,
    background: Frames,
    max_pixels: int,
    map_hdr: bool,
    *,
    keep_damaged: bool,
    deinterlace: bool,
) -> Source:
    path, name = Path(source), file_name(source)
    if not name.strip():
        raise MediaError("the source has no name; give a file, a folder of images or a pattern")
    try:
        if path.is_dir():
            paths = [p for p in path.iterdir() if p.is_file()]
            return ImageSeries(paths, name, rate, background, max_pixels, map_hdr)
        if not path.exists() and glob.has_magic(str(source)):
            matches = [Path(match) for match in glob.glob(str(source), recursive=True)]
            paths = [p for p in matches if p.is_file()]
            return ImageSeries(paths, name, rate, background, max_pixels, map_hdr)
        if not path.exists():
            raise MediaError(f"{name}: no such file or folder; check the path")
        if not path.is_file():
            raise MediaError(
                f"{name}: neither a file nor a folder; give a video file, an image or a folder of images"
            )
        if path.stat().st_size == 0:
            raise MediaError(f"{name}: the file is empty; copy or export it again")
        if is_image(path):
            return ImageSource(path, background, max_pixels, map_hdr, keep_damaged=keep_damaged)
        how = {"keep_damaged": keep_damaged, "deinterlace": deinterlace}
        return ContainerSource(path, background, max_pixels, map_hdr, **how)
    except OSError as error:
        raise MediaError(f"{name}: can't be read ({(error.strerror or 'unknown error').lower()})") from error


def _scaled(info: VideoInfo, size: Size | None) -> tuple[int, int]:
    if size is None:
        return info.width, info.height
    width, height = (size, None) if isinstance(size, int) else size
    if height is None:
        height = max(1, round(Fraction(info.height * width, info.width)))
    if width < 1 or height < 1:
        raise InputError(f"size={size}: width and height are at least 1 pixel")
    return width, height
