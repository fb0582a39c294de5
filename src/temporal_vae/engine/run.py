"""Encoder and decoder as sequences of passes.

The state of a clip goes from block to block. A spatial block works on a few frames at a time, with one hidden
activation for those frames only, and adds its result to the state in place; a temporal block needs the whole clip
twice, once for each of its norms. Between levels, each group of frames is enlarged, consumed and released, so that two
levels never stand in memory whole together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from temporal_vae.engine import passes
from temporal_vae.engine.kernels import Weights, kernels_for
from temporal_vae.engine.passes import Context, Rematerialised
from temporal_vae.engine.plan import LevelPlan, Plan
from temporal_vae.engine.stats import Moments, affine, stack
from temporal_vae.engine.storage import Frames, HostMemory, Pool, Scratch, SpillFile, spill_file
from temporal_vae.engine.workers import Workers
from temporal_vae.model.blocks import Downsample, SpatialResBlock, SpatioTemporalResBlock, Upsample
from temporal_vae.model.decoder import TemporalDecoder, UpBlockTemporalDecoder
from temporal_vae.model.encoder import DownEncoderBlock2D, Encoder

Advance = Callable[[int], None]


def decode(decoder: TemporalDecoder, latents: Tensor, plan: Plan, advance: Advance) -> Tensor:
    """Latents `(b*t, z, h, w)` of clips of `plan.frames` frames to frames `(b*t, c, h*f, w*f)`."""
    frames = latents.new_empty((len(latents), decoder.conv_out.out_channels, plan.height, plan.width))
    with _context(plan, latents, advance) as context:
        for start in range(0, len(latents), plan.frames):
            clip = slice(start, start + plan.frames)
            _decode_clip(context, decoder, latents[clip], frames[clip], plan)
    return frames


def encode(encoder: Encoder, frames: Tensor, plan: Plan, advance: Advance) -> Tensor:
    """Frames `(n, c, h, w)` to moments `(n, 2 * z, h/f, w/f)`, before `quant_conv`."""
    shape = (len(frames), encoder.conv_out.out_channels, *plan.levels[-1].size)
    moments = frames.new_empty(shape)
    with _context(plan, frames, advance) as context:
        for group in _groups(len(frames), plan.frames):
            part = slice(group[0], group[-1] + 1)
            _encode_group(context, encoder, frames[part], moments[part], plan)
    return moments


@contextmanager
def _context(plan: Plan, example: Tensor, advance: Advance) -> Iterator[Context]:
    device = example.device
    workers = Workers(plan.workers, device)
    with ExitStack() as stack_:
        store: SpillFile | HostMemory | None = None
        if plan.spill_bytes and device.type == "cpu":
            store = stack_.enter_context(spill_file(plan.spill_bytes))
        elif plan.spill_bytes:
            store = HostMemory(plan.spill_bytes, device)
        stack_.enter_context(workers.at_work())
        stack_.enter_context(torch._C.DisableTorchFunction())  # buffers are not for the default device
        yield Context(
            kernels=kernels_for(device, example.dtype, workers),
            workers=workers,
            scratch=[Scratch(device) for _ in range(plan.workers)],
            weights=Scratch(device),
            cut=plan.cut,
            pool=Pool(device),
            store=store,
            dtype=example.dtype,
            advance=advance,
        )


def _decode_clip(
    context: Context, decoder: TemporalDecoder, latents: Tensor, frames: Tensor, plan: Plan
) -> None:
    state, moments = _enter(context, decoder.conv_in, latents, plan.levels[0])
    mid, lowest = decoder.mid_block, plan.levels[0]
    middle = cast("Sequence[SpatioTemporalResBlock]", mid.resnets)
    state, moments = _spatiotemporal(context, middle[0], state, moments, lowest)
    if len(middle) > 1:
        moments = passes.attend(context, state, cast("Attention", mid.attentions[0]), moments)
        state, moments = _spatiotemporal(context, middle[1], state, moments, lowest)
    enlarging: Upsample | None = None
    for block, level in zip(
        cast("Sequence[UpBlockTemporalDecoder]", decoder.up_blocks), plan.levels, strict=True
    ):
        for resnet in cast("Sequence[SpatioTemporalResBlock]", block.resnets):
            state, moments = _spatiotemporal(context, resnet, state, moments, level, enlarging=enlarging)
            enlarging = None
        if block.upsamplers is not None:
            enlarging = cast("Upsample", block.upsamplers[0])
    _leave(context, decoder.conv_norm_out, decoder.conv_out, state, moments, frames)
    passes.finish_over_time(context, frames, decoder.time_conv_out)


def _encode_group(context: Context, encoder: Encoder, frames: Tensor, latents: Tensor, plan: Plan) -> None:
    state, moments = _enter(context, encoder.conv_in, frames, plan.levels[0])
    below = (*plan.levels[1:], None)
    for block, level, next_level in zip(encoder.down_blocks, plan.levels, below, strict=True):
        block = cast("DownEncoderBlock2D", block)
        for resnet in cast("Sequence[SpatialResBlock]", block.resnets):
            state, moments = _spatial(context, resnet, state, moments, level)
        if block.downsamplers is not None and next_level is not None:
            halving = cast("Downsample", block.downsamplers[0])
            state, moments = _halve(context, halving.conv, state, next_level)
    mid, lowest = encoder.mid_block, plan.levels[-1]
    middle = cast("Sequence[SpatialResBlock]", mid.resnets)
    state, moments = _spatial(context, middle[0], state, moments, lowest)
    moments = passes.attend(context, state, cast("Attention", mid.attentions[0]), moments)
    state, moments = _spatial(context, middle[1], state, moments, lowest)
    _leave(context, encoder.conv_norm_out, encoder.conv_out, state, moments, latents)


def _enter(context: Context, conv: nn.Conv2d, images: Tensor, level: LevelPlan) -> tuple[Frames, Moments]:
    context.use(level)
    state = context.frames((len(images), *level.size, conv.out_channels), spilled=level.spill)
    weights = context.kernels.spatial_weights(conv, context.weights.reset())
    for frame in range(len(images)):
        state.prepare(frame)
    return state, passes.enter(context, images, state, weights, range(len(images)))


def _leave(
    context: Context, norm: nn.GroupNorm, conv: nn.Conv2d, state: Frames, moments: Moments, images: Tensor
) -> None:
    weights = context.kernels.spatial_weights(conv, context.weights.reset())
    passes.leave(context, state, images, weights, range(state.count), affine(moments, norm))
    state.close()
    context.pool.clear()


def _halve(context: Context, conv: nn.Conv2d, state: Frames, level: LevelPlan) -> tuple[Frames, Moments]:
    context.pool.clear()
    target = context.frames((state.count, *level.size, conv.out_channels), spilled=level.spill)
    weights = context.kernels.strided_weights(conv, context.weights.reset())
    gathered = []
    for frame in range(state.count):
        target.prepare(frame)
        gathered.append(passes.downsample(context, state, target, weights, [frame]))
        state.release(frame, reuse=False)
    context.pool.clear()
    return target, stack(gathered)


def _spatiotemporal(
    context: Context,
    block: SpatioTemporalResBlock,
    state: Frames,
    moments: Moments,
    level: LevelPlan,
    *,
    enlarging: Upsample | None = None,
) -> tuple[Frames, Moments]:
    """One block of the decoder."""
    state, moments = _spatial(context, block.spatial_res_block, state, moments, level, enlarging=enlarging)
    temporal, mix = block.temporal_res_block, _blend(block)
    kernels, room = context.kernels, context.weights.reset()
    first = kernels.temporal_weights(temporal.conv1, state.count, room)
    second = kernels.temporal_weights(temporal.conv2, state.count, room, factor=mix)
    outer = affine(moments.over_frames(), temporal.norm1)
    if level.recompute:
        moments = passes.convolve_over_time(context, state, None, first, outer)
        inner = affine(moments.over_frames(), temporal.norm2)
        moments = passes.convolve_over_time(
            context, state, state, second, inner, add=True, before=(first, outer)
        )
    else:
        shape = (state.count, state.height, state.width, state.channels)
        hidden = context.frames(shape, spilled=level.spill)
        for frame in range(state.count):
            hidden.prepare(frame)
        moments = passes.convolve_over_time(context, state, hidden, first, outer)
        inner = affine(moments.over_frames(), temporal.norm2)
        moments = passes.convolve_over_time(context, hidden, state, second, inner, add=True)
        hidden.close()
    return state, moments


@dataclass(frozen=True, kw_only=True)
class _Packed:
    """A spatial block, and the enlargement before it if there is one, ready to run."""

    block: SpatialResBlock
    first: Weights
    second: Weights
    shortcut: Weights | None  # where the number of channels changes
    enlarge: Weights | None

    @classmethod
    def of(cls, context: Context, block: SpatialResBlock, enlarging: Upsample | None) -> _Packed:
        kernels, room = context.kernels, context.weights.reset()
        shortcut = block.conv_shortcut
        return cls(
            block=block,
            first=kernels.spatial_weights(block.conv1, room),
            second=kernels.spatial_weights(block.conv2, room),
            shortcut=None if shortcut is None else kernels.pointwise_weights(shortcut, room),
            enlarge=None
            if enlarging is None
            else kernels.spatial_weights(enlarging.conv, room, enlarge=True),
        )


def _spatial(
    context: Context,
    block: SpatialResBlock,
    state: Frames,
    moments: Moments,
    level: LevelPlan,
    *,
    enlarging: Upsample | None = None,
) -> tuple[Frames, Moments]:
    """A spatial block, behind an enlargement or not, a few frames at a time.

    The result is added to the block's input in place. Where the block changes the number of channels it gets a place
    of its own, and what the shortcut makes of the input is put there first.
    """
    if enlarging is not None or block.conv_shortcut is not None:
        context.pool.clear()  # of what has the size of the level before
    context.use(level)
    packed = _Packed.of(context, block, enlarging)
    shape = (state.count, *level.size, block.conv1.out_channels)
    hidden = context.frames(shape, spilled=level.spill_work)
    target = state
    if packed.enlarge is not None or packed.shortcut is not None:
        target = context.frames(shape, spilled=level.spill)
    gathered = []
    for group in _groups(state.count, level.together):
        source, pending = _source(context, packed, state, moments.of(group), target, group, level)
        for frame in group:
            hidden.prepare(frame)
            target.prepare(frame)
        pending = passes.convolve(
            context,
            source,
            hidden,
            packed.first,
            group,
            affine=affine(pending, block.norm1),
            shortcut=None if packed.shortcut is None else (packed.shortcut, target),
        )
        norm = affine(pending, block.norm2)
        gathered.append(passes.convolve(context, hidden, target, packed.second, group, affine=norm, add=True))
        for frame in group:
            hidden.release(frame)
            if target is not state:
                state.release(frame, reuse=False)  # of another size than what comes
            if source is not target:
                source.release(frame)
    if target is not state:
        context.pool.clear()
    return target, stack(gathered)


def _source(
    context: Context,
    packed: _Packed,
    state: Frames,
    moments: Moments,
    target: Frames,
    group: Sequence[int],
    level: LevelPlan,
) -> tuple[Frames | Rematerialised, Moments]:
    """What a spatial block reads of a group of frames, and its moments: the state, or that state enlarged."""
    if packed.enlarge is None:
        return state, moments
    if (
        packed.shortcut is None
    ):  # the enlarged frames are what the block adds to: put them in their place at once
        large = target
    elif level.rematerialise:
        moments = passes.convolve(context, state, None, packed.enlarge, group, enlarge=True)
        return Rematerialised(context, state, packed.enlarge), moments
    else:
        large = context.frames((state.count, *level.size, state.channels), spilled=level.spill_work)
    for frame in group:
        large.prepare(frame)
    return large, passes.convolve(context, state, large, packed.enlarge, group, enlarge=True)


def _blend(block: SpatioTemporalResBlock) -> Tensor:
    """`a` of `y = a * temporal(s) + (1 - a) * s = s + a * (what the temporal block adds to s)`."""
    factor = block.time_mixer.mix_factor
    return torch.sigmoid(factor.to(torch.promote_types(factor.dtype, torch.float32)))


def _groups(count: int, size: int) -> list[Sequence[int]]:
    return [range(start, min(start + size, count)) for start in range(0, count, size)]
