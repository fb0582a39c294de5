"""What happens to a stretch of frames on its way into a batch: windows that pan and zoom, mirror images, colours."""

from __future__ import annotations

import numpy as np
from PIL import Image

from temporal_vae.media.frames import Frames
from temporal_vae.training.config.fields import Augmentation
from temporal_vae.training.data.footage import Unfit

_SPEED = 2.0  # of a pan, pixels per frame: the deviation of both coordinates
_LARGEST = 1.6  # a window that is scaled down, against its size in the batch
_ZOOM_SPEED = 0.02  # deviation of the logarithm of a window's growth per frame


def window(frames: Frames, rng: np.random.Generator, size: tuple[int, int], how: Augmentation) -> Frames:
    """Cut a clip of `size` (height, width) out of `frames` `(t, h, w, 3)`.

    Raises:
        Unfit: frames that are smaller than the window.
    """
    total, *whole = frames.shape[:3]
    extent = np.array(size, np.float64)
    room = np.array(whole) / extent  # how many windows fit, along height and width
    if room.min() < 1:
        raise Unfit
    scales = np.ones(total)
    if rng.random() < how.zoom:
        growth = np.exp(rng.normal(0, _ZOOM_SPEED) * np.arange(total))
        scales = np.clip(rng.uniform(1, _LARGEST) * growth, 1, room.min())
    still = total > 1 and bool((frames[0] == frames[-1]).all())
    speed = rng.normal(0, _SPEED, 2) if rng.random() < how.pan or still else np.zeros(2)
    centre = extent * scales.max() / 2 + rng.random(2) * (np.array(whole) - extent * scales.max())
    clip = np.empty((total, *size, 3), np.uint8)
    for t, scale in enumerate(scales):
        sides = np.minimum(np.rint(extent * scale), whole).astype(int)
        corner = np.clip(np.rint(centre + speed * t - sides / 2), 0, np.array(whole) - sides).astype(int)
        cut = frames[t, corner[0] : corner[0] + sides[0], corner[1] : corner[1] + sides[1]]
        clip[t] = cut if cut.shape[:2] == size else _resize(cut, size)
    return clip


def cover(frames: Frames, size: tuple[int, int]) -> Frames:
    """Scale `(t, h, w, 3)` down until it just covers `size` (height, width), and cut off what stands out evenly.

    Raises:
        Unfit: frames that are smaller.
    """
    height, width = frames.shape[1:3]
    scale = max(size[0] / height, size[1] / width)
    if scale > 1:
        raise Unfit
    scaled = max(size[0], round(height * scale)), max(size[1], round(width * scale))
    top, left = (scaled[0] - size[0]) // 2, (scaled[1] - size[1]) // 2
    return np.stack([_resize(frame, scaled)[top : top + size[0], left : left + size[1]] for frame in frames])


def vary(clip: Frames, rng: np.random.Generator, how: Augmentation) -> Frames:
    """Mirror a clip, turn it back in time, change its colours."""
    flip, reverse, color = rng.random(3) < (how.flip, how.reverse, how.color)
    if reverse:
        clip = clip[::-1]
    if flip:
        clip = clip[:, :, ::-1]
    return _recolor(clip, rng) if color else clip


def _recolor(clip: Frames, rng: np.random.Generator) -> Frames:
    """Other colours, often saturated ones: channels swapped, saturation scaled, gains and offsets of each channel."""
    x = clip.astype(np.float32) / 255
    x = x[..., rng.permutation(3)]
    if rng.random() < 0.6:
        grey = x.mean(axis=-1, keepdims=True)
        x = grey + (x - grey) * np.float32(rng.uniform(0.3, 3.5))
    if rng.random() < 0.4:
        x = x * rng.uniform(0, 1.6, 3).astype(np.float32) + rng.uniform(-0.2, 0.2, 3).astype(np.float32)
    return (x.clip(0, 1) * 255 + 0.5).astype(np.uint8)


def _resize(picture: Frames, size: tuple[int, int]) -> Frames:
    if picture.shape[:2] == size:
        return picture
    return np.asarray(Image.fromarray(picture).resize((size[1], size[0]), Image.Resampling.BOX))
