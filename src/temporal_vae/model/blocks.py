"""The pieces that encoder and decoders are made of.

Images are `(n, c, h, w)`. A decoder batch holds clips of `t` frames, one after the other: `n = b * t`.

Each is called and walked like the published one. `image_only_indicator` `(b, t)` tells a block how long clips are, by
its shape; its values would matter to another kind of blend than this network has. `temb` is None in an autoencoder.
"""

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

GROUPS = 32  # of every GroupNorm in the published networks
SPATIAL_EPS = 1e-6
TEMPORAL_EPS = 1e-5

Checkpoint = Callable[..., Tensor]
"""Calls what it is given first with what comes after, and drops the activations until the backward pass."""


class Checkpointable(nn.Module):
    """A module whose stages can drop their activations and compute them again in the backward pass."""

    checkpoint: Checkpoint | None = None

    def run(self, stage: nn.Module, *inputs: Tensor | None, **options: Tensor | None) -> Tensor:
        """`stage(*inputs, **options)`, its activations dropped where that was asked for."""
        if self.checkpoint is not None and torch.is_grad_enabled():
            return self.checkpoint(partial(stage, **options), *inputs)
        result: Tensor = stage(*inputs, **options)
        return result


class SpatialResBlock(nn.Module):
    """Residual block of 3x3 convolutions; normalises each frame by itself. `(n, c, h, w) -> (n, out, h, w)`.

    Attributes are those by which the published block is walked and changed; `dropout` drops nothing.
    """

    def __init__(self, in_channels: int, out_channels: int, *, groups: int = GROUPS) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.use_in_shortcut = in_channels != out_channels
        self.norm1 = nn.GroupNorm(groups, in_channels, eps=SPATIAL_EPS)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=SPATIAL_EPS)
        self.dropout = nn.Dropout(0.0)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.nonlinearity = nn.SiLU()
        self.output_scale_factor = 1.0  # what the result is divided by
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if self.use_in_shortcut else None

    def forward(self, input_tensor: Tensor, temb: Tensor | None = None) -> Tensor:
        h = self.conv1(self.nonlinearity(self.norm1(input_tensor)))
        if temb is not None:  # an embedding of the time of diffusion, of which this network has none
            h = h + temb
        h = self.conv2(self.dropout(self.nonlinearity(self.norm2(h))))
        h = h + (input_tensor if self.conv_shortcut is None else self.conv_shortcut(input_tensor))
        return h if self.output_scale_factor == 1 else h / self.output_scale_factor


class TemporalConv(nn.Conv3d):
    """A (k,1,1) convolution over time, `(b, c, t, h, w) -> (b, out, t, h, w)`.

    It couples no pixels, so it runs as a 2D convolution with kernel (k,1) over the image `(t, h*w)`: the same
    numbers, several times faster than Conv3d on a CPU, and on devices without Conv3d. From outside it is a Conv3d
    like any other, so that adapters and quantisers know what to do with it; made to couple pixels, it is one.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        pixels = weight.shape[3:], self.stride, self.padding[1:], self.padding_mode
        replaced = nn.Conv3d._conv_forward is not _conv3d_forward
        if pixels != ((1, 1), (1, 1, 1), (0, 0), "zeros") or replaced:
            return super()._conv_forward(input, weight, bias)
        padding, dilation = self.padding[:2], self.dilation[:2]
        image = F.conv2d(input.flatten(3), weight.squeeze(-1), bias, 1, padding, dilation, self.groups)
        return image.unflatten(3, input.shape[-2:])


_conv3d_forward = nn.Conv3d._conv_forward


def conv_over_time(in_channels: int, out_channels: int) -> TemporalConv:
    """The (3,1,1) convolution of the network: zero beyond the first and the last frame."""
    return TemporalConv(in_channels, out_channels, (3, 1, 1), padding=(1, 0, 0))


class TemporalResBlock(nn.Module):
    """Residual block of convolutions over time; normalises over all frames, rows and columns of a clip.

    `(b, c, t, h, w) -> (b, c, t, h, w)`.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.in_channels = self.out_channels = channels
        self.use_in_shortcut = False
        self.norm1 = nn.GroupNorm(GROUPS, channels, eps=TEMPORAL_EPS)
        self.conv1 = conv_over_time(channels, channels)
        self.norm2 = nn.GroupNorm(GROUPS, channels, eps=TEMPORAL_EPS)
        self.dropout = nn.Dropout(0.0)
        self.conv2 = conv_over_time(channels, channels)
        self.nonlinearity = nn.SiLU()
        self.conv_shortcut: nn.Conv3d | None = None  # the width of a clip does not change

    def forward(self, input_tensor: Tensor, temb: Tensor | None = None) -> Tensor:
        h = self.conv1(self.nonlinearity(self.norm1(input_tensor)))
        h = self.conv2(self.dropout(self.nonlinearity(self.norm2(h))))
        return h + (input_tensor if self.conv_shortcut is None else self.conv_shortcut(input_tensor))


class TimeMixer(nn.Module):
    """Blend of the spatial and the temporal branch with a learned weight `a = sigmoid(mix_factor)`."""

    def __init__(self) -> None:
        super().__init__()
        self.mix_factor = nn.Parameter(torch.zeros(1))

    def forward(
        self, x_spatial: Tensor, x_temporal: Tensor, image_only_indicator: Tensor | None = None
    ) -> Tensor:
        a = torch.sigmoid(self.mix_factor).to(x_spatial.dtype)
        return a * x_temporal + (1 - a) * x_spatial


class SpatioTemporalResBlock(nn.Module):
    """`s = spatial(x)`, then `y = a * temporal(s) + (1 - a) * s`. `(b*t, c, h, w) -> (b*t, out, h, w)`."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.spatial_res_block = SpatialResBlock(in_channels, out_channels)
        self.temporal_res_block = TemporalResBlock(out_channels)
        self.time_mixer = TimeMixer()

    def forward(
        self, hidden_states: Tensor, temb: Tensor | None = None, image_only_indicator: Tensor | None = None
    ) -> Tensor:
        if image_only_indicator is None:
            raise TypeError("pass image_only_indicator, of shape (clips, frames): it says how long clips are")
        s = frames_to_clips(self.spatial_res_block(hidden_states, temb), image_only_indicator.shape[-1])
        y = self.time_mixer(
            x_spatial=s,
            x_temporal=self.temporal_res_block(s, temb),
            image_only_indicator=image_only_indicator,
        )
        return clips_to_frames(y)


class Downsample(nn.Module):
    """Halve height and width by a stride-2 3x3 convolution. `(n, c, h, w) -> (n, c, h//2, w//2)`.

    The input is padded by one at the right and the bottom only.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.conv(F.pad(hidden_states, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Nearest 2x enlargement and a 3x3 convolution. `(n, c, h, w) -> (n, c, 2*h, 2*w)`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, hidden_states: Tensor) -> Tensor:
        if not torch.compiler.is_compiling() and 4 * hidden_states.numel() >= 2**31:
            # CUDA's channels-last kernel counts the enlarged elements in 32 bits.
            hidden_states = hidden_states.contiguous()
        return self.conv(F.interpolate(hidden_states, scale_factor=2.0, mode="nearest"))


def spatial_attention(channels: int, *, groups: int = GROUPS) -> Attention:
    """Self-attention over the pixels of a frame: one head of all channels, GroupNorm before, residual after."""
    return Attention(
        channels,
        heads=1,
        dim_head=channels,
        norm_num_groups=groups,
        eps=SPATIAL_EPS,
        bias=True,
        upcast_softmax=True,  # where a processor computes the softmax itself, it does so in float32
        residual_connection=True,
        _from_deprecated_attn_block=True,  # old checkpoints say query, key, value and proj_attn: renamed on load
    )


def blocks_of_level(
    in_channels: int, out_channels: int, *, layers: int, groups: int, attention: bool
) -> tuple[nn.ModuleList | None, nn.ModuleList]:
    """Attentions, one behind each block if any, and residual blocks.

    They are made in the order of diffusers, so that a seed gives the same weights, and kept in that of checkpoints.
    """
    resnets, attentions = nn.ModuleList(), nn.ModuleList()
    for pair in pairwise([in_channels] + [out_channels] * layers):
        resnets.append(SpatialResBlock(*pair, groups=groups))
        if attention:
            attentions.append(spatial_attention(out_channels, groups=groups))
    return attentions if attention else None, resnets


class UNetMidBlock2D(Checkpointable):
    """Residual block, attention, residual block at the lowest resolution."""

    gradient_checkpointing = False  # as in diffusers, where it decides; here `checkpoint` does

    def __init__(self, channels: int, *, groups: int = GROUPS, attention: bool = True) -> None:
        super().__init__()
        first = SpatialResBlock(channels, channels, groups=groups)
        attentions = [spatial_attention(channels, groups=groups) if attention else None]
        self.attentions = nn.ModuleList(attentions)  # type: ignore[arg-type]
        self.resnets = nn.ModuleList([first, SpatialResBlock(channels, channels, groups=groups)])

    def forward(self, hidden_states: Tensor, temb: Tensor | None = None) -> Tensor:
        x = self.run(self.resnets[0], hidden_states, temb)
        for attention, resnet in zip(self.attentions, self.resnets[1:], strict=False):
            if attention is not None:
                x = self.run(attention, x, temb=temb)
            x = self.run(resnet, x, temb)
        return x


def frames_to_clips(x: Tensor, num_frames: int) -> Tensor:
    """`(b*t, c, h, w) -> (b, c, t, h, w)`, a view."""
    return x.unflatten(0, (-1, num_frames)).transpose(1, 2)


def clips_to_frames(x: Tensor) -> Tensor:
    """`(b, c, t, h, w) -> (b*t, c, h, w)`."""
    return x.transpose(1, 2).flatten(0, 1)
