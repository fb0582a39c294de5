"""What is taken beside activations and weights: by libraries, threads and attention. No torch.

The figures were measured: `python -m benchmarks.resident` compares what they come to with what is found.
"""

from __future__ import annotations

from temporal_vae.engine import processor
from temporal_vae.engine.geometry import ANSWERED, ITEMSIZE, QUERIES, VECTOR, attention_room, padded

MIB = 2**20
FIRST_USE = {"float32": 108 * MIB, "int16": 116 * MIB, "bfloat16": 72 * MIB, "torch": 136 * MIB}
"""What libraries take when they are first used, by arithmetic: a compiler, kernels, caches of allocators."""
SHARING = 12 * MIB  # of a rank that shares a clip: connections, threads that wait, and more kinds of kernels
PER_WORKER = 2 * MIB  # of each thread: its stack and its share of the allocator
SLACK = 1.01  # of what tensors need, for pages and allocators
TEMPORARIES = 8  # strips that torch holds per worker where its own operations do the work

_COPIES = 3  # of a frame that attention holds besides its input: normal, keys, values
_REPACKED = 6  # and more where torch lays keys and values out for the tiles of AMX
_PARTS = 4  # and of the queries at hand, in float32 at least
_BUFFERS = 8 * MIB  # of the matrix products in it


def first_use(arithmetic: str, *, shared: bool) -> int:
    """Bytes that libraries take for good; of a rank, where a clip is shared."""
    return FIRST_USE[arithmetic] + SHARING * shared


def attention_bytes(device: str, dtype: str, pixels: int, channels: int) -> tuple[int, int]:
    """Bytes that attention over a frame takes from the pool, and of temporaries."""
    values = pixels * channels
    if processor.attends(device, dtype):
        keys = padded(pixels, VECTOR) * channels
        queries = min(QUERIES, pixels) * channels * 4
        return (2 * keys + min(ANSWERED, pixels) * channels) * 4, _PARTS * queries + _BUFFERS
    item = ITEMSIZE[processor.attention_type(device, dtype)]
    queries = min(QUERIES, pixels) * channels * max(item, 4)
    repacked = _REPACKED if processor.arithmetic(device, dtype) == "bfloat16" else 0
    return _COPIES * values * item, repacked * values * item + _PARTS * queries + _BUFFERS


def attention_scratch(device: str, dtype: str, channels: int) -> int:
    """Bytes of scratch that a worker takes for it."""
    return attention_room(channels) + 64 if processor.attends(device, dtype) else 0
