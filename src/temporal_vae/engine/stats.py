"""Statistics of stored activations, gathered tile by tile and exact when merged.

**This is where statistics meet.** Every pass returns, for each tile it wrote, the `Moments` of its channels: how many
values, their mean, and the sum of their squared deviations from it (M2), in float64. `merge` joins them by the formula
of Chan, Golub and LeVeque ("Updating formulae and a pairwise algorithm for computing sample variances", 1979), which
is an identity: the variance of the tiles' means is part of the variance of the whole. `affine` then reduces channels
to groups and turns a GroupNorm into one scale and one shift per channel. How the picture was cut cannot be told from
the result.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Moments:
    """Mean and M2 per frame and channel, `(t, c)` in float64, of `count` values each."""

    count: int
    mean: Tensor
    m2: Tensor

    @classmethod
    def of_values(cls, values: Tensor) -> Moments:
        """Of `(t, n, c)` values."""
        count = values.shape[1]
        if values.device.type != "cpu" or values.dtype == torch.float64:
            wide = values.double()
            mean = wide.mean(1)
            return cls(count, mean, (wide - mean[:, None]).square_().sum(1))
        images = values.float().permute(0, 2, 1)[
            :, None, :, :, None
        ]  # channels-last: the fast way through memory
        pairs = [torch.batch_norm_update_stats(image, None, None, 0.0) for image in images]
        mean, variance = (torch.stack(part).double() for part in zip(*pairs, strict=True))
        return cls(count, mean, variance * count)

    def __add__(self, other: Moments) -> Moments:
        """Of both sets of values together (Chan's formula)."""
        count = self.count + other.count
        delta = other.mean - self.mean
        mean = self.mean + delta * (other.count / count)
        m2 = self.m2 + other.m2 + delta.square() * (self.count * other.count / count)
        return Moments(count, mean, m2)

    def of(self, frames: Sequence[int]) -> Moments:
        """Those of some consecutive frames."""
        if len(frames) == len(self.mean):
            return self
        part = slice(frames[0], frames[-1] + 1)
        return Moments(self.count, self.mean[part], self.m2[part])

    def over_frames(self) -> Moments:
        """Of all frames together, `(1, c)`: what a norm over the whole clip needs."""
        frames = len(self.mean)
        mean = self.mean.mean(0, keepdim=True)
        m2 = self.m2.sum(0, keepdim=True) + self.count * (self.mean - mean).square().sum(0, keepdim=True)
        return Moments(self.count * frames, mean, m2)


class Merged:
    """Moments of parts that come one after the other."""

    def __init__(self) -> None:
        self._total: Moments | None = None

    def add(self, part: Moments) -> None:
        """Another part."""
        self._total = part if self._total is None else self._total + part

    @property
    def moments(self) -> Moments:
        """Of all parts together."""
        assert self._total is not None, "no part was added"
        return self._total


def merge(parts: Iterable[Moments]) -> Moments:
    """Of all parts together, in their order."""
    return reduce(Moments.__add__, parts)


def stack(frames: Iterable[Moments]) -> Moments:
    """Moments of single frames as those of a clip."""
    parts = list(frames)
    return Moments(
        parts[0].count, torch.cat([part.mean for part in parts]), torch.cat([part.m2 for part in parts])
    )


@dataclass(frozen=True, slots=True)
class Affine:
    """A pending GroupNorm and SiLU: `silu(x * scale + shift)`, `(t or 1, c)` in float32, or as wide as the weights."""

    scale: Tensor
    shift: Tensor

    def of(self, frame: int) -> Affine:
        """That of one frame."""
        row = min(frame, len(self.scale) - 1)
        return Affine(self.scale[row], self.shift[row])


def affine(moments: Moments, norm: nn.GroupNorm, *, scale: int = 1) -> Affine:
    """Turn a GroupNorm over values with these moments into one scale and one shift per channel.

    Where values are stored divided by a scale, what keeps the norm from dividing by zero is, too.
    """
    shape = len(moments.mean), norm.num_groups, -1  # channels of a group last
    spread, center = torch.var_mean(moments.mean.view(shape), 2, correction=0, keepdim=True)
    variance = moments.m2.view(shape).mean(2, keepdim=True) / moments.count + spread
    weight, bias = (values.double().view(shape[1:]) for values in (norm.weight, norm.bias))
    factor = torch.rsqrt(variance + norm.eps / scale**2) * weight
    shift = bias - center * factor
    dtype = torch.promote_types(norm.weight.dtype, torch.float32)
    return Affine(factor.flatten(1).to(dtype), shift.flatten(1).to(dtype))
