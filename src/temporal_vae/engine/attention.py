"""The pass of attention: each frame over its own pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from temporal_vae.engine import processor
from temporal_vae.engine.gate import is_plain
from temporal_vae.engine.geometry import ANSWERED, QUERIES, VECTOR, padded, spans
from temporal_vae.engine.kernels import Sweeping
from temporal_vae.engine.kernels.attention import KeysAndValues
from temporal_vae.engine.passes import Context
from temporal_vae.engine.stats import Affine, Moments, affine, merge, stack
from temporal_vae.engine.storage import Activations


def attend(
    context: Context,
    attention: Attention,
    state: Activations,
    frames: Sequence[int],
    *,
    moments: Moments,
    work: int,
) -> Moments:
    """Attention of each frame over its own pixels, by the processor that the model was given; moments `(t, c)`.

    Args:
        context: the surroundings.
        attention: what is computed.
        state: what is read and added to.
        frames: which frames.
        moments: of these frames, for the norm.
        work: multiply-adds for each pixel.
    """
    count = state.height * state.width
    padding = context.kernels.attends and count % VECTOR > 0
    other_rooms = padding or _type(state.dtype, context.pool.device) != state.dtype
    if other_rooms:
        context.pool.clear()  # what waits there does not serve attention, nor what attention leaves the next pass
    gathered = []
    for position, frame in enumerate(frames):
        with state.borrow(frame, context.pool) as values:
            if is_plain(attention):
                group_norm = cast("nn.GroupNorm", attention.group_norm)
                norm = affine(moments.of([position]), group_norm, scale=context.scale)
                add = add_by_kernels if context.kernels.attends else add_attention
                add(context, values, attention, norm, work)
            else:
                result = attention(values.permute(2, 0, 1)[None])
                values.copy_(result[0].permute(1, 2, 0))
                context.advance(count * work)
            # By parts: a whole frame in float32 is not planned.
            pixels = values.view(1, -1, state.channels).split(QUERIES, 1)
            gathered.append(merge(map(Moments.of_values, pixels)))
    if other_rooms:
        context.pool.clear()
    return stack(gathered)


def _type(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The type in which attention over activations is computed."""
    name = processor.attention_type(device.type, str(dtype).removeprefix("torch."))
    found: torch.dtype = getattr(torch, name)
    return found


def add_attention(context: Context, frame: Tensor, attention: Attention, norm: Affine, work: int) -> None:
    """Add to a frame `(h, w, c)` what its attention makes of it, by torch; in float32 where that is faster.

    Args:
        context: the surroundings.
        frame: what is read and added to.
        attention: what is computed.
        norm: the GroupNorm that comes first.
        work: multiply-adds for each pixel.
    """
    pool = context.pool
    dtype = _type(frame.dtype, frame.device)
    pixels = frame.view(-1, frame.shape[-1])
    parts = pixels.split(QUERIES)
    normal, keys, values = rooms = [pool.take(pixels.shape, dtype) for _ in range(3)]
    for part, room in zip(parts, normal.split(QUERIES), strict=True):
        room.copy_(_normal(part, norm))
    for projection, target in ((attention.to_k, keys), (attention.to_v, values)):
        torch.addmm(projection.bias.to(dtype), normal, projection.weight.T.to(dtype), out=target)
    leave = cast("nn.Linear", attention.to_out[0])
    for part, queries in zip(parts, normal.split(QUERIES), strict=True):
        asked = _project(queries, attention.to_q)
        found = F.scaled_dot_product_attention(asked[None, None], keys[None, None], values[None, None])
        part.add_(_project(found[0, 0], leave), alpha=1 / context.scale)
        context.advance(len(part) * work)
    for room in rooms:
        pool.give(room)


def add_by_kernels(context: Context, frame: Tensor, attention: Attention, norm: Affine, work: int) -> None:
    """As `add_attention`, by the engine's own kernel, always in float32."""
    pixels, pool = frame.view(-1, frame.shape[-1]), context.pool
    count, channels = pixels.shape
    keys, values = (pool.take((padded(count, VECTOR), channels), torch.float32) for _ in range(2))
    asked = KeysAndValues(keys, values, count)
    for span in spans(count, QUERIES, VECTOR):
        normal = _normal(pixels[span.first : span.last], norm)
        asked.put(span.first, _project(normal, attention.to_k), _project(normal, attention.to_v))
    leave, kernels = cast("nn.Linear", attention.to_out[0]), cast("Sweeping[Any]", context.kernels)
    asking = pool.take((min(ANSWERED, count), channels), torch.float32)
    for part in pixels.split(ANSWERED):
        queries = asking[: len(part)]
        rooms = list(zip(part.split(QUERIES), queries.split(QUERIES), strict=True))
        for some, room in rooms:
            torch.mul(_project(_normal(some, norm), attention.to_q), channels**-0.5, out=room)
        kernels.answer(asked, queries, context.scratch, context.progress(len(part) * work))
        for some, room in rooms:
            some.add_(_project(room, leave), alpha=1 / context.scale)
    for room in (keys, values, asking):
        pool.give(room)


def _normal(pixels: Tensor, norm: Affine) -> Tensor:
    """What the norm makes of some pixels, as wide as it is."""
    return torch.addcmul(norm.shift, pixels.to(norm.scale.dtype), norm.scale)


def _project(x: Tensor, linear: nn.Linear) -> Tensor:
    """A linear layer, in the type of `x`."""
    bias = None if linear.bias is None else linear.bias.to(x.dtype)
    return F.linear(x, linear.weight.to(x.dtype), bias)
