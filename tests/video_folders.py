"""Folders of videos, some of them broken, and what a dataset of them must hold."""

from __future__ import annotations

import json
from collections import Counter
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from video_files import render, scene

from temporal_vae import AutoencoderKLTemporalDecoder
from temporal_vae.distributed.dataset.index import read_index
from temporal_vae.distributed.dataset.places import open_place
from temporal_vae.distributed.dataset.shards import Format, Record, list_shards, read_record, read_shard
from temporal_vae.media.reader import VideoReader
from temporal_vae.video.coder import to_tensor

WHOLE = {
    "wide.mp4": (30, 24, 40),
    "two words.mp4": (12, 32, 32),
    "a/one_two.mp4": (14, 48, 32),
    "b/one_two.mp4": (9, 32, 48),
    "b/übung.mkv": (11, 26, 46),
}
"""Frames, height and width."""

BROKEN = ("cut.mp4", "empty.mp4", "b/text.mp4", "b/tail.mkv")
SHORT = "two.mp4"


def write_videos(folder: Path) -> Path:
    """Whole videos, broken ones, one of two frames, one that is there twice, and a file that is none."""
    for seed, (name, (count, height, width)) in enumerate(WHOLE.items()):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        # Key frames far apart, so that clips begin between them.
        render(folder / name, scene(count, height, width, seed), options={"g": "8", "crf": "12"})
    render(folder / SHORT, scene(2, 24, 32, 9))
    (folder / "again.mp4").write_bytes((folder / "wide.mp4").read_bytes())
    (folder / "notes.txt").write_text("no video")
    whole = (folder / "wide.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "b/text.mp4").write_text("this is no video at all\n" * 20)
    data = (folder / "b/übung.mkv").read_bytes()
    (folder / "b/tail.mkv").write_bytes(data[: len(data) * 2 // 3])
    return folder


@cache
def model() -> AutoencoderKLTemporalDecoder:
    return AutoencoderKLTemporalDecoder.from_embedded().eval()


def read_straight(path: Path, **options: Any) -> tuple[list[Fraction], np.ndarray]:
    """Times and frames of a video, read from its beginning."""
    with VideoReader(path, **options) as reader:
        times, frames = zip(*((time, frame) for frame, time in reader), strict=True)
    return list(times), np.stack(frames)


def encode_directly(frames: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and log-variance of uint8 frames, as whoever has no dataset gets them."""
    with torch.inference_mode():
        posterior = model().encode(to_tensor(frames)).latent_dist
    return posterior.mean, posterior.logvar


def cropped(frames: np.ndarray) -> np.ndarray:
    """The middle of frames, of sides that are multiples of the model's factor."""
    factor = model().spatial_factor
    height, width = frames.shape[1:3]
    top, left = (height % factor) // 2, (width % factor) // 2
    return frames[:, top : top + height // factor * factor, left : left + width // factor * factor]


def covering(frames: np.ndarray, width: int, height: int) -> np.ndarray:
    """Frames scaled so that they cover a size, and cut off evenly."""
    scale = max(Fraction(width, frames.shape[2]), Fraction(height, frames.shape[1]))
    kept_width, kept_height = width / scale, height / scale
    left, top = (frames.shape[2] - kept_width) / 2, (frames.shape[1] - kept_height) / 2
    box = tuple(map(float, (left, top, left + kept_width, top + kept_height)))
    images = (
        Image.fromarray(frame).resize((width, height), Image.Resampling.LANCZOS, box) for frame in frames
    )
    return np.stack([np.array(image) for image in images])


def records(dest: Path, format: Format = "tar") -> dict[str, Record]:
    """All clips in all shards that are there; none may be there twice."""
    place = open_place(dest)
    found = [record for name in list_shards(place, format) for record in read_shard(place, name, format)]
    counts = Counter(record.identity for record in found)
    assert max(counts.values(), default=1) == 1, "a clip is there twice"
    return {record.identity: record for record in found}


def index(dest: Path) -> list[dict[str, Any]]:
    """The index; every row of it must lead to its clip."""
    place = open_place(dest)
    rows = read_index(place).to_pylist()
    for row in rows:
        at = row["offset"], row["length"]
        assert (
            read_record(place, row["shard"], row["format"], row["identity"], at).identity == row["identity"]
        )
    return rows


def quarantine(dest: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (dest / "quarantine.jsonl").read_text().splitlines()]


def summary(dest: Path) -> dict[str, Any]:
    return json.loads((dest / "summary.json").read_text())


def assert_same(first: dict[str, Record], second: dict[str, Record]) -> None:
    """The same clips, with the same numbers and the same descriptions."""
    assert first.keys() == second.keys()
    for identity, record in first.items():
        assert record.meta == second[identity].meta
        assert record.tensors.keys() == second[identity].tensors.keys()
        for name, values in record.tensors.items():
            torch.testing.assert_close(values, second[identity].tensors[name], rtol=0, atol=2e-5)


def assert_as_whole(dest: Path, whole: Path) -> None:
    """Identity by identity, bit by bit, row by row."""
    found, expected = records(dest), records(whole)
    assert_same(found, expected)
    for identity, record in found.items():
        for name, values in record.tensors.items():
            assert torch.equal(values, expected[identity].tensors[name])
    keys = ("identity", "path", "start", "end", "frames", "bucket")
    assert [[row[key] for key in keys] for row in index(dest)] == [
        [row[key] for key in keys] for row in index(whole)
    ]
    assert quarantine(dest) == quarantine(whole)
    assert {key: summary(dest)[key] for key in ("clips", "left_out")} == {
        key: summary(whole)[key] for key in ("clips", "left_out")
    }
    assert not half_written(dest)


def half_written(dest: Path) -> list[Path]:
    return [path for path in dest.rglob("*") if ".part" in path.name]
