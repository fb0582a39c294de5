"""The image decoder: latents to pictures, each by itself."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from temporal_vae.model.blocks import (
    GROUPS,
    SPATIAL_EPS,
    Checkpointable,
    UNetMidBlock2D,
    Upsample,
    blocks_of_level,
)


class UpDecoderBlock2D(Checkpointable):
    """One level: `layers` residual blocks, then a doubling of the image on all levels but the final one.

    With `attention`, one follows each block; published models have that level as `AttnUpDecoderBlock2D`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        layers: int,
        upsample: bool,
        groups: int = GROUPS,
        attention: bool = False,
    ) -> None:
        super().__init__()
        self.attentions, self.resnets = blocks_of_level(
            in_channels, out_channels, layers=layers, groups=groups, attention=attention
        )
        self.upsamplers = nn.ModuleList([Upsample(out_channels)]) if upsample else None

    def forward(self, hidden_states: Tensor, temb: Tensor | None = None) -> Tensor:
        x = hidden_states
        for index, resnet in enumerate(self.resnets):
            x = self.run(resnet, x, temb=temb)
            if self.attentions is not None:
                x = self.run(self.attentions[index], x, temb=temb)
        for upsampler in self.upsamplers or ():
            x = self.run(upsampler, x)
        return x


class Decoder(nn.Module):
    """Latents `(n, latent_channels, h, w)` to pictures `(n, out_channels, h*f, w*f)`, about [-1, 1].

    `f = 2 ** (len(block_out_channels) - 1)`; widths go from the full picture to the latents. Latents pass
    `post_quant_conv`, where there is one, before they come here. `attentions` tells of each level, the smallest first,
    whether its blocks have attentions.
    """

    gradient_checkpointing = False  # as in diffusers, where it decides; here the levels have a `checkpoint`

    def __init__(
        self,
        *,
        latent_channels: int,
        out_channels: int,
        block_out_channels: Sequence[int],
        layers_per_block: int,
        groups: int = GROUPS,
        attentions: Sequence[bool] = (),
        mid_attention: bool = True,
    ) -> None:
        super().__init__()
        self.layers_per_block = layers_per_block
        first, last = block_out_channels[-1], block_out_channels[0]
        self.conv_in = nn.Conv2d(latent_channels, first, 3, padding=1)
        self.up_blocks = nn.ModuleList()
        self.mid_block = UNetMidBlock2D(first, groups=groups, attention=mid_attention)
        for level, widths in enumerate(pairwise((first, *reversed(block_out_channels)))):
            block = UpDecoderBlock2D(
                *widths,
                layers=layers_per_block + 1,
                upsample=level < len(block_out_channels) - 1,
                groups=groups,
                attention=any(attentions[level : level + 1]),
            )
            self.up_blocks.append(block)
        self.conv_norm_out = nn.GroupNorm(groups, last, eps=SPATIAL_EPS)
        self.conv_act = nn.SiLU()
        self.conv_out = nn.Conv2d(last, out_channels, 3, padding=1)

    def forward(self, sample: Tensor, latent_embeds: Tensor | None = None) -> Tensor:
        x = self.mid_block(self.conv_in(sample), latent_embeds)
        for block in self.up_blocks:
            x = block(x, latent_embeds)
        return self.conv_out(self.conv_act(self.conv_norm_out(x)))
