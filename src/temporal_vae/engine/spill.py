"""Where activations are kept that memory has no room for: a file, or the memory of a GPU's host."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from threading import Lock

import torch
from torch import Tensor

from temporal_vae.engine.resources import cache_folder, is_memory
from temporal_vae.errors import MemoryLimitError


class _Store:
    """Room of a known size, allocated piece by piece."""

    def __init__(self) -> None:
        self._free: defaultdict[int, list[int]] = defaultdict(list)
        self._end = 0

    def take(self, nbytes: int) -> int:
        """Room for `nbytes`; its offset."""
        waiting = self._free[nbytes]
        if waiting:
            return waiting.pop()
        start, self._end = self._end, self._end + nbytes
        return start

    def give(self, offset: int, nbytes: int) -> None:
        """Let the room be used again."""
        self._free[nbytes].append(offset)


class HostMemory(_Store):
    """Page-locked memory of the host, for activations of a GPU.

    Copies are queued on the stream of the worker that asks: while one worker's tile travels, another's is computed.
    """

    def __init__(self, nbytes: int, device: torch.device) -> None:
        super().__init__()
        self._memory = torch.empty(nbytes, dtype=torch.uint8, device="cpu", pin_memory=device.type == "cuda")

    def read(self, target: Tensor, offset: int) -> None:
        """Fill a contiguous tensor."""
        flat = target.view(torch.uint8).flatten()
        flat.copy_(self._memory[offset : offset + len(flat)], non_blocking=True)

    def write(self, source: Tensor, offset: int) -> None:
        """Store a contiguous tensor."""
        flat = source.view(torch.uint8).flatten()
        self._memory[offset : offset + len(flat)].copy_(flat, non_blocking=True)


class SpillFile(_Store):
    """A private file of known size, gone when the work is over, however it ends. Many threads may use it at once."""

    def __init__(self, file: FileIO) -> None:
        super().__init__()
        self._file = file
        self._lock = Lock()  # of the position, where the system knows no reading and writing at an offset

    def read(self, target: Tensor, offset: int) -> None:
        """Fill a contiguous tensor."""
        view = _bytes(target)
        while view:
            done = self._read(view, offset)
            if not done:
                raise OSError(f"the spill file ended at byte {offset}")
            view, offset = view[done:], offset + done

    def write(self, source: Tensor, offset: int) -> None:
        """Store a contiguous tensor."""
        view = _bytes(source)
        while view:
            done = self._write(view, offset)
            view, offset = view[done:], offset + done

    def _read(self, view: memoryview, offset: int) -> int:
        if hasattr(os, "preadv"):
            return os.preadv(self._file.fileno(), [view], offset)
        with self._lock:
            self._file.seek(offset)
            return self._file.readinto(view)

    def _write(self, view: memoryview, offset: int) -> int:
        if hasattr(os, "pwritev"):
            return os.pwritev(self._file.fileno(), [view], offset)
        with self._lock:
            self._file.seek(offset)
            return self._file.write(view)


@contextmanager
def spill_file(nbytes: int) -> Iterator[SpillFile]:
    """A `SpillFile` of `nbytes`, reserved before anything is computed; unlinked from the start where possible.

    It lies in the folder that `TEMPORAL_VAE_SPILL_DIR` names, or else in the first of the system's folders for
    temporary files and caches that is on a disk with room for it: a file in memory would break the promise of a limit.

    Raises:
        MemoryLimitError: no disk has room for it.
    """
    folder = _spill_folder(nbytes)
    with tempfile.TemporaryFile(dir=folder, prefix="temporal-vae-", buffering=0) as file:
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, nbytes)
            else:
                file.truncate(nbytes)
        except OSError as error:
            raise MemoryLimitError(
                f"{folder}: no room for {nbytes / 2**30:.2f} GiB of spilled activations ({error.strerror}); {_REMEDY}"
            ) from error
        yield SpillFile(file)


SPILL_VARIABLE = "TEMPORAL_VAE_SPILL_DIR"
_REMEDY = f"free some, name a folder on another disk in {SPILL_VARIABLE}, or allow more memory"


def _spill_folder(nbytes: int) -> Path:
    named = os.environ.get(SPILL_VARIABLE)
    folders = [Path(named)] if named else _usual_folders()
    reasons = []
    for folder in folders:
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            reasons.append(f"{folder} can't be written to")
        elif is_memory(folder):
            reasons.append(f"{folder} is memory, not a disk")
        elif (free := shutil.disk_usage(folder).free) < nbytes:
            reasons.append(f"{folder} has {free / 2**30:.2f} GiB free")
        else:
            return folder
    raise MemoryLimitError(
        f"{nbytes / 2**30:.2f} GiB are needed to spill activations: {', '.join(reasons)}; {_REMEDY}"
    )


def _usual_folders() -> list[Path]:
    folders = (Path(folder) for folder in (tempfile.gettempdir(), "/var/tmp", cache_folder()))
    return [folder for folder in dict.fromkeys(folders) if folder.is_dir()]


def _bytes(tensor: Tensor) -> memoryview:
    return memoryview(tensor.view(torch.uint8).flatten().numpy())  # type: ignore[arg-type]
