"""What a server tells of itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from temporal_vae import engine
from temporal_vae.autoencoders.base import Autoencoder
from temporal_vae.video.latents import ModelIdentity
from temporal_vae.video.report.facts import processor_name


def describe_model(vae: Autoencoder) -> dict[str, Any]:
    """Of a model what clients need; of its folder only the name."""
    config = vae.config
    return {
        "name": Path(ModelIdentity.of(vae).name).name,
        "class": type(vae).__name__,
        "clips": vae.network.temporal,
        "parameters": sum(parameter.numel() for parameter in vae.parameters()),
        "latent_channels": config["latent_channels"],
        "spatial_factor": vae.spatial_factor,
        "scaling_factor": config.get("scaling_factor"),
        "shift_factor": config.get("shift_factor"),
        "dtype": str(vae.dtype).removeprefix("torch."),
        "device": str(vae.device),
    }


def describe_machine(vae: Autoencoder) -> dict[str, Any]:
    """What computes."""
    on_gpu = vae.device.type == "cuda"
    return {
        "processor": torch.cuda.get_device_name(vae.device) if on_gpu else processor_name(),
        "cores": engine.cores(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
