"""Encoders for actors of Ray: without a model, but for one; and a driver of that one."""

import os
import signal
import sys
import time
from functools import partial
from pathlib import Path

from temporal_vae.distributed import Settings, encode_dataset
from temporal_vae.distributed.dataset.encode_job import Batch, EncodeJob, Failure, Report
from temporal_vae.distributed.dataset.encoder import Encoder
from temporal_vae.distributed.dataset.executors.ray import RayExecutor
from temporal_vae.errors import InputError

LIMIT = "1GiB"  # or it depends on the number of workers who computes what is small, modules or engine


class Noting:
    """Notes each clip in a file of its own below DEST, once for each time; dies over clips called `poison`."""

    def __init__(self, job: EncodeJob) -> None:
        self._folder = Path(job.dest)

    def __call__(self, batch: Batch) -> Report:
        for clip in batch.clips:
            if clip.source == "poison":
                os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.05)
        for clip in batch.clips:
            with (self._folder / clip.identity).open("a") as file:
                file.write(f"{os.getpid()}\n")
        failed = tuple(
            Failure(identity=clip.identity, path=clip.path, reason="noted") for clip in batch.clips
        )
        return Report(batch=batch.number, failed=failed)


class Refusing:
    """A model that can't be loaded."""

    def __init__(self, job: EncodeJob) -> None:
        raise InputError(f"{job.model.name}: no such model")


class Dying:
    """A model that does not fit into memory."""

    def __init__(self, job: EncodeJob) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class Wrong:
    """A mistake in the code."""

    def __init__(self, job: EncodeJob) -> None:
        pass

    def __call__(self, batch: Batch) -> Report:
        raise ZeroDivisionError("a mistake")


class Slow:
    """Encodes with a pause before a shard is written and one after, so that there is a moment to be killed in."""

    def __init__(self, pause: float, job: EncodeJob) -> None:
        self._pause, self._encode = pause, Encoder(job)

    def __call__(self, batch: Batch) -> Report:
        time.sleep(self._pause)
        report = self._encode(batch)
        time.sleep(self._pause)
        return report


def drive(source: Path, dest: Path, address: str, clip_frames: int, pause: float) -> None:
    """What a process does that drives `Slow` workers on a cluster."""
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # actors don't find it
    executor = RayExecutor(address=address, make=partial(Slow, pause))
    how = {"device": "cpu", "clips_per_shard": 2, "memory_limit": LIMIT}
    encode_dataset(source, dest, settings=Settings(clip_frames=clip_frames), executor=executor, **how)
