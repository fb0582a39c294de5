"""Frames that never travel without their time stamps: `Clip`, and what is done to frames between reader and writer.

VideoReader.clips -> pad_to_multiple -> encode, decode -> crop_to -> Stitcher -> VideoWriter.write
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from temporal_vae.errors import InputError

Frames = NDArray[np.uint8]
"""`(t, h, w, 3)` or one frame `(h, w, 3)`: RGB, 0 to 255, rows from the top."""


@dataclass(frozen=True, kw_only=True)
class Color:
    """How the numbers of a video stand for colours, in the names that FFmpeg uses.

    Attributes:
        matrix: `rgb`, `bt709`, `smpte170m` or `bt470bg` (both BT.601), `bt2020nc`, `smpte240m`, `fcc`, `ycgco`,
            `bt2020c`.
        range: `limited` (black is 16, white 235 of 8 bits) or `full` (0 and 255).
        primaries: `bt709`, `smpte170m`, `bt2020`, ... or `unspecified`.
        transfer: `bt709`, `iec61966-2-1` (sRGB), `smpte2084` (PQ), ... or `unspecified`.
    """

    matrix: str = "bt709"
    range: str = "limited"
    primaries: str = "unspecified"
    transfer: str = "unspecified"


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """What a video file is, as far as its headers and its first frame tell.

    Attributes:
        path: file, folder or pattern that was opened.
        codec: FFmpeg's or Pillow's name for how the pictures are stored.
        height, width: pixels of an upright frame.
        rate: average frames per second; that of a still picture is 24.
        frames: how many there should be, `None` where nothing tells. An estimate, unless it is a folder.
        duration: seconds, `None` where nothing tells.
        time_base: every time stamp of the source is a whole multiple of it, in seconds.
        color: as declared by the file; matrix and range as used, also where the file leaves them open.
        rotation: degrees clockwise by which frames were turned to stand upright.
        mirrored: whether frames were also flipped.
        pixel_aspect: width of a pixel over its height.
        has_audio: whether there is a sound track.
        first_time: seconds on the container's clock at which the first frame is shown.
        interlaced: whether the first frame is flagged as two fields.
    """

    path: str
    codec: str
    height: int
    width: int
    rate: Fraction
    frames: int | None
    duration: Fraction | None
    time_base: Fraction
    color: Color
    rotation: int = 0
    mirrored: bool = False
    pixel_aspect: Fraction = Fraction(1)
    has_audio: bool = False
    first_time: Fraction = Fraction(0)
    interlaced: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class Clip:
    """Successive frames of a video.

    Attributes:
        frames: uint8 `(t, h, w, 3)`, RGB of full range, upright.
        timestamps: seconds since the video's first frame, exact, one for each frame, strictly increasing.
        rate: nominal frames per second.
        color: colour description of the source; the frames themselves are RGB already.

    Raises:
        InputError: frames of another shape or type, or time stamps that do not fit them.
    """

    frames: Frames
    timestamps: tuple[Fraction, ...]
    rate: Fraction
    color: Color = field(default_factory=Color)

    def __post_init__(self) -> None:
        check_frames(self.frames)
        check_timestamps(self.timestamps, len(self.frames))
        if self.rate <= 0:
            raise InputError(f"rate {self.rate}: frames per second must be above 0")

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def height(self) -> int:
        """Rows of pixels."""
        return int(self.frames.shape[1])

    @property
    def width(self) -> int:
        """Columns of pixels."""
        return int(self.frames.shape[2])

    @property
    def duration(self) -> Fraction:
        """Seconds from the first frame to the end of the last, which is shown for one nominal frame."""
        return self.timestamps[-1] - self.timestamps[0] + 1 / self.rate if len(self) else Fraction(0)

    def __getitem__(self, index: slice) -> Clip:
        """Part of the clip, `clip[a:b]`; its frames share memory with this one."""
        if not isinstance(index, slice):
            raise InputError(
                f"clip[{index!r}]: a clip is cut with a slice; for one frame use clip.frames[{index!r}]"
            )
        return self.replace(self.frames[index], self.timestamps[index])

    def __add__(self, other: Clip) -> Clip:
        """This clip and a later one of the same size, as one."""
        if (self.height, self.width) != (other.height, other.width):
            raise InputError(
                f"clips of {self.width}x{self.height} and {other.width}x{other.height} can't be joined; "
                "resize one of them first"
            )
        return self.replace(
            np.concatenate([self.frames, other.frames]), (*self.timestamps, *other.timestamps)
        )

    def replace(self, frames: Frames, timestamps: Sequence[Fraction] | None = None) -> Clip:
        """Other frames (and time stamps) with the rate and colour of this clip."""
        stamps = self.timestamps if timestamps is None else tuple(timestamps)
        return Clip(frames=frames, timestamps=stamps, rate=self.rate, color=self.color)


def check_frames(frames: Frames) -> None:
    """Raise `InputError` unless `frames` are uint8 `(t, h, w, 3)` with at least one pixel each."""
    shape, dtype = getattr(frames, "shape", None), getattr(frames, "dtype", None)
    if dtype != np.uint8 or shape is None or len(shape) != 4 or shape[3] != 3 or 0 in shape[1:3]:
        raise InputError(f"frames of shape {shape} and type {dtype}; frames are uint8 (t, h, w, 3)")


def check_timestamps(timestamps: Sequence[Fraction], count: int, after: Fraction | None = None) -> None:
    """Raise `InputError` unless there are `count` strictly increasing time stamps, all later than `after`."""
    if len(timestamps) != count:
        raise InputError(f"{len(timestamps)} time stamps for {count} frames; each frame has exactly one")
    for stamp in timestamps:
        if after is not None and stamp <= after:
            raise InputError(
                f"time stamp {float(stamp):.6f} s follows {float(after):.6f} s; time stamps must increase"
            )
        after = stamp


def clip_starts(count: int, clip_frames: int | None, overlap: int = 0) -> Iterator[tuple[int, int]]:
    """Cut `count` frames into clips: yields `(start, stop)`, `stop` exclusive; no frames, no clips.

    Each clip has `clip_frames` frames and shares `overlap` of them with the one before. The last one may be shorter,
    but always holds a frame that is new. `clip_frames=None` is one clip of all frames.
    """
    check_cut(clip_frames, overlap)
    if clip_frames is None:
        clip_frames = max(count, overlap + 1)
    start = 0
    while start < count and (start == 0 or start + overlap < count):
        yield start, min(start + clip_frames, count)
        start += clip_frames - overlap


def check_cut(clip_frames: int | None, overlap: int) -> None:
    """Raise `InputError` unless clips of `clip_frames` can share `overlap` frames."""
    if clip_frames is not None and clip_frames < 1:
        raise InputError(
            f"clip_frames={clip_frames}: a clip has at least 1 frame; None is one clip of all frames"
        )
    if overlap < 0 or (clip_frames is not None and overlap >= clip_frames):
        raise InputError(
            f"overlap={overlap}: clips of {clip_frames} frames can share 0 to {clip_frames} - 1 frames"
        )


def pad_to_multiple(frames: Frames, factor: int) -> Frames:
    """Repeat the last row and column of `(t, h, w, 3)` until both sizes are multiples of `factor`.

    Returns `frames` itself where nothing is missing. `crop_to` undoes it exactly.
    """
    check_frames(frames)
    if factor < 1:
        raise InputError(f"factor={factor}: sizes can be multiples of 1 or more")
    below, right = -frames.shape[1] % factor, -frames.shape[2] % factor
    if not below and not right:
        return frames
    return np.pad(frames, ((0, 0), (0, below), (0, right), (0, 0)), mode="edge")


def crop_to(frames: Frames, height: int, width: int) -> Frames:
    """The top left `height` x `width` of `(t, h, w, 3)`, as a view."""
    check_frames(frames)
    if not (0 < height <= frames.shape[1] and 0 < width <= frames.shape[2]):
        raise InputError(
            f"{width}x{height} does not lie within frames of {frames.shape[2]}x{frames.shape[1]}"
        )
    return frames[:, :height, :width]


def exact(value: Fraction | float | str, name: str) -> Fraction:
    """A number as a fraction; 29.97 is 2997/100, `"30000/1001"` is understood. `name` is for the error."""
    try:
        return Fraction(str(value)) if isinstance(value, float | str) else Fraction(value)
    except (ValueError, TypeError, ZeroDivisionError):
        raise InputError(f"{name}={value!r} is no number; write 2.5, 25 or 30000/1001") from None
