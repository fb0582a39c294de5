"""The pass of attention: each frame over its own pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from temporal_vae.engine import processor
from temporal_vae.engine.gate import is_plain
from temporal_vae.engine.geometry import QUERIES, spans
from temporal_vae.engine.passes import Context
from temporal_vae.engine.stats import Affine, Moments, affine, merge, stack
from temporal_vae.engine.storage import Activations, Pool


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
    other_type = _type(state.dtype, context.pool.device) != state.dtype
    if other_type:
        context.pool.clear()  # what waits there does not serve attention, nor what attention leaves the next pass
    gathered = []
    for position, frame in enumerate(frames):
        with state.borrow(frame, context.pool) as values:
            if is_plain(attention):
                group_norm = cast("nn.GroupNorm", attention.group_norm)
                norm = affine(moments.of([position]), group_norm, scale=context.scale)
                add_attention(values, attention, norm, context.pool, scale=context.scale)
            else:
                result = attention(values.permute(2, 0, 1)[None])
                values.copy_(result[0].permute(1, 2, 0))
            # By parts: a whole frame in float32 is not planned.
            pixels = values.view(1, -1, state.channels).split(QUERIES, 1)
            gathered.append(merge(map(Moments.of_values, pixels)))
        context.advance(state.height * state.width * work)
    if other_type:
        context.pool.clear()
    return stack(gathered)


def _type(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The type in which attention over activations is computed."""
    name = processor.attention_type(device.type, str(dtype).removeprefix("torch."))
    found: torch.dtype = getattr(torch, name)
    return found


def add_attention(frame: Tensor, attention: Attention, norm: Affine, pool: Pool, *, scale: int = 1) -> None:
    """Add to a frame `(h, w, c)` what its attention makes of it; `norm` is the GroupNorm that comes first.

    Where torch is slow in the type of the frame, it computes in float32.
    """
    dtype = _type(frame.dtype, frame.device)
    pixels = frame.view(-1, frame.shape[-1])
    parts = [pixels[span.first : span.last] for span in spans(len(pixels), QUERIES)]
    normal, keys, values = rooms = [pool.take(pixels.shape, dtype) for _ in range(3)]
    offset = 0
    for part in parts:
        wide = part.to(norm.scale.dtype)
        normal[offset : offset + len(part)] = torch.addcmul(norm.shift, wide, norm.scale)
        offset += len(part)
    for projection, target in ((attention.to_k, keys), (attention.to_v, values)):
        torch.addmm(projection.bias.to(dtype), normal, projection.weight.T.to(dtype), out=target)
    leave = cast("nn.Linear", attention.to_out[0])
    for part, queries in zip(parts, normal.split([len(part) for part in parts]), strict=True):
        asked = _project(queries, attention.to_q)
        found = F.scaled_dot_product_attention(asked[None, None], keys[None, None], values[None, None])
        part.add_(_project(found[0, 0], leave), alpha=1 / scale)
    for room in rooms:
        pool.give(room)


def _project(x: Tensor, linear: nn.Linear) -> Tensor:
    """A linear layer, in the type of `x`."""
    bias = None if linear.bias is None else linear.bias.to(x.dtype)
    return F.linear(x, linear.weight.to(x.dtype), bias)
