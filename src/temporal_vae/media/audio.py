"""The sound of a source: copied packet by packet where the output can hold it, or else coded anew."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol

import av
import av.filter
from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.stream import Stream

from temporal_vae.errors import InputError, MediaError, file_name
from temporal_vae.media.decoding import open_container, reason_of
from temporal_vae.media.reader import MAX_PIXELS

Audio = bool | Literal["copy"]
"""`True` copies the sound, or codes it anew where it must be; `"copy"` insists; `False` leaves it out."""

logger = logging.getLogger(__name__)

_LEAD_IN = Fraction(1, 10)
"""Seconds of sound kept before the first frame, where the source has some: decoders of AAC and Opus warm up on it."""

_PLAYED = {"mp4": {"aac", "mp3", "ac3", "eac3", "alac", "opus", "flac"}}
"""What players play of what a container holds on paper, where that is less."""

_TRIED_PACKETS = 8
_NEW_CODEC = {"matroska": "flac"}  # else AAC
_AAC_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)
_AAC_LAYOUTS = {"mono", "stereo", "3.0", "4.0", "5.0", "5.1", "7.1"}
_BITS_PER_CHANNEL = 96_000  # per second


@dataclass(frozen=True, kw_only=True)
class Sound:
    """The sound of a source, and how each of its tracks goes into a container; decided before anything is written.

    Attributes:
        path: the source.
        first_time: seconds on its clock at which its first frame is shown.
        begins: seconds on its clock at which its sound begins.
        coded_anew: indices of the tracks that can't be copied.
        max_pixels: passed to the decoder of the frames, which is not used.
    """

    path: Path
    first_time: Fraction
    begins: Fraction
    coded_anew: frozenset[int]
    max_pixels: int


def sound_of(
    path: Path, first_time: Fraction, container: str, suffix: str, audio: Audio, max_pixels: int
) -> Sound:
    """Look at the tracks of a source, and try them in a container that is written nowhere.

    Raises:
        MediaError: a track that can't be copied where `audio` insists on it, or that nobody can decode.
    """
    if audio not in (True, "copy"):
        raise InputError(f"audio={audio!r}: choose True, False or 'copy'")
    anew, begins = set(), first_time
    with open_container(path, max_pixels) as source:
        for stream in source.streams.audio:
            name = stream.codec_context.codec.canonical_name if stream.codec_context else "unknown codec"
            if stream.start_time is not None and stream.time_base is not None:
                begins = min(begins, stream.start_time * stream.time_base)
            if name in _PLAYED.get(container, {name}) and _can_hold(
                container, path, stream.index, max_pixels
            ):
                continue
            if audio == "copy":
                raise MediaError(
                    f"{file_name(path)}: {suffix} does not hold its sound ({name}); write .mkv, let it be coded anew "
                    "(without --audio copy), or leave it out (--no-audio)"
                )
            if not stream.codec_context:
                raise MediaError(
                    f"{file_name(path)}: FFmpeg does not know its sound; leave it out (--no-audio)"
                )
            new = _NEW_CODEC.get(container, "aac").upper()
            logger.warning(
                "%s: its sound (%s) is coded anew as %s for %s", file_name(path), name, new, suffix
            )
            anew.add(stream.index)
    return Sound(
        path=path, first_time=first_time, begins=begins, coded_anew=frozenset(anew), max_pixels=max_pixels
    )


def tracks_of(path: Path) -> list[str]:
    """Codec, rate, layout and language of each sound track of a file, in words."""
    with open_container(path, MAX_PIXELS) as source:
        return [
            " ".join(
                [
                    track.codec_context.codec.canonical_name,
                    f"{track.codec_context.sample_rate} Hz",
                    track.codec_context.layout.name,
                    *([track.language] if track.language else []),
                ]
            )
            if track.codec_context
            else "unknown codec"
            for track in source.streams.audio
        ]


def _can_hold(container: str, path: Path, index: int, max_pixels: int) -> bool:
    """Whether a container takes the first packets of a track."""
    with open_container(path, max_pixels) as source:
        stream = source.streams[index]
        try:
            with av.open(io.BytesIO(), "w", format=container) as trial:
                track = trial.add_stream_from_template(stream)
                track.time_base = stream.time_base
                packets = (
                    packet for packet in source.demux(stream) if packet.size and packet.pts is not None
                )
                for packet in islice(packets, _TRIED_PACKETS):
                    packet.stream = track
                    trial.mux(packet)
        except (ValueError, OSError, av.FFmpegError):
            return False
    return True


class SoundWriter:
    """Writes the sound of a source into an output, as far as the frames have got.

    Args:
        sound: what `sound_of` found.
        output: where the tracks are added; nothing has been written to it yet.

    Raises:
        MediaError: a damaged source.
    """

    def __init__(self, sound: Sound, output: OutputContainer) -> None:
        self._sound = sound
        self._source = open_container(sound.path, sound.max_pixels)
        self._tracks: dict[int, _Track] = {}
        for stream in self._source.streams.audio:
            kind = _Coded if stream.index in sound.coded_anew else _Copied
            self._tracks[stream.index] = kind(stream, output)
        self._packets: Iterator[av.Packet[Stream]] = iter(())
        self._waiting: av.Packet[Stream] | None = None

    def begin(self, start: Fraction) -> Fraction:
        """Begin with what sounds from `start` on, in seconds since the source's first frame.

        Returns:
            Seconds by which the sound goes ahead of the first frame; more than none where a source begins with sound.
        """
        self._start = self._sound.first_time + start
        ahead = self._start - self._sound.begins if start == 0 else Fraction(0)
        if ahead > _LEAD_IN:
            self._start -= ahead
        else:
            ahead = Fraction(0)
        self._since = self._start - (_LEAD_IN if start == 0 else 0)
        if start > 0:
            self._source.seek(max(0, int((self._start - 1) * 1_000_000)))
        for track in self._tracks.values():
            track.begin(self._start)
        self._packets = self._source.demux(*(self._source.streams.audio))
        return ahead

    def write_until(self, end: Fraction) -> None:
        """Write packets that begin before `end`, in seconds since the beginning; half of one may reach over it."""
        while (packet := self._waiting or self._next()) is not None:
            self._waiting = packet
            time, length = _when(packet)
            if time + length / 2 >= self._start + end:
                return
            self._waiting = None
            if time + length / 2 >= self._since:
                try:
                    self._tracks[packet.stream.index].write(packet)
                except (av.error.InvalidDataError, ValueError) as error:
                    raise self._damaged(error) from error

    def finish(self) -> None:
        """Write what encoders hold back."""
        for track in self._tracks.values():
            track.finish()

    def close(self) -> None:
        """Close the source."""
        self._source.close()

    def _next(self) -> av.Packet[Stream] | None:
        try:
            return next((packet for packet in self._packets if packet.size and packet.pts is not None), None)
        except av.FFmpegError as error:
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> MediaError:
        reason = reason_of(error) if isinstance(error, av.FFmpegError) else str(error)
        return MediaError(
            f"{file_name(self._sound.path)}: its sound is damaged ({reason}); leave it out (--no-audio)"
        )


class _Track(Protocol):
    """One track of an output."""

    def begin(self, start: Fraction) -> None:
        """What sounds at `start`, on the source's clock, comes at 0."""

    def write(self, packet: av.Packet[Stream]) -> None:
        """Write a packet of the source."""

    def finish(self) -> None:
        """Write what is held back."""


class _Copied:
    """A track whose packets are taken as they are."""

    def __init__(self, stream: AudioStream, output: OutputContainer) -> None:
        self._output, self._track = output, output.add_stream_from_template(stream)
        self._track.time_base = stream.time_base
        _label(self._track, stream)

    def begin(self, start: Fraction) -> None:
        self._start = start

    def write(self, packet: av.Packet[Stream]) -> None:
        ticks = round(self._start / packet.time_base)
        packet.pts = None if packet.pts is None else packet.pts - ticks
        packet.dts = None if packet.dts is None else packet.dts - ticks
        packet.stream = self._track
        self._output.mux(packet)

    def finish(self) -> None:
        """Nothing is held back."""


class _Coded:
    """A track that is decoded and coded anew: AAC, or FLAC in Matroska."""

    def __init__(self, stream: AudioStream, output: OutputContainer) -> None:
        self._stream, self._output = stream, output
        codec, old = _NEW_CODEC.get(output.format.name, "aac"), stream.codec_context
        rate, layout = old.sample_rate, old.layout.name
        if codec == "aac":
            rate = rate if rate in _AAC_RATES else 48_000
            layout = layout if layout in _AAC_LAYOUTS else "stereo"
        track: Any = output.add_stream(codec, rate=rate, layout=layout)
        if codec == "aac":
            track.bit_rate = _BITS_PER_CHANNEL * track.codec_context.layout.nb_channels
        self._track = track
        _label(self._track, stream)
        self._graph: av.filter.Graph | None = None
        self._rate = rate

    def begin(self, start: Fraction) -> None:
        self._start = start

    def write(self, packet: av.Packet[Stream]) -> None:
        for frame in packet.decode():
            self._resample(frame)

    def finish(self) -> None:
        for frame in self._stream.codec_context.decode(None):
            self._resample(frame)
        if self._graph is not None:
            self._graph.push(None)
            self._encode()
        self._output.mux(self._track.encode(None))

    def _resample(self, frame: Any) -> None:
        if self._graph is None:
            self._graph = self._resampler(frame)
        if frame.pts is not None:
            time = frame.pts * frame.time_base - self._start
            frame.time_base = Fraction(1, frame.sample_rate)
            frame.pts = round(time * frame.sample_rate)
        self._graph.push(frame)
        self._encode()

    def _resampler(self, frame: Any) -> av.filter.Graph:
        """Samples as the encoder takes them, from time 0 on; gaps become silence."""
        graph, context = av.filter.Graph(), self._track.codec_context
        if not context.is_open:
            context.open()
        source = graph.add_abuffer(
            sample_rate=frame.sample_rate,
            format=frame.format.name,
            layout=frame.layout.name,
            time_base=Fraction(1, frame.sample_rate),
        )
        steps = [
            source,
            graph.add("aresample", f"{self._rate}:async=1:first_pts=0"),
            graph.add("aformat", f"sample_fmts={context.format.name}:channel_layouts={context.layout.name}"),
        ]
        if context.frame_size:
            steps.append(graph.add("asetnsamples", f"n={context.frame_size}:p=0"))
        steps.append(graph.add("abuffersink"))
        graph.link_nodes(*steps).configure()
        return graph

    def _encode(self) -> None:
        assert self._graph is not None
        while True:
            try:
                frame = self._graph.pull()
            except (av.error.BlockingIOError, av.error.EOFError):
                return
            self._output.mux(self._track.encode(frame))


def _label(track: Any, stream: AudioStream) -> None:
    """Keep language and disposition."""
    if stream.language:
        track.metadata["language"] = stream.language
    track.disposition = stream.disposition


def _when(packet: av.Packet[Stream]) -> tuple[Fraction, Fraction]:
    """When a packet begins, on the source's clock, and how long it lasts; seconds."""
    return (packet.pts or 0) * packet.time_base, (packet.duration or 0) * packet.time_base
