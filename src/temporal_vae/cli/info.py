"""`temporal-vae info`: what a model or a latent file is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from temporal_vae.cli.console import print_json, print_table
from temporal_vae.cli.models import load_model
from temporal_vae.cli.options import json_option


@click.command()
@click.argument("model", default="embedded")
@click.option("--subfolder", help="Folder of the autoencoder inside the model, such as vae.")
@json_option
def info(model: str, subfolder: str | None, as_json: bool) -> None:
    """Describe a model or a latent file.

    MODEL is a folder, a Hugging Face id, `embedded`, or a latent file.
    """
    latents = Path(model).suffix == ".safetensors"
    fields = _describe_latents(model) if latents else _describe_model(model, subfolder)
    if as_json:
        print_json(fields)
    else:
        print_table(model, ["", ""], [[name, _text(value)] for name, value in fields.items()])


def _describe_model(model: str, subfolder: str | None) -> dict[str, Any]:
    vae = load_model(model, subfolder)
    parameters = {name: sum(p.numel() for p in part.parameters()) for name, part in vae.named_children()}
    keys = ("in_channels", "out_channels", "block_out_channels", "layers_per_block", "latent_channels")
    return {
        "class": type(vae).__name__,
        **{key: vae.config[key] for key in (*keys, "sample_size", "scaling_factor", "force_upcast")},
        "spatial_factor": vae.spatial_factor,
        "compression": _compression(vae),
        "parameters": sum(parameters.values()),
        **{f"parameters_{name}": count for name, count in parameters.items()},
        "bytes_float32": 4 * sum(parameters.values()),
    }


def _compression(vae: Any) -> float:
    """Numbers of a frame per number of its latents."""
    return float(vae.config.in_channels * vae.spatial_factor**2 / vae.config.latent_channels)


def _describe_latents(path: str) -> dict[str, Any]:
    from temporal_vae.video.latents import LatentReader

    with LatentReader(path) as reader:
        description = reader.info
        return {
            "frames": len(reader),
            "shape": list(reader.shape),
            "dtype": reader.dtype,
            "model": description.model.name,
            "config_sha256": description.model.config_sha256,
            "scaling_factor": description.model.config["scaling_factor"],
            "source": description.source_name,
            "source_sha256": description.source_sha256,
            "rate": str(description.rate),
            "size": [description.width, description.height],
            "padded_size": [description.padded_width, description.padded_height],
            "color": vars(description.color),
        }


def _text(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, (list, tuple)):
        return " x ".join(map(str, value))
    if isinstance(value, dict):
        return ", ".join(f"{name} {item}" for name, item in value.items())
    return str(value)
