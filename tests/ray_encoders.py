"""Encoders without a model, for actors of Ray."""

import os
import signal
import time
from pathlib import Path

from temporal_vae.distributed.dataset.encode_job import Batch, EncodeJob, Failure, Report
from temporal_vae.errors import InputError


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
