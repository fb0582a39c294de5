"""Latents as other programs keep them: one tensor, of which nobody says what video it is.

Read are safetensors, as pipelines of diffusers are saved with `output_type="latent"` and as ComfyUI saves latents
(`*.latent`), and NumPy's `.npy`.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from temporal_vae.autoencoders.base import Autoencoder
from temporal_vae.errors import InputError, LatentFileError
from temporal_vae.media.frames import Color, clip_starts
from temporal_vae.media.images import STILL_RATE
from temporal_vae.outputs import check_readable
from temporal_vae.video.latents import METADATA_KEY, LatentInfo, LatentReader, ModelIdentity, refusing
from temporal_vae.video.scaling import unscaled


class PlainLatents:
    """A tensor of latents as `LatentReader` reads a file that describes itself; a context manager.

    Args:
        source: the file.
        vae: the model that decodes; it has as many latent channels as the tensor.
        scaled: the latents are those of a diffusion model, scaled by `scaling_factor` and shifted.
        fps: frames per second of the video; 24 if None.

    Attributes:
        info: what is assumed of the video.

    Raises:
        LatentFileError: a file that is missing or damaged, or does not hold one tensor of such latents.
        InputError: no rate, or `scaled` where pipelines scale in another way.
    """

    def __init__(
        self, source: str | Path, *, vae: Autoencoder, scaled: bool = False, fps: Fraction | None = None
    ) -> None:
        if fps is not None and fps <= 0:
            raise InputError(f"fps={fps}: frames per second, above 0")
        self.source = Path(source)
        with refusing(self.source):
            check_readable(source)
        name, values = _single_tensor(self.source)
        frames = _frames(values, vae.config["latent_channels"], vae.network.temporal)
        if frames is None:
            raise LatentFileError(
                f"{source}: {name} {tuple(values.shape)} is no video of latents of {vae.config['latent_channels']} "
                f"channels: (c, h, w), (t, c, h, w), (c, t, h, w), (1, c, t, h, w) or (1, t, c, h, w), unpacked"
            )
        if not frames.isfinite().all():
            raise LatentFileError(f"{source}: {name} holds values that are not finite; make it again")
        self._frames = unscaled(frames, vae) if scaled else frames
        rate, factor = fps or STILL_RATE, vae.spatial_factor
        height, width = (factor * length for length in frames.shape[-2:])
        self.info = LatentInfo(
            model=ModelIdentity.of(vae),
            source_name=self.source.name,
            source_sha256="",
            rate=rate,
            height=height,
            width=width,
            padded_height=height,
            padded_width=width,
            color=Color(),
            pixel_aspect=Fraction(1),
            time_base=1 / rate,
            timestamps=tuple(number / rate for number in range(len(frames))),
        )

    def __len__(self) -> int:
        return len(self._frames)

    def __enter__(self) -> PlainLatents:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def clips(self, clip_frames: int | None, overlap: int = 0) -> Iterator[tuple[range, Tensor, Tensor]]:
        """As `LatentReader.clips`; the log-variance is that of latents that are certain."""
        for start, stop in clip_starts(len(self), clip_frames, overlap):
            mean = self._frames[start:stop]
            yield range(start, stop), mean, torch.full_like(mean, -torch.inf)


def open_latents(
    source: str | Path,
    *,
    vae: Autoencoder,
    scaled: bool = False,
    fps: Fraction | None = None,
    sampled: bool = False,
) -> LatentReader | PlainLatents:
    """Open a latent file of this package or a plain tensor.

    Args:
        source: the file.
        vae: the model that decodes.
        scaled: see `PlainLatents`.
        fps: see `PlainLatents`.
        sampled: a sample of a posterior is wanted.

    Raises:
        LatentFileError: see `LatentReader` and `PlainLatents`.
        InputError: `scaled` or `fps` of a file that says both itself, or a sample of latents that are one.
    """
    if _describes_itself(Path(source)):
        if scaled or fps is not None:
            word = "scaled" if scaled else "fps"
            raise InputError(f"{word}: {source} says by itself how it is to be read; leave it out")
        return LatentReader(source, vae=vae)
    if sampled:
        raise InputError(f"sample: {source} holds latents and no posterior to draw them from; leave it out")
    return PlainLatents(source, vae=vae, scaled=scaled, fps=fps)


def _describes_itself(source: Path) -> bool:
    """Whether a file is one of this package, as far as its header can be read."""
    if source.suffix == ".npy":
        return False
    try:
        with safe_open(str(source), framework="pt") as file:
            return METADATA_KEY in (file.metadata() or {}) or {"mean", "logvar"} <= set(file.keys())
    except (SafetensorError, OSError):
        return source.suffix == ".safetensors"  # let the reader say what is wrong with it


def _single_tensor(source: Path) -> tuple[str, Tensor]:
    """The only tensor of a file that may be latents, and its name."""
    try:
        if source.suffix == ".npy":
            found = {"the array": torch.from_numpy(np.load(source, allow_pickle=False))}
        else:
            with safe_open(str(source), framework="pt") as file:
                found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, EOFError, TypeError) as error:
        raise LatentFileError(
            f"{source}: is no safetensors or .npy file ({' '.join(str(error).split())}); save the latents as such"
        ) from error
    fitting = {
        name: values
        for name, values in found.items()
        if values.ndim in (3, 4, 5) and values.is_floating_point()
    }
    if len(fitting) != 1:
        names = ", ".join(f"{name} {tuple(values.shape)}" for name, values in list(found.items())[:4])
        more = ", ..." if len(found) > 4 else ""
        raise LatentFileError(f"{source}: holds {names or 'nothing'}{more}; one tensor of latents is read")
    return next(iter(fitting.items()))


def _frames(values: Tensor, channels: int, temporal: bool) -> Tensor | None:
    """As `(t, c, h, w)`; None for what is none. Which axis is which is told by its length.

    Where both could be the channels, pictures have them first and video models behind the frames.
    """
    if values.ndim == 5:
        if len(values) != 1:
            return None
        values = values[0]
        if values.shape[0] == channels and not (temporal and values.shape[1] == channels):
            values = values.transpose(0, 1)
    elif values.ndim == 4 and values.shape[1] != channels:
        values = values.transpose(0, 1)
    elif values.ndim == 3:
        values = values[None]
    return values if values.shape[1] == channels and values.numel() else None
