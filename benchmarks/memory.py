"""Resident memory of another process and its peak over a stretch of time, seen from outside."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

_EVERY = 0.005  # seconds between samples, where the kernel does not keep the peak


def resident_bytes(pid: int) -> int:
    """Resident memory of a process now."""
    return int(psutil.Process(pid).memory_info().rss)


@contextmanager
def watch_peak(pid: int) -> Iterator[list[int]]:
    """Find the peak of resident memory while the block runs.

    Linux keeps it, and forgets it on request; elsewhere it is sampled.

    Yields:
        A list that holds the peak in bytes once the block has ended; it stays empty if the process died.
    """
    peaks: list[int] = []
    if _forget_peak(pid):
        yield peaks
        peaks.extend(_kept_peak(pid))
        return
    stop = threading.Event()
    sampler = threading.Thread(target=_sample, args=(pid, stop, peaks), daemon=True)
    sampler.start()
    try:
        yield peaks
    finally:
        stop.set()
        sampler.join()


def _forget_peak(pid: int) -> bool:
    try:
        Path(f"/proc/{pid}/clear_refs").write_text("5")
    except OSError:
        return False
    return bool(_kept_peak(pid))


def _kept_peak(pid: int) -> list[int]:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return []
    return [int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")]


def _sample(pid: int, stop: threading.Event, peaks: list[int]) -> None:
    """Sample until told to stop, and at least once, however late this thread is started."""
    stopped = False
    while not stopped:
        stopped = stop.wait(_EVERY if peaks else 0)
        try:
            peaks[:] = [max([*peaks, resident_bytes(pid)])]
        except psutil.Error:
            return
