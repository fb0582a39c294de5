"""Rendered footage: moving "dead leaves".

Opaque shapes of all sizes lie on top of each other, as leaves do on a forest floor. Pictures made that way share the
edges, occlusions and size statistics of photographs. Here every leaf drifts and turns, and a camera pans and
zooms over the whole, so that the frames of a clip belong together.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from temporal_vae.media.frames import Frames

Floats = npt.NDArray[np.float32]

_LEAVES = 260
_SHAPES = ("ellipse", "box", "bars", "strokes")


@dataclass(frozen=True, kw_only=True)
class _Leaf:
    shape: str
    centre: Floats  # (2,): y, x; the visible part of the scene is [-1, 1]
    radius: Floats  # (2,)
    angle: float
    drift: Floats  # (2,) per frame
    spin: float  # radians per frame
    colours: Floats  # (2, 3) in [0, 1]: a gradient runs from one to the other
    texture: Floats  # (64, 64), zero mean
    contrast: float
    frequency: float  # stripes per leaf


def render_scene(seed: int, *, frames: int, height: int, width: int) -> Frames:
    """Render a clip of moving leaves; the same arguments give the same frames.

    Args:
        seed: names the scene.
        frames: length of the clip.
        height: of a frame, in pixels.
        width: of a frame, in pixels.

    Returns:
        Frames `(t, h, w, 3)`, 0 to 255.
    """
    rng = np.random.default_rng(seed)
    leaves = [_random_leaf(rng) for _ in range(_LEAVES)]
    pan = rng.normal(0, 0.01, 2).astype(np.float32)
    zoom = float(np.exp(rng.normal(0, 0.01)))
    background = rng.random(3, dtype=np.float32)
    clip = np.empty((frames, height, width, 3), np.uint8)
    for t in range(frames):
        # Drawn at twice the size and averaged, so that edges are smooth and slow motion shows.
        canvas = np.tile(background, (2 * height, 2 * width, 1))
        for leaf in leaves:
            _draw(canvas, leaf, t, pan * t, zoom**t)
        small = canvas.reshape(height, 2, width, 2, 3).mean(axis=(1, 3))
        clip[t] = np.clip(small * 255 + 0.5, 0, 255).astype(np.uint8)
    return clip


def _random_leaf(rng: np.random.Generator) -> _Leaf:
    # Radii r with density ~ r**-3 between the limits, which is what makes the statistics those of photographs.
    smallest, largest = 0.05, 1.2
    u = rng.random()
    radius = (smallest**-2 * (1 - u) + largest**-2 * u) ** -0.5
    base = rng.random(3)
    grey = base.mean()
    base = grey + (base - grey) * rng.random()
    colours = np.clip([base, base + rng.normal(0, 0.15, 3)], 0, 1)
    return _Leaf(
        shape=_SHAPES[rng.choice(len(_SHAPES), p=(0.5, 0.3, 0.1, 0.1))],
        centre=rng.uniform(-1.2, 1.2, 2).astype(np.float32),
        radius=(radius * np.exp(rng.normal(0, 0.4, 2))).astype(np.float32),
        angle=float(rng.uniform(0, 2 * np.pi)),
        drift=rng.normal(0, 0.008, 2).astype(np.float32),
        spin=float(rng.normal(0, 0.02)),
        colours=colours.astype(np.float32),
        texture=_random_texture(rng),
        contrast=float(rng.exponential(0.08)),
        frequency=float(rng.uniform(1, 8)),
    )


def _random_texture(rng: np.random.Generator, size: int = 64) -> Floats:
    """Noise whose amplitude falls with frequency to a random power, unit deviation."""
    y = np.fft.fftfreq(size)[:, None]
    x = np.fft.rfftfreq(size)[None]
    amplitude = np.hypot(y, x) + 1 / size
    spectrum = np.fft.rfft2(rng.normal(size=(size, size))) * amplitude ** -rng.uniform(0.3, 1.8)
    spectrum[0, 0] = 0
    texture = np.fft.irfft2(spectrum, s=(size, size))
    return (texture / texture.std()).astype(np.float32)


def _draw(canvas: Floats, leaf: _Leaf, t: int, pan: Floats, zoom: float) -> None:
    """Paint `leaf` at time `t` onto `canvas` `(h, w, 3)`, in place."""
    size = np.array(canvas.shape[:2], np.float32)
    centre = (leaf.centre + leaf.drift * t + pan) * zoom
    reach = float(np.hypot(*leaf.radius)) * zoom
    low = np.clip(np.floor((centre - reach + 1) / 2 * size), 0, size).astype(int)
    high = np.clip(np.ceil((centre + reach + 1) / 2 * size), 0, size).astype(int)
    if (high <= low).any():
        return
    y = ((np.arange(low[0], high[0], dtype=np.float32) + 0.5) / size[0] * 2 - 1 - centre[0])[:, None]
    x = ((np.arange(low[1], high[1], dtype=np.float32) + 0.5) / size[1] * 2 - 1 - centre[1])[None]
    angle = leaf.angle + leaf.spin * t
    cos, sin = np.cos(angle), np.sin(angle)
    v = ((cos * y + sin * x) / (leaf.radius[0] * zoom)).astype(np.float32)  # the leaf's own axes, in [-1, 1]
    u = ((cos * x - sin * y) / (leaf.radius[1] * zoom)).astype(np.float32)
    inside = _inside(leaf, v, u)
    v, u = v[inside], u[inside]
    blend = np.clip((u + 1) / 2, 0, 1)[:, None]
    colour = leaf.colours[0] * (1 - blend) + leaf.colours[1] * blend
    n = leaf.texture.shape[0]
    rows = (v * leaf.radius[0] * 2 * n).astype(int) % n  # texture sticks to the leaf
    columns = (u * leaf.radius[1] * 2 * n).astype(int) % n
    colour += leaf.contrast * leaf.texture[rows, columns][:, None]
    canvas[low[0] : high[0], low[1] : high[1]][inside] = np.clip(colour, 0, 1)


def _inside(leaf: _Leaf, v: Floats, u: Floats) -> npt.NDArray[np.bool_]:
    """Which points, given on the leaf's own axes, belong to it."""
    if leaf.shape == "ellipse":
        return v**2 + u**2 <= 1
    box = (np.abs(v) <= 0.7) & (np.abs(u) <= 0.7)
    if leaf.shape == "bars":
        return box & (np.sin(np.pi * leaf.frequency * u) > 0)
    if leaf.shape == "strokes":  # rows of short strokes, much like print
        rows = np.sin(2 * np.pi * leaf.frequency * v) > 0
        return (
            box
            & rows
            & (np.sin(5 * leaf.frequency * u + 3 * np.sin(9 * np.floor(leaf.frequency * v))) > -0.3)
        )
    return box
