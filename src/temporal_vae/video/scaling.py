"""Between latents as diffusion models know them, scaled and shifted, and as autoencoders make them."""

from __future__ import annotations

import torch
from torch import Tensor

from temporal_vae.autoencoders.base import Autoencoder
from temporal_vae.errors import InputError


def unscaled(latents: Tensor, vae: Autoencoder, shift: float | None = None) -> Tensor:
    """Latents `(..., c, h, w)` of a diffusion model as the autoencoder takes them, as pipelines of diffusers do it.

    Args:
        latents: scaled and shifted by the numbers of the model's configuration.
        vae: that model.
        shift: another shift than that of the configuration.

    Raises:
        InputError: pipelines scale latents of this model in another way.
    """
    factor, std, mean = _numbers(vae, shift)
    return latents.float() / factor * std + mean


def scaled(latents: Tensor, vae: Autoencoder, shift: float | None = None) -> Tensor:
    """The inverse of `unscaled`."""
    factor, std, mean = _numbers(vae, shift)
    return (latents.float() - mean) / std * factor


def _numbers(vae: Autoencoder, shift: float | None) -> tuple[float, Tensor, Tensor]:
    """Factor of the latents, and deviation and mean of their channels, `(c, 1, 1)` or one for all."""
    config = vae.config
    if "scaling_factor" not in config:
        raise InputError(
            f"scaled: pipelines of {type(vae).__name__} normalise patches of latents; undo that and leave it out"
        )
    mean, std = (config.get(f"latents_{name}") for name in ("mean", "std"))
    if mean is not None and std is not None and shift is None:
        return config["scaling_factor"], torch.tensor(std).view(-1, 1, 1), torch.tensor(mean).view(-1, 1, 1)
    offset = (config.get("shift_factor") or 0) if shift is None else shift
    return config["scaling_factor"], torch.tensor(1.0), torch.tensor(float(offset))
