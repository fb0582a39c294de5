"""Source, result and their difference side by side: a video and a contact sheet."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from temporal_vae.video.frames import Frames
from temporal_vae.video.outputs import complete_or_nothing
from temporal_vae.video.writer import VideoWriter

AMPLIFICATION = 4  # of the difference
_SHEET_ROWS = 6  # at most; at least half as many of a video that long
_LABEL_HEIGHT = 16


class Comparison:
    """Writes `NAME.compare.mp4` and `NAME.compare.png` beside a target `NAME.*`; a context manager.

    Args:
        target: the video whose comparison this is.
        rate: frames per second.
    """

    def __init__(self, target: Path, *, rate: Fraction) -> None:
        self.sheet_path = target.with_name(f"{target.stem}.compare.png")
        self._video = VideoWriter(target.with_name(f"{target.stem}.compare.mp4"), rate=rate)
        self._sheet: dict[int, Frames] = {}  # frame number -> side by side
        self._stride = 1
        self._count = 0

    def __enter__(self) -> Comparison:
        self._video.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._video.__exit__(*exception)  # type: ignore[arg-type]
        if exception[0] is None:
            with complete_or_nothing(self.sheet_path) as temporary:
                self._draw_sheet().save(temporary, format="PNG")

    def write(self, source: Frames, result: Frames, timestamps: Sequence[Fraction]) -> None:
        """Add the next frames of both videos, `(t, h, w, 3)` each."""
        rows = side_by_side(source, result)
        self._video.write(rows, timestamps)
        for row in rows:
            if self._count % self._stride == 0:
                self._sheet[self._count] = row
            self._count += 1
            if len(self._sheet) > _SHEET_ROWS:  # the video is longer than thought: keep every other row
                self._stride *= 2
                self._sheet = {
                    number: row for number, row in self._sheet.items() if number % self._stride == 0
                }

    def _draw_sheet(self) -> Image.Image:
        height, width = next(iter(self._sheet.values())).shape[:2]
        sheet = Image.new("RGB", (width, _LABEL_HEIGHT + len(self._sheet) * height), "white")
        draw = ImageDraw.Draw(sheet)
        for column, label in enumerate(("source", "result", f"difference x{AMPLIFICATION}")):
            draw.text((column * width // 3 + 4, 2), label, fill="black")
        for place, (number, row) in enumerate(self._sheet.items()):
            top = _LABEL_HEIGHT + place * height
            sheet.paste(Image.fromarray(row), (0, top))
            draw.text((4, top + 2), f"frame {number}", fill="white", stroke_width=1, stroke_fill="black")
        return sheet


def side_by_side(source: Frames, result: Frames) -> Frames:
    """Source, result and their amplified absolute difference next to each other. `(t, h, 3*w, 3)`."""
    difference = np.abs(source.astype(np.int16) - result) * AMPLIFICATION
    return np.concatenate([source, result, difference.clip(0, 255).astype(np.uint8)], axis=2)
