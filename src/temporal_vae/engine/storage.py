"""Activations between passes: in memory, or in a file.

`Activations` holds the frames of a clip, each `(h, w, c)` contiguous, and lends out two kinds of window: rows of one
frame, and a run of pixels of all frames. In memory a window is a view; from a file it is read into the scratch of the
thread that asks, and written back when it is done. Passes do not know which.
"""

from __future__ import annotations

import ctypes
import mmap as mapping
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from mmap import mmap

import torch
from torch import Tensor

from temporal_vae.engine.geometry import Span
from temporal_vae.engine.spill import HostMemory, SpillFile

HUGE = 4 * 2**20  # bytes from which on memory is worth large pages
_PRIVATE: dict[
    str, int
] = (  # shared memory, which is what Python takes by default, costs more when it is first touched
    {"flags": mapping.MAP_PRIVATE | mapping.MAP_ANONYMOUS} if os.name == "posix" else {}
)


def fresh(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Memory that nobody has written yet; tests fill it with NaN.

    On a CPU it comes from the system and goes back there as soon as nobody holds it, whatever the allocator likes.
    """
    count = prod(shape)
    nbytes = count * dtype.itemsize
    if device.type == "cpu" and nbytes >= 2**20:
        memory = mmap(-1, nbytes, **_PRIVATE)
        if nbytes >= HUGE and hasattr(memory, "madvise") and hasattr(mapping, "MADV_HUGEPAGE"):
            memory.madvise(mapping.MADV_HUGEPAGE)
        return torch.frombuffer(memory, dtype=dtype).view(tuple(shape))
    return torch.empty(tuple(shape), dtype=dtype, device=device)


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows `[first, first + len(data))` of a picture of `height` rows; data `(rows, w, c)`."""

    data: Tensor
    first: int
    height: int


def release_free_memory() -> None:
    """Give the system what the C library keeps of temporaries that are gone: with glibc tens of megabytes."""
    if _trim is not None:
        _trim(0)


_trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None


class Pool:
    """Memory that is used again: the first touch of new memory costs more than the arithmetic on it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._free: defaultdict[tuple[torch.dtype, int], list[Tensor]] = defaultdict(list)

    def take(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A tensor of this shape, with whatever was left in it."""
        waiting = self._free[dtype, prod(shape)]
        return waiting.pop().view(tuple(shape)) if waiting else fresh(shape, dtype, self.device)

    def give(self, tensor: Tensor) -> None:
        """Let it be used again."""
        self._free[tensor.dtype, tensor.numel()].append(tensor.flatten())

    def clear(self) -> None:
        """Release to the system what nobody uses."""
        self._free.clear()


class Scratch:
    """Work memory: taken piece by piece, for a tile, say, and all free again for the next."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._memory = fresh((0,), torch.uint8, device)
        self._size = self._used = 0

    def resize(self, nbytes: int) -> None:
        """Hold `nbytes` from now on; nothing of what was taken is kept."""
        if nbytes != self._size:
            self._memory = fresh((0,), torch.uint8, self._device)  # the old goes before the new comes
            self._memory = fresh((nbytes,), torch.uint8, self._device)
            self._size = nbytes
        self.reset()

    def reset(self) -> Scratch:
        """All pieces are free."""
        self._used = 0
        return self

    def take(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A piece of this shape."""
        nbytes = prod(shape) * dtype.itemsize
        start = self._next(nbytes)
        return self._memory[start : start + nbytes].view(dtype).view(tuple(shape))

    def address(self, nbytes: int) -> int:
        """Where a piece for native code begins."""
        return self._memory.data_ptr() + self._next(nbytes)

    def _next(self, nbytes: int) -> int:
        """Where the next piece begins."""
        start, self._used = self._used, self._used + -(-nbytes // 64) * 64
        if self._used > self._size:  # the plan counts every piece: this would be its mistake
            raise AssertionError(f"scratch: {self._used} bytes wanted, {self._size} planned")
        return start


class Activations:
    """Activations of the frames of a clip, `(t, h, w, c)`, in memory."""

    def __init__(self, shape: tuple[int, int, int, int], dtype: torch.dtype, pool: Pool) -> None:
        self.count, self.height, self.width, self.channels = shape
        self.dtype = dtype
        self._pool = pool
        self._frames: list[Tensor | None] = [None] * self.count

    def prepare(self, frame: int) -> None:
        """Make room for a frame."""
        if self._frames[frame] is None:
            self._frames[frame] = self._pool.take((self.height, self.width, self.channels), self.dtype)

    def release(self, frame: int, *, reuse: bool = True) -> None:
        """Forget a frame; its room may serve another, or else goes back to the system."""
        kept, self._frames[frame] = self._frames[frame], None
        if kept is not None and reuse:
            self._pool.give(kept)

    def close(self) -> None:
        """Forget all frames."""
        for frame in range(self.count):
            self.release(frame)

    def _frame(self, frame: int) -> Tensor:
        kept = self._frames[frame]
        assert kept is not None, f"frame {frame} was released or never written"
        return kept

    def whole(self, frames: Sequence[int]) -> list[Tensor] | None:
        """Some frames `(h, w, c)`, to read and to change, where they are in memory; else None."""
        return [self._frame(frame) for frame in frames]

    def rows(self, frame: int, span: Span, scratch: Scratch) -> Rows:
        """Rows of one frame, to read, or to change and `put` back."""
        return Rows(self._frame(frame)[span.first : span.last], span.first, self.height)

    def blank_rows(self, frame: int, span: Span, scratch: Scratch) -> Rows:
        """Rows of one frame to write and `put`; what they hold before is undefined."""
        return self.rows(frame, span, scratch)

    def put_rows(self, frame: int, rows: Rows) -> None:
        """Store rows that were written."""

    @contextmanager
    def borrow(self, frame: int, pool: Pool) -> Iterator[Tensor]:
        """A whole frame `(h, w, c)`, to read and to change."""
        yield self._frame(frame)

    def pixels(self, span: Span, scratch: Scratch) -> list[Tensor]:
        """The same pixels of all frames, `(pixels, c)` each, to read, or to change and `put` back."""
        return [
            self._frame(frame).view(-1, self.channels)[span.first : span.last] for frame in range(self.count)
        ]

    def blank_pixels(self, span: Span, scratch: Scratch) -> list[Tensor]:
        """Pixels of all frames to write and `put`; what they hold before is undefined."""
        return self.pixels(span, scratch)

    def put_pixels(self, span: Span, pixels: list[Tensor]) -> None:
        """Store pixels that were written."""


class SpilledActivations(Activations):
    """Activations that are kept elsewhere; windows are read into scratch and written back from it."""

    def __init__(
        self, shape: tuple[int, int, int, int], dtype: torch.dtype, store: SpillFile | HostMemory
    ) -> None:
        self.count, self.height, self.width, self.channels = shape
        self.dtype = dtype
        self._store = store
        self._pixel = self.channels * dtype.itemsize
        self._offsets: list[int | None] = [None] * self.count

    @property
    def _nbytes(self) -> int:
        return self.height * self.width * self._pixel

    def prepare(self, frame: int) -> None:
        """Make room for a frame."""
        if self._offsets[frame] is None:
            self._offsets[frame] = self._store.take(self._nbytes)

    def release(self, frame: int, *, reuse: bool = True) -> None:
        """Forget a frame; its room may serve another."""
        kept, self._offsets[frame] = self._offsets[frame], None
        if kept is not None:
            self._store.give(kept, self._nbytes)

    def _offset(self, frame: int, pixel: int) -> int:
        start = self._offsets[frame]
        assert start is not None, f"frame {frame} was released or never written"
        return start + pixel * self._pixel

    def whole(self, frames: Sequence[int]) -> list[Tensor] | None:
        """They are elsewhere."""
        return None

    def rows(self, frame: int, span: Span, scratch: Scratch) -> Rows:
        """Rows of one frame, to read, or to change and `put` back."""
        rows = self.blank_rows(frame, span, scratch)
        self._store.read(rows.data, self._offset(frame, span.first * self.width))
        return rows

    def blank_rows(self, frame: int, span: Span, scratch: Scratch) -> Rows:
        """Rows of one frame to write and `put`; what they hold before is undefined."""
        data = scratch.take((len(span), self.width, self.channels), self.dtype)
        return Rows(data, span.first, self.height)

    def put_rows(self, frame: int, rows: Rows) -> None:
        """Store rows that were written."""
        self._store.write(rows.data, self._offset(frame, rows.first * self.width))

    @contextmanager
    def borrow(self, frame: int, pool: Pool) -> Iterator[Tensor]:
        """A whole frame `(h, w, c)`, to read and to change."""
        values = pool.take((self.height, self.width, self.channels), self.dtype)
        self._store.read(values, self._offset(frame, 0))
        yield values
        self._store.write(values, self._offset(frame, 0))
        pool.give(values)

    def pixels(self, span: Span, scratch: Scratch) -> list[Tensor]:
        """The same pixels of all frames, `(pixels, c)` each, to read, or to change and `put` back."""
        pixels = self.blank_pixels(span, scratch)
        for frame, target in enumerate(pixels):
            self._store.read(target, self._offset(frame, span.first))
        return pixels

    def blank_pixels(self, span: Span, scratch: Scratch) -> list[Tensor]:
        """Pixels of all frames to write and `put`; what they hold before is undefined."""
        return [scratch.take((len(span), self.channels), self.dtype) for _ in range(self.count)]

    def put_pixels(self, span: Span, pixels: list[Tensor]) -> None:
        """Store pixels that were written."""
        for frame, source in enumerate(pixels):
            self._store.write(source, self._offset(frame, span.first))


class Joined(Activations):
    """Frames of a clip with those beside them, before and behind, for passes over time.

    Attributes:
        own: which of all frames are those in the middle.
    """

    def __init__(self, before: Activations, own: Activations, behind: Activations) -> None:
        self._parts = before, own, behind
        self.height, self.width, self.channels, self.dtype = own.height, own.width, own.channels, own.dtype
        self.own = range(before.count, before.count + own.count)
        self.count = self.own.stop + behind.count

    def prepare(self, frame: int) -> None:
        """Make room for a frame."""
        part, frame = self.place(frame)
        part.prepare(frame)

    def release(self, frame: int, *, reuse: bool = True) -> None:
        """Forget a frame; its room may serve another."""
        part, frame = self.place(frame)
        part.release(frame, reuse=reuse)

    def release_beside(self) -> None:
        """Forget the frames that are not in the middle."""
        for frame in range(self.count):
            if frame not in self.own:
                self.release(frame)

    def place(self, frame: int) -> tuple[Activations, int]:
        """Where a frame is, and which of the frames there."""
        for part in self._parts:
            if frame < part.count:
                return part, frame
            frame -= part.count
        raise IndexError(f"there are {self.count} frames")

    def whole(self, frames: Sequence[int]) -> list[Tensor] | None:
        """All frames `(h, w, c)`, where they are in memory; else None."""
        found = [part.whole(range(part.count)) for part in self._parts]
        return None if None in found else [frame for some in found for frame in some or ()]

    def pixels(self, span: Span, scratch: Scratch) -> list[Tensor]:
        """The same pixels of all frames, `(pixels, c)` each, to read, or to change and `put` back."""
        return [pixels for part in self._parts for pixels in part.pixels(span, scratch)]

    def blank_pixels(self, span: Span, scratch: Scratch) -> list[Tensor]:
        """Pixels of all frames to write and `put`; what they hold before is undefined."""
        return [pixels for part in self._parts for pixels in part.blank_pixels(span, scratch)]

    def put_pixels(self, span: Span, pixels: list[Tensor]) -> None:
        """Store pixels that were written."""
        rest = iter(pixels)
        for part in self._parts:
            part.put_pixels(span, [next(rest) for _ in range(part.count)])
