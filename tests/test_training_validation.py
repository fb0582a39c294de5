"""What a run looks at: samples, figures, sheets."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from refusals import refused

from temporal_vae.autoencoders.temporal import AutoencoderKLTemporalDecoder
from temporal_vae.errors import ConfigError
from temporal_vae.media.writer import VideoWriter
from temporal_vae.training.config.fields import Source, Validation
from temporal_vae.training.validation import Sample, mean_psnr, measure, reconstruct, samples, write_sheet


def video(path: Path, frames: int = 10) -> Path:
    """A lossless clip of 48x32 at 10 frames per second whose frame t is all of level 10 t."""
    pictures = np.stack([np.full((32, 48, 3), 10 * t, np.uint8) for t in range(frames)])
    with VideoWriter(path, rate=Fraction(10)) as writer:
        writer.write(pictures, [Fraction(t, 10) for t in range(frames)])
    return path


def test_the_beginning_of_everything(tmp_path: Path) -> None:
    video(tmp_path / "a.mkv")
    Image.new("RGB", (64, 40), "red").save(tmp_path / "b.png")
    (tmp_path / "c.mp4").write_bytes(b"not a video")
    found, faults = samples(
        Validation(sources=(Source(path=str(tmp_path)), Source(scenes=1)), frames=3, size=20)
    )
    assert [sample.frames.shape for sample in found] == [(3, 20, 30, 3), (1, 20, 32, 3), (3, 20, 20, 3)]
    assert [int(frame.mean()) for frame in found[0].frames] == [0, 10, 20]
    assert [Path(name).name for name in faults] == ["c.mp4"]


def test_a_stretch_of_a_manifest(tmp_path: Path) -> None:
    video(tmp_path / "a.mkv")
    (tmp_path / "list.csv").write_text("path,start,end\na.mkv,0.3,0.6\na.mkv,0.8,\na.mkv,5,\n")
    found, faults = samples(Validation(sources=(Source(path=str(tmp_path / "list.csv")),), frames=8))
    assert [[int(frame.mean()) for frame in sample.frames] for sample in found] == [[30, 40, 50], [80, 90]]
    assert len(faults) == 1


def test_nothing_there(tmp_path: Path) -> None:
    refused(
        ConfigError, lambda: samples(Validation(sources=(Source(path=str(tmp_path / "no")),))), "no such file"
    )


def test_figures() -> None:
    source = np.full((2, 16, 16, 3), 100, np.uint8)
    result = source.copy()
    result[1] += 10
    figures = measure(Sample(name="x", frames=source), result)
    assert figures.flicker == pytest.approx(10)
    assert figures.psnr == pytest.approx((100 + 28.13) / 2, abs=0.01)
    still = measure(Sample(name="y", frames=source[:1]), result[1:])
    assert still.flicker is None
    assert still.psnr == pytest.approx(28.13, abs=0.01)
    assert mean_psnr([still, still]) == still.psnr


def test_clips_and_sheets(tmp_path: Path) -> None:
    vae = AutoencoderKLTemporalDecoder.from_embedded()
    found, _ = samples(Validation(sources=(Source(scenes=2),), frames=3, size=32))
    pairs = [(sample, reconstruct(vae, sample, clip_frames=2)) for sample in found]
    assert all(result.shape == sample.frames.shape for sample, result in pairs)
    alone = reconstruct(vae, found[0], clip_frames=1)
    assert not np.array_equal(alone, pairs[0][1])
    write_sheet(tmp_path / "sheet.png", pairs, [measure(*pair) for pair in pairs])
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (1200, 2 * (400 + 16))
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]
