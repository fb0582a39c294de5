"""The model that a run begins with."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import torch

from temporal_vae.autoencoders.temporal import AutoencoderKLTemporalDecoder
from temporal_vae.checkpoints.names import is_temporal
from temporal_vae.errors import ConfigError
from temporal_vae.training.config.fields import Architecture, Batch, LinearStart, TrainConfig
from temporal_vae.training.data.dataloader import Clips, to_device
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


def choose(vae: AutoencoderKLTemporalDecoder, train: str) -> list[str]:
    """Let only the parameters that `train` names want gradients; return their names.

    Args:
        vae: changed in place.
        train: `full`, `decoder`, `temporal`, or a regular expression that is searched for in parameter names.

    Raises:
        ConfigError: nothing is left to learn.
    """
    resting = set(_resting(vae))
    chosen = []
    for name, parameter in vae.named_parameters():
        wanted = _wanted(name, train) and name not in resting
        parameter.requires_grad_(wanted)
        if wanted:
            chosen.append(name)
    if not chosen:
        raise ConfigError(
            f"train={train!r}: no parameter of the model has such a name; "
            "`decoder.up_blocks.0.resnets.0.spatial_res_block.conv1.weight` is one that it has"
        )
    return chosen


def _wanted(name: str, train: str) -> bool:
    if train == "full":
        return True
    if train == "decoder":
        return name.startswith("decoder.")
    if train == "temporal":
        return is_temporal(name)
    return re.search(train, name) is not None


def _resting(vae: AutoencoderKLTemporalDecoder) -> list[str]:
    """Parameters of the decoder's middle that checkpoints hold and nothing runs (see `MidBlockTemporalDecoder`)."""
    mid, prefix = vae.decoder.mid_block, "decoder.mid_block."
    names = [f"{prefix}resnets.{n}." for n in range(2, len(mid.resnets))]
    if len(mid.resnets) < 2:
        names.append(f"{prefix}attentions.")
    return [name for name, _ in vae.named_parameters() if name.startswith(tuple(names))]
