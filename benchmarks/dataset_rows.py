"""What the framework itself costs: many rows, and a model that computes nothing."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from time import perf_counter
from typing import Any

import av
import numpy as np

from benchmarks.dataset_contestants import Idle, executor_of, timing
from temporal_vae.distributed import Settings, encode_dataset
from temporal_vae.distributed.dataset.request import Request
from temporal_vae.distributed.dataset.run import Run

SPANS = 100  # rows of a video
_RATE = 25
_PER_SHARD = 500


def write_manifest(folder: Path, rows: int) -> Path:
    """A manifest of so many rows, `SPANS` to a video, each of a frame of its own; and the videos."""
    folder.mkdir()
    video = folder / "0.mp4"
    _render(video)
    data = video.read_bytes()
    for number in range(
        1, rows // SPANS
    ):  # the same pictures, but other files: each ends in a box of its own
        (folder / f"{number}.mp4").write_bytes(data + b"\x00\x00\x00\x10free" + number.to_bytes(8, "big"))
    manifest = folder / "rows.csv"
    with manifest.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "start", "end", "caption"))
        for row in range(rows):
            first = row % SPANS
            writer.writerow(
                (f"{row // SPANS}.mp4", first / _RATE, (first + 1) / _RATE, f"what row {row} shows")
            )
    return manifest


def measure_rows(folder: Path, rows: int) -> dict[str, float]:
    """Seconds to plan rows of unknown and of known videos, to encode them without a model, and to find all done."""
    manifest, dest = write_manifest(folder, rows), folder / "latents"
    found: dict[str, float] = {}
    for name in ("plan, each video read", "plan, videos known"):
        with _timed(found, name), Run(_request(manifest, dest)) as run:
            assert len(run.missing) == rows
    with _timed(found, "encode without a model"):
        assert _encode(manifest, dest)["encoded"] == rows
    with _timed(found, "resume, all done"):
        assert _encode(manifest, dest)["found"] == rows
    return found


def measure_overhead(folder: Path, rows: int, kind: str, count: int) -> dict[str, float]:
    """Seconds until the first clip, and milliseconds of each further one, where the model computes nothing."""
    manifest = folder / "rows.csv"
    marks: list[tuple[float, int]] = []
    began = perf_counter()
    encode_dataset(
        manifest,
        folder / f"{kind}-{count}",
        settings=Settings(clip_frames=1),
        device="cpu",
        clips_per_shard=16,
        executor=executor_of(kind, count, Idle),
        progress=lambda now: marks.append((perf_counter(), now.done)) if now.phase == "encode" else None,
    )
    taken = timing(perf_counter() - began, marks)
    first = next(time for time, done in marks if done) - marks[0][0]
    return {"first clip after s": first, "ms a clip": 1e3 / taken.rate, "clips": taken.clips}


def _request(manifest: Path, dest: Path) -> Request:
    return Request(
        source=manifest,
        dest=dest,
        settings=Settings(clip_frames=1),
        device="cpu",
        executor=executor_of("local", 2, Idle),
        clips_per_shard=_PER_SHARD,
    )


def _encode(manifest: Path, dest: Path) -> dict[str, Any]:
    with Run(_request(manifest, dest)) as run:
        return run.encode().to_json()


@contextmanager
def _timed(into: dict[str, float], name: str) -> Iterator[None]:
    began = perf_counter()
    yield
    into[name] = perf_counter() - began


def _render(path: Path) -> None:
    random = np.random.default_rng(0)
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=_RATE)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = Fraction(1, _RATE)
        for _ in range(SPANS):
            frame = random.integers(0, 255, (6, 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
            output.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        output.mux(stream.encode(None))
