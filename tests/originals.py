"""Original (sgm) checkpoints with random weights, named by hand, and commands run as a user runs them."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from oracle import Theirs, config, randomise
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

FIRST = "first_stage_model."
WRAPPED = "conditioner.embedders.3.encoder."
WIDTHS = (32, 64, 96)
OPTIONS = {"block_out_channels": WIDTHS, "layers_per_block": 2}

# Three levels with two residual blocks each, as an original checkpoint and as diffusers name them.
ENCODER_BLOCKS = {
    "encoder.down.0.block.0": "encoder.down_blocks.0.resnets.0",
    "encoder.down.0.block.1": "encoder.down_blocks.0.resnets.1",
    "encoder.down.1.block.0": "encoder.down_blocks.1.resnets.0",
    "encoder.down.1.block.1": "encoder.down_blocks.1.resnets.1",
    "encoder.down.2.block.0": "encoder.down_blocks.2.resnets.0",
    "encoder.down.2.block.1": "encoder.down_blocks.2.resnets.1",
    "encoder.mid.block_1": "encoder.mid_block.resnets.0",
    "encoder.mid.block_2": "encoder.mid_block.resnets.1",
}
DECODER_BLOCKS = {
    "decoder.mid.block_1": "decoder.mid_block.resnets.0",
    "decoder.mid.block_2": "decoder.mid_block.resnets.1",
    "decoder.up.2.block.0": "decoder.up_blocks.0.resnets.0",
    "decoder.up.2.block.1": "decoder.up_blocks.0.resnets.1",
    "decoder.up.2.block.2": "decoder.up_blocks.0.resnets.2",
    "decoder.up.1.block.0": "decoder.up_blocks.1.resnets.0",
    "decoder.up.1.block.1": "decoder.up_blocks.1.resnets.1",
    "decoder.up.1.block.2": "decoder.up_blocks.1.resnets.2",
    "decoder.up.0.block.0": "decoder.up_blocks.2.resnets.0",
    "decoder.up.0.block.1": "decoder.up_blocks.2.resnets.1",
    "decoder.up.0.block.2": "decoder.up_blocks.2.resnets.2",
}
SHORTCUTS = {
    "encoder.down.1.block.0": "encoder.down_blocks.1.resnets.0",
    "encoder.down.2.block.0": "encoder.down_blocks.2.resnets.0",
    "decoder.up.1.block.0": "decoder.up_blocks.1.resnets.0",
    "decoder.up.0.block.0": "decoder.up_blocks.2.resnets.0",
}
LAYERS = {
    "encoder.conv_in": "encoder.conv_in",
    "encoder.down.0.downsample.conv": "encoder.down_blocks.0.downsamplers.0.conv",
    "encoder.down.1.downsample.conv": "encoder.down_blocks.1.downsamplers.0.conv",
    "encoder.norm_out": "encoder.conv_norm_out",
    "encoder.conv_out": "encoder.conv_out",
    "decoder.conv_in": "decoder.conv_in",
    "decoder.up.2.upsample.conv": "decoder.up_blocks.0.upsamplers.0.conv",
    "decoder.up.1.upsample.conv": "decoder.up_blocks.1.upsamplers.0.conv",
    "decoder.norm_out": "decoder.conv_norm_out",
    "decoder.conv_out": "decoder.conv_out",
}
ATTENTIONS = {
    "encoder.mid.attn_1": "encoder.mid_block.attentions.0",
    "decoder.mid.attn_1": "decoder.mid_block.attentions.0",
}
IN_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
SPATIAL = ("norm1", "conv1", "norm2", "conv2")
TEMPORAL = {
    "time_stack.in_layers.0": "temporal_res_block.norm1",
    "time_stack.in_layers.2": "temporal_res_block.conv1",
    "time_stack.out_layers.0": "temporal_res_block.norm2",
    "time_stack.out_layers.3": "temporal_res_block.conv2",
}


def image_layers(spatial: str) -> dict[str, str]:
    """Layers of encoder and decoder, each with weight and bias, without the temporal ones."""
    layers = dict(LAYERS)
    for blocks, inner in ((ENCODER_BLOCKS, ""), (DECODER_BLOCKS, spatial)):
        for old, new in blocks.items():
            layers |= {f"{old}.{layer}": f"{new}{inner}.{layer}" for layer in SPATIAL}
            if old in SHORTCUTS:
                layers[f"{old}.nin_shortcut"] = f"{new}{inner}.conv_shortcut"
    for old, new in ATTENTIONS.items():
        layers |= {f"{old}.{inner}": f"{new}.{other}" for inner, other in IN_ATTENTION.items()}
    return layers


def original_names(*, temporal: bool = True) -> dict[str, str]:
    """Names of all tensors but `quant_conv`, original to diffusers."""
    layers = image_layers(".spatial_res_block" if temporal else "")
    factors = {}
    if temporal:
        for old, new in DECODER_BLOCKS.items():
            layers |= {f"{old}.{inner}": f"{new}.{other}" for inner, other in TEMPORAL.items()}
            factors[f"{old}.mix_factor"] = f"{new}.time_mixer.mix_factor"
        layers["decoder.conv_out.time_mix_conv"] = "decoder.time_conv_out"
    return factors | {f"{a}.{leaf}": f"{b}.{leaf}" for a, b in layers.items() for leaf in ("weight", "bias")}


def original(model: nn.Module, *parts: str, home: str = "", temporal: bool = True) -> dict[str, Tensor]:
    """The tensors of a diffusers model that begin with one of `parts`, as an original checkpoint holds them."""
    state = model.state_dict()
    names = original_names(temporal=temporal) | {
        name: name for name in state if name.startswith(("quant_conv.", "post_quant_conv."))
    }
    tensors = {}
    for old, new in names.items():
        if old.startswith(parts):
            matrix = ".attn_1." in old and state[new].ndim == 2
            tensors[home + old] = state[new][:, :, None, None].clone() if matrix else state[new].clone()
    return tensors


def temporal_model(seed: int = 0) -> Theirs:
    return randomise(Theirs(**config(**OPTIONS)), seed).eval()


def image_model(seed: int = 0, **options) -> AutoencoderKL:
    options = {**OPTIONS, **options}
    levels = len(options["block_out_channels"])
    options.setdefault("up_block_types", ("UpDecoderBlock2D",) * levels)
    return randomise(AutoencoderKL(**config(**options)), seed).eval()


def whole_checkpoint(model: Theirs, path: Path, *, number: int = 3) -> dict[str, Tensor]:
    """A video model: its first stage, an image autoencoder inside the conditioner, and what else there is."""
    wrapped = f"conditioner.embedders.{number}.encoder."
    tensors = {
        **original(model, "decoder.", home=FIRST),
        **original(temporal_model(seed=7), "encoder.", home=FIRST),
        **original(model, "encoder.", "quant_conv.", home=wrapped),
        **original(image_model(seed=8), "decoder.", "post_quant_conv.", home=wrapped, temporal=False),
        "conditioner.embedders.0.open_clip.model.visual.conv1.weight": torch.ones(2, 3),
        "model.diffusion_model.input_blocks.0.0.weight": torch.ones(4, 8),
    }
    save_file(tensors, path)
    return tensors


def averages(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the original trainer keeps beside weights: averages, named without dots, and how often it took them."""
    kept = {f"model_ema.{name.replace('.', '')}": tensor + 1 for name, tensor in tensors.items()}
    return kept | {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(7)}


def changed(path, change):
    """Apply `change` to the tensors of a file."""
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    return path
