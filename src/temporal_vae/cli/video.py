"""`temporal-vae encode`, `decode` and `reconstruct`: video files through the model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from temporal_vae.cli.console import command_line, print_json, progress_bar
from temporal_vae.cli.options import (
    RateType,
    cut_options,
    json_option,
    memory_option,
    output_options,
    selection_options,
    takes_audio,
    takes_model,
)
from temporal_vae.cli.ranks import shares_its_work

if TYPE_CHECKING:
    from temporal_vae.autoencoders.base import Autoencoder


@click.command()
@click.argument("source", metavar="IN")
@click.argument("target", metavar="OUT")
@selection_options
@takes_model
@memory_option
@shares_its_work
@json_option
def encode(source: str, target: str, vae: Autoencoder, as_json: bool, **selection: Any) -> None:
    """Turn a video into latents.

    OUT is a latent file, *.safetensors. IN is a video, an image, a folder of images or a glob such as 'frames/*.png'.
    """
    from temporal_vae.video.pipeline import encode_video

    with progress_bar("encode") as progress:
        info = encode_video(source, target, vae=vae, progress=progress, **selection)
    frames, nbytes = len(info.timestamps), Path(target).stat().st_size
    if as_json:
        print_json({"target": target, "frames": frames, "bytes": nbytes, "model": info.model.name})
    else:
        size = f"{nbytes / 1e6:.1f} MB" if nbytes >= 1e6 else f"{nbytes / 1e3:.1f} kB"
        click.echo(f"{target}: {frames} frames of {info.width}x{info.height}, {size}")


@click.command()
@click.argument("source", metavar="IN")
@click.argument("target", metavar="OUT")
@cut_options
@click.option(
    "--sample",
    "sample_seed",
    type=int,
    metavar="SEED",
    help="Decode a sample of the posterior, not its mean.",
)
@click.option(
    "--scaled", is_flag=True, help="IN is a plain tensor of a diffusion model: undo its scaling and shift."
)
@click.option("--fps", type=RateType(), help="Frames per second of a plain tensor; 24 by default.")
@click.option("--audio-from", metavar="VIDEO", help="Write the sound of this video too.")
@takes_audio
@output_options
@takes_model
@memory_option
@shares_its_work
@json_option
def decode(source: str, target: str, vae: Autoencoder, as_json: bool, **options: Any) -> None:
    """Turn latents back into a video.

    OUT gets the size, rate and time stamps of the video that the latent file IN was made of. IN may also be a plain
    tensor, as pipelines and ComfyUI give latents: *.safetensors, *.latent or *.npy.
    """
    from temporal_vae.video.pipeline import decode_video

    with progress_bar("decode") as progress:
        info = decode_video(source, target, vae=vae, progress=progress, **options)
    if as_json:
        print_json({"target": target, "frames": len(info.timestamps), "size": [info.width, info.height]})
    else:
        click.echo(f"{target}: {len(info.timestamps)} frames of {info.width}x{info.height}")


@click.command()
@click.argument("source", metavar="IN")
@click.argument("target", metavar="OUT")
@click.option(
    "--compare",
    is_flag=True,
    help="Write OUT.compare.mp4 and OUT.compare.png too: source, result, amplified difference.",
)
@click.option("--latents", metavar="FILE.safetensors", help="Write the latents too, as `encode` does.")
@click.option(
    "--charts",
    is_flag=True,
    help="Write OUT.charts.svg and OUT.charts.png too: PSNR, SSIM and flicker over time.",
)
@click.option(
    "--report",
    metavar="PAGE.html",
    callback=lambda context, option, value: _page(value),
    help="Write one HTML file that shows it all: figures, charts, frames, model and machine. Needs the extra report.",
)
@selection_options
@cut_options
@takes_audio
@output_options
@takes_model
@memory_option
@shares_its_work
@json_option
def reconstruct(
    source: str, target: str, vae: Autoencoder, as_json: bool, report: str | None, **options: Any
) -> None:
    """Encode and decode a video, and measure the result.

    PSNR, SSIM, flicker (the error of frame differences), time per frame and peak memory are printed, and saved with the
    figures of each frame to OUT.metrics.json.
    """
    from temporal_vae.video.pipeline import reconstruct_video

    options |= {"report": report, "command": command_line(), "progress": None}
    with progress_bar("reconstruct") as options["progress"]:
        found = reconstruct_video(source, target, vae=vae, **options)
    if as_json:
        print_json(found.to_dict())
        return
    click.echo(f"{Path(found.source).name} → {found.target}")
    for line in found.lines():
        click.echo(line)
    if report:
        click.echo(f"report   {report}")


def _page(name: str | None) -> str | None:
    """Refuse a page that can't be made before the model is loaded, which may take long."""
    if name is not None:
        from temporal_vae.video.report.page import check_page

        check_page(name)
    return name
