"""One run for one folder: the process that trains in it holds a lock, which the system takes back when it ends."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from temporal_vae.errors import TrainingError

_LOCK = ".lock"


@contextmanager
def locked(output: Path) -> Iterator[None]:
    """Hold the lock of a folder.

    Raises:
        TrainingError: another process trains there; the message says which.
    """
    with (output / _LOCK).open("a+") as file:
        if not _try(file):
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise TrainingError(
                f"{output}: {holder} trains there; wait for its end, or choose another output"
            )
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


def _try(file: IO[str]) -> bool:
    """Take the lock, unless another process has it. A record lock: forked workers do not inherit it."""
    try:
        if os.name == "posix":
            import fcntl

            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 2**30)  # far behind what is written there
        else:
            import msvcrt

            file.seek(2**30)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
    except OSError:
        return False
    return True
