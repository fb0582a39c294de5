"""The card of a model that has none of its own: what its configuration says of it, and no more."""

from __future__ import annotations

from typing import TYPE_CHECKING

from temporal_vae import __version__

if TYPE_CHECKING:
    from temporal_vae.autoencoders.base import Autoencoder

__all__ = ["TAGS", "default_card"]

TAGS = ("temporal-vae", "video", "autoencoder", "vae", "AutoencoderKLTemporalDecoder")
"""Of the hub, by which such models are found."""

_VIDEO = """\
A video autoencoder with the architecture of Stable Video Diffusion's: an image encoder, and a decoder with temporal
layers."""
_IMAGE = (
    "An image autoencoder with the architecture of Stable Diffusion's; each picture is computed by itself."
)
_SCALED, _SHIFTED = "Diffusion models work on `{} * {}`.", "(latents - {})"
_NORMALISED = (
    "Diffusion models work on patches of latents, normalised by the running mean and variance in `bn`."
)

_PAGE = """\
---
{matter}
---

# {title}

{about} This card was written by temporal-vae {version} from the model's configuration. What the model was trained on,
and how good it is, nobody has described here.

| | |
| --- | --- |
{rows}

## Load

```python
from temporal_vae import {kind}  # or: from diffusers import {kind}

vae = {kind}.from_pretrained("{repo_id}")
latents = vae.encode(frames).latent_dist.mode()  # frames (t, {channels}, h, w), values in [-1, 1]
frames = vae.decode(latents{length}).sample
```

{scaling}
"""


def default_card(vae: Autoencoder, repo_id: str, *, license: str | None = None) -> str:
    """Write a card in Markdown, with the front matter that the Hugging Face hub reads.

    Args:
        vae: the model.
        repo_id: where it will be loaded from.
        license: its identifier on the hub, such as `apache-2.0`; None says nothing of a licence.
    """
    config = vae.config
    levels = " x ".join(map(str, config.block_out_channels))
    f = vae.spatial_factor
    temporal = vae.network.temporal
    shift, scale = config.get("shift_factor"), config.get("scaling_factor")
    shown = {
        key: config.get(key) for key in ("sample_size", "scaling_factor", "shift_factor", "force_upcast")
    }
    rows = {
        "frames": f"{config.in_channels} channels in, {config.out_channels} out, values in [-1, 1]",
        "latents": f"{config.latent_channels} channels, one for {f}x{f} pixels",
        "`block_out_channels`": levels,
        "`layers_per_block`": str(config.layers_per_block),
        **{f"`{key}`": str(value).lower() for key, value in shown.items() if value is not None},
        "parameters": f"{sum(p.numel() for p in vae.parameters()):,}",
    }
    matter = ["library_name: diffusers", "tags:", *(f"- {tag}" for tag in TAGS)]
    if license is not None:
        matter.insert(0, f"license: {license}")
    return _PAGE.format(
        matter="\n".join(matter),
        title=repo_id.rpartition("/")[2],
        version=__version__,
        rows="\n".join(f"| {name} | {value} |" for name, value in rows.items()),
        repo_id=repo_id,
        channels=config.in_channels,
        kind=type(vae).__name__,
        about=_VIDEO if temporal else _IMAGE,
        length=", num_frames=len(latents)" if temporal else "",
        scaling=_NORMALISED
        if scale is None
        else _SCALED.format(_SHIFTED.format(shift) if shift else "latents", scale),
    )
