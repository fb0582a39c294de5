"""One function per kind of pass over stored activations.

A pass cuts its target into tiles, lets the workers compute them, and returns the moments of what was written. No tile
reads what another tile of the same pass writes, so their order does not matter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from temporal_vae.engine.attention import add_attention
from temporal_vae.engine.gate import is_plain
from temporal_vae.engine.geometry import TILE, Cut, Span
from temporal_vae.engine.kernels import Kernels, Weights
from temporal_vae.engine.plan import LevelPlan
from temporal_vae.engine.stats import Affine, Merged, Moments, affine, merge, stack
from temporal_vae.engine.storage import (
    Frames,
    HostMemory,
    Pool,
    Rows,
    Scratch,
    SpilledFrames,
    SpillFile,
    release_free_memory,
)
from temporal_vae.engine.workers import Workers


@dataclass(frozen=True, kw_only=True)
class Context:
    """What every pass needs: who works, with what, how large tiles are, and where activations are kept."""

    kernels: Kernels[Any]
    workers: Workers
    scratch: Sequence[Scratch]  # one per worker
    weights: Scratch  # packed weights of the passes at hand
    cut: Cut
    pool: Pool
    store: SpillFile | HostMemory | None  # of what is spilled
    dtype: torch.dtype
    advance: Callable[[int], None]  # told of the multiply-adds of the network that are done

    def use(self, level: LevelPlan) -> None:
        """Get ready for the passes of a level."""
        release_free_memory()
        for scratch in self.scratch:
            scratch.resize(level.scratch_bytes)
        self.weights.resize(level.weights_bytes)

    def frames(self, shape: tuple[int, int, int, int], *, spilled: bool = False) -> Frames:
        """Room for activations `(t, h, w, c)`."""
        if spilled:
            assert self.store is not None
            return SpilledFrames(shape, self.dtype, self.store)
        return Frames(shape, self.dtype, self.pool)


class Rematerialised:
    """Enlarged frames that are computed where they are read, and never stored. Lends out rows as `Frames` does."""

    def __init__(self, context: Context, small: Frames, weights: Weights) -> None:
        self._context, self._small, self._weights = context, small, weights
        self.height, self.width, self.channels = 2 * small.height, 2 * small.width, small.channels

    def rows(self, frame: int, span: Span, scratch: Scratch) -> Rows:
        """Rows of one frame, to read."""
        span = span.aligned(TILE, self.height)
        data = scratch.take((len(span), self.width, self.channels), self._context.dtype)
        rows = Rows(data, span.first, self.height)
        source = self._small.rows(frame, span.halved().widened(1, self._small.height), scratch)
        self._context.kernels.spatial(source, rows, self._weights, None, scratch)
        return rows

    def release(self, frame: int) -> None:
        """There is nothing to release."""


def convolve(
    context: Context,
    source: Frames | Rematerialised,
    target: Frames | None,
    weights: Weights,
    frames: Sequence[int],
    *,
    affine: Affine | None = None,
    add: bool = False,
    enlarge: bool = False,
    shortcut: tuple[Weights, Frames] | None = None,
) -> Moments:
    """3x3 convolution of each frame by itself, after the pending norm and SiLU; moments `(len(frames), c)`.

    Args:
        context: the surroundings.
        source: what is read.
        target: what is written; None if only the moments are wanted.
        weights: of the convolution.
        frames: which frames.
        affine: the pending norm, a row for each of `frames`.
        add: add the result to what the target holds.
        enlarge: the weights are those of a nearest 2x enlargement and a convolution.
        shortcut: weights of a 1x1 convolution of the source without its norm, and where the result goes.
    """
    kernels, channels = context.kernels, weights.outputs
    height, width = source.height << enlarge, source.width << enlarge

    def tile(job: tuple[int, Span], worker: int) -> Moments:
        position, span = job
        frame, scratch = frames[position], context.scratch[worker].reset()
        wanted = span.halved() if enlarge else span
        read = source.rows(frame, wanted.widened(1, source.height), scratch)
        if shortcut is not None:
            beside = shortcut[1].blank_rows(frame, span, scratch)
            kernels.pointwise(read, beside, shortcut[0], scratch)
            shortcut[1].put_rows(frame, beside)
        if target is None:
            written = Rows(scratch.take((len(span), width, channels), context.dtype), span.first, height)
        else:
            written = (target.rows if add else target.blank_rows)(frame, span, scratch)
        pending = None if affine is None else affine.of(position)
        moments = kernels.spatial(read, written, weights, pending, scratch, add=add)
        if target is not None:
            target.put_rows(frame, written)
        context.advance(len(span) * width * channels * source.channels * 9)
        return moments

    return _by_frame(context, tile, len(frames), height, width, channels)


def convolve_over_time(
    context: Context,
    source: Frames,
    target: Frames | None,
    weights: Weights,
    affine: Affine,
    *,
    add: bool = False,
    before: tuple[Weights, Affine] | None = None,
) -> Moments:
    """(3,1,1) convolution of a clip after the pending norm and SiLU; moments `(t, c)`.

    Args:
        context: the surroundings.
        source: what is read.
        target: what is written, `source` itself too; None if only the moments are wanted.
        weights: of the convolution.
        affine: the pending norm of the clip.
        add: add the result to what the target holds.
        before: weights and norm of a convolution that comes first, whose result is not stored.
    """
    kernels = context.kernels

    def tile(span: Span, worker: int) -> Moments:
        scratch = context.scratch[worker].reset()
        read = hidden = source.pixels(span, scratch)

        def room() -> list[Tensor]:
            return [scratch.take((len(span), weights.outputs), context.dtype) for _ in read]

        if before is not None:
            hidden = room()
            kernels.temporal(read, hidden, *before, scratch)
        if target is None:
            written = room()
        elif target is source:
            written = read
        else:
            written = (target.pixels if add else target.blank_pixels)(span, scratch)
        moments = kernels.temporal(hidden, written, weights, affine, scratch, add=add)
        if target is not None:
            target.put_pixels(span, written)
            convolutions = 1 if before is None else 2
            context.advance(len(span) * source.count * source.channels * weights.outputs * 3 * convolutions)
        return moments

    pixels = source.height * source.width
    runs = context.cut.runs(pixels, source.count, source.channels, context.workers.count)
    merged = Merged()
    context.workers.each(tile, runs, merged.add)
    return merged.moments


def enter(
    context: Context, images: Tensor, target: Frames, weights: Weights, frames: Sequence[int]
) -> Moments:
    """3x3 convolution of pictures or latents `(n, c, h, w)` into activations; moments `(len(frames), c)`."""
    kernels = context.kernels
    _, channels, height, width = images.shape
    padded = -(-channels // kernels.inputs_multiple) * kernels.inputs_multiple

    def tile(job: tuple[int, Span], worker: int) -> Moments:
        position, span = job
        frame, scratch = frames[position], context.scratch[worker].reset()
        reach = span.widened(1, height)
        rows = scratch.take((len(reach), width, padded), context.dtype).zero_()
        rows[..., :channels] = images[frame, :, reach.first : reach.last].permute(1, 2, 0)
        written = target.blank_rows(frame, span, scratch)
        moments = kernels.spatial(Rows(rows, reach.first, height), written, weights, None, scratch)
        target.put_rows(frame, written)
        context.advance(len(span) * width * channels * target.channels * 9)
        return moments

    return _by_frame(context, tile, len(frames), height, width, target.channels)


def leave(
    context: Context, source: Frames, images: Tensor, weights: Weights, frames: Sequence[int], affine: Affine
) -> None:
    """3x3 convolution of activations, after norm and SiLU, into pictures or moments of latents `(n, c, h, w)`."""
    channels, height, width = images.shape[1:]

    def tile(job: tuple[int, Span], worker: int) -> None:
        position, span = job
        frame, scratch = frames[position], context.scratch[worker].reset()
        read = source.rows(frame, span.widened(1, height), scratch)
        written = scratch.take((len(span), width, weights.outputs), context.dtype)
        rows = Rows(written, span.first, height)
        context.kernels.spatial(read, rows, weights, affine.of(position), scratch)
        images[frame, :, span.first : span.last] = written[..., :channels].permute(2, 0, 1)
        context.advance(len(span) * width * channels * source.channels * 9)

    context.workers.run(tile, _strips(context, len(frames), height, width, source.channels))


def downsample(
    context: Context, source: Frames, target: Frames, weights: Weights, frames: Sequence[int]
) -> Moments:
    """Stride-2 3x3 convolution, zeros at the right and the bottom only; moments `(len(frames), c)`.

    The nine neighbours of each output are laid side by side, and the weights are those of a 1x1 convolution.
    """
    channels, width = source.channels, target.width

    def tile(job: tuple[int, Span], worker: int) -> Moments:
        position, span = job
        frame, scratch = frames[position], context.scratch[worker].reset()
        reach = Span(2 * span.first, min(2 * span.last + 1, source.height))
        read = source.rows(frame, reach, scratch).data
        columns = scratch.take((len(span), width, 9, channels), context.dtype)
        for tap in range(9):
            down, right = divmod(tap, 3)
            values = read[down::2, right::2][: len(span), :width]
            rows, across = values.shape[:2]
            columns[:rows, :across, tap] = values
            columns[rows:, :, tap] = 0
            columns[:, across:, tap] = 0
        written = target.blank_rows(frame, span, scratch)
        neighbours = Rows(columns.flatten(2), span.first, target.height)
        moments = context.kernels.pointwise(neighbours, written, weights, scratch)
        target.put_rows(frame, written)
        context.advance(len(span) * width * target.channels * channels * 9)
        return moments

    return _by_frame(context, tile, len(frames), target.height, width, 9 * channels)


def attend(context: Context, frames: Frames, attention: Attention, moments: Moments) -> Moments:
    """Attention of each frame over its own pixels, by the processor that the model was given; moments `(t, c)`."""
    gathered = []
    for frame in range(frames.count):
        with frames.borrow(frame, context.pool) as values:
            if is_plain(attention):
                norm = affine(moments.of([frame]), cast("nn.GroupNorm", attention.group_norm))
                add_attention(values, attention, norm, context.pool)
            else:
                result = attention(values.permute(2, 0, 1)[None])
                values.copy_(result[0].permute(1, 2, 0))
            gathered.append(Moments.of_values(values.view(1, -1, frames.channels)))
        context.advance(4 * frames.height * frames.width * frames.channels * frames.channels)
    return stack(gathered)


def finish_over_time(context: Context, images: Tensor, conv: nn.Conv3d) -> None:
    """(3,1,1) convolution of the pictures `(t, c, h, w)` of a clip, in place."""
    flat = images.flatten(2)  # a view: the pictures are ours and contiguous

    def tile(span: Span, worker: int) -> None:
        image = flat[:, :, span.first : span.last].transpose(0, 1)[None]
        result = F.conv2d(image, conv.weight[..., 0], conv.bias, padding=(1, 0))
        flat[:, :, span.first : span.last] = result[0].transpose(0, 1)

    pixels = flat.shape[2]
    context.workers.run(tile, context.cut.runs(pixels, len(flat), 2 * flat.shape[1], context.workers.count))


def _strips(context: Context, frames: int, height: int, width: int, channels: int) -> list[tuple[int, Span]]:
    """Which frame, by its position, and which of its rows: a job for each."""
    strips = context.cut.strips(height, width, channels, frames, context.workers.count)
    return [(position, span) for position in range(frames) for span in strips]


def _by_frame(
    context: Context, tile: Callable[[tuple[int, Span], int], Moments], frames: int, height: int, width: int,
    channels: int,
) -> Moments:  # fmt: skip
    """Run the jobs of a pass over frames and merge the moments of each frame."""
    jobs = _strips(context, frames, height, width, channels)
    results = context.workers.run(tile, jobs)
    each = len(jobs) // frames
    return stack(merge(results[i * each : (i + 1) * each]) for i in range(frames))
