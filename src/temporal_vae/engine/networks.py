"""The networks that the engine runs, as layers: what encoders and decoders are made of, level by level. No torch.

The same networks are written as modules in `model/`; a layer names the modules whose parameters it reads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from temporal_vae.engine.schedule import (
    Attend,
    Enter,
    Finish,
    Halve,
    Layer,
    Layers,
    Leave,
    SpatialBlock,
    TemporalBlock,
)


@dataclass(frozen=True, kw_only=True)
class Network:
    """What the engine needs to know of a configuration."""

    in_channels: int
    out_channels: int
    latent_channels: int
    widths: tuple[int, ...]  # channels of the levels, the full picture first
    layers: int  # residual blocks per level of the encoder; the decoder has one more
    temporal: bool = True  # whether the decoder sees whole clips, rather than each picture by itself
    decoder_widths: tuple[int, ...] | None = None  # where they are others than those of the encoder
    groups: int = 32  # of every norm
    mid_attention: bool = True  # at the lowest resolution
    attentions: tuple[
        bool, ...
    ] = ()  # whether the blocks of a level of the encoder have some, the full picture first
    decoder_attentions: tuple[bool, ...] = ()  # the same of the decoder, the smallest level first

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Network:
        """From the configuration of a model."""
        temporal = "up_block_types" not in config
        decoder_widths = config.get("decoder_block_out_channels")
        return cls(
            in_channels=config["in_channels"],
            out_channels=config["out_channels"],
            latent_channels=config["latent_channels"],
            widths=tuple(config["block_out_channels"]),
            layers=config["layers_per_block"],
            temporal=temporal,
            decoder_widths=tuple(decoder_widths) if decoder_widths else None,
            groups=config.get("norm_num_groups", 32),
            mid_attention=config.get("mid_block_add_attention", True),
            attentions=with_attention(config["down_block_types"]),
            decoder_attentions=() if temporal else with_attention(config["up_block_types"]),
        )

    @property
    def factor(self) -> int:
        """Pixels of a frame per latent, along height and along width."""
        return 2 ** (len(self.widths) - 1)


def with_attention(kinds: Sequence[str]) -> tuple[bool, ...]:
    """Which levels have attentions, by the types of their blocks; empty if none has."""
    found = tuple(kind.startswith("Attn") for kind in kinds)
    return found if any(found) else ()


SVD = Network(in_channels=3, out_channels=3, latent_channels=4, widths=(128, 256, 512, 512), layers=2)
"""The configuration of Stable Video Diffusion."""
SD = replace(SVD, temporal=False)
"""That of Stable Diffusion 1.x and 2.x, and of SDXL."""
FLUX = replace(SD, latent_channels=16)
"""That of Stable Diffusion 3 and of FLUX."""
FLUX2 = replace(SD, latent_channels=32)
"""That of FLUX.2."""


def decoder(network: Network) -> Layers:
    """Latents to frames of a clip, or to pictures: levels from the smallest to the full picture."""
    block = spatiotemporal if network.temporal else spatial
    widths = tuple(reversed(network.decoder_widths or network.widths))
    lowest = width = widths[0]
    levels: list[list[Layer]] = []
    for level, wide in enumerate(widths):
        layers: list[Layer] = []
        enlarging = f"up_blocks.{level - 1}.upsamplers.0.conv" if level else None
        attends = any(network.decoder_attentions[level : level + 1])
        for index in range(network.layers + 1):
            layers += block(f"up_blocks.{level}.resnets.{index}", width, wide, enlarging)
            if attends:
                layers.append(Attend(attention=f"up_blocks.{level}.attentions.{index}", channels=wide))
            width, enlarging = wide, None
        levels.append(layers)
    middle: list[Layer] = [
        Enter(conv="conv_in", inputs=network.latent_channels, outputs=lowest),
        *block("mid_block.resnets.0", lowest, lowest),
    ]
    if (
        network.layers > 1 or not network.temporal
    ):  # in a clip's decoder of one block the attention is not run
        if network.mid_attention:
            middle.append(Attend(attention="mid_block.attentions.0", channels=lowest))
        middle += block("mid_block.resnets.1", lowest, lowest)
    levels[0] = [*middle, *levels[0]]
    levels[-1].append(
        Leave(norm="conv_norm_out", conv="conv_out", inputs=width, outputs=network.out_channels)
    )
    if network.temporal:
        levels[-1].append(Finish(conv="time_conv_out", channels=network.out_channels))
    return tuple(map(tuple, levels))


def spatial(name: str, inputs: int, outputs: int, enlarging: str | None = None) -> list[Layer]:
    """The layer of a `SpatialResBlock`."""
    return [SpatialBlock(name=name, inputs=inputs, outputs=outputs, enlarging=enlarging)]


def spatiotemporal(name: str, inputs: int, outputs: int, enlarging: str | None = None) -> list[Layer]:
    """The layers of a `SpatioTemporalResBlock`."""
    return [
        *spatial(f"{name}.spatial_res_block", inputs, outputs, enlarging),
        TemporalBlock(name=f"{name}.temporal_res_block", mixer=f"{name}.time_mixer", channels=outputs),
    ]


def encoder(network: Network) -> Layers:
    """Frames to the moments of their latents (`model.Encoder`): levels from the full picture to the smallest."""
    width = network.widths[0]
    levels: list[list[Layer]] = []
    for level, wide in enumerate(network.widths):
        layers: list[Layer] = [
            Halve(conv=f"down_blocks.{level - 1}.downsamplers.0.conv", channels=width)
            if level
            else Enter(conv="conv_in", inputs=network.in_channels, outputs=width)
        ]
        attends = any(network.attentions[level : level + 1])
        for index in range(network.layers):
            layers += spatial(f"down_blocks.{level}.resnets.{index}", width, wide)
            if attends:
                layers.append(Attend(attention=f"down_blocks.{level}.attentions.{index}", channels=wide))
            width = wide
        levels.append(layers)
    levels[-1] += spatial("mid_block.resnets.0", width, width)
    if network.mid_attention:
        levels[-1].append(Attend(attention="mid_block.attentions.0", channels=width))
    levels[-1] += [
        *spatial("mid_block.resnets.1", width, width),
        Leave(norm="conv_norm_out", conv="conv_out", inputs=width, outputs=2 * network.latent_channels),
    ]
    return tuple(map(tuple, levels))
