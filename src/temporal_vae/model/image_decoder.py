"""The image decoder: latents to pictures, each by itself."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from temporal_vae.model.blocks import (
    GROUPS,
    SPATIAL_EPS,
    Checkpointable,
    SpatialResBlock,
    UNetMidBlock2D,
    Upsample,
    spatial_attention,
)


class UpDecoderBlock2D(Checkpointable):
    """One level: `layers` residual blocks, then a doubling of the image on all levels but the final one."""

    def __init__(
        self, in_channels: int, out_channels: int, *, layers: int, upsample: bool, groups: int = GROUPS
    ) -> None:
        super().__init__()
        widths = [in_channels] + [out_channels] * layers
        self.resnets = nn.ModuleList(SpatialResBlock(*pair, groups=groups) for pair in pairwise(widths))
        self.upsamplers = nn.ModuleList([Upsample(out_channels)]) if upsample else None

    def forward(self, hidden_states: Tensor, temb: Tensor | None = None) -> Tensor:
        x = hidden_states
        for resnet in self.resnets:
            x = self.run(resnet, x, temb=temb)
        for upsampler in self.upsamplers or ():
            x = self.run(upsampler, x)
        return x


class AttnUpDecoderBlock2D(Checkpointable):
    """One level as `UpDecoderBlock2D`, with an attention behind each residual block."""

    def __init__(
        self, in_channels: int, out_channels: int, *, layers: int, upsample: bool, groups: int = GROUPS
    ) -> None:
        super().__init__()
        widths = [in_channels] + [out_channels] * layers
        self.attentions = nn.ModuleList(spatial_attention(out_channels, groups=groups) for _ in range(layers))
        self.resnets = nn.ModuleList(SpatialResBlock(*pair, groups=groups) for pair in pairwise(widths))
        self.upsamplers = nn.ModuleList([Upsample(out_channels)]) if upsample else None

    def forward(self, hidden_states: Tensor, temb: Tensor | None = None) -> Tensor:
        x = hidden_states
        for resnet, attention in zip(self.resnets, self.attentions, strict=True):
            x = self.run(attention, self.run(resnet, x, temb=temb), temb=temb)
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
            kind = AttnUpDecoderBlock2D if any(attentions[level : level + 1]) else UpDecoderBlock2D
            doubles = level < len(block_out_channels) - 1
            self.up_blocks.append(kind(*widths, layers=layers_per_block + 1, upsample=doubles, groups=groups))
        self.conv_norm_out = nn.GroupNorm(groups, last, eps=SPATIAL_EPS)
        self.conv_act = nn.SiLU()
        self.conv_out = nn.Conv2d(last, out_channels, 3, padding=1)

    def forward(self, sample: Tensor, latent_embeds: Tensor | None = None) -> Tensor:
        x = self.mid_block(self.conv_in(sample), latent_embeds)
        for block in self.up_blocks:
            x = block(x, latent_embeds)
        return self.conv_out(self.conv_act(self.conv_norm_out(x)))
