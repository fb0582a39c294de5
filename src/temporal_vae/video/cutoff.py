"""Just enough of Matroska (RFC 9559) and AVI (RIFF) to tell whether a file was cut off."""

from __future__ import annotations

from pathlib import Path

_EBML, _SEGMENT = 0x1A45DFA3, 0x18538067  # identifiers of the two elements that make up a file
_HEAD = 4096  # bytes; the first of them is a few dozen long


def is_cut_off(path: Path, size: int) -> bool:
    """Whether a Matroska, WebM or AVI file of `size` bytes is shorter than its outermost element declares."""
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if head[:4] == b"RIFF":
        return size < 8 + int.from_bytes(head[4:8], "little")
    try:
        identifier, place = _number(head, 0, keep_marker=True)
        length, place = _number(head, place)
        if identifier != _EBML or length is None:
            return False
        identifier, place = _number(head, place + length, keep_marker=True)
        length, place = _number(head, place)
    except IndexError:
        return False
    return identifier == _SEGMENT and length is not None and size < place + length


def _number(data: bytes, place: int, keep_marker: bool = False) -> tuple[int | None, int]:
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
