"""The image encoder: frames to the moments of their latents, each frame by itself."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from temporal_vae.model.blocks import (
    GROUPS,
    SPATIAL_EPS,
    Checkpointable,
    Downsample,
    UNetMidBlock2D,
    blocks_of_level,
)


class DownEncoderBlock2D(Checkpointable):
    """One level: `layers` residual blocks, then a halving of the image on all levels but the last.

    With `attention`, one follows each block; published models have that level as `AttnDownEncoderBlock2D`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        layers: int,
        downsample: bool,
        groups: int = GROUPS,
        attention: bool = False,
    ) -> None:
        super().__init__()
        self.attentions, self.resnets = blocks_of_level(
            in_channels, out_channels, layers=layers, groups=groups, attention=attention
        )
        self.downsamplers = nn.ModuleList([Downsample(out_channels)]) if downsample else None

    def forward(self, hidden_states: Tensor) -> Tensor:
        x = hidden_states
        for index, resnet in enumerate(self.resnets):
            x = self.run(resnet, x, temb=None)
            if self.attentions is not None:
                x = self.run(self.attentions[index], x)
        for downsampler in self.downsamplers or ():
            x = self.run(downsampler, x)
        return x


class Encoder(nn.Module):
    """Frames `(n, in_channels, h, w)` in [-1, 1] to moments `(n, 2 * latent_channels, h/f, w/f)`.

    `f = 2 ** (len(block_out_channels) - 1)`. The moments pass `quant_conv`, where there is one, before they are a
    posterior. `attentions` tells of each level, the full picture first, whether its blocks have attentions.
    """

    gradient_checkpointing = False  # as in diffusers, where it decides; here the levels have a `checkpoint`

    def __init__(
        self,
        *,
        in_channels: int,
        latent_channels: int,
        block_out_channels: Sequence[int],
        layers_per_block: int,
        groups: int = GROUPS,
        attentions: Sequence[bool] = (),
        mid_attention: bool = True,
    ) -> None:
        super().__init__()
        self.layers_per_block = layers_per_block
        first, last = block_out_channels[0], block_out_channels[-1]
        self.conv_in = nn.Conv2d(in_channels, first, 3, padding=1)
        self.down_blocks = nn.ModuleList()
        for level, widths in enumerate(pairwise((first, *block_out_channels))):
            block = DownEncoderBlock2D(
                *widths,
                layers=layers_per_block,
                downsample=level < len(block_out_channels) - 1,
                groups=groups,
                attention=any(attentions[level : level + 1]),
            )
            self.down_blocks.append(block)
        self.mid_block = UNetMidBlock2D(last, groups=groups, attention=mid_attention)
        self.conv_norm_out = nn.GroupNorm(groups, last, eps=SPATIAL_EPS)
        self.conv_act = nn.SiLU()
        self.conv_out = nn.Conv2d(last, 2 * latent_channels, 3, padding=1)

    def forward(self, sample: Tensor) -> Tensor:
        x = self.conv_in(sample)
        for block in (*self.down_blocks, self.mid_block):
            x = block(x)
        return self.conv_out(self.conv_act(self.conv_norm_out(x)))
