"""Threads that share a process: each its own number of torch threads, and what is made once for all of them."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Hashable
from functools import wraps
from pathlib import Path
from threading import RLock, Thread
from typing import TypeVar

import torch

Made = TypeVar("Made")

# Those that bring OpenMP and MKL, or that name the libraries which do.
_LIBRARIES = ("libtorch_cpu.so", "libtorch_cpu.dylib", "torch_cpu.dll", "libiomp5md.dll")

_restoring = RLock()


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


def use_one_torch_thread() -> None:
    """Let torch compute with one thread where the calling thread asks it to, and change nothing for any other thread.

    For threads that nobody else uses: their number stays. `torch.set_num_threads` does not do: besides the caller's
    number it sets the one that threads to come begin with. OpenMP and MKL, which torch asks, hold one for each thread.
    """
    number = torch.get_num_threads()  # a thread's first question gives it the process's; later ones do not
    setters = _setters()
    for setter in setters:
        setter(1)
    one_pool = not torch.backends.openmp.is_available()  # which all threads share
    if setters or number == 1 or one_pool:
        return
    with _restoring:
        torch.set_num_threads(1)
        _in_new_thread(lambda: torch.set_num_threads(number))  # what threads to come begin with


@once
def _setters() -> tuple[Callable[[int], object], ...]:
    """What sets the numbers of the calling thread alone; nothing where that is not found, or is not what torch uses."""
    folder = Path(torch.__file__).parent / "lib"
    libraries = [ctypes.CDLL(str(folder / name)) for name in _LIBRARIES if (folder / name).is_file()]
    names = ["omp_set_num_threads", *["MKL_Set_Num_Threads_Local"] * torch.backends.mkl.is_available()]
    homes = [next((library for library in libraries if hasattr(library, name)), None) for name in names]
    if None in homes:
        return ()
    setters = tuple(getattr(home, name) for home, name in zip(homes, names, strict=True))

    def works() -> bool:
        other = torch.get_num_threads() + 1
        for setter in setters:
            setter(other)
        return torch.get_num_threads() == other

    return setters if _in_new_thread(works) else ()


def _in_new_thread(function: Callable[[], Made]) -> Made:
    results: list[Made] = []
    thread = Thread(target=lambda: results.append(function()))
    thread.start()
    thread.join()
    return results[0]
