"""A start that is already a working autoencoder: the best linear one of the network's own shape.

A linear autoencoder made of the convolutions outside of residual blocks alone trains in a few minutes. Three
identities plant it in the full network, so that the network computes the linear one when training starts:

- `silu(x) - silu(-x) = x`: a signal carried as the pair `{x, -x}` passes norm, SiLU and convolution unbent;
- a group `{x, -x, C, ...}` with a large constant `C` has nearly the same mean and variance whatever the picture
  shows, so GroupNorm only scales it by a known number, which its own weight undoes;
- a residual block whose last convolution is zero is the identity.

The 32 groups of every norm thus carry 32 signals on every level. Everything else keeps its random start and learns
what the linear model cannot do.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from temporal_vae.autoencoders.temporal import AutoencoderKLTemporalDecoder
from temporal_vae.errors import ConfigError
from temporal_vae.model.blocks import (
    GROUPS,
    Downsample,
    SpatialResBlock,
    TemporalResBlock,
    Upsample,
)
from temporal_vae.model.decoder import TemporalDecoder
from temporal_vae.model.encoder import Encoder

CONSTANT = 8.0
"""`C`, against signals of unit deviation."""


class LinearAutoencoder(nn.Module):
    """The convolutions of the network that are not inside residual blocks, with 32 channels and nothing between.

    `(n, 3, h, w) -> (n, 3, h, w)`; latents as of the full network.
    """

    def __init__(self, *, channels: int, latent_channels: int, levels: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(channels, GROUPS, 3, padding=1, bias=False)
        self.down = nn.ModuleList(
            nn.Conv2d(GROUPS, GROUPS, 3, stride=2, bias=False) for _ in range(levels - 1)
        )
        self.to_latents = nn.Conv2d(GROUPS, latent_channels, 3, padding=1, bias=False)
        self.from_latents = nn.Conv2d(latent_channels, GROUPS, 3, padding=1, bias=False)
        self.up = nn.ModuleList(
            nn.Conv2d(GROUPS, GROUPS, 3, padding=1, bias=False) for _ in range(levels - 1)
        )
        self.conv_out = nn.Conv2d(GROUPS, channels, 3, padding=1, bias=False)

    def stages(self) -> list[tuple[nn.Conv2d, Callable[[Tensor], Tensor]]]:
        """The convolutions in order, each with what happens to its input before it."""
        same: Callable[[Tensor], Tensor] = lambda x: x  # noqa: E731
        return [
            (self.conv_in, same),
            *((conv, _pad) for conv in _convs(self.down)),
            (self.to_latents, same),
            (self.from_latents, same),
            *((conv, _enlarge) for conv in _convs(self.up)),
            (self.conv_out, same),
        ]

    def forward(self, x: Tensor) -> Tensor:
        """Reconstruct frames."""
        for conv, prepare in self.stages():
            x = conv(prepare(x))
        return x

    @torch.no_grad()
    def start_from_components(self, frames: Tensor) -> None:
        """Make the encoder the principal components of patches, the yardstick of linear codes.

        Every halving of the picture takes the principal components of its 2x2 patches, at most 32. The decoder keeps
        its random start, as nearest enlargement followed by 3x3 convolutions has no exact inverse.

        Args:
            frames: `(n, 3, h, w)`, what the components are of; a few thousand 4x4 patches are plenty.
        """
        used = self.conv_in.in_channels
        _pick(self.conv_in, used)
        x = self.conv_in(frames)
        for conv in _convs(self.down):
            patches = F.unfold(x[:, :used], 2, stride=2).transpose(1, 2).flatten(0, 1)  # (patches, used * 4)
            components = torch.linalg.svd(patches, full_matrices=False).Vh[:GROUPS]
            conv.weight.zero_()
            conv.weight[: len(components), :used, :2, :2] = components.unflatten(1, (used, 2, 2))
            used = len(components)
            x = conv(_pad(x))
        _pick(self.to_latents, self.to_latents.out_channels)
        _pick(self.from_latents, self.from_latents.in_channels)

    @torch.no_grad()
    def balance(self, frames: Tensor) -> None:
        """Give every inner channel unit deviation on `frames` without changing the output."""
        x = frames
        stages = self.stages()
        for (conv, prepare), (following, _) in pairwise(stages):
            x = conv(prepare(x))
            deviation = x.std(dim=(0, 2, 3)).clamp_min(1e-3)
            conv.weight /= deviation[:, None, None, None]
            following.weight *= deviation[:, None, None]
            x = x / deviation[:, None, None]


def train_linear(
    model: LinearAutoencoder, batch: Callable[[], Tensor], *, steps: int, learning_rate: float
) -> float:
    """Minimise the squared error on batches of frames `(n, 3, h, w)`; returns that of the last batch."""
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.1)
    error = torch.zeros(())
    for _ in range(steps):
        frames = batch()
        error = F.mse_loss(model(frames), frames)
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        schedule.step()
    return error.item()


@torch.no_grad()
def plant(linear: LinearAutoencoder, vae: AutoencoderKLTemporalDecoder, *, logvar: float) -> None:
    """Make `vae` compute what `linear` computes.

    Args:
        linear: a balanced linear autoencoder.
        vae: a freshly made network of as many levels, of the same width on all of them.
        logvar: log-variance of the posterior at the start.

    Raises:
        ConfigError: widths that differ, or leave no room for `{x, -x, C}`.
    """
    widths = set(vae.config.block_out_channels)
    if len(widths) != 1 or min(widths) < 3 * GROUPS:
        raise ConfigError(
            f"linear start: block_out_channels={tuple(vae.config.block_out_channels)}; every level needs the same "
            f"width, at least {3 * GROUPS}"
        )
    _make_identities(vae)
    _plant_encoder(linear, vae.encoder)
    _clear(vae.quant_conv)
    z = vae.config.latent_channels
    vae.quant_conv.weight.copy_(torch.eye(2 * z)[..., None, None])
    vae.get_parameter("quant_conv.bias")[z:] = logvar
    _plant_decoder(linear, vae.decoder)


def keep_constants(vae: AutoencoderKLTemporalDecoder) -> None:
    """Let the convolutions that read the trunk without a norm never learn to read its constants.

    Their inputs' large common value would turn every optimizer step into a jump of the picture's mean.
    """
    for module in vae.modules():
        if isinstance(module, Downsample | Upsample) and module.conv.weight.requires_grad:
            readable = _slots(module.conv.in_channels).lt(2).float()[:, None, None]
            module.conv.weight.register_hook(
                lambda gradient, mask=readable: gradient * mask.to(gradient.device)
            )


def _make_identities(vae: AutoencoderKLTemporalDecoder) -> None:
    for module in vae.modules():
        if isinstance(module, SpatialResBlock | TemporalResBlock):
            _clear(module.conv2)
            _pass_signals(module.norm1)
        elif isinstance(module, Attention):
            _clear(module.to_out)
            _pass_signals(module.group_norm)


def _plant_encoder(linear: LinearAutoencoder, encoder: Encoder) -> None:
    _plant_trunk(linear.conv_in.weight, encoder.conv_in, paired_input=False)
    downs = [module.conv for module in encoder.modules() if isinstance(module, Downsample)]
    for small, conv in zip(_convs(linear.down), downs, strict=True):
        _plant_trunk(small.weight, conv, paired_input=True)
    _pass_signals(encoder.conv_norm_out)
    _plant_output(linear.to_latents.weight, encoder.conv_out)


def _plant_decoder(linear: LinearAutoencoder, decoder: TemporalDecoder) -> None:
    _plant_trunk(linear.from_latents.weight, decoder.conv_in, paired_input=False)
    ups = [module.conv for module in decoder.modules() if isinstance(module, Upsample)]
    for small, conv in zip(_convs(linear.up), ups, strict=True):
        _plant_trunk(small.weight, conv, paired_input=True)
    _pass_signals(decoder.conv_norm_out)
    _plant_output(linear.conv_out.weight, decoder.conv_out)
    _clear(decoder.time_conv_out)
    channels = range(decoder.time_conv_out.out_channels)
    decoder.time_conv_out.weight[channels, channels, 1] = 1


def _slots(width: int) -> Tensor:
    """The place of every channel within its group: 0 holds `x`, 1 holds `-x`, the others constants."""
    return torch.arange(width) % (width // GROUPS)


def _constants(width: int) -> Tensor:
    """`(width,)`: `C`, `-C`, `C`, ... on the places of the constants, 0 on those of signals."""
    slots = _slots(width)
    signs = 1 - 2 * (slots % 2)
    return torch.where(slots < 2, torch.zeros(()), CONSTANT * signs)


def _paired(weight: Tensor, in_channels: int) -> Tensor:
    """Spread `(out, 32, k, k)` over the pairs of a trunk of `in_channels`: half of it reads `x`, minus half `-x`."""
    spread = weight.new_zeros(weight.shape[0], in_channels, *weight.shape[2:])
    slots = _slots(in_channels)
    spread[:, slots == 0] = weight / 2
    spread[:, slots == 1] = -weight / 2
    return spread


def _plant_trunk(weight: Tensor, conv: nn.Conv2d, *, paired_input: bool) -> None:
    """Make `conv` write `{x, -x, C, ...}`, with `x` what `weight` computes."""
    spread = _paired(weight, conv.in_channels) if paired_input else weight
    slots = _slots(conv.out_channels)
    _clear(conv)
    conv.weight[slots == 0] = spread
    conv.weight[slots == 1] = -spread
    bias = conv.bias
    assert bias is not None
    bias.copy_(_constants(conv.out_channels))


def _plant_output(weight: Tensor, conv: nn.Conv2d) -> None:
    """Make the first outputs of `conv` what `weight` computes, from pairs that passed a SiLU; the others zero.

    `silu(x) - silu(-x)` is `x` once, where a pair in the trunk holds it twice: hence the factor.
    """
    _clear(conv)
    conv.weight[: len(weight)] = 2 * _paired(weight, conv.in_channels)


def _pass_signals(norm: nn.GroupNorm) -> None:
    """Make `norm` return signals of unit deviation unchanged, and nothing for the constants."""
    width = norm.num_channels
    constants, slots = _constants(width), _slots(width)
    groups = constants.view(GROUPS, -1)
    mean = groups.mean(1, keepdim=True)
    square = groups.square().mean(1, keepdim=True) + 2 / groups.shape[1]  # x and -x, unit variance each
    deviation = (square - mean.square()).sqrt().expand_as(groups).flatten()
    shift = mean.expand_as(groups).flatten()
    signal = (slots < 2).float()
    norm.weight.copy_(signal * deviation)
    norm.bias.copy_(signal * shift)


def _pick(conv: nn.Conv2d, channels: int) -> None:
    """Make `conv` copy the first `channels` channels; its other outputs keep their weights if it has fewer inputs."""
    conv.weight[:channels] = 0
    conv.weight[range(channels), range(channels), 1, 1] = 1


def _clear(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        parameter.zero_()


def _convs(modules: nn.ModuleList) -> list[nn.Conv2d]:
    return [cast(nn.Conv2d, module) for module in modules]


def _pad(x: Tensor) -> Tensor:
    return F.pad(x, (0, 1, 0, 1))


def _enlarge(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")
