"""Where tiles are cut: integers only, no torch.

A pass cuts a picture into strips of whole rows, and a clip into runs of pixels that hold all its frames. A convolution
reads its strip with one more row of real neighbours above and below; beyond the picture's own border there are zeros.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

ITEMSIZE = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of a value, by the types that activations may have."""

TILE = 4  # rows and columns that Winograd filtering computes at once: strips begin on multiples of it
BLOCK = 48  # tiles that are transformed, multiplied and transformed back together, in the cache of one core
QUERIES = 2048  # pixels whose attention is computed at once
PAD = 16  # floats between the rows of scratch, so that rows do not compete for the same cache sets


@dataclass(frozen=True, slots=True)
class Span:
    """The half-open range `[first, last)` of rows or pixels."""

    first: int
    last: int

    def __len__(self) -> int:
        return self.last - self.first

    def widened(self, reach: int, length: int) -> Span:
        """This span with `reach` neighbours on both sides, as far as there are any in `[0, length)`."""
        return Span(max(0, self.first - reach), min(length, self.last + reach))

    def halved(self) -> Span:
        """The rows of a picture of half the height that this span comes from."""
        return Span(self.first // 2, -(-self.last // 2))

    def aligned(self, multiple: int, length: int) -> Span:
        """This span rounded outwards to multiples, or to the end."""
        return Span(self.first // multiple * multiple, min(length, -(-self.last // multiple) * multiple))


@dataclass(frozen=True, kw_only=True)
class Cut:
    """How large tiles are. Small ones stay in the cache and keep every worker busy; the sizes change no result."""

    strip_bytes: int  # of the rows of one activation that a job holds, at most about
    run_bytes: int  # of the pixels of all frames that a job holds, at most about
    itemsize: int  # bytes of a value

    def strips(self, height: int, width: int, channels: int, frames: int, workers: int) -> list[Span]:
        """The rows of a frame as jobs: enough for all workers over `frames` frames, none smaller than a block."""
        largest = self.strip_bytes // (width * channels * self.itemsize)
        fair = -(-height * frames // (4 * workers))
        return spans(height, max(min(largest, fair), -(-BLOCK * TILE // width)), TILE)

    def runs(self, pixels: int, frames: int, channels: int, workers: int) -> list[Span]:
        """The pixels of a clip as jobs, `channels` wide."""
        largest = self.run_bytes // (frames * channels * self.itemsize)
        fair = -(-pixels // (4 * workers))
        return spans(pixels, max(min(largest, fair), BLOCK))


def spans(length: int, size: int, multiple: int = 1) -> list[Span]:
    """`[0, length)` cut into spans of about `size` and at most that, rounded up to a `multiple`; nearly equal."""
    size = max(multiple, size // multiple * multiple)
    count = -(-length // size)
    units = -(-length // multiple)
    edges = [min(length, units * i // count * multiple) for i in range(count + 1)]
    return [Span(a, b) for a, b in pairwise(edges) if a < b]


def finish_channels(channels: int) -> int:
    """Channels that torch holds of a run of pictures while it convolves them: it lays both ends out in blocks of 16."""
    return 2 * (channels + -(-channels // 16) * 16)


def scratch_bytes(inputs: int, outputs: int, points: int, *, fixed: bool = False) -> int:
    """Bytes of scratch that a kernel takes for a block of tiles; `fixed` where it multiplies 16-bit integers."""
    kept = 4 * (12 * inputs if points == 36 else 2 * BLOCK * inputs)  # of neighbours
    transformed = BLOCK * (inputs + 2 * PAD) * 2 if fixed else BLOCK * (inputs + PAD) * 4
    products = BLOCK * (outputs + PAD) * 4
    own = BLOCK * 4 + (inputs + 2 * PAD) * 4 if fixed else 0  # scales; a row before it is scaled; its maxima
    return kept + points * (transformed + products + own + 2 * PAD * 4)
