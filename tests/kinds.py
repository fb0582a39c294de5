"""Autoencoders of clips and of pictures, for tests that ask the same of both."""

from typing import Any

import diffusers
import images
import oracle
import torch
from torch import Tensor, nn

SMALL = {"block_out_channels": (32, 64), "layers_per_block": 2}  # both attentions run
CLIPS, PICTURES = "AutoencoderKLTemporalDecoder", "AutoencoderKL"
KINDS = (CLIPS, PICTURES)


def pair(kind: str, seed: int = 0) -> tuple[Any, Any]:
    """Our model and that of diffusers, of four latent channels."""
    if kind == CLIPS:
        return oracle.pair(seed, **SMALL)
    return images.pair(kind, {**SMALL, "latent_channels": 4}, seed)


def length(model: nn.Module) -> dict[str, int]:
    """What `decode` and `forward` are told of two frames."""
    return {"num_frames": 2} if isinstance(model, diffusers.AutoencoderKLTemporalDecoder) else {}


def decode(model: nn.Module, z: Tensor) -> Tensor:
    """Two frames."""
    return model.decode(z, **length(model)).sample


def encode(model: nn.Module, x: Tensor) -> Tensor:
    """The moments of frames."""
    return model.encode(x).latent_dist.parameters


def decode_by_modules(model: nn.Module, z: Tensor) -> Tensor:
    """As `decode`, of the modules as they are called."""
    if length(model):
        return model.decoder(z, num_frames=2, image_only_indicator=torch.zeros(1, 2))
    return model.decoder(model.post_quant_conv(z))


def encode_by_modules(model: nn.Module, x: Tensor) -> Tensor:
    """As `encode`, of the modules as they are called."""
    return model.quant_conv(model.encoder(x))
