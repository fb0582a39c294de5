"""The sound of a source, copied packet by packet without decoding it."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.stream import Stream

from temporal_vae.errors import MediaError
from temporal_vae.video.decoding import open_container, reason_of
from temporal_vae.video.frames import file_name

_LEAD_IN = Fraction(1, 10)
"""Seconds of sound kept before the first frame, where the source has some: decoders of AAC and Opus warm up on it."""


class AudioCopy:
    """Copies all sound tracks of a source into an output, as far as the pictures have got.

    Args:
        path: the source.
        first_time: seconds on its clock at which its first frame is shown.
        output: where the tracks are added; nothing has been written to it yet.
        max_pixels: passed to the decoder of the pictures, which is not used.

    Raises:
        MediaError: a codec that the output's container can't hold, a damaged source.
    """

    def __init__(self, path: Path, first_time: Fraction, output: OutputContainer, max_pixels: int) -> None:
        self._path, self._first_time, self._output = path, first_time, output
        self._source = open_container(path, max_pixels)
        self._tracks: dict[int, AudioStream] = {}
        for stream in self._source.streams.audio:
            self._tracks[stream.index] = self._add(stream)
        self._packets: Iterator[av.Packet[Stream]] = iter(())
        self._waiting: av.Packet[Stream] | None = None

    def _add(self, stream: AudioStream) -> AudioStream:
        try:
            track = self._output.add_stream_from_template(stream)
        except (ValueError, av.FFmpegError):
            codec = stream.codec_context.name if stream.codec_context else "of unknown codec"
            raise MediaError(
                f"{file_name(self._path)}: its sound ({codec}) can't be copied into {self._output.format.name}; "
                "write .mkv, or leave the sound out"
            ) from None
        track.time_base = stream.time_base
        if stream.language:
            track.metadata["language"] = stream.language
        return track

    def begin(self, start: Fraction) -> None:
        """Copy what sounds from `start` on, in seconds since the source's first frame; it becomes time 0."""
        self._start = self._first_time + start
        self._since = self._start - (_LEAD_IN if start == 0 else 0)
        if start > 0:
            self._source.seek(max(0, int((self._start - 1) * 1_000_000)))
        self._packets = self._source.demux(*(self._source.streams.audio))

    def copy_until(self, end: Fraction) -> None:
        """Write packets that begin before `end`, in seconds since `start`; half of one may reach over it."""
        while (packet := self._waiting or self._next()) is not None:
            self._waiting = packet
            time, length = _when(packet)
            if time + length / 2 >= self._start + end:
                return
            self._waiting = None
            if time + length / 2 >= self._since:
                self._write(packet)

    def close(self) -> None:
        """Close the source."""
        self._source.close()

    def _next(self) -> av.Packet[Stream] | None:
        try:
            return next((packet for packet in self._packets if packet.size and packet.pts is not None), None)
        except av.FFmpegError as error:
            raise MediaError(
                f"{file_name(self._path)}: its sound is broken ({reason_of(error)}); leave the sound out"
            ) from error

    def _write(self, packet: av.Packet[Stream]) -> None:
        ticks = round(self._start / packet.time_base)
        packet.pts = None if packet.pts is None else packet.pts - ticks
        packet.dts = None if packet.dts is None else packet.dts - ticks
        packet.stream = self._tracks[packet.stream.index]
        self._output.mux(packet)


def _when(packet: av.Packet[Stream]) -> tuple[Fraction, Fraction]:
    """When a packet begins, on the source's clock, and how long it lasts; seconds."""
    return (packet.pts or 0) * packet.time_base, (packet.duration or 0) * packet.time_base
