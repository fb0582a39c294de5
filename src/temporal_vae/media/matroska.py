"""What FFmpeg's writer of Matroska leaves out through PyAV: the pixel aspect of a track (RFC 9559, RFC 8794).

Elements are an identifier, a length and content. The writer leaves an empty one (`Void`) behind its list of places,
which gives way to what is put into the description of the track; nothing behind that description moves.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

_SEGMENT, _SEEK_HEAD, _VOID, _INFO, _TRACKS = 0x18538067, 0x114D9B74, 0xEC, 0x1549A966, 0x1654AE6B
_TRACK, _VIDEO, _CRC = 0xAE, 0xE0, 0xBF
_SEEK, _SEEK_ID, _SEEK_POSITION = 0x4DBB, 0x53AB, 0x53AC
_WIDTH, _HEIGHT, _DISPLAY_WIDTH, _DISPLAY_HEIGHT, _DISPLAY_UNIT = 0xB0, 0xBA, 0x54B0, 0x54BA, 0x54B2
_ASPECT = 3  # display width and height are a ratio
_HEAD = 2**16  # bytes: more than stands before the first frame


@dataclass(frozen=True)
class Element:
    """One element: where it begins, where its content does, and where that ends."""

    identifier: int
    begin: int
    content: int
    end: int


def number(data: bytes, place: int, *, keep_marker: bool = False) -> tuple[int | None, int]:
    """A number of variable length and the place after it; `None` is "unknown", as live recordings write.

    The position of the first 1 bit tells how many bytes follow; an identifier keeps that bit.
    """
    count = 9 - data[place].bit_length()
    value = int.from_bytes(data[place : place + count], "big")
    if place + count > len(data):
        raise IndexError
    if keep_marker:
        return value, place + count
    value -= 1 << (7 * count)
    return (None if value == (1 << (7 * count)) - 1 else value), place + count


def elements(data: bytes, place: int, end: int) -> Iterator[Element]:
    """The elements between two places, as far as `data` goes."""
    while place < min(end, len(data)):
        begin = place
        identifier, place = number(data, begin, keep_marker=True)
        length, place = number(data, place)
        content, place = place, end if length is None else place + length
        yield Element(identifier or 0, begin, content, place)


def set_pixel_aspect(path: Path, aspect: Fraction) -> bool:
    """Write the pixel aspect of the first track into a file that FFmpeg wrote; False where it has no room for it."""
    with path.open("r+b") as file:
        head = file.read(_HEAD)
        try:
            changed = _with_aspect(head, aspect)
        except (IndexError, StopIteration, OverflowError):
            return False
        if changed is None:
            return False
        file.seek(0)
        file.write(changed)
    return True


def _with_aspect(head: bytes, aspect: Fraction) -> bytes | None:
    segment = next(e for e in elements(head, 0, len(head)) if e.identifier == _SEGMENT)
    parts = {e.identifier: e for e in reversed(list(elements(head, segment.content, segment.end)))}
    seek, void, info, tracks = (parts[i] for i in (_SEEK_HEAD, _VOID, _INFO, _TRACKS))
    if (
        not seek.end
        == void.begin
        < void.end
        == info.begin
        < info.end
        == tracks.begin
        < tracks.end
        <= len(head)
    ):
        return None
    described = _described(head, tracks, aspect)
    added = len(described) - (tracks.end - tracks.begin)
    if added > void.end - void.content:
        return None
    shrunk = _element(
        _VOID, bytes(void.end - void.content - added), length_bytes=void.content - void.begin - 1
    )
    places = _moved(head, seek, segment.content, added)
    return head[: seek.begin] + places + shrunk + head[info.begin : info.end] + described + head[tracks.end :]


def _described(head: bytes, tracks: Element, aspect: Fraction) -> bytes:
    """The tracks, the first of them with a display aspect."""
    done, content = False, b""
    for track in elements(head, tracks.content, tracks.end):
        inner = list(elements(head, track.content, track.end)) if track.identifier == _TRACK else []
        video = next((e for e in inner if e.identifier == _VIDEO), None)
        if track.identifier == _CRC:
            continue
        if video is None or done:
            content += head[track.begin : track.end]
            continue
        done = True
        kept = head[track.content : video.begin], head[video.end : track.end]
        content += _element(_TRACK, kept[0] + _video(head, video, aspect) + kept[1])
    return _element(_TRACKS, _checked(content))


def _video(head: bytes, video: Element, aspect: Fraction) -> bytes:
    fields = list(elements(head, video.content, video.end))
    size = {e.identifier: int.from_bytes(head[e.content : e.end], "big") for e in fields}
    shown = Fraction(size[_WIDTH], size[_HEIGHT]) * aspect
    replaced = (_DISPLAY_WIDTH, _DISPLAY_HEIGHT, _DISPLAY_UNIT)
    kept = b"".join(head[e.begin : e.end] for e in fields if e.identifier not in replaced)
    values = zip(replaced, (shown.numerator, shown.denominator, _ASPECT), strict=True)
    return _element(_VIDEO, kept + b"".join(_element(i, _bytes(value)) for i, value in values))


def _moved(head: bytes, seek: Element, segment: int, added: int) -> bytes:
    """The list of places, after what follows it has moved to the front by so many bytes."""
    content = b""
    for entry in elements(head, seek.content, seek.end):
        if entry.identifier == _CRC:
            continue
        fields = list(elements(head, entry.content, entry.end))
        named = {e.identifier: int.from_bytes(head[e.content : e.end], "big") for e in fields}
        inner = b""
        for e in fields:
            value = head[e.content : e.end]
            if e.identifier == _SEEK_POSITION and named.get(_SEEK_ID) in (_INFO, _TRACKS):
                value = (int.from_bytes(value, "big") - added).to_bytes(len(value), "big")
            inner += _element(e.identifier, value)
        content += _element(_SEEK, inner, length_bytes=entry.content - entry.begin - 2)
    length_bytes = seek.content - seek.begin - 4
    rebuilt = _element(_SEEK_HEAD, _checked(content), length_bytes=length_bytes)
    if len(rebuilt) != seek.end - seek.begin:
        raise OverflowError
    return rebuilt


def _element(identifier: int, content: bytes, *, length_bytes: int = 1) -> bytes:
    """An element whose length is written in so many bytes, or in more if it has to be."""
    while len(content) >= (1 << (7 * length_bytes)) - 1:
        length_bytes += 1
    length = (len(content) | 1 << (7 * length_bytes)).to_bytes(length_bytes, "big")
    return _bytes(identifier) + length + content


def _checked(content: bytes) -> bytes:
    """Content behind its checksum."""
    return _element(_CRC, zlib.crc32(content).to_bytes(4, "little")) + content


def _bytes(value: int) -> bytes:
    return value.to_bytes(max(1, -(-value.bit_length() // 8)), "big")
