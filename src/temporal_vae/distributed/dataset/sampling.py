"""Samples of posteriors that follow from a seed and the clip, whoever draws them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def draw(mean: Tensor, logvar: Tensor, seed: int, identity: str) -> Tensor:
    """A sample of the posterior of a clip, in float32: the same wherever and whenever it is drawn.

    Args:
        mean: `(t, z, h, w)`.
        logvar: alike.
        seed: of all clips.
        identity: of this one.
    """
    key = np.array([seed % 2**64, int(identity[:16], 16)], dtype=np.uint64)
    noise = np.random.Generator(np.random.Philox(key=key)).standard_normal(mean.shape, dtype=np.float32)
    return mean.float() + torch.exp(0.5 * logvar.float()) * torch.from_numpy(noise)
