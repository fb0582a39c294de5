"""`temporal-vae info`: what a model, a latent file or a video is."""

from __future__ import annotations

from glob import has_magic
from pathlib import Path
from typing import Any

import click

from temporal_vae.cli.console import print_fields, print_json
from temporal_vae.cli.options import json_option, load_model


@click.command()
@click.argument("what", metavar="[WHAT]", required=False)
@click.option("--subfolder", help="Folder of the autoencoder inside the model, such as vae.")
@json_option
def info(what: str | None, subfolder: str | None, as_json: bool) -> None:
    """Describe a model, a latent file, a video, or this machine.

    WHAT is a folder, a Hugging Face id, `embedded`, a latent file, or a file or folder that `encode` takes. Without it:
    what the engine found here, its processor, kernels and self-check, and the versions of what it stands on.
    """
    path = Path(what or "")
    if what is None:
        what, fields = "this machine", _describe_machine()
    elif path.suffix == ".safetensors":
        fields = _describe_latents(what)
    elif path.is_file() or (path.is_dir() and not _is_model(path, subfolder)) or has_magic(what):
        fields = _describe_video(what)
    else:
        fields = _describe_model(what, subfolder)
    if as_json:
        print_json(fields)
    else:
        print_fields(what, {name: _text(value) for name, value in fields.items()})


def _is_model(folder: Path, subfolder: str | None) -> bool:
    """Whether a folder is one of a model, or of nothing that could be a video: then it is said to be no model."""
    from temporal_vae.media.images import IMAGE_SUFFIXES

    if (folder / (subfolder or "") / "config.json").is_file():
        return True
    return not any(file.suffix.lower() in IMAGE_SUFFIXES for file in folder.iterdir())


def _describe_machine() -> dict[str, Any]:
    from temporal_vae import __version__
    from temporal_vae.engine import machine

    return {"temporal-vae": __version__, **machine()}


def _describe_video(source: str) -> dict[str, Any]:
    from temporal_vae.media.audio import tracks_of
    from temporal_vae.media.reader import VideoReader

    with VideoReader(source, hdr="keep") as reader:
        video = reader.info
    return {
        "codec": video.codec,
        "size": [video.width, video.height],
        "pixel_aspect": str(video.pixel_aspect),
        "rate": round(float(video.rate), 3),
        "frames": video.frames,
        "seconds": None if video.duration is None else round(float(video.duration), 3),
        "color": vars(video.color),
        "rotation": video.rotation,
        "mirrored": video.mirrored,
        "interlaced": video.interlaced,
        "sound": tracks_of(Path(source)) if video.has_audio else [],
    }


def _describe_model(model: str, subfolder: str | None) -> dict[str, Any]:
    vae = load_model(model, subfolder)
    parameters = {
        name: sum(p.numel() for p in part.parameters()) for name, part in vae.named_children() if name != "bn"
    }
    keys = ("in_channels", "out_channels", "block_out_channels", "layers_per_block", "latent_channels")
    return {
        "class": type(vae).__name__,
        **{key: vae.config[key] for key in (*keys, *_WHERE_THERE) if vae.config.get(key) is not None},
        "spatial_factor": vae.spatial_factor,
        "compression": _compression(vae),
        "parameters": sum(parameters.values()),
        **{f"parameters_{name}": count for name, count in parameters.items()},
        "bytes_float32": 4 * sum(parameters.values()),
    }


_WHERE_THERE = ("decoder_block_out_channels", "sample_size", "scaling_factor", "shift_factor", "force_upcast")


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
            "scaling_factor": description.model.config.get("scaling_factor"),
            "source": description.source_name,
            "source_sha256": description.source_sha256,
            "rate": str(description.rate),
            "size": [description.width, description.height],
            "padded_size": [description.padded_width, description.padded_height],
            "color": vars(description.color),
        }


def _text(value: Any) -> str:
    if value is None:
        return "unknown"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list) and (not value or isinstance(value[0], str)):
        return "; ".join(value) or "none"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, (list, tuple)):
        return " x ".join(map(str, value))
    if isinstance(value, dict):
        return ", ".join(f"{name} {item}" for name, item in value.items())
    return str(value)
