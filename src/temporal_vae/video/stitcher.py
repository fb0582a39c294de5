"""Joins clips that overlap back into one video."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from temporal_vae.errors import InputError
from temporal_vae.media.frames import Clip, check_cut


class Stitcher:
    """Cross-fades successive clips that share frames: every frame of the video comes out once, in order.

    Where two clips overlap, the share of the later one grows linearly: `(i + 1) / (overlap + 1)` for the `i`-th
    shared frame. `overlap` frames are held back, no more.

    Args:
        overlap: frames that each clip shares with the one before, as in `VideoReader.clips` and `clip_starts`.

    Raises:
        InputError: a negative overlap; a clip that does not begin with the moments that ended the one before.
    """

    def __init__(self, overlap: int = 0) -> None:
        check_cut(None, overlap)
        self.overlap = overlap
        self._tail: Clip | None = None

    def push(self, clip: Clip) -> Iterator[Clip]:
        """Add the next clip; yields the frames that no later clip can change."""
        joined = clip if self._tail is None else _fade(self._tail, clip)
        final = max(len(joined) - self.overlap, 0)
        # A copy, so that holding back a few frames does not hold the memory of the whole clip.
        self._tail = (
            joined.replace(joined.frames[final:].copy(), joined.timestamps[final:]) if self.overlap else None
        )
        if final:
            yield joined[:final]

    def finish(self) -> Iterator[Clip]:
        """The frames held back, after the last clip."""
        if self._tail is not None and len(self._tail):
            yield self._tail
        self._tail = None


def _fade(tail: Clip, clip: Clip) -> Clip:
    shared = len(tail)
    if clip.timestamps[:shared] != tail.timestamps or clip.frames.shape[1:] != tail.frames.shape[1:]:
        raise InputError(
            f"the next clip does not begin with the {shared} frames from {float(tail.timestamps[0]):.3f} s on "
            "that ended the clip before; cut with one clip_frames and overlap"
        )
    frames = clip.frames.copy()
    for index in range(shared):  # one frame at a time keeps the float copies small
        share = np.float32((index + 1) / (shared + 1))
        frames[index] = np.rint(tail.frames[index] * (1 - share) + clip.frames[index] * share)
    return clip.replace(frames)
