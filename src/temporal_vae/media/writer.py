"""Videos out, as a stream: H.264, lossless FFV1, GIF, a folder of PNG images, or one image."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import av
from av.container import OutputContainer

from temporal_vae.errors import InputError, MediaError, file_name
from temporal_vae.media.audio import Audio, Sound, SoundWriter, sound_of
from temporal_vae.media.color import output_color
from temporal_vae.media.encoding import (
    GIF_TICK,
    PICTURES,
    ContainerSink,
    Picture,
    PngFolder,
    Settings,
    Sink,
    tick_for,
)
from temporal_vae.media.frames import Color, Frames, check_frames, check_timestamps, exact
from temporal_vae.media.matroska import set_pixel_aspect
from temporal_vae.media.reader import MAX_PIXELS, VideoReader
from temporal_vae.outputs import check_apart, check_writable, complete_or_nothing, failed_to_write

_CODEC_OF = {
    ".mp4": "h264",
    ".m4v": "h264",
    ".mov": "h264",
    ".mkv": "ffv1",
    ".gif": "gif",
    "": "png",
    **dict.fromkeys(PICTURES, "picture"),
}
_SUFFIXES = {
    "h264": (".mp4", ".m4v", ".mov", ".mkv"),
    "ffv1": (".mkv",),
    "gif": (".gif",),
    "png": ("",),
    "picture": tuple(PICTURES),
}
_FORMATS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska", ".gif": "gif"}


class VideoWriter:
    """Writes a video as a stream. A context manager: the output appears under its name when the block ends well.

    If the block raises, Ctrl-C included, nothing is left behind and what had the name before stays.

        with VideoWriter("out.mp4", rate=clip.rate, color=clip.color, audio_from="in.mp4") as writer:
            writer.write(clip.frames, clip.timestamps)

    The first frame is shown at time 0, the others as much later as their time stamps say, also at a variable rate.
    Matroska rounds to a millisecond, GIF to a hundredth of a second (and leaves out frames that come sooner than two
    after the one before), and PNG files carry no time. H.264 stores even sizes as 4:2:0, which every player shows, and
    odd ones, which 4:2:0 can't hold, as 4:4:4: FFmpeg, VLC and Chrome show it, some hardware players don't.

    Args:
        target: `.mp4`, `.m4v`, `.mov` (H.264), `.mkv` (FFV1, lossless), `.gif`, or a folder for PNG images: a
            name that ends in `/` or has no suffix; or `.png`, `.jpg`, `.webp` (lossless) for a single picture.
        rate: nominal frames per second; the last frame is shown for one of them, or as long as `finish` is told.
        color: of the source, `Clip.color`. H.264 keeps BT.601, BT.709 or BT.2020 and the range, else is BT.709 limited.
        codec: `h264`, `ffv1`, `gif`, `png` or `picture`, where it is not to be that of the suffix: `.mkv` holds `h264`,
            too.
        crf: quality of H.264, 1 (best) to 51; 0 is without loss but for the colours, and few players show it.
        audio_from: video whose sound is written, from the first time stamp to the end of the last frame. Time stamps
            are taken to be those of this video. GIF and PNG have no sound: it is left out.
        audio: True copies the tracks, and codes anew (AAC, or FLAC in .mkv) those that the target can't hold; `"copy"`
            refuses them; False leaves the sound out.
        overwrite: whether a file of that name may be replaced. A folder is replaced only if nothing but numbered PNG
            images is in it.
        pixel_aspect: width of a pixel over its height, `VideoInfo.pixel_aspect`.
        time_base: `VideoInfo.time_base` of the source, so that its time stamps are kept to the tick.

    Raises:
        MediaError: a target that can't be written, sound that its container can't hold, no frames.
        InputError: an argument out of range, frames of changing size, time stamps that do not increase.
    """

    def __init__(
        self,
        target: str | Path,
        *,
        rate: Fraction | float | str,
        color: Color | None = None,
        codec: str | None = None,
        crf: int = 18,
        audio_from: str | Path | None = None,
        audio: Audio = True,
        overwrite: bool = True,
        pixel_aspect: Fraction = Fraction(1),
        time_base: Fraction | None = None,
    ) -> None:
        self.target = Path(target)
        nominal = exact(rate, "rate")
        if nominal <= 0:
            raise InputError(f"rate={rate}: frames per second, above 0")
        if not 0 <= crf <= 51:
            raise InputError(f"crf={crf}: 0 (best) to 51")
        codec = codec_for(target, codec)
        self._settings = Settings(
            codec=codec,
            rate=nominal,
            tick=GIF_TICK if codec == "gif" else tick_for(nominal, time_base),
            color=output_color(color),
            crf=crf,
            pixel_aspect=pixel_aspect,
        )
        check_writable(target, overwrite=overwrite)
        _check_replaceable(self.target, codec)
        check_apart([self.target], [] if audio_from is None else [audio_from])
        self._sound: Sound | None = None
        if audio and audio_from is not None and codec in ("h264", "ffv1"):
            info = VideoReader(audio_from, hdr="keep").info
            if info.has_audio:
                suffix = self.target.suffix.lower()
                kind = _FORMATS[suffix]
                self._sound = sound_of(Path(audio_from), info.first_time, kind, suffix, audio, MAX_PIXELS)
        self._stack = ExitStack()
        self._sink: Sink
        self._output: OutputContainer | None = None
        self._audio: SoundWriter | None = None
        self._shape: tuple[int, ...] = ()
        self._first = Fraction(0)
        self._last: Fraction | None = None
        self._finished = False

    def __enter__(self) -> VideoWriter:
        try:
            temporary = self._stack.enter_context(complete_or_nothing(self.target))
            self._temporary = temporary
            self._sink = self._sink_to(temporary)
        except BaseException as error:
            self._stack.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            try:
                self.finish()
            except BaseException as failure:
                self._stack.__exit__(type(failure), failure, failure.__traceback__)
                raise
        self._stack.__exit__(kind, error, trace)

    def finish(self, last_duration: Fraction | None = None) -> None:
        """Write what is still held back: what follows can't fail for want of room. The end of the block does it too.

        Args:
            last_duration: seconds for which the last frame is shown; by default one frame of the nominal rate.
        """
        if not self._finished:
            self._finish(last_duration or 1 / self._settings.rate)
            self._finished = True

    def write(self, frames: Frames, timestamps: Sequence[Fraction] | None = None) -> None:
        """Append frames, uint8 `(t, h, w, 3)`, and their seconds; without them, they follow at the nominal rate."""
        check_frames(frames)
        last = self._last
        if timestamps is None:
            begin = Fraction(0) if last is None else last + 1 / self._settings.rate
            timestamps = [begin + index / self._settings.rate for index in range(len(frames))]
        check_timestamps(timestamps, len(frames), after=last)
        if not len(frames):
            return
        if last is None:
            self._begin(frames, timestamps[0])
        if frames.shape[1:] != self._shape:
            raise InputError(
                f"frames of {frames.shape[2]}x{frames.shape[1]} in a video of {self._shape[1]}x{self._shape[0]}; "
                "all frames have one size"
            )
        try:
            for frame, stamp in zip(frames, timestamps, strict=True):
                self._sink.add(frame, stamp - self._first)
        except (av.FFmpegError, OSError) as error:
            raise self._failed(error) from error
        self._last = timestamps[-1]

    def _begin(self, frames: Frames, first: Fraction) -> None:
        self._shape, self._first = frames.shape[1:], first
        if self._audio is not None:
            self._first -= self._audio.begin(first)

    def _finish(self, last_duration: Fraction) -> None:
        if self._last is None:
            raise MediaError(f"{file_name(self.target)}: there are no frames to write; read at least one")
        try:
            self._sink.finish(self._last - self._first + last_duration)
            if self._output is not None:
                self._output.close()
            if self._settings.codec == "ffv1" and self._settings.pixel_aspect != 1:
                set_pixel_aspect(self._temporary, self._settings.pixel_aspect)
        except (av.FFmpegError, OSError) as error:
            raise self._failed(error) from error

    def _sink_to(self, temporary: Path) -> Sink:
        if self._settings.codec == "png":
            return PngFolder(temporary)
        if self._settings.codec == "picture":
            return Picture(temporary, self.target)
        container_format = _FORMATS[self.target.suffix.lower()]
        options = {"movflags": "faststart"} if container_format in ("mp4", "mov") else {}
        try:
            self._output = av.open(f"file:{temporary}", "w", format=container_format, options=options)
        except (av.FFmpegError, OSError) as error:
            raise self._failed(error) from error
        self._stack.callback(_close_quietly, self._output)
        sink = ContainerSink(self._output, self._settings)
        if self._sound is not None:
            self._audio = sink.audio = SoundWriter(self._sound, self._output)
            self._stack.callback(self._audio.close)
        return sink

    def _failed(self, error: Exception) -> MediaError:
        return failed_to_write(self.target, error)


def codec_for(target: str | Path, codec: str | None = None) -> str:
    """The codec to write `target` with: `codec`, or that of the suffix. `MediaError` where they do not go together."""
    suffix = Path(target).suffix.lower()
    if str(target).endswith(("/", os.sep)) and codec is None:
        return "png"
    if codec is None and suffix not in _CODEC_OF:
        known = ", ".join(sorted(s for s in _CODEC_OF if s))
        raise MediaError(
            f"{file_name(target)}: unknown suffix; write {known}, or a folder of PNG images (a name that ends in /)"
        )
    codec = codec or _CODEC_OF[suffix]
    if codec not in _SUFFIXES:
        raise InputError(f"codec={codec!r}: choose {', '.join(_SUFFIXES)}")
    if codec != "png" and suffix not in _SUFFIXES[codec]:
        raise MediaError(
            f"{file_name(target)}: {codec} is written to {', '.join(_SUFFIXES[codec])}; rename the target"
        )
    return codec


def _check_replaceable(target: Path, codec: str) -> None:
    """Images replace a folder of such images only, a video replaces a file only."""
    if not target.exists():
        return
    if codec != "png" and not target.is_file():
        raise MediaError(f"{file_name(target)}: there is a folder of that name; choose another one")
    if codec == "png" and not target.is_dir():
        raise MediaError(
            f"{file_name(target)}: there is a file of that name; choose another one for the folder"
        )
    if codec == "png" and any(not re.fullmatch(r"\d{6,}\.png", path.name) for path in target.iterdir()):
        raise MediaError(
            f"{file_name(target)}: the folder holds other files than frames; choose a new or empty one"
        )


def _close_quietly(output: OutputContainer) -> None:
    """Close an output that may have failed already; its error has been reported."""
    with suppress(av.FFmpegError, OSError):
        output.close()
