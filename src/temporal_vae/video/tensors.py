"""Frames as the model sees them, and back."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from temporal_vae.video.frames import Frames


def to_tensor(frames: Frames) -> Tensor:
    """Uint8 frames `(t, h, w, 3)` as float32 `(t, 3, h, w)` in [-1, 1], channels-last in memory."""
    return torch.from_numpy(frames.astype(np.float32)).permute(0, 3, 1, 2) / 127.5 - 1


def to_frames(x: Tensor) -> Frames:
    """What the model returned, `(t, 3, h, w)` about [-1, 1] on any device, as uint8 frames `(t, h, w, 3)`."""
    frames: Frames = (
        ((x.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    )
    return frames
