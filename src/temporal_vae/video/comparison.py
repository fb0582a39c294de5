"""Source, result and their difference side by side: a video and a contact sheet."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from PIL import Image, ImageDraw

from temporal_vae.media.frames import Frames
from temporal_vae.media.writer import VideoWriter
from temporal_vae.outputs import check_writable, complete_or_nothing, writing

AMPLIFICATION = 4  # of the difference
_SHEET_ROWS = 6  # at most; at least half as many of a video that long
_LABEL_HEIGHT = 16

Item = TypeVar("Item")


class Comparison:
    """Writes `TARGET.compare.mp4` and `TARGET.compare.png` beside a target; a context manager.

    Args:
        target: the video whose comparison this is.
        rate: frames per second.
    """

    def __init__(self, target: Path, *, rate: Fraction) -> None:
        self.paths = video, sheet = comparison_paths(target)
        check_writable(sheet)
        self._video = VideoWriter(video, rate=rate)
        self._open = ExitStack()
        self._sheet: EvenlySpaced[Frames] = EvenlySpaced(_SHEET_ROWS)  # side by side
        self._count = 0

    def __enter__(self) -> Comparison:
        with ExitStack() as stack:
            self._sheet_file = stack.enter_context(complete_or_nothing(self.paths[1]))
            stack.enter_context(self._video)
            self._open = stack.pop_all()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._open.__exit__(*exception)

    def finish(self, last_duration: Fraction | None = None) -> None:
        """Write what is still held back, the contact sheet too; call it before the block ends."""
        self._video.finish(last_duration)
        with writing(self.paths[1]):
            self._draw_sheet().save(self._sheet_file, format="PNG")

    def write(self, source: Frames, result: Frames, timestamps: Sequence[Fraction]) -> None:
        """Add the next frames of both videos, `(t, h, w, 3)` each."""
        rows = side_by_side(source, result)
        self._video.write(rows, timestamps)
        for row in rows:
            if self._sheet.wants(self._count):
                self._sheet.add(self._count, row)
            self._count += 1

    def _draw_sheet(self) -> Image.Image:
        rows = self._sheet.kept
        height, width = next(iter(rows.values())).shape[:2]
        sheet = Image.new("RGB", (width, _LABEL_HEIGHT + len(rows) * height), "white")
        draw = ImageDraw.Draw(sheet)
        for column, label in enumerate(("source", "result", f"difference x{AMPLIFICATION}")):
            draw.text((column * width // 3 + 4, 2), label, fill="black")
        for place, (number, row) in enumerate(rows.items()):
            top = _LABEL_HEIGHT + place * height
            sheet.paste(Image.fromarray(row), (0, top))
            draw.text((4, top + 2), f"frame {number}", fill="white", stroke_width=1, stroke_fill="black")
        return sheet


class EvenlySpaced(Generic[Item]):
    """Keeps some of a series of unknown length: those whose numbers are multiples of a stride that grows.

    Args:
        most: how many are kept at most; at least half as many of a series that long.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._stride = 1
        self.kept: dict[int, Item] = {}

    def wants(self, number: int) -> bool:
        """Whether an item of this number is to be added."""
        return number % self._stride == 0

    def add(self, number: int, item: Item) -> None:
        """Keep an item that is wanted; numbers come in order."""
        self.kept[number] = item
        while len(self.kept) > self._most:  # the series is longer than thought: keep every other one
            self._stride *= 2
            self.kept = {number: item for number, item in self.kept.items() if self.wants(number)}


def comparison_paths(target: Path) -> tuple[Path, Path]:
    """Where the video and the contact sheet of a target go."""
    return target.with_name(f"{target.name}.compare.mp4"), target.with_name(f"{target.name}.compare.png")


def side_by_side(source: Frames, result: Frames) -> Frames:
    """Source, result and their amplified absolute difference next to each other. `(t, h, 3*w, 3)`."""
    difference = np.abs(source.astype(np.int16) - result) * AMPLIFICATION
    return np.concatenate([source, result, difference.clip(0, 255).astype(np.uint8)], axis=2)
