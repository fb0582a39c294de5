"""The temporal decoder: latents of whole clips back to frames that do not flicker."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from temporal_vae.model.blocks import (
    GROUPS,
    SPATIAL_EPS,
    Checkpointable,
    SpatioTemporalResBlock,
    Upsample,
    clips_to_frames,
    conv_over_time,
    frames_to_clips,
    spatial_attention,
)


class MidBlockTemporalDecoder(Checkpointable):
    """A block, then one attention and one more block.

    The published class holds `layers` blocks and one attention but runs them pairwise: with one block the
    attention rests, with three or more the blocks after the second do. They stay, as checkpoints hold them.
    """

    def __init__(self, channels: int, *, layers: int) -> None:
        super().__init__()
        # Made first, so that a seed gives the weights that it gives in diffusers.
        resnets = nn.ModuleList(SpatioTemporalResBlock(channels, channels) for _ in range(layers))
        self.attentions = nn.ModuleList([spatial_attention(channels)])
        self.resnets = resnets

    def forward(self, hidden_states: Tensor, image_only_indicator: Tensor) -> Tensor:
        x = self.run(self.resnets[0], hidden_states, image_only_indicator=image_only_indicator)
        for resnet, attention in zip(self.resnets[1:], self.attentions, strict=False):
            x = self.run(attention, x)
            x = self.run(resnet, x, image_only_indicator=image_only_indicator)
        return x


class UpBlockTemporalDecoder(Checkpointable):
    """One level: `layers` residual blocks, then a doubling of the image on all levels but the final one."""

    def __init__(self, in_channels: int, out_channels: int, *, layers: int, upsample: bool) -> None:
        super().__init__()
        widths = [in_channels] + [out_channels] * layers
        self.resnets = nn.ModuleList(SpatioTemporalResBlock(*pair) for pair in pairwise(widths))
        self.upsamplers = nn.ModuleList([Upsample(out_channels)]) if upsample else None

    def forward(self, hidden_states: Tensor, image_only_indicator: Tensor) -> Tensor:
        x = hidden_states
        for resnet in self.resnets:
            x = self.run(resnet, x, image_only_indicator=image_only_indicator)
        for upsampler in self.upsamplers or ():
            x = self.run(upsampler, x)
        return x


class TemporalDecoder(nn.Module):
    """Latents `(b*t, latent_channels, h, w)` of clips of `t` frames to frames `(b*t, out_channels, h*f, w*f)`.

    Temporal norms and convolutions see the whole clip, so the length of a clip is part of its meaning: fewer
    frames at once give other pixels.
    """

    gradient_checkpointing = False  # as in diffusers, where it decides; here the levels have a `checkpoint`

    def __init__(
        self,
        *,
        latent_channels: int,
        out_channels: int,
        block_out_channels: Sequence[int],
        layers_per_block: int,
    ) -> None:
        super().__init__()
        self.layers_per_block = layers_per_block
        widths = (block_out_channels[-1], *reversed(block_out_channels))
        self.conv_in = nn.Conv2d(latent_channels, widths[0], 3, padding=1)
        self.mid_block = MidBlockTemporalDecoder(widths[0], layers=layers_per_block)
        self.up_blocks = nn.ModuleList(
            UpBlockTemporalDecoder(
                widths[level],
                widths[level + 1],
                layers=layers_per_block + 1,
                upsample=level < len(block_out_channels) - 1,
            )
            for level in range(len(block_out_channels))
        )
        self.conv_norm_out = nn.GroupNorm(GROUPS, widths[-1], eps=SPATIAL_EPS)
        self.conv_act = nn.SiLU()
        self.conv_out = nn.Conv2d(widths[-1], out_channels, 3, padding=1)
        self.time_conv_out = conv_over_time(out_channels, out_channels)

    def forward(
        self, sample: Tensor, image_only_indicator: Tensor | None = None, num_frames: int = 1
    ) -> Tensor:
        """Decode; without an indicator, clips of `num_frames` frames."""
        if image_only_indicator is None:  # of its shape, as torch.export takes `len` for a constant
            image_only_indicator = sample.new_zeros(sample.shape[0] // num_frames, num_frames)
        x = self.mid_block(self.conv_in(sample), image_only_indicator=image_only_indicator)
        x = x.to(next(self.up_blocks.parameters()).dtype)  # tools keep what comes first in half precision
        for block in self.up_blocks:
            x = block(x, image_only_indicator=image_only_indicator)
        x = self.conv_out(self.conv_act(self.conv_norm_out(x)))
        return clips_to_frames(self.time_conv_out(frames_to_clips(x, num_frames)))
