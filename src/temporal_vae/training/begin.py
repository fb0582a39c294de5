"""The model that a run begins with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from temporal_vae.autoencoder import AutoencoderKLTemporalDecoder
from temporal_vae.errors import ConfigError
from temporal_vae.training.config import Architecture, Batch, LinearStart, TrainConfig
from temporal_vae.training.data import Clips, to_device
from temporal_vae.training.linear import LinearAutoencoder, plant, train_linear

_CPU = torch.device("cpu")


def new_model(architecture: Architecture) -> AutoencoderKLTemporalDecoder:
    """A network with random weights."""
    return AutoencoderKLTemporalDecoder(
        down_block_types=("DownEncoderBlock2D",) * len(architecture.block_out_channels),
        block_out_channels=architecture.block_out_channels,
        layers_per_block=architecture.layers_per_block,
        latent_channels=architecture.latent_channels,
    )


def begin(config: TrainConfig) -> AutoencoderKLTemporalDecoder:
    """The model that `config.model` names, in float32 on the CPU; a linear start is still to be made.

    Raises:
        CheckpointError: weights that cannot be loaded.
        ConfigError: a network that cannot be built.
    """
    torch.manual_seed(config.seed)
    model = config.model
    if model.new is not None:
        return new_model(model.new)
    assert model.start is not None
    if model.start == "embedded":
        return AutoencoderKLTemporalDecoder.from_embedded()
    if Path(model.start).suffix == ".safetensors":
        return AutoencoderKLTemporalDecoder.from_single_file(model.start, torch_dtype=torch.float32)
    vae: AutoencoderKLTemporalDecoder = AutoencoderKLTemporalDecoder.from_pretrained(
        model.start, subfolder=model.subfolder, torch_dtype=torch.float32
    )
    return vae


def start_linear(vae: AutoencoderKLTemporalDecoder, config: TrainConfig, how: LinearStart) -> float:
    """Train a linear autoencoder on crops of the run's data and plant it in `vae`; returns its mean squared error.

    Raises:
        ConfigError: a network that cannot hold one.
    """
    if config.model.new is None:
        raise ConfigError("model.linear_start: is for a new network; give model.new too")
    batch = Batch(frames=how.crops, lengths=(1,), size=how.size)
    drawn = Clips(replace(config, batches=(batch,), steps=1))[0]
    if drawn.failure:
        raise ConfigError(drawn.failure)
    crops = to_device(drawn, _CPU)
    generator = torch.Generator().manual_seed(config.seed)
    linear = LinearAutoencoder(
        channels=crops.shape[1],
        latent_channels=config.model.new.latent_channels,
        levels=len(config.model.new.block_out_channels),
    )
    linear.start_from_components(crops[:256])
    linear.balance(crops[:256])
    error = train_linear(
        linear,
        lambda: crops[torch.randint(len(crops), (how.batch,), generator=generator)],
        steps=how.steps,
        learning_rate=how.learning_rate,
    )
    linear.balance(crops[:256])
    plant(linear, vae, logvar=how.logvar)
    return error
