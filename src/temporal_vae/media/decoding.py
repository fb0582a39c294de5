"""Decoding a container through PyAV, strictly.

A picture that FFmpeg had to patch up, a damaged packet or a file that ends early is an error, after the intact frames
before it. Damage ahead of the first key frame is passed over: recordings of broadcasts begin like that.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import timedelta
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from temporal_vae.errors import MediaError, file_name
from temporal_vae.media.cutoff import asf_duration, is_cut_off, unfinished_packet

_ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # FFmpeg's own ones leave the alpha channel out
# Earlier ones crash on codec options for containers that name their streams late. There FFmpeg's own limit holds while
# it looks for the streams: 268 million pixels.
_LIMITS_PROBING = int(av.__version__.split(".")[0]) >= 18
_NOT_VIDEO = {"tty"}  # FFmpeg would render any text file in a terminal font
_SLACK = Fraction(1, 2)  # seconds by which the length that a whole AVI declares may be off
_NEVER_STRICT = {"tiff"}  # decoders that, told to be strict, take intact files for damaged ones
_MEASURED = ("ogg",)  # whose length FFmpeg takes from what is there
_BEFORE_A_JOINT = 4  # packets at most between one that is marked as damaged and a joint
_JOINT = 1  # seconds: where time runs back or jumps by more, one stream was joined to another

logger = logging.getLogger(__name__)


def open_container(path: Path, max_pixels: int) -> InputContainer:
    """Open a local file; `MediaError` where FFmpeg can't."""
    options = {"max_pixels": str(max_pixels)} if _LIMITS_PROBING else {}
    try:
        return av.open(f"file:{path}", mode="r", options=options, metadata_errors="replace")
    except av.FFmpegError as error:
        raise MediaError(
            f"{file_name(path)}: can't be read as video or image ({reason_of(error)}); "
            "it is damaged, incomplete or of another kind: copy or export it again"
        ) from error


def video_stream(container: InputContainer, path: Path, max_pixels: int) -> VideoStream:
    """The first video stream that is not cover art; `MediaError` where there is none, or its frames are too large."""
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams or container.format.name in _NOT_VIDEO:
        kinds = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
        raise MediaError(f"{file_name(path)}: holds no video, only {kinds}; give a file with a video stream")
    codec = streams[0].codec_context
    if codec is None:
        raise MediaError(
            f"{file_name(path)}: FFmpeg does not know its video codec; convert the file to H.264"
        )
    check_pixels(codec.width, codec.height, path, max_pixels)
    return streams[0]


def check_pixels(width: int, height: int, path: Path, max_pixels: int) -> None:
    """Refuse a picture of more than `max_pixels` pixels."""
    if width * height > max_pixels:
        raise MediaError(
            f"{file_name(path)}: an image of {width}x{height} is over the limit of {max_pixels} pixels; "
            "scale it down, or raise max_pixels if it is meant"
        )


def tell_losses(path: Path, reason: str, *, kept: int, expected: int) -> None:
    """Say in one line how many frames of a damaged file are kept, of those that are expected as far as known."""
    lost = max(0, expected - kept)
    what = f"{lost} of {expected} are lost" if lost else "some may be patched up"
    logger.warning("%s: damaged (%s); %d frames are kept, %s", file_name(path), reason, kept, what)


def side_data_of(frame: av.VideoFrame, kind: str) -> Any:
    """What a frame carries besides its pixels; None where there is none, or one beside it that PyAV does not know."""
    try:
        return frame.side_data.get(kind)
    except ValueError:
        return None


def tick_of(frame: av.VideoFrame) -> int | None:
    """When a frame is shown, in ticks of its stream; `None` where the file does not tell."""
    return frame.pts if frame.pts is not None else frame.dts


def decode(
    container: InputContainer,
    stream: VideoStream,
    path: Path,
    max_pixels: int,
    shown_from: int | None = None,
    *,
    keep: bool = False,
) -> Iterator[av.VideoFrame]:
    """Frames in the order of display, those that the decoder delays included.

    Args:
        container: opened, standing at the beginning or at a key frame.
        stream: the one to decode.
        path: for messages.
        max_pixels: limit of a picture.
        shown_from: tick before which damage does not matter, after a seek.
        keep: deliver whatever can be decoded, patched up frames too, and count at the end what is lost.

    Raises:
        MediaError: damage, or an end before the declared one; after the frames before it. With `keep`, a file of which
            no frame can be decoded.
    """
    decoder, tally = _decoder(stream, max_pixels, keep), _Tally(stream, path, max_pixels, shown_from, keep)
    for packet in _packets(container, stream, tally):
        tally.judge(packet)
        if not packet.size and packet.dts is not None:  # of Theora: the frame before is shown once more
            continue
        try:
            frames = decoder.decode(packet if packet.size else None)
        except av.FFmpegError as error:
            if tally.minds(packet.pts) or (packet.is_keyframe and shown_from is None):
                tally.lose(reason_of(error), error)
            continue
        for frame in frames:
            if frame.is_corrupt and tally.minds(frame.pts):
                tally.lose("the data is damaged")
            if keep or not frame.is_corrupt:
                check_pixels(frame.width, frame.height, path, max_pixels)
                tally.shown(tick_of(frame))
                yield frame
    tally.judge(None)
    if missing := tally.missing():
        tally.lose(missing)
    tally.count_losses()


def _decoder(stream: VideoStream, max_pixels: int, keep: bool) -> Any:
    decoder: Any = stream.codec_context
    if tag_of(stream, "alpha_mode") == "1" and decoder.name in _ALPHA_DECODERS:
        decoder = av.CodecContext.create(_ALPHA_DECODERS[decoder.name], "r")
    strict = {} if keep or decoder.name in _NEVER_STRICT else {"err_detect": "crccheck+explode"}
    decoder.options = {**strict, "max_pixels": str(max_pixels)}
    return decoder


def _packets(
    container: InputContainer, stream: VideoStream, tally: _Tally
) -> Iterator[av.Packet[VideoStream]]:
    try:
        for packet in container.demux(stream):
            tally.read(packet)
            yield packet
    except av.FFmpegError as error:
        tally.lose(reason_of(error), error)


class _Tally:
    """Counts what was read, and knows what the file declares."""

    def __init__(
        self, stream: VideoStream, path: Path, max_pixels: int, shown_from: int | None, keep: bool
    ) -> None:
        self._stream, self._path, self._max_pixels, self._shown_from = stream, path, max_pixels, shown_from
        self._time_base = stream.time_base or Fraction(1, 90000)
        self._keep = keep
        self._losses: list[str] = []
        self._packets = 0
        self._end = 0
        self._frames = 0
        self._last: int | None = None  # tick of the last frame
        # Packets since one that may stand before a joint, and its tick.
        self._suspect: tuple[int, int] | None = None

    def judge(self, packet: av.Packet[VideoStream] | None) -> None:
        """Whether a packet that is marked as damaged is; one before a joint of transport streams only looks so."""
        tick = None if packet is None else packet.dts if packet.dts is not None else packet.pts
        if self._suspect is not None and (packet is None or packet.size):
            ago, before = self._suspect
            jumped = tick is not None and not 0 <= (tick - before) * self._time_base <= _JOINT
            self._suspect = None if jumped else (ago + 1, before)
            if not jumped and (packet is None or ago == _BEFORE_A_JOINT):
                self._suspect = None
                self.lose("the data is damaged or breaks off")
        if packet is not None and packet.is_corrupt and self.minds(packet.pts):
            if self._stream.container.format.name == "mpegts" and tick is not None:
                self._suspect = 0, tick
            else:
                self.lose("the data is damaged or breaks off")

    def lose(self, reason: str, error: Exception | None = None) -> None:
        """Something is lost: an error, or one more to count."""
        if not self._keep:
            raise self.broken(reason) from error
        self._losses.append(reason)

    def count_losses(self) -> None:
        """Say in one line what was lost."""
        if not self._losses:
            return
        if not self._frames:
            raise self.broken(self._losses[0])
        expected = self._stream.frames
        if not expected and (duration := declared_duration(self._stream)):
            expected = round(duration * (self._stream.average_rate or 0))
        tell_losses(self._path, self._losses[0], kept=self._frames, expected=expected)

    def read(self, packet: av.Packet[VideoStream]) -> None:
        if packet.size:
            self._packets += 1
            self._end = max(self._end, (packet.pts or packet.dts or 0) + (packet.duration or 0))

    def shown(self, tick: int | None) -> None:
        self._frames += 1
        self._last = tick or 0

    def minds(self, tick: int | None) -> bool:
        """Whether damage at a tick matters: not ahead of the first frame, nor before what is shown after a seek."""
        return self._last is not None and (self._shown_from is None or (tick or 0) >= self._shown_from)

    def broken(self, reason: str) -> MediaError:
        if self._last is None:
            if not self._stream.codec_context.width:  # FFmpeg clears a size that it won't accept
                reason = f"its image size is missing or over the limit of {self._max_pixels} pixels"
            return MediaError(
                f"{file_name(self._path)}: no frame can be decoded ({reason}); copy or export it again"
            )
        seconds = float((self._last - (self._stream.start_time or 0)) * self._time_base)
        place = f"after frame {self._frames} at" if self._shown_from is None else "after the frame at"
        return MediaError(
            f"{file_name(self._path)}: broken {place} {seconds:.3f} s ({reason}); "
            "copy or export it again, or keep what can be decoded (--damaged keep)"
        )

    def missing(self) -> str | None:
        """What is missing at the end of the file, if anything."""
        kind, size = self._stream.container.format.name, self._path.stat().st_size
        cut = is_cut_off(self._path, size)
        if kind == "mpegts" and unfinished_packet(self._path, size) == self._stream.id:
            return "the file ends inside a packet"
        if "mp4" in kind and (declared := len(self._stream.index_entries)) and not cut:
            short = self._shown_from is None and self._packets < declared
            return f"{self._packets} of {declared} frames are in the file" if short else None
        if not cut and kind != "avi":  # a header may outlast the last frame
            return None
        rate = self._stream.average_rate or Fraction(25)
        duration = declared_duration(self._stream)
        if kind == "avi":  # its duration is that of the frames FFmpeg found, not of those declared
            duration = self._stream.frames / rate
        if kind == "asf":
            duration = asf_duration(self._path)
        if duration is None or kind in _MEASURED:
            return "the file is cut off"
        end, slack = self._end * self._time_base, Fraction(3, 2) / rate if cut else _SLACK
        return (
            f"the file ends at {float(end):.3f} s of {float(duration):.3f} s"
            if end < duration - slack
            else None
        )


def declared_duration(stream: VideoStream) -> Fraction | None:
    """Seconds of a stream by its headers, `None` where they do not tell."""
    if stream.duration and stream.time_base:
        return stream.duration * stream.time_base
    if tag := tag_of(stream, "duration"):  # Matroska: hours:minutes:seconds
        return _clock(tag)
    if isinstance(stream.container, InputContainer) and len(stream.container.streams) == 1:
        return Fraction(stream.container.duration, 1_000_000) if stream.container.duration else None
    return None


def tag_of(stream: VideoStream, name: str) -> str | None:
    """A metadata entry of a stream, whatever the case of its name."""
    return next((value for key, value in stream.metadata.items() if key.lower() == name), None)


def _clock(text: str) -> Fraction | None:
    try:
        hours, minutes, seconds = text.strip().split(":")
        return timedelta(hours=int(hours), minutes=int(minutes)) // timedelta(seconds=1) + Fraction(seconds)
    except ValueError:
        return None


def reason_of(error: av.FFmpegError) -> str:
    """What FFmpeg says went wrong, in a few words."""
    return (error.strerror or "unknown error").lower()
