"""What a run looks at from time to time: unseen clips through the averaged weights, with figures and pictures."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from temporal_vae.autoencoders.temporal import AutoencoderKLTemporalDecoder
from temporal_vae.errors import MediaError, one_line
from temporal_vae.media.frames import Frames, clip_starts
from temporal_vae.media.reader import VideoReader
from temporal_vae.metrics import QualityMeter
from temporal_vae.outputs import complete_or_nothing
from temporal_vae.training.config.fields import Validation
from temporal_vae.training.data.footage import SCENE_SIDE
from temporal_vae.training.data.scenes import render_scene
from temporal_vae.training.data.sources import Item, items_of
from temporal_vae.video.coder import Coder
from temporal_vae.video.comparison import AMPLIFICATION, side_by_side

_SHEET_WIDTH = 1200  # pixels
_LABEL_HEIGHT = 16
_MOST_PSNR = 100.0  # dB, of a frame without any error, so that means stay finite


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A clip that is reconstructed: frames `(t, h, w, 3)`."""

    name: str
    frames: Frames


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Of one sample: PSNR in dB and SSIM, means over frames; flicker in 8-bit levels, None for a single frame."""

    name: str
    psnr: float
    ssim: float
    flicker: float | None


def samples(config: Validation) -> tuple[list[Sample], dict[str, str]]:
    """The beginning of everything that validation looks at, and what of it cannot be read, with the reasons.

    Raises:
        ConfigError: a source that holds nothing.
    """
    found, faults = [], {}
    for source in config.sources:
        for item in items_of(source):
            try:
                found.append(Sample(name=item.name, frames=_beginning(item, config)))
            except (MediaError, OSError) as error:
                faults[item.name] = one_line(error)
    return found, faults


def _beginning(item: Item, config: Validation) -> Frames:
    if item.path is None:
        side = config.size or SCENE_SIDE
        return render_scene(item.scene, frames=config.frames, height=side, width=side)
    with VideoReader(item.path) as reader:
        width, height = reader.width, reader.height
        start = item.start + (0.0 if reader.info.frames == 1 else config.start)
    scale = 1.0 if config.size is None else min(1.0, config.size / min(width, height))
    size = round(width * scale), round(height * scale)
    with VideoReader(item.path, start=start, frames=config.frames, size=size) as reader:
        pictures = islice(reader, config.frames)
        frames = [frame for frame, time in pictures if item.end is None or time < item.end]
    if not frames:
        raise MediaError(f"{item.name}: no frame between {start} and {item.end} s; choose another stretch")
    return np.stack(frames)


def reconstruct(
    vae: AutoencoderKLTemporalDecoder, sample: Sample, *, clip_frames: int | None = None
) -> Frames:
    """Encode to the mean and decode in clips of so many frames, or as one, in the engine; frames `(t, h, w, 3)`."""
    coder = Coder(vae, *sample.frames.shape[1:3])
    cuts = clip_starts(len(sample.frames), clip_frames)
    return np.concatenate([coder.reconstruct(sample.frames[start:stop]) for start, stop in cuts])


def measure(sample: Sample, result: Frames) -> Figures:
    """Compare a reconstruction with its source."""
    meter = QualityMeter()
    meter.update(sample.frames, result)
    summary = meter.summary()
    flicker = summary["flicker"] if len(result) > 1 else None
    psnr = sum(min(value, _MOST_PSNR) for value in meter.psnr) / len(meter.psnr)
    return Figures(name=sample.name, psnr=psnr, ssim=summary["ssim"], flicker=flicker)


def mean_psnr(figures: list[Figures]) -> float:
    """Mean over the samples, in dB; what the best checkpoint is best in."""
    return sum(each.psnr for each in figures) / len(figures)


def write_sheet(path: Path, pairs: list[tuple[Sample, Frames]], figures: list[Figures]) -> None:
    """Draw source, result and amplified difference of the middle frame of every sample, one below the other."""
    rows = []
    for (sample, result), each in zip(pairs, figures, strict=True):
        middle = len(result) // 2
        row = Image.fromarray(
            side_by_side(sample.frames[middle : middle + 1], result[middle : middle + 1])[0]
        )
        row = row.resize((_SHEET_WIDTH, max(1, round(row.height * _SHEET_WIDTH / row.width))))
        rows.append(
            (row, f"{Path(each.name).name}: {each.psnr:.2f} dB; source, result, difference x{AMPLIFICATION}")
        )
    sheet = Image.new("RGB", (_SHEET_WIDTH, sum(row.height + _LABEL_HEIGHT for row, _ in rows)), "white")
    draw, top = ImageDraw.Draw(sheet), 0
    for row, label in rows:
        draw.text((4, top + 2), label, fill="black")
        sheet.paste(row, (0, top + _LABEL_HEIGHT))
        top += _LABEL_HEIGHT + row.height
    with complete_or_nothing(path) as temporary:
        sheet.save(temporary, format="PNG")
