"""Names of the network's tensors in original (sgm, LDM) checkpoints. The parameters are named as diffusers has them."""

import re

QUANT_CONV = ("quant_conv.weight", "quant_conv.bias")
POST_QUANT_CONV = ("post_quant_conv.weight", "post_quant_conv.bias")
TEMPORAL = (".temporal_res_block.", ".time_mixer.", ".time_conv_out.")
"""What marks a tensor that the image autoencoder does not have."""

_WORDS = (
    (".resnets.", ".block."),
    (".spatial_res_block.", "."),
    (".temporal_res_block.norm1.", ".time_stack.in_layers.0."),
    (".temporal_res_block.conv1.", ".time_stack.in_layers.2."),
    (".temporal_res_block.norm2.", ".time_stack.out_layers.0."),
    (".temporal_res_block.conv2.", ".time_stack.out_layers.3."),
    (".time_mixer.mix_factor", ".mix_factor"),
    (".time_conv_out.", ".conv_out.time_mix_conv."),
    (".conv_shortcut.", ".nin_shortcut."),
    (".conv_norm_out.", ".norm_out."),
    (".down_blocks.", ".down."),
    (".downsamplers.0.", ".downsample."),
    (".upsamplers.0.", ".upsample."),
    (".mid_block.attentions.0.", ".mid.attn_1."),
    (".attentions.", ".attn."),
    (".group_norm.", ".norm."),
    (".to_q.", ".q."),
    (".to_k.", ".k."),
    (".to_v.", ".v."),
    (".to_out.0.", ".proj_out."),
)
_OLD_WORDS = (
    (".to_q.", ".query."),
    (".to_k.", ".key."),
    (".to_v.", ".value."),
    (".to_out.0.", ".proj_attn."),
)


def sgm_name(name: str, levels: int) -> str:
    """Name in an original checkpoint of the network's tensor `name`, below the prefix of the autoencoder.

    The original decoder counts its levels from the full picture on, diffusers from the latents.
    """
    name = re.sub(r"\.up_blocks\.(\d+)\.", lambda level: f".up.{levels - 1 - int(level[1])}.", name)
    name = re.sub(r"\.mid_block\.resnets\.(\d+)\.", lambda block: f".mid.block_{int(block[1]) + 1}.", name)
    return _replace(name, _WORDS)


def network_name(name: str) -> str:
    """Name of the network's tensor that `AutoencoderKL` calls `name`."""
    return re.sub(r"^(decoder\..*\.resnets\.\d+)\.", r"\1.spatial_res_block.", name)


def image_name(name: str) -> str:
    """Name of the network's tensor `name` in diffusers' `AutoencoderKL`."""
    return name.replace(".spatial_res_block.", ".")


def old_name(name: str) -> str:
    """Name of the network's tensor `name` in files from before diffusers' `Attention`."""
    return _replace(name, _OLD_WORDS)


def is_temporal(name: str) -> bool:
    """Whether the network's tensor `name` belongs to a temporal layer."""
    return any(mark in name for mark in TEMPORAL)


def _replace(name: str, words: tuple[tuple[str, str], ...]) -> str:
    for ours, theirs in words:
        name = name.replace(ours, theirs)
    return name
