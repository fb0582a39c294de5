"""Kernels in plain torch: any device, any dtype. The twin that defines what the native ones must compute."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from temporal_vae.engine.stats import Affine, Moments, affine
from temporal_vae.engine.storage import Rows, Scratch


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainWeights:
    """Weights as torch takes them: `(k, c, rows, columns)`; four of them for an enlarging convolution."""

    values: list[Tensor]
    bias: Tensor
    outputs: int
    divisor: int = 1  # of what they are multiplied with: weights of 16 bits would lose what is small
    direct = True

    @property
    def enlarge(self) -> bool:
        """Whether a nearest 2x enlargement comes first."""
        return len(self.values) == 4


class NaiveKernels:
    """Kernels of torch operations."""

    attends = sweeps = False
    inputs_multiple = 1
    outputs_multiple = 1

    def __init__(self, device: torch.device, *, scale: int = 1) -> None:
        self.scale = scale
        self._fused = None
        if device.type == "cuda":
            from temporal_vae.engine.kernels import triton_kernels

            self._fused = triton_kernels if triton_kernels.available() else None

    def affine(self, moments: Moments, norm: nn.GroupNorm, *, over_frames: bool) -> Affine:
        """The norm of values with these moments: of each frame, or of all frames together."""
        return affine(moments.over_frames() if over_frames else moments, norm, scale=self.scale)

    def spatial_weights(
        self, conv: nn.Conv2d, room: Scratch, pixels: int, *, enlarge: bool = False, leave: bool = False
    ) -> PlainWeights:
        """Those of a 3x3 convolution; with `enlarge`, of one behind a nearest 2x enlargement.

        Behind an enlargement, the taps that meet the same small pixel are added up: four 2x2 convolutions, one per
        phase of the output, do 16 multiplications where 36 were.
        """
        weight = conv.weight
        if not enlarge:
            scale = 1 if leave else self.scale
            return _plain([weight], conv, scale, divisor=scale)
        wide = weight.float() if weight.dtype in (torch.float16, torch.bfloat16) else weight
        rows = (_folded(wide, 2, phase) for phase in range(2))
        phases = [_folded(row, 3, phase).to(weight.dtype) for row in rows for phase in range(2)]
        return _plain(phases, conv, self.scale)

    def pointwise_weights(self, conv: nn.Conv2d, room: Scratch, pixels: int) -> PlainWeights:
        """Those of a 1x1 convolution."""
        return _plain([conv.weight], conv, self.scale)

    def strided_weights(self, conv: nn.Conv2d, room: Scratch, pixels: int) -> PlainWeights:
        """Those of a 3x3 convolution as a 1x1 convolution of its nine neighbours side by side."""
        weight = conv.weight.flatten(2).transpose(1, 2).flatten(1)
        return _plain([weight[..., None, None]], conv, self.scale)

    def temporal_weights(
        self, conv: nn.Conv3d, frames: int, room: Scratch, pixels: int, *,
        factor: Tensor | None = None,
    ) -> PlainWeights:  # fmt: skip
        """Those of a (3,1,1) convolution over `frames` frames, times a factor."""
        assert conv.bias is not None
        weight, bias = conv.weight[..., 0], conv.bias
        if factor is not None:
            weight, bias = (weight * factor).to(weight.dtype), (bias * factor).to(bias.dtype)
        return PlainWeights(
            values=[_channels_last(weight)],
            bias=_divided(bias, self.scale),
            outputs=len(weight),
            divisor=self.scale,
        )

    def spatial(
        self,
        source: Rows,
        target: Rows,
        weights: PlainWeights,
        affine: Affine | None,
        scratch: Scratch,
        *,
        add: bool = False,
    ) -> Moments:
        """3x3 convolution of rows; `source` reaches one row further, but for the border of the picture."""
        rows = len(target.data)
        first, last = target.first, target.first + rows
        if weights.enlarge:
            low, high = first // 2 - 1, -(-last // 2) + 1
        else:
            low, high = first - 1, last + 1
        image = _divided(self._padded(source, low, high, affine), weights.divisor)
        if weights.enlarge:
            large = image.new_empty((2 * (high - low - 2), target.data.shape[1], weights.outputs))
            for index, taps in enumerate(weights.values):
                down, right = divmod(index, 2)
                part = F.conv2d(image, taps, weights.bias)[0]
                part = part[:, down : down + len(large) // 2, right : right + large.shape[1] // 2]
                large[down::2, right::2] = part.permute(1, 2, 0)
            start = first - 2 * (low + 1)
            result = large[start : start + rows]
        else:
            result = F.conv2d(image, weights.values[0], weights.bias)[0].permute(1, 2, 0)
        target.data.copy_(target.data + result if add else result)
        return self.moments(target.data.view(1, -1, weights.outputs))

    def pointwise(self, source: Rows, target: Rows, weights: PlainWeights, scratch: Scratch) -> Moments:
        """1x1 convolution of the rows of `target`."""
        start = target.first - source.first
        rows = source.data[start : start + len(target.data)]
        target.data.copy_(F.linear(rows, weights.values[0].flatten(1), weights.bias))
        return self.moments(target.data.view(1, -1, weights.outputs))

    def temporal(
        self,
        sources: list[Tensor],
        targets: list[Tensor],
        weights: PlainWeights,
        affine: Affine,
        scratch: Scratch,
        *,
        add: bool = False,
    ) -> Moments:
        """(3,1,1) convolution of the same pixels of all frames, `(pixels, c)` each."""
        values = _divided(self._activated(torch.stack(sources), affine), weights.divisor)
        image = values[None].permute(0, 3, 1, 2)
        result = F.conv2d(image, weights.values[0], weights.bias, padding=(1, 0))[0].permute(1, 2, 0)
        for target, frame in zip(targets, result, strict=True):
            target.copy_(target + frame if add else frame)
        return self.moments(torch.stack(targets))

    def _padded(self, source: Rows, low: int, high: int, affine: Affine | None) -> Tensor:
        """Rows `[low, high)` after norm and SiLU, zeros all around the picture, `(1, c, high - low, w + 2)`."""
        _, width, channels = source.data.shape
        padded = source.data.new_zeros((high - low, width + 2, channels))
        start, stop = max(low, source.first), min(high, source.first + len(source.data))
        values = source.data[start - source.first : stop - source.first]
        padded[start - low : stop - low, 1:-1] = self._activated(values, affine)
        return padded[None].permute(0, 3, 1, 2)

    def _activated(self, values: Tensor, affine: Affine | None) -> Tensor:
        if affine is None:
            return values
        scale, shift = affine.scale.reshape(1, -1), affine.shift.reshape(1, -1)
        if self._fused is not None:
            out = torch.empty(values.shape, dtype=values.dtype, device=values.device)
            flat = values.reshape(-1, values.shape[-1])
            self._fused.norm_silu(flat, scale, shift, out.view(flat.shape))
            return out
        wide = values if values.dtype == torch.float64 else values.float()
        return F.silu(torch.addcmul(shift.to(wide.dtype), wide, scale.to(wide.dtype))).to(values.dtype)

    def moments(self, values: Tensor) -> Moments:
        """Of `(t, n, c)` values."""
        if self._fused is not None:
            mean, m2 = self._fused.moments(values.reshape(-1, values.shape[-1]), len(values))
            return Moments(values.shape[1], mean, m2)
        return Moments.of_values(values)


def _plain(values: list[Tensor], conv: nn.Conv2d, scale: int, *, divisor: int = 1) -> PlainWeights:
    assert conv.bias is not None
    return PlainWeights(
        values=[_channels_last(value) for value in values],
        bias=_divided(conv.bias, scale),
        outputs=conv.out_channels,
        divisor=divisor,
    )


def _divided(values: Tensor, scale: int) -> Tensor:
    return values if scale == 1 else values / scale


def _channels_last(weight: Tensor) -> Tensor:
    return weight.contiguous(memory_format=torch.channels_last)


def _folded(weight: Tensor, axis: int, phase: int) -> Tensor:
    """Two taps instead of three along `axis`, for the even or the odd outputs of an enlarging convolution."""
    first, second, third = weight.unbind(axis)
    pair = (first, second + third) if phase == 0 else (first + second, third)
    return torch.stack(pair, axis)
