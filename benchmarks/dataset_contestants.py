"""Who encodes a folder of videos, each the whole way from files to files; and one that has no model.

All cut the same clips: the first frames of a video, then the next, scaled to cover a size and cut evenly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from temporal_vae.distributed import Settings, encode_dataset
from temporal_vae.distributed.dataset.encode_job import Batch, EncodeJob, Report
from temporal_vae.distributed.dataset.executors import Executor, MakeWorker, make_worker
from temporal_vae.distributed.dataset.executors.local import LocalExecutor
from temporal_vae.distributed.dataset.executors.ray import RayExecutor
from temporal_vae.distributed.dataset.places import open_place
from temporal_vae.distributed.dataset.shards import Record, list_shards, read_shard, write_shard

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

PLAIN = "diffusers loop"
Means = dict[tuple[str, int], "Tensor"]
"""Means of clips by the name of the video and the number of the clip in it."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What all of them do.

    Attributes:
        videos: folder of videos.
        model: folder, or `embedded`.
        frames: of a clip.
        size: width and height of a clip.
        per_shard: clips in a file of output.
    """

    videos: Path
    model: str
    frames: int
    size: tuple[int, int]
    per_shard: int


@dataclass(frozen=True, kw_only=True)
class Timing:
    """How long it took.

    Attributes:
        seconds: from the start of the process or call to the last file.
        rate: clips per second from the first file of output on: what starting takes is not in it.
        clips: how many.
    """

    seconds: float
    rate: float
    clips: int


Run = Callable[[Task, Path], Timing]


def contestants(counts: tuple[int, ...]) -> dict[str, Run]:
    """All of them by name: the plain loop, and ours with each of these numbers of workers."""
    found: dict[str, Run] = {PLAIN: plain_loop}
    for count in counts:
        found |= {f"{kind} {count}": _ours(kind, count) for kind in ("local", "ray")}
    return found


def executor_of(kind: str, count: int, make: MakeWorker = make_worker) -> Executor:
    """`local` or `ray`, with a number of workers."""
    if kind == "ray":
        return RayExecutor(concurrency=count, make=make)
    return LocalExecutor(workers=count, make=make)


def _ours(kind: str, count: int) -> Run:
    def run(task: Task, dest: Path) -> Timing:
        marks: list[tuple[float, int]] = []
        began = perf_counter()
        encode_dataset(
            task.videos,
            dest,
            settings=Settings(clip_frames=task.frames, size=task.size),
            model=task.model,
            device="cpu",
            clips_per_shard=task.per_shard,
            executor=executor_of(kind, count),
            progress=lambda now: marks.append((perf_counter(), now.done)) if now.phase == "encode" else None,
        )
        return timing(perf_counter() - began, marks)

    return run


def timing(seconds: float, marks: list[tuple[float, int]]) -> Timing:
    """From times and how many clips were done by then."""
    (first, before), (last, clips) = next(mark for mark in marks if mark[1]), marks[-1]
    return Timing(seconds=seconds, rate=(clips - before) / max(last - first, 1e-9), clips=clips)


def plain_loop(task: Task, dest: Path) -> Timing:
    """The loop that one writes for oneself, in a process of its own: PyAV, Pillow, the class of diffusers."""
    context = get_context("spawn")
    began = perf_counter()
    ours, theirs = context.Pipe()
    process = context.Process(target=_loop, args=(task, dest, theirs))
    process.start()
    theirs.close()
    marks: list[tuple[float, int]] = ours.recv()  # the clock is that of the machine
    process.join()
    return timing(perf_counter() - began, marks)


def _loop(task: Task, dest: Path, done: Any) -> None:
    import torch
    from diffusers import AutoencoderKLTemporalDecoder
    from safetensors.torch import save_file

    from temporal_vae.checkpoints.loading import EMBEDDED

    source = EMBEDDED if task.model == "embedded" else task.model
    model = AutoencoderKLTemporalDecoder.from_pretrained(source).eval()
    dest.mkdir()
    marks, held, clips = [], {}, 0
    for name, number, frames in _clips(task):
        values = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 127.5 - 1  # (t, c, h, w)
        with torch.no_grad():
            posterior = model.encode(values).latent_dist
        held[f"{name}/{number}/mean"] = posterior.mean.contiguous()
        held[f"{name}/{number}/logvar"] = posterior.logvar.contiguous()
        clips += 1
        if clips % task.per_shard == 0:
            save_file(held, dest / f"{clips}.safetensors")
            marks.append((perf_counter(), clips))
            held = {}
    if held:
        save_file(held, dest / f"{clips}.safetensors")
        marks.append((perf_counter(), clips))
    done.send(marks)


def _clips(task: Task) -> Iterator[tuple[str, int, np.ndarray]]:
    """Name of the video, number of the clip, frames `(t, h, w, 3)`."""
    import av
    import numpy as np
    from PIL import Image

    width, height = task.size
    for path in sorted(task.videos.iterdir()):
        frames: list[np.ndarray] = []
        number = 0
        with av.open(str(path)) as container:
            for frame in container.decode(video=0):
                image = Image.fromarray(frame.to_ndarray(format="rgb24"))
                scale = max(width / image.width, height / image.height)
                left, top = (image.width - width / scale) / 2, (image.height - height / scale) / 2
                box = (left, top, left + width / scale, top + height / scale)
                frames.append(np.array(image.resize(task.size, Image.Resampling.LANCZOS, box)))
                if len(frames) == task.frames:
                    yield path.name, number, np.stack(frames)
                    frames, number = [], number + 1


def means_of(name: str, dest: Path) -> Means:
    """What a contestant wrote."""
    from safetensors.torch import load_file

    if name == PLAIN:
        files = [load_file(path) for path in dest.iterdir()]
        return {_key(key): values for file in files for key, values in file.items() if key.endswith("mean")}
    place = open_place(dest)
    records = (record for shard in list_shards(place, "tar") for record in read_shard(place, shard, "tar"))
    starts: dict[str, list[tuple[Fraction, Tensor]]] = {}
    for record in records:
        starts.setdefault(record.meta["source"], []).append(
            (Fraction(record.meta["start"]), record.tensors["mean"])
        )
    return {
        (source, number): mean
        for source, clips in starts.items()
        for number, (_, mean) in enumerate(sorted(clips, key=lambda clip: clip[0]))
    }


def _key(key: str) -> tuple[str, int]:
    name, number, _ = key.rsplit("/", 2)
    return name, int(number)


class Idle:
    """A worker whose model computes nothing: it reads nothing and writes shards of one number a clip."""

    def __init__(self, job: EncodeJob) -> None:
        self._place, self._format = open_place(job.dest), job.format

    def __call__(self, batch: Batch) -> Report:
        """Write a shard of the clips."""
        import torch

        records = [
            Record(identity=clip.identity, tensors={"mean": torch.zeros(1, 1, 1, 1)}, meta={"identity": clip.identity})
            for clip in batch.clips
        ]  # fmt: skip
        return Report(batch=batch.number, shard=write_shard(self._place, self._format, records))
