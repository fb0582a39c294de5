"""The pieces that encoder and decoder are made of.

Images are `(n, c, h, w)`. A decoder batch holds clips of `t` frames, one after the other: `n = b * t`.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

GROUPS = 32  # of every GroupNorm in the published network
SPATIAL_EPS = 1e-6
TEMPORAL_EPS = 1e-5

Runner = Callable[..., Tensor]
"""Calls a block with its arguments: `call` plainly, or a function that checkpoints its activations."""


def call(block: nn.Module, *args: Any) -> Tensor:
    """Run `block` on `args`."""
    return block(*args)


class Checkpointable(nn.Module):
    """A module whose stages can drop their activations and compute them again in the backward pass.

    `ModelMixin.enable_gradient_checkpointing` finds such modules by these two attributes.
    """

    gradient_checkpointing = False
    _gradient_checkpointing_func: Runner

    @property
    def runner(self) -> Runner:
        """How this module calls its stages now."""
        checkpointing = self.gradient_checkpointing and torch.is_grad_enabled()
        return self._gradient_checkpointing_func if checkpointing else call


class SpatialResBlock(nn.Module):
    """Residual block of 3x3 convolutions; normalises each frame by itself. `(n, c, h, w) -> (n, out, h, w)`.

    `nonlinearity` and `output_scale_factor` are where tools that change them look for them.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(GROUPS, in_channels, eps=SPATIAL_EPS)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(GROUPS, out_channels, eps=SPATIAL_EPS)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.nonlinearity = nn.SiLU()
        self.output_scale_factor = 1.0  # what the result is divided by
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(self.nonlinearity(self.norm1(x)))
        h = self.conv2(self.nonlinearity(self.norm2(h)))
        h = h + (x if self.conv_shortcut is None else self.conv_shortcut(x))
        return h if self.output_scale_factor == 1 else h / self.output_scale_factor


class TemporalConv(nn.Conv3d):
    """A (k,1,1) convolution over time, `(b, c, t, h, w) -> (b, out, t, h, w)`.

    It couples no pixels, so it runs as a 2D convolution with kernel (k,1) over the image `(t, h*w)`: the same
    numbers, several times faster than Conv3d on a CPU, and on devices without Conv3d. From outside it is a Conv3d
    like any other, so that adapters and quantisers know what to do with it; made to couple pixels, it is one.
    """

    def forward(self, input: Tensor) -> Tensor:
        pixels = self.weight.shape[3:], self.stride, self.padding[1:], self.padding_mode
        if pixels != ((1, 1), (1, 1, 1), (0, 0), "zeros"):
            return super().forward(input)
        padding, dilation = self.padding[:2], self.dilation[:2]
        image = F.conv2d(
            input.flatten(3), self.weight.squeeze(-1), self.bias, 1, padding, dilation, self.groups
        )
        return image.unflatten(3, input.shape[-2:])


def conv_over_time(in_channels: int, out_channels: int) -> TemporalConv:
    """The (3,1,1) convolution of the network: zero beyond the first and the last frame."""
    return TemporalConv(in_channels, out_channels, (3, 1, 1), padding=(1, 0, 0))


class TemporalResBlock(nn.Module):
    """Residual block of convolutions over time; normalises over all frames, rows and columns of a clip.

    `(b, c, t, h, w) -> (b, c, t, h, w)`.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(GROUPS, channels, eps=TEMPORAL_EPS)
        self.conv1 = conv_over_time(channels, channels)
        self.norm2 = nn.GroupNorm(GROUPS, channels, eps=TEMPORAL_EPS)
        self.conv2 = conv_over_time(channels, channels)
        self.nonlinearity = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(self.nonlinearity(self.norm1(x)))
        h = self.conv2(self.nonlinearity(self.norm2(h)))
        return x + h


class TimeMixer(nn.Module):
    """Blend of the spatial and the temporal branch with a learned weight `a = sigmoid(mix_factor)`."""

    def __init__(self) -> None:
        super().__init__()
        self.mix_factor = nn.Parameter(torch.zeros(1))

    def forward(self, spatial: Tensor, temporal: Tensor) -> Tensor:
        a = torch.sigmoid(self.mix_factor).to(spatial.dtype)
        return a * temporal + (1 - a) * spatial


class SpatioTemporalResBlock(nn.Module):
    """`s = spatial(x)`, then `y = a * temporal(s) + (1 - a) * s`. `(b*t, c, h, w) -> (b*t, out, h, w)`."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.spatial_res_block = SpatialResBlock(in_channels, out_channels)
        self.temporal_res_block = TemporalResBlock(out_channels)
        self.time_mixer = TimeMixer()

    def forward(self, x: Tensor, num_frames: int) -> Tensor:
        s = frames_to_clips(self.spatial_res_block(x), num_frames)
        return clips_to_frames(self.time_mixer(s, self.temporal_res_block(s)))


class Downsample(nn.Module):
    """Halve height and width by a stride-2 3x3 convolution. `(n, c, h, w) -> (n, c, h//2, w//2)`.

    The input is padded by one at the right and the bottom only.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Nearest 2x enlargement and a 3x3 convolution. `(n, c, h, w) -> (n, c, 2*h, 2*w)`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_compiling() and 4 * x.numel() >= 2**31:
            x = x.contiguous()  # CUDA's channels-last kernel counts the enlarged elements in 32 bits
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def spatial_attention(channels: int) -> Attention:
    """Self-attention over the pixels of a frame: one head of all channels, GroupNorm before, residual after."""
    return Attention(
        channels,
        heads=1,
        dim_head=channels,
        norm_num_groups=GROUPS,
        eps=SPATIAL_EPS,
        bias=True,
        upcast_softmax=True,  # where a processor computes the softmax itself, it does so in float32
        residual_connection=True,
        _from_deprecated_attn_block=True,  # old checkpoints say query, key, value and proj_attn: renamed on load
    )


def frames_to_clips(x: Tensor, num_frames: int) -> Tensor:
    """`(b*t, c, h, w) -> (b, c, t, h, w)`, a view."""
    return x.unflatten(0, (-1, num_frames)).transpose(1, 2)


def clips_to_frames(x: Tensor) -> Tensor:
    """`(b, c, t, h, w) -> (b*t, c, h, w)`."""
    return x.transpose(1, 2).flatten(0, 1)
