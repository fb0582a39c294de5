"""Every video is read through once before it is cut: what its headers say of its frames is often not so.

Pictures are decoded, since only that tells which frames come out and when, but neither converted nor scaled. So a video
that breaks off is found before any work is done. What was found is kept: a file that did not change is not read again.
"""

from __future__ import annotations

import hashlib
import logging
import zlib
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache, partial
from math import lcm
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from temporal_vae.distributed.dataset.executors import MOST_DEATHS
from temporal_vae.distributed.dataset.executors.processes import Died, in_processes
from temporal_vae.distributed.dataset.reading import stamp_of
from temporal_vae.errors import file_name, one_line
from temporal_vae.media.reader import VideoReader

_BLOCK = 2**20  # bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """A video that can be read.

    Attributes:
        stamp: see `reading.stamp_of`.
        sha256: hash of the content.
        width, height: pixels of an upright frame.
        pixel_aspect: width of a pixel over its height.
        rate: nominal frames per second.
        tick: seconds of which all times are multiples.
        packed: the times, in ticks, as `timeline` unpacks them.
        shown: seconds for which the last frame is shown.
        remarks: what the reader had to say, such as how many frames of a damaged file are lost.
    """

    stamp: str
    sha256: str
    width: int
    height: int
    pixel_aspect: Fraction
    rate: Fraction
    tick: Fraction
    packed: bytes
    shown: Fraction
    remarks: tuple[str, ...] = ()

    @property
    def timeline(self) -> NDArray[np.int64]:
        """When each frame is shown, in ticks."""
        return _unpacked(self.packed)


@lru_cache(maxsize=64)
def _unpacked(packed: bytes) -> NDArray[np.int64]:
    return np.cumsum(np.frombuffer(zlib.decompress(packed), np.int64))


@dataclass(frozen=True, kw_only=True, slots=True)
class Unreadable:
    """A file that can't be read as a video, and why."""

    stamp: str
    reason: str


Found = Probe | Unreadable


def probe(path: str, reading: dict[str, str]) -> Found:
    """Read a video through.

    Args:
        path: the file, or a folder of images.
        reading: options of `VideoReader`.
    """
    stamp = ""
    try:
        stamp = stamp_of(path)
        with _remarks() as remarks, VideoReader(path, **reading) as reader:  # type: ignore[arg-type]  # by name
            tick, times = packed(time for time, _ in reader.pictures())
            return Probe(
                stamp=stamp,
                sha256=_sha256(reader.files),
                width=reader.width,
                height=reader.height,
                pixel_aspect=reader.info.pixel_aspect,
                rate=reader.info.rate,
                tick=tick,
                packed=times,
                shown=reader.last_shown or 1 / reader.info.rate,
                remarks=tuple(remarks),
            )
    except MemoryError:
        raise
    except FileNotFoundError:
        return Unreadable(stamp=stamp, reason=f"{file_name(path)}: no such file; check the path")
    except Exception as error:  # damaged files bring libraries to raise anything
        return Unreadable(stamp=stamp, reason=one_line(error))


def packed(times: Iterable[Fraction]) -> tuple[Fraction, bytes]:
    """Times of frames, ascending, as the fields `tick` and `packed` of a probe."""
    exact = list(times)
    tick = Fraction(1, lcm(*(time.denominator for time in exact)))
    ticks = np.array([int(time / tick) for time in exact], np.int64)
    return tick, zlib.compress(np.diff(ticks, prepend=0).tobytes())


def probe_all(paths: Iterable[str], reading: dict[str, str], *, workers: int) -> Iterator[tuple[str, Found]]:
    """Read videos through in processes of their own, in any order; one that ends its process is unreadable."""
    again: deque[str] = deque()
    deaths: Counter[str] = Counter()
    for outcome in in_processes(partial(_prober, reading), paths, workers, again):
        path = outcome.task
        if not isinstance(outcome, Died):
            yield path, outcome.result
            continue
        deaths[path] += 1
        if deaths[path] < MOST_DEATHS:
            again.append(path)
        else:
            reason = f"{file_name(path)}: a process died {MOST_DEATHS} times while it read this file"
            yield path, Unreadable(stamp=_stamp_or_none(path), reason=f"{reason}; copy or export it again")


def _prober(reading: dict[str, str], number: int) -> partial[Found]:
    return partial(probe, reading=reading)


def _stamp_or_none(path: str) -> str:
    try:
        return stamp_of(path)
    except (OSError, ValueError):
        return ""


def _sha256(files: tuple[Path, ...]) -> str:
    """Hash of a file's content; of several, of their hashes in order."""
    hashes = []
    for path in files:
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
        hashes.append(digest.hexdigest())
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


@contextmanager
def _remarks() -> Iterator[list[str]]:
    """What readers log within the block, rather than showing it."""
    said: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(" ".join(record.getMessage().split()))

    logger, keep = logging.getLogger("temporal_vae.media"), Keep()
    logger.addHandler(keep)
    propagated, logger.propagate = logger.propagate, False
    try:
        yield said
    finally:
        logger.propagate = propagated
        logger.removeHandler(keep)
