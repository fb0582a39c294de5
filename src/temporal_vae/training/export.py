"""A trained model to the folder that ships: float16 weights and a configuration with the measured scale of latents."""

from pathlib import Path

import torch

from temporal_vae.autoencoder import AutoencoderKLTemporalDecoder
from temporal_vae.training.data import Sampler

SIZE = 64
"""Of the windows whose latents are measured, in pixels."""


def export(vae: AutoencoderKLTemporalDecoder, sampler: Sampler, folder: Path) -> None:
    """Write `config.json` and float16 weights to `folder`.

    Args:
        vae: float32 model; left as it is.
        sampler: of the training data, for the deviation of latents.
        folder: made if it is missing; what it holds is replaced.
    """
    half = AutoencoderKLTemporalDecoder.from_config(vae.config, scaling_factor=scaling_factor(vae, sampler))
    half.load_state_dict(vae.state_dict())
    half.half().save_pretrained(folder)


@torch.no_grad()
def scaling_factor(vae: AutoencoderKLTemporalDecoder, sampler: Sampler) -> float:
    """One over the deviation of the latents of training frames, to four digits.

    It is what latents are multiplied with so that a diffusion model sees unit deviation.
    """
    latents = [
        vae.encode(sampler.batch(number, clips=16, frames=1, size=SIZE)).latent_dist.mean
        for number in range(4)
    ]
    return float(f"{1 / torch.cat(latents).std().item():.4g}")
