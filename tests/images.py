"""The image autoencoders of diffusers as oracles: configurations of all published kinds, small, and random weights."""

import diffusers
from oracle import config as of_levels
from oracle import randomise

import temporal_vae

PLAIN = {"use_quant_conv": False, "use_post_quant_conv": False}
PUBLISHED = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2}
SD = ("AutoencoderKL", PUBLISHED)
FLUX = ("AutoencoderKL", {**PUBLISHED, **PLAIN, "latent_channels": 16, "shift_factor": 0.1159})
FLUX2 = ("AutoencoderKLFlux2", PUBLISHED)

SMALL = {"block_out_channels": (32, 64, 96), "layers_per_block": 2}
KINDS = {
    "Stable Diffusion": ("AutoencoderKL", SMALL),
    "one layer": ("AutoencoderKL", {"block_out_channels": (64, 32)}),
    "one level": ("AutoencoderKL", {"block_out_channels": (64,)}),
    "FLUX": ("AutoencoderKL", {**SMALL, **PLAIN, "latent_channels": 16, "shift_factor": 0.1}),
    "without attention": ("AutoencoderKL", {**SMALL, "mid_block_add_attention": False}),
    "attention in levels": (
        "AutoencoderKL",
        {
            "block_out_channels": (32, 64),
            "down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
            "up_block_types": ("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
        },
    ),
    "sixteen groups": ("AutoencoderKL", {**SMALL, "norm_num_groups": 16}),
    "sound": ("AutoencoderKL", {**SMALL, "in_channels": 1, "out_channels": 1, "latent_channels": 8}),
    "FLUX.2": ("AutoencoderKLFlux2", {**SMALL, "latent_channels": 32}),
    "a narrow decoder": (
        "AutoencoderKLFlux2", {**SMALL, "latent_channels": 32, "decoder_block_out_channels": (32, 32, 64)},
    ),
}  # fmt: skip


def config(**options) -> dict:
    """Fill in what follows from the widths."""
    levels = len(options["block_out_channels"])
    return {"up_block_types": ("UpDecoderBlock2D",) * levels, **of_levels(**options)}


def pair(name: str, options: dict, seed: int = 0):
    """Our model and theirs, of one configuration and with the same random weights, in eval mode."""
    theirs = randomise(getattr(diffusers, name)(**config(**options)), seed).eval()
    ours = getattr(temporal_vae, name)(**config(**options)).eval()
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs
