"""What a run minimises: the losses of `losses.py` under the weights of its configuration."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from temporal_vae.autoencoders.temporal import AutoencoderKLTemporalDecoder
from temporal_vae.training import losses
from temporal_vae.training.discriminator import PatchDiscriminator2D, PatchDiscriminator3D

if TYPE_CHECKING:
    from temporal_vae.training.config.fields import Adversary, Losses, Optimizer

_ENGINE_PIXELS = 2**16
"""Of a batch, from which on the engine encodes faster than the modules; it packs the weights in every call."""


class Autoencoding(nn.Module):
    """A forward of encoder and decoder as training needs it: frames to `(output, mean, logvar)`.

    One module with one forward, so that it can be wrapped to share gradients between processes. Where nothing of the
    encoder learns, it runs without gradients: in the engine, if that is faster.
    """

    def __init__(self, vae: AutoencoderKLTemporalDecoder) -> None:
        super().__init__()
        self.vae = vae
        learning = (*vae.encoder.parameters(), *vae.quant_conv.parameters())
        self.encoder_learns = any(parameter.requires_grad for parameter in learning)

    def forward(self, frames: Tensor, length: int, noise: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Encode, draw latents, decode.

        Args:
            frames: `(b*t, c, h, w)` in [-1, 1].
            length: t.
            noise: standard normal, of the shape of the latents; None decodes the mean.
        """
        mean, logvar = self._moments(frames)
        latents = mean if noise is None else mean + noise * torch.exp(logvar / 2)
        # Not channels-last, as the engine leaves them: on a CPU that slows the backward down 2.5 times, and torch 2.13
        # crashes in the backward of a norm that learns where its channels-last input does not.
        return self.vae.decoder(latents.contiguous(), num_frames=length).float(), mean, logvar

    def _moments(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        with torch.set_grad_enabled(self.encoder_learns):
            if self.encoder_learns or frames[:, 0].numel() < _ENGINE_PIXELS:
                moments = self.vae.quant_conv(self.vae.encoder(frames))
            else:
                moments = self.vae.encode(frames).latent_dist.parameters  # in the modules under autocast
        mean, logvar = moments.float().chunk(2, dim=1)
        return mean, logvar.clamp(-30, 20)


class Objective:
    """Losses with their weights.

    Args:
        config: the weights; those that are zero are not computed.

    Raises:
        InputError: LPIPS asked for where it is not installed.
    """

    def __init__(self, config: Losses) -> None:
        self._config = config
        self._perceptual = losses.Perceptual() if config.lpips else None

    def __call__(
        self, output: Tensor, frames: Tensor, mean: Tensor, logvar: Tensor, length: int
    ) -> dict[str, Tensor]:
        """Every loss times its weight, by name; their sum is what is minimised.

        Args:
            output: `(b*t, c, h, w)`, about [-1, 1].
            frames: the same, true.
            mean: of the posterior, `(b*t, z, h/f, w/f)`.
            logvar: likewise.
            length: t.
        """
        config, scale = self._config, self._config.charbonnier_scale
        penalties: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
            "l1": losses.l1,
            "l2": losses.l2,
            "charbonnier": partial(losses.charbonnier, scale=scale),
        }
        terms: dict[str, Callable[[], Tensor]] = {
            **{name: partial(penalty, output, frames) for name, penalty in penalties.items()},
            "ms_ssim": lambda: losses.ms_ssim(output, frames),
            "motion": lambda: losses.motion(
                output, frames, length=length, penalty=penalties[config.motion_penalty]
            ),
            "kl": lambda: losses.kl(mean, logvar),
        }
        if self._perceptual is not None:
            terms["lpips"] = partial(self._perceptual, output, frames)
        return {name: getattr(config, name) * term() for name, term in terms.items() if getattr(config, name)}


def new_discriminator(config: Adversary, channels: int) -> PatchDiscriminator2D | PatchDiscriminator3D:
    """The discriminator of a configuration, with random weights."""
    kind = PatchDiscriminator2D if config.kind == "2d" else PatchDiscriminator3D
    return kind(channels=channels, width=config.width, layers=config.layers)


def learning_rate(config: Optimizer, step: int, steps: int) -> float:
    """Linear warm-up, a constant, then half a cosine down to the final rate (Loshchilov & Hutter 2017, SGDR)."""
    if step < config.warm_up:
        return config.learning_rate * (step + 1) / config.warm_up
    decay = steps - config.warm_up if config.decay is None else min(config.decay, steps)
    done = max(0.0, step - (steps - decay)) / max(decay, 1)
    low, high = config.final_learning_rate, config.learning_rate
    return low + (high - low) * (1 + math.cos(math.pi * min(done, 1.0))) / 2
