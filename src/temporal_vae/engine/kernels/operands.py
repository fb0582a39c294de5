"""What native code is entered with: addresses of operands that are what it takes them for, and ranges of tiles."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from temporal_vae.engine.geometry import TILE, Span
from temporal_vae.engine.storage import Rows


def address(operand: str, tensor: Tensor | None, dtype: torch.dtype, *shape: int) -> int:
    """Where the values of an operand begin that native code reads or writes as `shape` of `dtype`, row after row.

    Native code looks at nothing itself: whatever is handed to it passes here.

    Raises:
        RuntimeError: the operand is something else; native code would run past its end.
    """
    if (
        tensor is None
        or tensor.shape != shape
        or tensor.dtype != dtype
        or tensor.device.type != "cpu"
        or not tensor.is_contiguous()
    ):
        found = "nothing" if tensor is None else f"{tuple(tensor.shape)} of {tensor.dtype} on {tensor.device}"
        raise RuntimeError(f"a kernel reads {operand} as {shape} of {dtype}, contiguous; it is {found}")
    return tensor.data_ptr()


def check_rows(source: Rows, target: Rows, enlarge: int) -> None:
    """Whether the kernel's tiles end where the target does, and the source has every row that they read."""
    first, end, height = target.first, target.first + len(target.data), target.height
    whole = first % TILE == 0 and (end % TILE == 0 or end == height) and 0 <= first < end <= height
    top, bottom = max(0, first - 1) >> enlarge, min(end, height - 1) >> enlarge
    there = 0 <= source.first <= top and bottom < source.first + len(source.data) <= source.height
    if not whole or not there or source.height << enlarge != height or target.data.shape[1] & enlarge:
        raise RuntimeError(
            f"a kernel writes rows {first} to {end} of {height} from rows {source.first} to "
            f"{source.first + len(source.data)} of {source.height}, enlarged by {1 << enlarge}"
        )


def table(
    operand: str, tensors: Sequence[Tensor], dtype: torch.dtype, *shape: int
) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """The addresses of the frames of a clip."""
    return np.array([address(operand, tensor, dtype, *shape) for tensor in tensors], dtype=np.int64)


def tiles_of(rows: Span, width: int) -> Span:
    """The tiles of filtering that lie in some rows."""
    across = -(-width // TILE)
    return Span(rows.first // TILE * across, -(-rows.last // TILE) * across)
