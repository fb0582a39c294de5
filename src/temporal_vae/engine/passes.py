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
from torch import Tensor, nn

from temporal_vae.engine.geometry import TILE, Cut, Span, finish_channels
from temporal_vae.engine.kernels import Kernels, Sweeping, Weights
from temporal_vae.engine.planned import LevelPlan
from temporal_vae.engine.spill import HostMemory, SpillFile
from temporal_vae.engine.stats import Affine, Merged, Moments, merge, stack
from temporal_vae.engine.storage import (
    Activations,
    Pool,
    Rows,
    Scratch,
    SpilledActivations,
    release_free_memory,
)
from temporal_vae.engine.workers import Workers

Advance = Callable[[int], None]


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
    scale: int  # that activations are stored divided by
    advance: Advance  # told of the multiply-adds of the network that are done

    def progress(self, work: int) -> Callable[[float], None]:
        """Takes shares of some work, one in all, and tells of multiply-adds; what is rounded away comes at the end."""
        told = done = 0.0

        def tell(share: float) -> None:
            nonlocal told, done
            done += share
            whole = work if done > 1 - 1e-9 else round(done * work)
            self.advance(int(whole - told))
            told = whole

        return tell

    def use(self, level: LevelPlan) -> None:
        """Get ready for the passes of a level."""
        release_free_memory()
        for scratch in self.scratch:
            scratch.resize(level.scratch_bytes)
        self.weights.resize(level.weights_bytes)
        if self.kernels.sweeps:
            _sweeps(self).sums.resize(level.sums_bytes)

    def activations(self, shape: tuple[int, int, int, int], *, spilled: bool) -> Activations:
        """Room for activations `(t, h, w, c)`."""
        if spilled:
            assert self.store is not None
            return SpilledActivations(shape, self.dtype, self.store)
        return Activations(shape, self.dtype, self.pool)


@dataclass(frozen=True, slots=True)
class Convolution:
    """A convolution that is ready to run."""

    weights: Weights
    affine: Affine | None  # the norm that its source waits for, a row for each frame or one for the clip
    work: int  # multiply-adds for each pixel of its target


class Rematerialised:
    """Enlarged frames that are computed where they are read, and never stored. Lends out rows as `Activations` does."""

    def __init__(self, context: Context, small: Activations, weights: Weights) -> None:
        self._context, self._small, self._weights = context, small, weights
        self.height, self.width, self.channels = 2 * small.height, 2 * small.width, small.channels

    def whole(self, frames: Sequence[int]) -> list[Tensor] | None:
        """They are nowhere."""
        return None

    def rows(self, frame: int, span: Span, scratch: Scratch) -> Rows:
        """Rows of one frame, to read."""
        span = span.aligned(TILE, self.height)
        data = scratch.take((len(span), self.width, self.channels), self._context.dtype)
        rows = Rows(data, span.first, self.height)
        source = self._small.rows(frame, span.halved().widened(1, self._small.height), scratch)
        self._context.kernels.spatial(source, rows, self._weights, None, scratch)
        return rows


def convolve(
    context: Context,
    convolution: Convolution,
    source: Activations | Rematerialised,
    target: Activations | None,
    frames: Sequence[int],
    *,
    add: bool = False,
    shortcut: tuple[Weights, Activations] | None = None,
) -> Moments:
    """3x3 convolution of each frame by itself, behind an enlargement or not; moments `(len(frames), c)`.

    Args:
        context: the surroundings.
        convolution: what is computed.
        source: what is read.
        target: what is written; None if only the moments are wanted.
        frames: which frames.
        add: add the result to what the target holds.
        shortcut: weights of a 1x1 convolution of the source without its norm, and where the result goes.
    """
    kernels, weights = context.kernels, convolution.weights
    channels, enlarge = weights.outputs, weights.enlarge
    height, width = source.height << enlarge, source.width << enlarge
    aside = None if shortcut is None else shortcut[1]
    whole = _whole(context, frames, source, target, aside or target)
    if whole is not None:
        read, write, beside = whole
        if shortcut is not None:
            flat, flat_beside = ([one.flatten(0, 1) for one in some] for some in (read, beside))
            _sweeps(context).sweep_time(
                flat, flat_beside, shortcut[0], None, context.scratch, lambda share: None
            )
        work = len(frames) * height * width * convolution.work
        return _sweeps(context).sweep_space(
            read,
            write,
            weights,
            convolution.affine,
            context.scratch,
            context.progress(work),
            add=add,
        )

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
        pending = None if convolution.affine is None else convolution.affine.of(position)
        moments = kernels.spatial(read, written, weights, pending, scratch, add=add)
        if target is not None:
            target.put_rows(frame, written)
        context.advance(len(span) * width * convolution.work)
        return moments

    return _by_frame(context, tile, len(frames), height, width, channels)


def convolve_over_time(
    context: Context,
    convolution: Convolution,
    source: Activations,
    target: Activations | None,
    *,
    add: bool = False,
    before: Convolution | None = None,
) -> Moments:
    """(3,1,1) convolution of a clip; moments `(t, c)`.

    Args:
        context: the surroundings.
        convolution: what is computed.
        source: what is read.
        target: what is written, `source` itself too; None if only the moments are wanted.
        add: add the result to what the target holds.
        before: a convolution that comes first, whose result is not stored.
    """
    kernels, weights = context.kernels, convolution.weights

    def apply(one: Convolution, read: list[Tensor], written: list[Tensor], scratch: Scratch) -> Moments:
        assert one.affine is not None
        adds = add and one is convolution
        return kernels.temporal(read, written, one.weights, one.affine, scratch, add=adds)

    def tile(span: Span, worker: int) -> Moments:
        scratch = context.scratch[worker].reset()
        read = hidden = source.pixels(span, scratch)

        def room() -> list[Tensor]:
            return [scratch.take((len(span), weights.outputs), context.dtype) for _ in read]

        if before is not None:
            hidden = room()
            apply(before, read, hidden, scratch)
        if target is None:
            written = room()
        elif target is source:
            written = read
        else:
            written = (target.pixels if add else target.blank_pixels)(span, scratch)
        moments = apply(convolution, hidden, written, scratch)
        if target is not None:
            target.put_pixels(span, written)
        context.advance(len(span) * source.count * convolution.work)
        return moments

    pixels = source.height * source.width
    whole = None if before is not None else _whole(context, range(source.count), source, target)
    if whole is not None:
        read, write = ([one.flatten(0, 1) for one in some] for some in whole)
        progress = context.progress(pixels * source.count * convolution.work)
        return _sweeps(context).sweep_time(
            read, write, weights, convolution.affine, context.scratch, progress, add=add
        )
    runs = context.cut.runs(pixels, source.count, source.channels, context.workers.count)
    merged = Merged()
    context.workers.each(tile, runs, merged.add)
    return merged.moments


def enter(
    context: Context,
    convolution: Convolution,
    images: Tensor,
    target: Activations,
    frames: Sequence[int],
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
        read = Rows(rows, reach.first, height)
        moments = kernels.spatial(read, written, convolution.weights, None, scratch)
        target.put_rows(frame, written)
        context.advance(len(span) * width * convolution.work)
        return moments

    return _by_frame(context, tile, len(frames), height, width, target.channels)


def leave(
    context: Context,
    convolution: Convolution,
    source: Activations,
    images: Tensor,
    frames: Sequence[int],
) -> None:
    """3x3 convolution of activations into pictures or moments of latents `(n, c, h, w)`."""
    weights, pending = convolution.weights, convolution.affine
    channels, height, width = images.shape[1:]
    assert pending is not None

    def tile(job: tuple[int, Span], worker: int) -> None:
        position, span = job
        frame, scratch = frames[position], context.scratch[worker].reset()
        read = source.rows(frame, span.widened(1, height), scratch)
        written = scratch.take((len(span), width, weights.outputs), context.dtype)
        rows = Rows(written, span.first, height)
        context.kernels.spatial(read, rows, weights, pending.of(position), scratch)
        images[frame, :, span.first : span.last] = written[..., :channels].permute(2, 0, 1)
        context.advance(len(span) * width * convolution.work)

    context.workers.run(tile, _strips(context, len(frames), height, width, source.channels))


def halve(
    context: Context,
    convolution: Convolution,
    source: Activations,
    target: Activations,
    frames: Sequence[int],
) -> Moments:
    """Stride-2 3x3 convolution, zeros at the right and the bottom only; moments `(len(frames), c)`.

    The nine neighbours of each output are laid side by side, and the weights are those of a 1x1 convolution.
    """
    channels, width = source.channels, target.width
    whole = _whole(context, frames, source, target)
    if whole is not None and convolution.weights.direct:
        progress = context.progress(len(frames) * target.height * width * convolution.work)
        read, write = whole
        return _sweeps(context).sweep_halving(read, write, convolution.weights, context.scratch, progress)

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
        moments = context.kernels.pointwise(neighbours, written, convolution.weights, scratch)
        target.put_rows(frame, written)
        context.advance(len(span) * width * convolution.work)
        return moments

    return _by_frame(context, tile, len(frames), target.height, width, 9 * channels)


def finish_over_time(context: Context, conv: nn.Conv3d, images: Tensor, *, work: int) -> None:
    """(3,1,1) convolution of the pictures `(t, c, h, w)` of a clip, in place; `work` as in `attend`."""
    flat = images.flatten(2)  # a view: the pictures are ours and contiguous

    def tile(span: Span, worker: int) -> None:
        image = flat[:, :, span.first : span.last].transpose(0, 1)[None]
        result = F.conv2d(image, conv.weight[..., 0], conv.bias, padding=(1, 0))
        flat[:, :, span.first : span.last] = result[0].transpose(0, 1)
        context.advance(len(span) * flat.shape[0] * work)

    runs = context.cut.runs(
        flat.shape[2], flat.shape[0], finish_channels(flat.shape[1]), context.workers.count
    )
    context.workers.run(tile, runs)


def _sweeps(context: Context) -> Sweeping[Any]:
    """The kernels, which sweep over whole frames: `_whole` found that they do."""
    return cast("Sweeping[Any]", context.kernels)


def _whole(
    context: Context, frames: Sequence[int], *places: Activations | Rematerialised | None
) -> list[list[Tensor]] | None:
    """The frames of all places, where kernels sweep over them: they are in memory."""
    if not context.kernels.sweeps:
        return None
    found = [None if place is None else place.whole(frames) for place in places]
    return None if None in found else cast("list[list[Tensor]]", found)


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
