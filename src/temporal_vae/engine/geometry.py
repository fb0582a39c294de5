"""Where tiles are cut: integers only, no torch.

A pass cuts a picture into strips of whole rows, and a clip into runs of pixels that hold all its frames. A convolution
reads its strip with one more row of real neighbours above and below; beyond the picture's own border there are zeros.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

ITEMSIZE = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of a value, by the types that activations may have."""

VECTOR = 32  # channels of activations are a multiple of it: as many as kernels read and write at least
TILE = 4  # rows and columns that Winograd filtering computes at once: strips begin on multiples of it
BLOCK = 48  # tiles that are transformed, multiplied and transformed back together, in the cache of one core
QUERIES = 2048  # pixels whose queries, keys and values are computed at once
ANSWERED = 8 * QUERIES  # pixels whose attention is computed at once
ATTENTION_KEYS = 256  # pixels that a query is compared with at a time
ATTENTION_ROWS = 192  # queries of a job, at most; kernels multiply 12 or 6 at a time
LINE = 64  # bytes of a cache line
LANES = 16  # float32 of a vector, at most
DIRECT_ROWS = 32  # pixels that are multiplied at a time, at most, where nothing is filtered
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


def tapered(length: int, block: int, workers: int, least: int = 1) -> list[Span]:
    """`[0, length)` cut into spans of whole blocks, at last into small ones: no worker waits long for the others.

    A span is one of `JOBS` for each worker, or a quarter of what a worker would have of the rest if that is less, and
    at least `least` blocks.
    """
    blocks = -(-length // block)
    largest, edges = -(-blocks // (JOBS * workers)), [0]
    while edges[-1] < blocks:
        size = min(largest, -(-(blocks - edges[-1]) // (4 * workers)))
        edges.append(min(blocks, edges[-1] + max(least, size)))
    return [Span(first * block, min(length, last * block)) for first, last in pairwise(edges)]


def shares(length: int, block: int, most: int) -> list[Span]:
    """`[0, length)` cut into at most about `most` spans of whole blocks, nearly equal."""
    blocks = -(-length // block)
    return spans(length, -(-blocks // most) * block, block)


def padded(count: int, multiple: int) -> int:
    """Rounded up to a multiple."""
    return -(-count // multiple) * multiple


def finish_channels(channels: int) -> int:
    """Channels that torch holds of a run of pictures while it convolves them: it lays both ends out in blocks of 16."""
    return 2 * (channels + -(-channels // 16) * 16)


POINTS = {9: 36, 3: 6, 1: 1}
"""Multiplications of Winograd filtering for sixteen outputs of 3x3 taps, four of three, and one of one."""


def enough_frames(height: int, width: int, frames: int, workers: int) -> int:
    """As many of the frames as give every worker a few blocks of tiles."""
    blocks = -(-height // TILE) * -(-width // TILE) // BLOCK
    return max(1, min(frames, -(-4 * workers // max(1, blocks))))


JOBS = 16  # of a sweep for each worker, but for the small ones at its end
SUMS_BYTES = 8 * 2**20  # of the sums of the jobs of a clip, about


def parts_of_a_frame(
    height: int, width: int, inputs: int, workers: int, *, direct: bool, pairs: bool
) -> list[Span]:
    """Jobs of a sweep over a frame: ranges of rows, or of tiles where it is filtered."""
    if direct:
        return tapered(height, direct_tile(inputs, pairs=pairs)[0], workers)
    return tapered(-(-height // TILE) * -(-width // TILE), BLOCK, workers)


def parts_of_a_clip(pixels: int, frames: int, outputs: int, workers: int, block: int) -> list[Span]:
    """Jobs of a sweep over a clip: ranges of its pixels in whole blocks."""
    most = max(2 * workers, SUMS_BYTES // sums_bytes(1, frames, outputs))
    return tapered(pixels, block, workers, -(-pixels // (block * most)))


def sums_bytes(parts: int, frames: int, outputs: int) -> int:
    """Bytes of the sums of a sweep."""
    return parts * frames * outputs * 2 * 8


def scratch_bytes(inputs: int, outputs: int, points: int, *, fixed: bool = False) -> int:
    """Bytes of scratch that a kernel takes for a block of tiles; `fixed` where it multiplies 16-bit integers."""
    kept = 4 * (12 * inputs if points == 36 else 2 * BLOCK * inputs)  # of neighbours
    transformed = BLOCK * (inputs + 2 * PAD) * 2 if fixed else BLOCK * (inputs + PAD) * 4
    products = BLOCK * (outputs + PAD) * 4
    own = BLOCK * 4 + (inputs + 2 * PAD) * 4 if fixed else 0  # scales; a row before it is scaled; its maxima
    return kept + points * (transformed + products + own + 2 * PAD * 4)


def packing_bytes(inputs: int, taps: int, lanes: int = LANES) -> int:
    """Bytes of scratch in which a vector of outputs is packed as integers: its weights, and what is known of them."""
    return POINTS[taps] * (inputs + 3) * lanes * 4


def direct_row(inputs: int, *, pairs: bool) -> int:
    """Bytes of a staged pixel where nothing is filtered; `pairs` where pairs of bfloat16 are multiplied."""
    return inputs * (2 if pairs else 4) + LINE


def direct_tile(inputs: int, *, pairs: bool) -> tuple[int, int]:
    """Rows and columns of a tile that is multiplied directly: a few hundred kilobytes with what surrounds it."""
    pixels = DIRECT_BYTES // direct_row(inputs, pairs=pairs)
    wide = 32 if pixels >= 320 else 16
    return max(4, pixels // (wide + 2) - 2), wide


def direct_block(inputs: int, taps: int, *, pairs: bool) -> int:
    """Pixels of a clip that are multiplied directly, frame by frame; `taps` frames are at hand."""
    rows = DIRECT_BYTES // (taps * direct_row(inputs, pairs=pairs))
    return max(DIRECT_ROWS, min(4 * DIRECT_ROWS, rows // DIRECT_ROWS * DIRECT_ROWS))


def direct_bytes(inputs: int, taps: int, *, pairs: bool) -> int:
    """Bytes of scratch that a kernel takes where nothing is filtered; `taps` is 9 in space, 3 or 1 over time."""
    if taps == 9:
        tall, wide = direct_tile(inputs, pairs=pairs)
        staged = (tall + 2) * (wide + 2)
    else:
        staged = taps * direct_block(inputs, taps, pairs=pairs)
    return DIRECT_ROWS * 2 * 16 * 4 + (staged + DIRECT_ROWS) * direct_row(inputs, pairs=pairs)


def attention_rows(queries: int, workers: int) -> int:
    """Queries of a job of attention: few enough that every worker has some jobs."""
    least = 12  # rows that are multiplied at a time, at most
    return min(ATTENTION_ROWS, max(1, -(-queries // (4 * workers * least))) * least)


def attention_room(channels: int) -> int:
    """Bytes of scratch of a job of attention: queries, what they find, their scores, the largest and their sums."""
    return ATTENTION_ROWS * (2 * (4 * channels + LINE) + 4 * ATTENTION_KEYS + LINE + 2 * LINE)


DIRECT_BYTES = 384 * 2**10  # of staged pixels, in the cache of one core
