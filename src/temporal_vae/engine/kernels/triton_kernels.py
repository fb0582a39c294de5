"""The two memory-bound passes of the engine on a GPU: normalise + SiLU, and the moments of an activation.

Each kernel has a twin in plain torch that says what it computes. A tile is `(rows, c)` with unit stride in `c`,
its rows any fixed stride apart, float32, float16 or bfloat16; arithmetic is float32 whatever the storage. The rows
are those of `frames` frames of equal size, one after the other. Offsets are 64 bits wide: 25 frames of 1024x576
pixels and 256 channels are more elements than a 32-bit integer counts.

Nothing here imports triton before the first launch, so the twins serve where it is not installed.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from temporal_vae.engine.threads import once

if TYPE_CHECKING:
    import triton.language as tl
    from triton.language import constexpr

NORM_ELEMENTS = 8192  # of a program of `norm_silu`: 32 per thread, as few as keep scale and shift a 3 % extra
NORM_WARPS = 8
MOMENT_ROWS = 512  # of a block of `moments`; its registers hold the block, so that memory is read once
MOMENT_COLUMNS = 32  # 64 or 128 consecutive bytes
MOMENT_WARPS = 8
MERGE_BLOCKS = 128  # merged into one by one program, in float64
MERGE_COLUMNS = 16
MERGE_WARPS = 4
COUNTS = ("rows_per_frame", "blocks_per_frame", "merged_per_frame", "column_blocks")
"""Arguments whose value is no reason to compile a kernel anew."""


def available() -> bool:
    """Whether the kernels can run: triton is installed, and a GPU is there or triton's interpreter asked for."""
    runs = torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1"
    return runs and find_spec("triton") is not None


def norm_silu(x: Tensor, scale: Tensor, shift: Tensor, out: Tensor, *, silu: bool = True) -> Tensor:
    """Write `act(x * scale + shift)` to `out` and return it; `act` is SiLU, or nothing at all.

    x: `(rows, c)`. scale, shift: float32 `(frames, c)`, one row of them for each frame. out: `(rows, c)`, x itself or
    memory apart from it, with a row stride and a type of its own.
    """
    _check_norm(x, scale, shift, out)
    (rows, c), frames = x.shape, len(scale)
    block_columns = _block_columns(c)
    block_rows = NORM_ELEMENTS // block_columns
    blocks, columns = _cdiv(rows // frames, block_rows), _cdiv(c, block_columns)
    arguments = (x, scale, shift, out, x.stride(0), out.stride(0), c, rows // frames, blocks, columns)
    constants = {"SILU": silu, "ROWS": block_rows, "COLUMNS": block_columns}
    with torch.cuda.device_of(x):  # triton launches on the current device
        _launch(_norm_silu, frames * blocks * columns, NORM_WARPS, *arguments, **constants)
    return out


def norm_silu_torch(x: Tensor, scale: Tensor, shift: Tensor, out: Tensor, *, silu: bool = True) -> Tensor:
    """What `norm_silu` computes, on any device."""
    _check_norm(x, scale, shift, out)
    frames = x.float().unflatten(0, (len(scale), -1))  # (frames, rows, c)
    y = (frames * scale[:, None] + shift[:, None]).flatten(0, 1)
    return out.copy_(F.silu(y) if silu else y)


def moments(x: Tensor, frames: int) -> tuple[Tensor, Tensor]:
    """Mean and sum of squared deviations of each channel in each frame: float64 `(frames, c)` each.

    x: `(rows, c)`. A block of rows is summed in float32 around its own mean; blocks are merged in float64 by the
    formula of Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances"
    (1979), in an order that depends on the shape alone, so that the same input gives the same bits. The work memory
    is one float64 for every 256 elements of x.
    """
    _check_moments(x, frames)
    rows, c = len(x) // frames, x.shape[1]
    span, blocks = MOMENT_ROWS, _cdiv(rows, MOMENT_ROWS)  # rows of a block, blocks of a frame
    mean, m2 = torch.empty(2, frames, blocks, c, dtype=torch.float64, device=x.device)
    columns = _cdiv(c, MOMENT_COLUMNS)
    arguments = (x, mean, m2, x.stride(0), c, rows, blocks, columns)
    constants = {"ROWS": MOMENT_ROWS, "COLUMNS": MOMENT_COLUMNS}
    with torch.cuda.device_of(x):
        _launch(_block_moments, frames * blocks * columns, MOMENT_WARPS, *arguments, **constants)
        while blocks > 1:
            mean, m2 = _merge(mean, m2, rows, span)
            span, blocks = span * MERGE_BLOCKS, mean.shape[1]
    return mean[:, 0], m2[:, 0]


def moments_torch(x: Tensor, frames: int) -> tuple[Tensor, Tensor]:
    """What `moments` computes, on any device that has float64."""
    _check_moments(x, frames)
    values = x.double().unflatten(0, (frames, -1))  # (frames, rows, c)
    mean = values.mean(1)
    return mean, (values - mean[:, None]).square().sum(1)


def _merge(mean: Tensor, m2: Tensor, rows: int, span: int) -> tuple[Tensor, Tensor]:
    """Moments `(frames, blocks, c)` of blocks of `span` rows to those of `MERGE_BLOCKS` times larger blocks."""
    frames, blocks, c = mean.shape
    merged, columns = _cdiv(blocks, MERGE_BLOCKS), _cdiv(c, MERGE_COLUMNS)
    merged_mean, merged_m2 = mean.new_empty(2, frames, merged, c)
    arguments = (mean, m2, merged_mean, merged_m2, c, rows, span, blocks, merged, columns)
    constants = {"BLOCKS": MERGE_BLOCKS, "COLUMNS": MERGE_COLUMNS}
    _launch(_merge_moments, frames * merged * columns, MERGE_WARPS, *arguments, **constants)
    return merged_mean, merged_m2


def _check_norm(x: Tensor, scale: Tensor, shift: Tensor, out: Tensor) -> None:
    assert x.shape == out.shape, (x.shape, out.shape)
    assert x.stride(1) == out.stride(1) == 1, (x.stride(), out.stride())
    assert scale.shape == shift.shape == (len(scale), x.shape[1]), (scale.shape, shift.shape, x.shape)
    assert len(x) % len(scale) == 0, (len(x), len(scale))
    assert scale.dtype == shift.dtype == torch.float32, (scale.dtype, shift.dtype)
    assert scale.is_contiguous(), scale.stride()
    assert shift.is_contiguous(), shift.stride()
    assert x.device == scale.device == shift.device == out.device, (x.device, scale.device, out.device)


def _check_moments(x: Tensor, frames: int) -> None:
    assert x.ndim == 2, x.shape
    assert x.stride(1) == 1, x.stride()
    assert len(x) > 0, x.shape
    assert len(x) % frames == 0, (len(x), frames)


def _cdiv(a: int, b: int) -> int:
    return -(-a // b)


def _block_columns(c: int) -> int:
    """The widest block that leaves the fewest columns idle: 128 for 512 channels, 32 for 96 and 160."""
    return min((128, 64, 32), key=lambda block: _cdiv(c, block) * block)


def _launch(
    kernel: Callable[..., None], programs: int, warps: int, *arguments: Any, **constants: Any
) -> None:
    # Fused multiply-adds are stated because triton changes their default, with a warning, from 3.9 to 3.10.
    _jit(kernel)[(programs,)](*arguments, **constants, num_warps=warps, enable_fp_fusion=True)


@once
def _jit(kernel: Callable[..., None]) -> Any:
    """`kernel` made launchable. The kernels below name `tl` and `constexpr`, which triton looks up as globals."""
    global tl, constexpr
    import triton
    import triton.language as tl
    from triton.language import constexpr

    return triton.jit(kernel, do_not_specialize=COUNTS)


# What follows is triton's language, compiled from this text. Programs are numbered along one axis, columns first:
# neighbours share rows of memory, and the other axes of a grid end at 65535.


def _norm_silu(
    x: tl.tensor,
    scale: tl.tensor,
    shift: tl.tensor,
    out: tl.tensor,
    x_stride: tl.tensor,
    out_stride: tl.tensor,
    c: tl.tensor,
    rows_per_frame: tl.tensor,
    blocks_per_frame: tl.tensor,
    column_blocks: tl.tensor,
    SILU: constexpr,
    ROWS: constexpr,
    COLUMNS: constexpr,
) -> None:
    program = tl.program_id(0).to(tl.int64)
    columns = (program % column_blocks) * COLUMNS + tl.arange(0, COLUMNS)
    block = program // column_blocks
    frame = block // blocks_per_frame
    rows = (block % blocks_per_frame) * ROWS + tl.arange(0, ROWS)
    inside = (rows[:, None] < rows_per_frame) & (columns[None, :] < c)
    rows += frame * rows_per_frame

    a = tl.load(scale + frame * c + columns, mask=columns < c, other=0.0)
    b = tl.load(shift + frame * c + columns, mask=columns < c, other=0.0)
    value = tl.load(x + rows[:, None] * x_stride + columns[None, :], mask=inside, other=0.0)
    y = value.to(tl.float32) * a[None, :] + b[None, :]
    if SILU:
        y = y * tl.sigmoid(y)
    y = y.to(out.dtype.element_ty)
    tl.store(out + rows[:, None] * out_stride + columns[None, :], y, mask=inside)


def _block_moments(
    x: tl.tensor,
    mean: tl.tensor,
    m2: tl.tensor,
    x_stride: tl.tensor,
    c: tl.tensor,
    rows_per_frame: tl.tensor,
    blocks_per_frame: tl.tensor,
    column_blocks: tl.tensor,
    ROWS: constexpr,
    COLUMNS: constexpr,
) -> None:
    program = tl.program_id(0).to(tl.int64)
    columns = (program % column_blocks) * COLUMNS + tl.arange(0, COLUMNS)
    block = program // column_blocks
    frame = block // blocks_per_frame
    first = (block % blocks_per_frame) * ROWS
    rows = first + tl.arange(0, ROWS)
    inside = (rows[:, None] < rows_per_frame) & (columns[None, :] < c)
    rows += frame * rows_per_frame
    value = tl.load(x + rows[:, None] * x_stride + columns[None, :], mask=inside, other=0.0).to(tl.float32)

    # The mean is rounded, so deviations from it do not quite sum to zero: their sum mends mean and squares.
    count = tl.minimum(rows_per_frame - first, ROWS).to(tl.float32)
    rounded = tl.sum(value, axis=0) / count
    deviation = tl.where(inside, value - rounded[None, :], 0.0)
    squares = tl.sum(deviation * deviation, axis=0).to(tl.float64)
    rest = tl.sum(deviation, axis=0).to(tl.float64) / count.to(tl.float64)

    place = block * c + columns
    tl.store(mean + place, rounded.to(tl.float64) + rest, mask=columns < c)
    tl.store(m2 + place, squares - rest * rest * count.to(tl.float64), mask=columns < c)


def _merge_moments(
    mean: tl.tensor,
    m2: tl.tensor,
    merged_mean: tl.tensor,
    merged_m2: tl.tensor,
    c: tl.tensor,
    rows_per_frame: tl.tensor,
    span: tl.tensor,
    blocks_per_frame: tl.tensor,
    merged_per_frame: tl.tensor,
    column_blocks: tl.tensor,
    BLOCKS: constexpr,
    COLUMNS: constexpr,
) -> None:
    program = tl.program_id(0).to(tl.int64)
    columns = (program % column_blocks) * COLUMNS + tl.arange(0, COLUMNS)
    merged = program // column_blocks
    frame = merged // merged_per_frame
    blocks = (merged % merged_per_frame) * BLOCKS + tl.arange(0, BLOCKS)
    inside = (blocks[:, None] < blocks_per_frame) & (columns[None, :] < c)
    count = tl.minimum(tl.maximum(rows_per_frame - blocks * span, 0), span).to(tl.float64)[:, None]

    place = (frame * blocks_per_frame + blocks)[:, None] * c + columns[None, :]
    means = tl.load(mean + place, mask=inside, other=0.0)
    total = tl.sum(means * count, axis=0) / tl.sum(count, axis=0)
    between = means - total[None, :]
    sums = tl.load(m2 + place, mask=inside, other=0.0) + count * between * between

    tl.store(merged_mean + merged * c + columns, total, mask=columns < c)
    tl.store(merged_m2 + merged * c + columns, tl.sum(sums, axis=0), mask=columns < c)
