"""Which parameters learn."""

from __future__ import annotations

import re

from temporal_vae.autoencoder import AutoencoderKLTemporalDecoder
from temporal_vae.checkpoints.names import is_temporal
from temporal_vae.errors import ConfigError


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
