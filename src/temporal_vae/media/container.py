"""Containers: any file that FFmpeg opens, one upright RGB picture at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import partial
from itertools import islice
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import PictureType
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from temporal_vae.errors import MediaError, file_name
from temporal_vae.media.color import color_of, to_rgb
from temporal_vae.media.decoding import (
    declared_duration,
    decode,
    open_container,
    side_data_of,
    tick_of,
    video_stream,
)
from temporal_vae.media.deinterlacing import deinterlaced
from temporal_vae.media.frames import Frames, VideoInfo
from temporal_vae.media.hdr import peak_of
from temporal_vae.media.timing import repair

Picture = tuple[Fraction, Callable[[], Frames]]
"""Seconds since the first frame of the file, and what renders the frame: upright RGB `(h, w, 3)`."""

_NO_TIMESTAMPS = 0x80  # AVFMT_NOTIMESTAMPS: a bare stream, whose stamps begin anew wherever one lands
_FALLBACK_RATE = Fraction(25)
_DOUBTFUL_RATE = 240
_NO_DURATION = Fraction(
    1, 500
)  # seconds: a tick of the clock, where the file does not tell how long a frame is shown
_COUNTED = 100  # packets
_FLAGS = 50  # packets
_USUAL_RATES = [Fraction(rate) for rate in (12, 15, 24, 25, 30, 48, 50, 60, 100, 120, 240, 480, 1000)]
_USUAL_RATES += [Fraction(rate * 1000, 1001) for rate in (24, 30, 60, 120)]
_MAX_RATE = 1000  # a "rate" above is a time base that some muxer wrote for want of a rate


class ContainerSource:
    """A video file.

    Args:
        path: an existing file.
        background: uint8 `(3,)`, shown through transparent parts.
        max_pixels: larger pictures are refused before memory is taken for them.
        map_hdr: show PQ and HLG as BT.709.
        keep_damaged: deliver what can be decoded, and count what is lost.
        deinterlace: make frames of fields, where frames are flagged so.

    Attributes:
        info: what the file is.
        last_shown: time of the last frame that `pictures` gave, and for how many seconds it is shown.

    Raises:
        MediaError: no video in it, damaged, or too large a picture.
    """

    def __init__(
        self,
        path: Path,
        background: Frames,
        max_pixels: int,
        map_hdr: bool = True,
        *,
        keep_damaged: bool = False,
        deinterlace: bool = True,
    ) -> None:
        self._path, self._background, self._max_pixels = path, background, max_pixels
        self._keep, self._deinterlace = keep_damaged, deinterlace
        with open_container(path, max_pixels) as container:
            stream = video_stream(container, path, max_pixels)
            first = next(decode(container, stream, path, max_pixels, keep=keep_damaged), None)
            if first is None:
                raise MediaError(f"{file_name(path)}: holds no frame that can be decoded; export it again")
            self._turn = Turn.of(first)
            self._coded_size = first.width, first.height
            reorders = bool(getattr(stream.codec_context, "has_b_frames", False))
            self._in_decoding_order = container.format.name == "avi" and reorders
            self._first_tick = self._tick_of(first) or 0
            self.last_shown: tuple[Fraction, Fraction] | None = None
            self._peak = peak_of(first) if map_hdr else None  # of all frames: a curve that changes flickers
            self.info = self._describe(container, stream, first)

    def pictures(self, start: Fraction) -> Iterator[Picture]:
        """Pictures from `start` seconds on, or from some before."""
        info = self.info
        target = self._first_tick + int(start / info.time_base)
        shown_from = target if start > 0 and self._can_seek(target) else None
        with open_container(self._path, self._max_pixels) as container:
            stream = video_stream(container, self._path, self._max_pixels)
            if shown_from is not None:
                container.seek(shown_from, stream=stream)
            frames = decode(container, stream, self._path, self._max_pixels, shown_from, keep=self._keep)
            if self._deinterlace:
                frames = deinterlaced(frames, info.time_base)
            step = 1 / info.rate / info.time_base
            render = partial(self._render, reformatter=VideoReformatter())
            for tick, frame in repair(((self._tick_of(frame), frame) for frame in frames), step):
                time = (tick - self._first_tick) * info.time_base
                shown = (frame.duration or 0) * info.time_base
                self.last_shown = time, shown if shown > _NO_DURATION else 1 / info.rate
                yield time, partial(render, frame)
            # Of an MP4, the last frame may be shown longer than it says.
            if self.last_shown and stream.duration and "mp4" in container.format.name:
                end = (stream.start_time or 0) + stream.duration - self._first_tick
                time, shown = self.last_shown
                self.last_shown = time, max(shown, end * info.time_base - time)

    def _tick_of(self, frame: av.VideoFrame) -> int | None:
        """AVI knows in which order frames are decoded; what it says of their display is a guess."""
        return frame.dts if self._in_decoding_order else tick_of(frame)

    def _can_seek(self, tick: int) -> bool:
        """Whether seeking lands at or before `tick`. Files without an index may land anywhere."""
        with open_container(self._path, self._max_pixels) as container:
            if int(container.format.flags) & _NO_TIMESTAMPS:
                return False
            stream = video_stream(container, self._path, self._max_pixels)
            try:
                if not _knows_key_frames(container, stream):
                    return False
                container.seek(tick, stream=stream)
                first = next(
                    decode(container, stream, self._path, self._max_pixels, tick, keep=self._keep), None
                )
            except (av.FFmpegError, MediaError):
                return False
            if first is None or first.pts is None or self._in_decoding_order:
                return False
            whole = first.key_frame or first.pict_type == PictureType.I
            return whole and self._first_tick <= first.pts <= tick

    def _render(self, frame: av.VideoFrame, reformatter: VideoReformatter) -> Frames:
        color = color_of(frame, file_name(self._path))  # each frame's own: it may change half-way
        pixels = to_rgb(frame, color, reformatter, self._coded_size, self._background, self._peak)
        return self._turn.apply(pixels)

    def _describe(self, container: InputContainer, stream: VideoStream, first: av.VideoFrame) -> VideoInfo:
        width, height = self._coded_size
        aspect = stream.sample_aspect_ratio or Fraction(1)
        if self._turn.transposed:
            width, height, aspect = height, width, 1 / aspect
        rate, time_base = _rate(container, stream), stream.time_base or Fraction(1, 90000)
        duration = declared_duration(stream)
        if duration is None and container.duration:
            duration = Fraction(container.duration, 1_000_000)
        return VideoInfo(
            path=str(self._path),
            codec=stream.codec_context.name,
            height=height,
            width=width,
            rate=rate,
            frames=stream.frames or (None if duration is None else max(1, round(duration * rate))),
            duration=duration,
            time_base=time_base,
            color=color_of(first, file_name(self._path)),
            rotation=self._turn.degrees,
            mirrored=self._turn.mirrored,
            pixel_aspect=aspect,
            has_audio=bool(container.streams.audio),
            first_time=self._first_tick * time_base,
            interlaced=first.interlaced_frame,
        )


def _knows_key_frames(container: InputContainer, stream: VideoStream) -> bool:
    """Whether flags tell key frames from others: some muxers set them all, for codecs that have both."""
    if stream.codec_context.codec.intra_only:
        return True
    flags = [packet.is_keyframe for packet in islice(container.demux(stream), _FLAGS) if packet.size]
    return len(flags) < 2 or not all(flags)


def _rate(container: InputContainer, stream: VideoStream) -> Fraction:
    """Average frames per second. For a bare stream FFmpeg's average is a default and its guess is the codec's."""
    rates = [stream.average_rate, stream.guessed_rate]
    if int(container.format.flags) & _NO_TIMESTAMPS:
        rates.reverse()
    rate = next((rate for rate in rates if rate and 0 < rate <= _MAX_RATE), None)
    if rate is None or rate >= _DOUBTFUL_RATE:  # that of the clock, where the file tells none of the frames
        return _rate_of_packets(container, stream) or rate or _FALLBACK_RATE
    return rate


def _rate_of_packets(container: InputContainer, stream: VideoStream) -> Fraction | None:
    """Average rate of the packets at the beginning; the nearest of the usual rates, if one is within the rounding."""
    try:
        container.seek(0)
        stamps = (packet.pts for packet in container.demux(stream))
        ticks = sorted({tick for tick in islice(stamps, _COUNTED) if tick is not None})
    except av.FFmpegError:
        return None
    if len(ticks) < 2 or not stream.time_base:
        return None
    rate = (len(ticks) - 1) / ((ticks[-1] - ticks[0]) * stream.time_base)
    usual = min(_USUAL_RATES, key=lambda known: abs(known - rate))
    return usual if abs(usual - rate) < rate / 200 else rate.limit_denominator(1001)


_TURNED = [(1, 0, 0, 1), (0, -1, 1, 0), (-1, 0, 0, -1), (0, 1, -1, 0)]  # by quarters counterclockwise


class Turn:
    """How stored pictures are brought upright: swap rows and columns, then reverse columns, then rows.

    Args:
        matrix: the first two rows and columns of a display matrix: a stored point `(x, y)`, from the centre, is shown
            at `(a*x + c*y, b*x + d*y)`. Angles between multiples of 90 degrees are taken as the nearest of them.
    """

    def __init__(self, matrix: tuple[int, int, int, int] = (1, 0, 0, 1)) -> None:
        a, b, c, d = matrix
        self.transposed = abs(b) + abs(c) > abs(a) + abs(d)
        self.reverse_columns = (c if self.transposed else a) < 0
        self.reverse_rows = (b if self.transposed else d) < 0

    @classmethod
    def of(cls, frame: av.VideoFrame) -> Turn:
        """The turn that a decoded frame's display matrix asks for."""
        data = side_data_of(frame, "DISPLAYMATRIX")
        if data is None:  # where PyAV does not get at it, it tells the angle nevertheless
            return cls(_TURNED[round(frame.rotation / 90) % 4])
        matrix = np.frombuffer(bytes(data), np.int32)  # 3 x 3, fixed point
        return cls((int(matrix[0]), int(matrix[1]), int(matrix[3]), int(matrix[4])))

    @property
    def mirrored(self) -> bool:
        """Whether it flips."""
        return self.transposed ^ self.reverse_columns ^ self.reverse_rows

    @property
    def degrees(self) -> int:
        """Degrees clockwise, after a flip left to right if it is `mirrored`."""
        if self.transposed:
            return 90 if self.reverse_columns ^ self.mirrored else 270
        return 180 if self.reverse_rows else 0

    def apply(self, pixels: Frames) -> Frames:
        """Turn `(h, w, 3)`."""
        if self.transposed:
            pixels = pixels.transpose(1, 0, 2)
        if self.reverse_columns:
            pixels = pixels[:, ::-1]
        if self.reverse_rows:
            pixels = pixels[::-1]
        return np.ascontiguousarray(pixels)
