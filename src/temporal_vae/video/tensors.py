"""Frames as the model sees them, and back. One frame at a time, so that no copy of a whole clip is made on the way."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from temporal_vae.video.frames import Frames


def to_tensor(frames: Frames) -> Tensor:
    """Uint8 frames `(t, h, w, 3)` as float32 `(t, 3, h, w)` in [-1, 1], channels-last in memory."""
    x = torch.empty(frames.shape)
    for values, frame in zip(x, frames, strict=True):
        values.copy_(torch.from_numpy(frame.astype(np.float32))).div_(127.5).sub_(1)
    return x.permute(0, 3, 1, 2)


def to_frames(x: Tensor) -> Frames:
    """What the model returned, `(t, 3, h, w)` about [-1, 1] on any device, as uint8 frames `(t, h, w, 3)`."""
    frames = np.empty((len(x), *x.shape[2:], x.shape[1]), np.uint8)
    for frame, values in zip(frames, x, strict=True):
        levels = values.float().clamp(-1, 1).add_(1).mul_(127.5).round_().to(torch.uint8)
        frame[:] = levels.permute(1, 2, 0).cpu().numpy()
    return frames
