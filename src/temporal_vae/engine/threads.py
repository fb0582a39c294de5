"""Threads that share a process: each its own number of torch threads, and what is made once for all of them."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Hashable
from contextlib import suppress
from functools import cache, wraps
from pathlib import Path
from threading import RLock, Thread
from typing import TypeVar

import torch

Made = TypeVar("Made")

_restoring = RLock()


def use_one_torch_thread() -> None:
    """Let torch compute with one thread where the calling thread asks it to, and change nothing for any other thread.

    `torch.set_num_threads` does not do: besides the caller's number it sets the one that threads to come begin with.
    OpenMP and MKL, which torch asks, hold a number for each thread.
    """
    number = (
        torch.get_num_threads()
    )  # the first use of torch in a thread sets its number; later ones leave it alone
    setters = _setters()
    for setter in setters:
        setter(1)
    if setters or number == 1:
        return
    with _restoring:
        torch.set_num_threads(1)
        other = Thread(target=torch.set_num_threads, args=(number,))  # what threads to come begin with
        other.start()
        other.join()


@cache
def _setters() -> tuple[Callable[[int], object], ...]:
    """What sets the number of the calling thread alone; nothing where torch does without OpenMP."""
    libraries = [ctypes.CDLL(None)] if os.name == "posix" else []
    folder = Path(torch.__file__).parent / "lib"
    for name in ("libtorch_cpu.so", "libtorch_cpu.dylib", "libiomp5md.dll"):
        if (folder / name).is_file():
            with suppress(OSError):
                libraries.insert(0, ctypes.CDLL(str(folder / name)))
    for library in libraries:
        if hasattr(library, "omp_set_num_threads"):
            names = ("omp_set_num_threads", "MKL_Set_Num_Threads_Local")
            return tuple(getattr(library, name) for name in names if hasattr(library, name))
    return ()


def once(make: Callable[..., Made]) -> Callable[..., Made]:
    """Keep what `make` returns for each of its arguments for the life of the process.

    Threads that ask for the same at the same time wait for the first of them; `functools.cache` would let each make it.
    """
    lock, made = RLock(), dict[tuple[Hashable, ...], Made]()

    @wraps(make)
    def kept(*key: Hashable) -> Made:
        if key not in made:
            with lock:
                if key not in made:
                    made[key] = make(*key)
        return made[key]

    return kept
