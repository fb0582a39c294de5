"""What may be asked of a source and of an output: keyword arguments that several functions share."""

from __future__ import annotations

from typing import Any, TypedDict

from temporal_vae.media.audio import Audio
from temporal_vae.media.reader import Size


class Selection(TypedDict, total=False):
    """What part of a source is read, and how.

    Attributes:
        start: seconds from the beginning.
        frames: the most frames to read.
        fps: frames per second to resample to.
        size: `(width, height)` in pixels, or the width alone to keep the aspect.
        background: colour behind transparent pixels: a name, `#rrggbb`, or red, green and blue.
        hdr: `map` shows PQ and HLG as BT.709, `keep` leaves their signals as they are.
        damaged: `error`, or `keep` what can be decoded of a damaged file.
        deinterlace: `auto` where frames are flagged as interlaced, or `never`.
    """

    start: float | None
    frames: int | None
    fps: Any
    size: Size | None
    background: str | tuple[int, int, int]
    hdr: str
    damaged: str
    deinterlace: str


class Output(TypedDict, total=False):
    """How a video is written.

    Attributes:
        codec: `h264`, `ffv1`, `png` or `gif`; by default that of the target's suffix.
        crf: quality of H.264, 0 (best) to 51.
        audio: `True` copies the sound, or codes it anew where the target can't hold it; `"copy"` insists; `False`
            leaves it out.
    """

    codec: str | None
    crf: int
    audio: Audio
