"""Encoders without a model, for tests of what is around them: importable in other processes."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import torch

from temporal_vae.distributed.dataset.encode_job import Batch, EncodeJob, Report
from temporal_vae.distributed.dataset.places import open_place
from temporal_vae.distributed.dataset.shards import Record, write_shard
from temporal_vae.errors import MediaError


class Quick:
    """Writes two numbers for each clip."""

    def __init__(self, job: EncodeJob) -> None:
        self.job = job
        self.place = open_place(job.dest)

    def __call__(self, batch: Batch) -> Report:
        records = [
            Record(
                identity=clip.identity, tensors={"mean": torch.ones(1, 1, 1, 2)}, meta={"source": clip.source}
            )
            for clip in batch.clips
        ]
        return Report(batch=batch.number, shard=write_shard(self.place, self.job.format, records))


class DiesOnce(Quick):
    """Takes its process along in the middle of each batch, the first time; its shard is there by then."""

    def __call__(self, batch: Batch) -> Report:
        report = super().__call__(batch)
        mark = Path(self.job.dest) / f"{batch.clips[0].identity}.died"
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return report


class DiesOver(Quick):
    """Takes its process along whenever a batch holds the second clip of `bad.mp4`, in clips of four frames."""

    def __call__(self, batch: Batch) -> Report:
        if any(clip.source == "bad.mp4" and 0 < clip.start < 0.2 for clip in batch.clips):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(batch)


class DiesAtStart:
    def __init__(self, job: EncodeJob) -> None:
        os._exit(7)


class FailsAtStart:
    def __init__(self, job: EncodeJob) -> None:
        raise MediaError("nowhere: no such model")


class Unforeseen(Quick):
    def __call__(self, batch: Batch) -> Report:
        raise KeyError("a mistake")
