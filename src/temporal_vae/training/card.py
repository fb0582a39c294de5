"""`python -m temporal_vae.training.card`: measure the figures of the model card, the linear yardstick beside them."""

from pathlib import Path

import click


@click.command()
@click.option("--model", type=click.Path(path_type=Path), required=True, help="Folder of the model.")
@click.option(
    "--media",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Footage that the training saw, and the file that it did not.",
)
def main(model: Path, media: Path | None) -> None:
    """Print a table of PSNR and SSIM in Markdown."""
    from temporal_vae.errors import TemporalVaeError

    try:
        _measure(model, media)
    except TemporalVaeError as error:
        raise click.ClickException(str(error)) from error


def _measure(model: Path, media: Path | None) -> None:
    from temporal_vae.autoencoder import AutoencoderKLTemporalDecoder
    from temporal_vae.training.data import Sampler, training_sources
    from temporal_vae.training.evaluate import PatchComponents, card_clips, held_out, measure, reconstruct
    from temporal_vae.training.recipe import EMBEDDED

    vae = AutoencoderKLTemporalDecoder.from_pretrained(model)
    sampler = Sampler(training_sources(media), seed=EMBEDDED.seed, odds=EMBEDDED.odds)
    components = PatchComponents.of(sampler, components=vae.config.latent_channels)
    click.echo("| pictures | frames | size | PSNR | SSIM | PSNR of linear PCA | SSIM of linear PCA |")
    click.echo("| --- | --- | --- | --- | --- | --- | --- |")
    for clips in [*card_clips(), *held_out(media, frames=50)]:
        frames = clips.frames
        own = measure(frames, reconstruct(vae, frames))
        linear = measure(frames, components.reconstruct(frames))
        size = f"{frames.shape[2]}x{frames.shape[1]}"
        click.echo(
            f"| {clips.name} | {len(frames)} | {size} | {own.psnr:.2f} dB | {own.ssim:.3f} "
            f"| {linear.psnr:.2f} dB | {linear.ssim:.3f} |"
        )


if __name__ == "__main__":
    main(prog_name="python -m temporal_vae.training.card")
