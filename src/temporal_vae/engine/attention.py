"""Attention of one frame over its own pixels, in place.

Keys and values of all pixels are needed, queries may come a few at a time: that is exact, since each is by itself.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from temporal_vae.engine.geometry import QUERIES, spans
from temporal_vae.engine.stats import Affine
from temporal_vae.engine.storage import Pool


def add_attention(frame: Tensor, attention: Attention, norm: Affine, pool: Pool) -> None:
    """Add to a frame `(h, w, c)` what its attention makes of it; `norm` is the GroupNorm that comes first."""
    pixels = frame.view(-1, frame.shape[-1])
    parts = [pixels[span.first : span.last] for span in spans(len(pixels), QUERIES)]
    normal, keys, values = rooms = [pool.take(pixels.shape, pixels.dtype) for _ in range(3)]
    offset = 0
    for part in parts:
        wide = part.to(norm.scale.dtype)
        normal[offset : offset + len(part)] = torch.addcmul(norm.shift, wide, norm.scale)
        offset += len(part)
    for projection, target in ((attention.to_k, keys), (attention.to_v, values)):
        torch.addmm(projection.bias, normal, projection.weight.T, out=target)
    leave = cast("nn.Linear", attention.to_out[0])
    for part, queries in zip(parts, normal.split([len(part) for part in parts]), strict=True):
        asked = attention.to_q(queries)
        found = F.scaled_dot_product_attention(asked[None, None], keys[None, None], values[None, None])
        part += leave(found[0, 0])
    for room in rooms:
        pool.give(room)
