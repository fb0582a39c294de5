"""Sinks: what turns RGB frames into packets of a container, or into image files."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import lcm
from pathlib import Path
from typing import Any, Protocol

import av
import numpy as np
from av.container import OutputContainer
from av.video.reformatter import VideoReformatter
from PIL import Image

from temporal_vae.errors import MediaError, file_name
from temporal_vae.media.audio import SoundWriter
from temporal_vae.media.color import MATRICES, PRIMARIES, RANGES, TRANSFERS, rgb_to_yuv444, subsample
from temporal_vae.media.frames import Color, Frames

PICTURES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
"""Kinds of image files, by suffix; only JPEG loses anything."""

_FINE = 10_000  # ticks per second at least
_FINEST = 1_000_000  # and at most
GIF_TICK = Fraction(1, 100)
_FRAME_DURATION = 1 << 8  # AV_CODEC_FLAG_FRAME_DURATION: packets last as long as their frames
_GIF_SHORTEST = 2  # ticks; browsers slow down what is shorter


class Sink(Protocol):
    """Writes frames one by one."""

    def add(self, frame: Frames, time: Fraction) -> None:
        """Write `(h, w, 3)`, shown `time` seconds after the first frame."""

    def finish(self, end: Fraction) -> None:
        """Write what was held back; the video lasts `end` seconds."""


class PngFolder:
    """Frames as `000000.png`, `000001.png`, ... in a folder; they carry no time stamps."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._count = folder, 0
        folder.mkdir()

    def add(self, frame: Frames, time: Fraction) -> None:
        """Write the next image."""
        Image.fromarray(frame).save(self._folder / f"{self._count:06}.png", compress_level=4)
        self._count += 1

    def finish(self, end: Fraction) -> None:
        """Nothing is left to do."""


class Picture:
    """A single frame as an image file of the suffix's kind."""

    def __init__(self, temporary: Path, name: Path) -> None:
        self._temporary, self._name, self._empty = temporary, name, True

    def add(self, frame: Frames, time: Fraction) -> None:
        """Write the image."""
        if not self._empty:
            raise MediaError(
                f"{file_name(self._name)}: holds one picture, and there are more; name a folder (one that ends in /) "
                "or a video"
            )
        kind = PICTURES[self._name.suffix.lower()]
        options = (
            {"quality": 95, "subsampling": 0}
            if kind == "JPEG"
            else {"lossless": True}
            if kind == "WEBP"
            else {}
        )
        Image.fromarray(frame).save(self._temporary, format=kind, **options)
        self._empty = False

    def finish(self, end: Fraction) -> None:
        """Nothing is left to do."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a video is stored.

    Attributes:
        codec: `h264`, `ffv1`, `gif`, `png` or `picture`.
        rate: nominal frames per second.
        tick: time base, seconds.
        color: matrix and range in which H.264 is stored.
        crf: quality of H.264, 0 to 51; 0 is without loss but for the colour conversion.
        pixel_aspect: width of a pixel over its height.
    """

    codec: str
    rate: Fraction
    tick: Fraction
    color: Color
    crf: int
    pixel_aspect: Fraction


class ContainerSink:
    """Encodes into one video stream of a container, and copies the sound alongside.

    Args:
        output: opened for writing.
        settings: how to store it.
    """

    def __init__(self, output: OutputContainer, settings: Settings) -> None:
        options = {
            "h264": {"crf": str(settings.crf), "preset": "medium"},
            "ffv1": {"level": "3", "slicecrc": "1", "slices": "4", "g": "1"},
            "gif": {},
        }[settings.codec]
        name = {"h264": "libx264"}.get(settings.codec, settings.codec)
        self._output, self._settings = output, settings
        self._stream: Any = output.add_stream(
            name, rate=settings.rate, options=options, time_base=settings.tick
        )
        self._shortest = _GIF_SHORTEST if settings.codec == "gif" else 1
        self._picture: _Yuv | _PlainRgb | _Palette | None = None
        self._last = -self._shortest
        self._held: av.VideoFrame | None = None  # until it is known how long it is shown
        self._delay: Fraction | None = None  # seconds by which decoding goes ahead of display
        self.audio: SoundWriter | None = None

    def add(self, frame: Frames, time: Fraction) -> None:
        """Encode `(h, w, 3)`, shown `time` seconds after the first frame.

        A GIF leaves out frames that come sooner than 2 hundredths of a second after the one before.
        """
        if self._picture is None:
            self._picture = self._begin(frame)
        ticks = max(round(time / self._settings.tick), self._last + 1)
        if ticks < self._last + self._shortest:
            return
        self._encode_held(ticks)
        self._held = self._picture.of(frame)
        self._held.pts, self._held.time_base = ticks, self._settings.tick
        self._last = ticks
        if self.audio is not None:
            self.audio.write_until(time)

    def _encode_held(self, end: int) -> None:
        """Encode the frame before, which is shown until `end`, in ticks."""
        if self._held is not None:
            self._held.duration = end - self._last
            self._mux(self._stream.encode(self._held))
            self._held = None

    def _mux(self, packets: list[Any], end: Fraction | None = None) -> None:
        """Write packets; the last ones so that the track lasts to `end`, though they may be of earlier frames."""
        if packets and self._delay is None:
            self._delay = ((packets[0].pts or 0) - (packets[0].dts or 0)) * packets[0].time_base
        if packets and end is not None:
            last, end = packets[-1], end - (self._delay or 0)
            last.duration = max(last.duration or 0, round(end / last.time_base) - (last.dts or 0))
        self._output.mux(packets)

    def _begin(self, frame: Frames) -> _Yuv | _PlainRgb | _Palette:
        settings, color, context = self._settings, self._settings.color, self._stream.codec_context
        height, width = frame.shape[:2]
        context.width, context.height = width, height
        context.flags = int(context.flags) | _FRAME_DURATION
        kinds: dict[str, type[_Yuv | _PlainRgb | _Palette]] = {
            "h264": _Yuv,
            "ffv1": _PlainRgb,
            "gif": _Palette,
        }
        picture = kinds[settings.codec](color, width, height)
        context.pix_fmt = picture.format
        if settings.codec == "h264":
            context.colorspace, context.color_range = MATRICES[color.matrix], RANGES[color.range]
            context.color_primaries, context.color_trc = PRIMARIES[color.primaries], TRANSFERS[color.transfer]
        if settings.codec == "ffv1":
            context.color_primaries, context.color_trc = PRIMARIES[color.primaries], TRANSFERS[color.transfer]
            if min(width, height) == 1:
                context.options = {**context.options, "slices": "1"}
        if settings.codec != "gif":
            context.sample_aspect_ratio = settings.pixel_aspect
        return picture

    def finish(self, end: Fraction) -> None:
        """Encode what the encoder holds back; the sound ends at `end` seconds."""
        ticks = max(round(end / self._settings.tick), self._last + 1)
        self._encode_held(ticks)
        self._mux(self._stream.encode(None), end)
        if self.audio is not None:
            self.audio.write_until(end)
            self.audio.finish()


def tick_for(rate: Fraction, time_base: Fraction | None) -> Fraction:
    """A time base that holds both the frames of `rate` and the stamps of a source's `time_base` exactly.

    Where the two together would be finer than a microsecond, the source's time base alone is held.
    """
    ticks = lcm(rate.numerator, time_base.denominator if time_base else 1)
    if ticks > _FINEST:
        ticks = time_base.denominator if time_base and time_base.denominator <= _FINEST else 90_000
    while ticks < _FINE:
        ticks *= 2
    return Fraction(1, ticks)


class _Yuv:
    """RGB to the YUV that H.264 stores. Even sizes are 4:2:0; odd ones, which 4:2:0 can't hold, are 4:4:4."""

    def __init__(self, color: Color, width: int, height: int) -> None:
        self._color = color
        self.format = "yuv444p" if width % 2 or height % 2 else "yuv420p"

    def of(self, frame: Frames) -> av.VideoFrame:
        planes = rgb_to_yuv444(frame, self._color)  # (3, h, w)
        if self.format == "yuv420p":
            luma, *chroma = planes
            stored = np.concatenate([luma.ravel(), *(subsample(plane).ravel() for plane in chroma)])
            planes = stored.reshape(-1, frame.shape[1])  # (h * 3 / 2, w), as PyAV takes it
        picture = av.VideoFrame.from_ndarray(planes, format=self.format)
        picture.colorspace, picture.color_range = MATRICES[self._color.matrix], RANGES[self._color.range]
        return picture


class _PlainRgb:
    """RGB as FFV1 stores it without loss."""

    format = "bgr0"

    def __init__(self, color: Color, width: int, height: int) -> None:
        self._reformatter = VideoReformatter()

    def of(self, frame: Frames) -> av.VideoFrame:
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        return self._reformatter.reformat(picture, format="bgr0")


class _Palette:
    """RGB to 256 colours chosen for each frame, with error diffusion."""

    format = "pal8"

    def __init__(self, color: Color, width: int, height: int) -> None:
        pass

    def of(self, frame: Frames) -> av.VideoFrame:
        image = Image.fromarray(frame)
        palette = image.quantize(256, method=Image.Quantize.MEDIANCUT)
        indexed = image.quantize(256, palette=palette, dither=Image.Dither.FLOYDSTEINBERG)
        colors = np.zeros((256, 4), np.uint8)  # alpha, red, green, blue
        colors[:, 0] = 255
        table = np.array(palette.getpalette(), np.uint8).reshape(-1, 3)
        colors[: len(table), 1:] = table
        pair: Any = np.asarray(indexed), colors
        return av.VideoFrame.from_ndarray(pair, format="pal8")
