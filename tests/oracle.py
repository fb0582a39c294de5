"""The diffusers model as an oracle: the same random weights in both classes, and how far two results may differ."""

import diffusers
import torch
from torch import Tensor, nn

from temporal_vae import AutoencoderKLTemporalDecoder

Theirs = diffusers.AutoencoderKLTemporalDecoder

TINY = {"block_out_channels": (32, 64), "layers_per_block": 1}
SVD = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2}

CONFIGS = {
    "one level": {"block_out_channels": (64,), "layers_per_block": 1},
    "two levels, one layer": {"block_out_channels": (64, 128), "layers_per_block": 1, "latent_channels": 8},
    "three levels, two layers": {"block_out_channels": (32, 64, 96), "layers_per_block": 2},
    "four levels, wide latents": {
        "block_out_channels": (32, 64, 64, 128),
        "layers_per_block": 1,
        "latent_channels": 16,
    },
    "three layers": {"block_out_channels": (64, 32), "layers_per_block": 3, "latent_channels": 16},
    "other colours": {"block_out_channels": (64, 64), "in_channels": 1, "out_channels": 4},
}


def config(**options) -> dict:
    """Fill in what follows from the widths."""
    widths = options["block_out_channels"]
    return {"down_block_types": ("DownEncoderBlock2D",) * len(widths), **options}


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter a random value, so that none hides behind the value it starts with.

    Weights keep the variance of what passes through them, so that outputs are of order one.
    """
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=random)
            if parameter.ndim > 1:
                noise = noise / parameter[0].numel() ** 0.5
            elif "norm" in name and name.endswith("weight"):
                noise = 1 + 0.3 * noise
            elif name.endswith("bias"):
                noise = 0.3 * noise
            parameter.copy_(noise)
    return model


def pair(seed: int = 0, **options) -> tuple[AutoencoderKLTemporalDecoder, Theirs]:
    """Our model and theirs, of one configuration and with the same random weights, in eval mode."""
    theirs = randomise(Theirs(**config(**options)), seed).eval()
    ours = AutoencoderKLTemporalDecoder(**config(**options)).eval()
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def error(ours: Tensor, theirs: Tensor) -> float:
    """Largest absolute difference, as a share of the largest value of the oracle."""
    assert ours.shape == theirs.shape
    assert torch.isfinite(theirs).all()
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def assert_close(ours: Tensor, theirs: Tensor, tolerance: float = 1e-5) -> None:
    assert ours.dtype == theirs.dtype
    found = error(ours, theirs)
    assert found <= tolerance
