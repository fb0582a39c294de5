"""Videos that tests render: no footage is needed."""

from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

LUMA = {
    "bt709": (0.2126, 0.0722),
    "smpte170m": (0.299, 0.114),
    "bt470bg": (0.299, 0.114),
    "bt2020nc": (0.2627, 0.0593),
}
MATRIX = {
    "bt709": 1,
    "fcc": 4,
    "bt470bg": 5,
    "smpte170m": 6,
    "smpte240m": 7,
    "ycgco": 8,
    "bt2020nc": 9,
    "bt2020c": 10,
}


def scene(count: int, height: int = 48, width: int = 64, seed: int = 0) -> np.ndarray:
    """Smooth colour gradients that move: uint8 (t, h, w, 3)."""
    rng = np.random.default_rng(seed)
    phase, y, x = np.meshgrid(np.arange(count), np.arange(height), np.arange(width), indexing="ij")
    waves = []
    for _ in range(3):
        across, down, speed = rng.uniform(1, 2, 3)
        waves.append(np.sin(6.3 * (across * x / width + down * y / height) + speed * phase / 10))
    return np.rint(np.stack(waves, -1) * 100 + 128).astype(np.uint8)


def numbered(count: int, height: int = 32, width: int = 48) -> np.ndarray:
    """Frames whose grey level is four times their number, so that a frame tells which one it is."""
    levels = np.arange(count, dtype=np.uint8) * 4
    return np.broadcast_to(levels[:, None, None, None], (count, height, width, 3)).copy()


def numbers(frames: Iterable[np.ndarray]) -> list[int]:
    """Undo `numbered`, also after lossy coding."""
    return [round(float(frame.mean()) / 4) for frame in frames]


def render(
    path: Path,
    frames: np.ndarray,
    *,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    rate: Fraction | int = 25,
    pts: Sequence[int] | None = None,
    time_base: Fraction | None = None,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    container: str | None = None,
    rotation: tuple[int, bool] | None = None,
    audio: str | None = None,
    tags: dict[str, str] | None = None,
) -> Path:
    """Encode RGB (or RGBA) frames as they are; `audio` names a codec for a second stream of noise."""
    with av.open(str(path), "w", format=container, options=container_options or {}) as output:
        stream = output.add_stream(codec, rate=rate, options=options or {})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pix_fmt
        stream.metadata.update(tags or {})
        if time_base is not None:
            stream.codec_context.time_base = stream.time_base = time_base
        if rotation is not None:
            stream.set_display_rotation(rotation[0], hflip=rotation[1])
        track = output.add_stream(audio, rate=48000) if audio else None
        for index, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(frame, format="rgba" if frame.shape[2] == 4 else "rgb24")
            picture = picture.reformat(format=pix_fmt)
            if pts is not None:
                picture.pts, picture.time_base = pts[index], time_base
            output.mux(stream.encode(picture))
        output.mux(stream.encode(None))
        if track is not None:
            _add_sound(output, track, seconds=len(frames) / rate)
    return path


def render_planes(
    path: Path,
    planes: Sequence[np.ndarray],
    pix_fmt: str,
    *,
    matrix: str | None,
    full: bool | None,
    codec: str = "ffv1",
) -> Path:
    """One frame with exactly these planes (of H.264, nearly), tagged as told."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream(
            codec, rate=25, options={"level": "3"} if codec == "ffv1" else {"crf": "1"}
        )
        stream.height, stream.width = planes[0].shape
        stream.pix_fmt = pix_fmt
        if matrix is not None:
            stream.codec_context.colorspace = MATRIX[matrix]
        if full is not None:
            stream.codec_context.color_range = 2 if full else 1
        output.mux(stream.encode(picture_of(planes, pix_fmt)))
        output.mux(stream.encode(None))
    return path


def picture_of(planes: Sequence[np.ndarray], pix_fmt: str) -> av.VideoFrame:
    picture = av.VideoFrame(planes[0].shape[1], planes[0].shape[0], pix_fmt)
    for plane, values in zip(picture.planes, planes, strict=True):
        rows = np.frombuffer(plane, values.dtype).reshape(plane.height, -1)
        rows[:, : values.shape[1]] = values
    return picture


def yuv_to_rgb(
    y: np.ndarray, u: np.ndarray, v: np.ndarray, matrix: str, full: bool, bits: int = 8
) -> np.ndarray:
    """The formulas of BT.601, BT.709 and BT.2020, in float64."""
    red, blue = LUMA[matrix]
    unit, peak = 2.0 ** (bits - 8), 2.0**bits - 1
    black, luma, chroma = (0.0, peak, peak) if full else (16 * unit, 219 * unit, 224 * unit)
    y, u, v = (y - black) / luma, (u - 128 * unit) / chroma, (v - 128 * unit) / chroma
    r, b = y + 2 * (1 - red) * v, y + 2 * (1 - blue) * u
    g = (y - red * r - blue * b) / (1 - red - blue)
    return np.clip(np.stack([r, g, b], -1) * 255, 0, 255)


def _add_sound(output: av.container.OutputContainer, track: av.AudioStream, seconds: float) -> None:
    noise = np.random.default_rng(0).standard_normal((2, round(seconds * 48000))).astype(np.float32) * 0.1
    size = track.codec_context.frame_size or 1024
    layout, sample = track.codec_context.layout.name, track.codec_context.format.name
    resampler = av.AudioResampler(format=sample, layout=layout, rate=48000)
    for start in range(0, noise.shape[1], size):
        block = np.ascontiguousarray(noise[:, start : start + size])
        frame = av.AudioFrame.from_ndarray(block, format="fltp", layout="stereo")
        frame.sample_rate, frame.pts = 48000, start
        for part in resampler.resample(frame):
            output.mux(track.encode(part))
    output.mux(track.encode(None))
