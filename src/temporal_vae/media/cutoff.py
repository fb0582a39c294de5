"""Just enough of some containers to tell whether a file was cut off: whether it is shorter than it says itself.

Matroska (RFC 9559), RIFF, FLV (Adobe's specification 10.1), ASF (Microsoft's 01.20.06), ISO base media (ISO/IEC
14496-12), Ogg (RFC 3533) and transport streams (ISO/IEC 13818-1).
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

from temporal_vae.media.matroska import number

_EBML, _SEGMENT = 0x1A45DFA3, 0x18538067  # identifiers of the two elements that make up a Matroska file
_HEAD = 4096  # bytes; the first of them is a few dozen long
_ASF_HEADER = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_DATA = bytes.fromhex("3626b2758e66cf11a6d900aa0062ce6c")
_ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_ASF_LIVE = 1  # a flag: what the header says of its length means nothing
_TS_PACKET, _TS_SYNC = 188, 0x47
_TS_LENGTHS = (188, 192, 204)  # bytes; the longer ones carry a time code or a checksum
_TS_JUNK = 2**16  # bytes that may stand before the first packet
_OGG_TAIL = 2**17  # bytes; two pages at most


def is_cut_off(path: Path, size: int) -> bool:
    """Whether a file of `size` bytes is shorter than its own structure declares; False for kinds that do not tell."""
    with path.open("rb") as file:
        head = file.read(_HEAD)
        if head[:4] == b"RIFF":
            return size < 8 + int.from_bytes(head[4:8], "little")
        if head[:3] == b"FLV":
            return _tags_end(file, size, int.from_bytes(head[5:9], "big") + 4)
        if head[:16] == _ASF_HEADER:
            return _data_ends(file, size, int.from_bytes(head[16:24], "little"))
        if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"styp"):
            return _boxes_end(file, size)
        if head[:4] == b"OggS":
            return _pages_end(file, size)
    return _segment_ends(head, size)


def unfinished_packet(path: Path, size: int) -> int | None:
    """The stream of the last packet of a transport stream of `size` bytes, where the file ends inside that packet."""
    with path.open("rb") as file:
        head = file.read(_TS_JUNK)
        for begin in range(len(head)):
            for length in _TS_LENGTHS:
                if all(head[begin + length * n : begin + length * n + 1] == b"G" for n in range(5)):
                    rest = (size - begin) % length
                    file.seek(size - rest)
                    last = file.read()
                    whole = rest >= _TS_PACKET or len(last) < 4 or last[0] != _TS_SYNC
                    return None if whole else (last[1] & 0x1F) << 8 | last[2]
    return None


def _tags_end(file: BinaryIO, size: int, place: int) -> bool:
    """FLV: a chain of tags, each with its length before and after it."""
    while place < size:
        file.seek(place)
        tag = file.read(11)
        place += 11 + int.from_bytes(tag[1:4], "big") + 4
        if len(tag) < 11:
            return True
    return place > size


def _data_ends(file: BinaryIO, size: int, place: int) -> bool:
    """ASF: the object of all packets says how long it is; an index after it may be missing."""
    file.seek(place)
    start = file.read(24)
    return start[:16] == _ASF_DATA and size < place + int.from_bytes(start[16:24], "little")


def asf_duration(path: Path) -> Fraction | None:
    """Seconds that the header of an ASF file declares, which FFmpeg does not tell of one that is cut off."""
    with path.open("rb") as file:
        head = file.read(_HEAD)
    start = head.find(_ASF_PROPERTIES)
    fields = head[start : start + 92]
    if start < 0 or len(fields) < 92 or fields[88] & _ASF_LIVE:
        return None
    played, silence = (int.from_bytes(fields[at : at + 8], "little") for at in (64, 80))
    return Fraction(played, 10_000_000) - Fraction(silence, 1000)


def _boxes_end(file: BinaryIO, size: int) -> bool:
    """ISO base media: a chain of boxes, each with its length; 0 is "to the end"."""
    place = 0
    while place < size:
        file.seek(place)
        box = file.read(16)
        length = int.from_bytes(box[:4], "big")
        if length == 1:
            length = int.from_bytes(box[8:16], "big")
        if length == 0:
            return False
        if length < 8 or len(box) < 8:
            return True
        place += length
    return place > size


def _pages_end(file: BinaryIO, size: int) -> bool:
    """Ogg: whether the last page is whole."""
    begin = max(0, size - _OGG_TAIL)
    file.seek(begin)
    tail = file.read()
    place = tail.rfind(b"OggS")
    if place < 0 or len(tail) < place + 27:
        return True
    segments = tail[place + 27 : place + 27 + tail[place + 26]]
    return len(segments) < tail[place + 26] or len(tail) < place + 27 + len(segments) + sum(segments)


def _segment_ends(head: bytes, size: int) -> bool:
    """Matroska and WebM: one element that holds all."""
    try:
        identifier, place = number(head, 0, keep_marker=True)
        length, place = number(head, place)
        if identifier != _EBML or length is None:
            return False
        identifier, place = number(head, place + length, keep_marker=True)
        length, place = number(head, place)
    except IndexError:
        return False
    return identifier == _SEGMENT and length is not None and size < place + length
