"""The image encoder: frames to the moments of their latents, each frame by itself."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from temporal_vae.model.blocks import (
    GROUPS,
    SPATIAL_EPS,
    Checkpointable,
    Downsample,
    SpatialResBlock,
    spatial_attention,
)


class DownEncoderBlock2D(Checkpointable):
    """One level: `layers` residual blocks, then a halving of the image on all levels but the last."""

    def __init__(self, in_channels: int, out_channels: int, *, layers: int, downsample: bool) -> None:
        super().__init__()
        widths = [in_channels] + [out_channels] * layers
        self.resnets = nn.ModuleList(SpatialResBlock(*pair) for pair in pairwise(widths))
        self.downsamplers = nn.ModuleList([Downsample(out_channels)]) if downsample else None

    def forward(self, hidden_states: Tensor) -> Tensor:
        x = hidden_states
        for resnet in self.resnets:
            x = self.run(resnet, x, temb=None)
        for downsampler in self.downsamplers or ():
            x = self.run(downsampler, x)
        return x


class UNetMidBlock2D(Checkpointable):
    """Residual block, attention, residual block at the lowest resolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.attentions = nn.ModuleList([spatial_attention(channels)])
        self.resnets = nn.ModuleList(SpatialResBlock(channels, channels) for _ in range(2))

    def forward(self, hidden_states: Tensor, temb: Tensor | None = None) -> Tensor:
        x = self.run(self.resnets[0], hidden_states, temb)
        for attention, resnet in zip(self.attentions, self.resnets[1:], strict=False):
            x = self.run(attention, x, temb=temb)
            x = self.run(resnet, x, temb)
        return x


class Encoder(nn.Module):
    """Frames `(n, in_channels, h, w)` in [-1, 1] to moments `(n, 2 * latent_channels, h/f, w/f)`.

    `f = 2 ** (len(block_out_channels) - 1)`. The moments pass `quant_conv` before they are a posterior.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        latent_channels: int,
        block_out_channels: Sequence[int],
        layers_per_block: int,
    ) -> None:
        super().__init__()
        self.layers_per_block = layers_per_block
        first, last = block_out_channels[0], block_out_channels[-1]
        self.conv_in = nn.Conv2d(in_channels, first, 3, padding=1)
        widths = (first, *block_out_channels)
        self.down_blocks = nn.ModuleList(
            DownEncoderBlock2D(
                widths[level],
                widths[level + 1],
                layers=layers_per_block,
                downsample=level < len(block_out_channels) - 1,
            )
            for level in range(len(block_out_channels))
        )
        self.mid_block = UNetMidBlock2D(last)
        self.conv_norm_out = nn.GroupNorm(GROUPS, last, eps=SPATIAL_EPS)
        self.conv_act = nn.SiLU()
        self.conv_out = nn.Conv2d(last, 2 * latent_channels, 3, padding=1)

    def forward(self, sample: Tensor) -> Tensor:
        x = self.conv_in(sample)
        for block in (*self.down_blocks, self.mid_block):
            x = block(x)
        return self.conv_out(self.conv_act(self.conv_norm_out(x)))
