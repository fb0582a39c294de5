"""Decode 25 frames of 576x1024 on a machine with 8 GB, and show what that took.

    python examples/eight_gigabytes.py                                # random weights: nothing is downloaded
    python examples/eight_gigabytes.py --model stabilityai/stable-video-diffusion-img2vid-xt --latents my.safetensors

Random weights of the published configuration take the time and the memory of the published ones; their video is noise.
docs/decode-25-frames.md explains the steps.
"""

from pathlib import Path
from time import perf_counter

import click
import psutil
import torch
from safetensors.torch import save_file

from temporal_vae import AutoencoderKLTemporalDecoder, decode_video
from temporal_vae.engine import SVD, readable


def published_with_random_weights() -> AutoencoderKLTemporalDecoder:
    """The configuration of Stable Video Diffusion."""
    levels = len(SVD.widths)
    return AutoencoderKLTemporalDecoder(
        block_out_channels=SVD.widths,
        down_block_types=("DownEncoderBlock2D",) * levels,
        layers_per_block=SVD.layers,
    ).eval()


def random_latents(
    vae: AutoencoderKLTemporalDecoder, frames: int, height: int, width: int, path: Path
) -> Path:
    """A file as a pipeline's `output_type="latent"` would give: `(1, frames, channels, h, w)`, scaled."""
    factor = vae.spatial_factor
    shape = (1, frames, vae.config.latent_channels, height // factor, width // factor)
    save_file({"latents": torch.randn(shape, generator=torch.Generator().manual_seed(0))}, path)
    return path


def peak_memory() -> int:
    """The most memory that this process ever held, in bytes; what it holds now where the system keeps no peak."""
    held = psutil.Process().memory_info()
    try:
        import resource
    except ImportError:  # Windows
        return int(getattr(held, "peak_wset", held.rss))
    unit = 1 if psutil.MACOS else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@click.command()
@click.option(
    "--model", help="Folder or Hugging Face id, its autoencoder in `vae`; by default random weights."
)
@click.option(
    "--latents", type=click.Path(path_type=Path, exists=True), help="Of a pipeline; by default random."
)
@click.option("--frames", default=25, show_default=True, help="Of random latents.")
@click.option(
    "--size", nargs=2, type=int, default=(576, 1024), show_default=True, help="Their height and width."
)
@click.option("--memory-limit", default="4GiB", show_default=True, help="Above the weights.")
@click.option(
    "--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), default="bfloat16", show_default=True
)
@click.option(
    "--output", type=click.Path(path_type=Path), default=Path("eight-gigabytes.mp4"), show_default=True
)
def main(
    model: str | None,
    latents: Path | None,
    frames: int,
    size: tuple[int, int],
    memory_limit: str,
    dtype: str,
    output: Path,
) -> None:
    """Decode latents into OUTPUT within a limit."""
    dtype_ = getattr(torch, dtype)
    if model is None:
        vae = published_with_random_weights().to(dtype_)
    else:
        vae = AutoencoderKLTemporalDecoder.from_pretrained(model, subfolder="vae", torch_dtype=dtype_)
    loaded = psutil.Process().memory_info().rss
    if latents is None:
        height, width = size
        latents = random_latents(vae, frames, height, width, output.with_suffix(".safetensors"))
        click.echo(vae.plan_decode(num_frames=frames, height=height, width=width, memory_limit=memory_limit))
    began = perf_counter()
    decode_video(latents, output, vae=vae, scaled=True, fps=7, clip_frames=None, memory_limit=memory_limit)
    click.echo(f"\n{output}: {perf_counter() - began:.0f} s")
    click.echo(
        f"memory of the process: {readable(loaded)} with the model loaded, at most {readable(peak_memory())}"
    )


if __name__ == "__main__":
    main()
