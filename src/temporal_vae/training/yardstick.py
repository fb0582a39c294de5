"""The linear yardstick: the best code of as many numbers that looks at one patch of pixels at a time and only adds."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from temporal_vae.video.frames import Frames, crop_to, pad_to_multiple
from temporal_vae.video.tensors import to_frames, to_tensor


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
