"""Batches of clips. Each depends on the seed, its number and the process alone, so that a resumed run sees the same.

Source -> Item -> a stretch of frames -> a window of it -> Drawn (a batch)
"""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import lcm
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from temporal_vae.amounts import parse_memory
from temporal_vae.errors import ConfigError, MediaError, one_line
from temporal_vae.media.frames import Frames
from temporal_vae.training.config.fields import Batch, Source, TrainConfig, batches_of
from temporal_vae.training.data.augment import cover, vary, window
from temporal_vae.training.data.footage import SCENE_SIDE, Damaged, Library, Unfit
from temporal_vae.training.data.sources import Item, items_of

_ATTEMPTS = 2000  # items drawn for one clip before giving up
_DAMAGED = 20  # draws that reading something damaged counts for: it takes as long as reading a clip
_BUCKETS = 8  # buckets drawn for one batch before giving up
_MULTIPLE = 16  # sides of whole frames are multiples of it, so that few sizes occur
_PROBES = 8  # files opened at a time

Floats = NDArray[np.float64]
Fault = tuple[str, str]
"""Name of an item that cannot be read, and why."""


@dataclass(kw_only=True)
class Drawn:
    """A batch.

    Attributes:
        frames: uint8 `(b*t, h, w, 3)`.
        length: of a clip, `t`.
        faults: what could not be read for it.
        failure: why there are no frames, if so; a worker process cannot raise with a message of one line.
    """

    frames: Tensor
    length: int
    faults: list[Fault] = field(default_factory=list)
    failure: str = ""

    def pin_memory(self) -> Drawn:
        """For the loader, which copies to a GPU from pinned memory."""
        return replace(self, frames=self.frames.pin_memory())


@dataclass(frozen=True, kw_only=True, eq=False)
class Pool:
    """Items of one source; `weight` is the odds of a clip to come from here."""

    source: Source
    items: list[Item]
    weight: float

    @cached_property
    def odds(self) -> Floats:
        """Of the items, as `_draw` takes them."""
        return _odds([item.weight for item in self.items])


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """What clips of one size `(height, width)` are drawn from; `whole` frames are scaled to it, others cut out."""

    size: tuple[int, int]
    pools: list[Pool]
    whole: bool

    @property
    def weight(self) -> float:
        """Odds of a batch to be drawn from here."""
        return sum(pool.weight for pool in self.pools)


class Clips(Dataset[Drawn]):
    """All batches of one process of a run, by number: step by step, `accumulate` batches in each.

    Args:
        config: of the run.
        rank: number of the process.
        multiple: sides of frames are multiples of this, those of whole frames also of 16.

    Attributes:
        faults: files that could not be opened when their sizes were asked for.

    Raises:
        ConfigError: no sources, sources that hold nothing, sizes that the model cannot take.
    """

    def __init__(self, config: TrainConfig, *, rank: int = 0, multiple: int = 1) -> None:
        if not config.data.sources:
            raise ConfigError("data.sources: names nothing to learn from; give a path, or a number of scenes")
        self._config, self._rank = config, rank
        self._library = Library(parse_memory(config.data.cache))
        self._pools = [
            Pool(source=source, items=items_of(source), weight=source.weight)
            for source in config.data.sources
        ]
        self.faults: list[Fault] = []
        whole = {(batch.area, length) for batch in config.batches for length in batch.lengths if batch.area}
        measured = self._measure() if whole else []
        self._buckets = {
            (area, length): self._sort(measured, area, length, lcm(multiple, _MULTIPLE))
            for area, length in sorted(whole)
        }
        for number, batch in enumerate(config.batches):
            if batch.area is None and any(side % multiple for side in _sides(batch)):
                raise ConfigError(
                    f"batches.{number}.size={batch.size}: the model takes sides that are multiples of {multiple}"
                )

    def __len__(self) -> int:
        return self._config.steps * self._config.optimizer.accumulate

    def __getitem__(self, number: int) -> Drawn:
        config = self._config
        step, part = divmod(number, config.optimizer.accumulate)
        shared = np.random.default_rng((config.seed, 0, step))  # the same for all processes: equal work
        makes = batches_of(config, step)
        make = makes[_draw(shared, _odds([make.weight for make in makes]))]
        length = make.lengths[shared.integers(len(make.lengths))]
        faults: dict[str, str] = {}
        for bucket in self._candidates(make, length, shared):
            try:
                clips = [
                    self._clip(
                        np.random.default_rng((config.seed, 1, step, part, self._rank, clip)),
                        bucket,
                        length,
                        faults,
                    )
                    for clip in range(make.frames // length)
                ]
            except MediaError as error:
                failure = str(error)
                continue
            frames = torch.from_numpy(np.concatenate(clips))
            return Drawn(frames=frames, length=length, faults=list(faults.items()))
        empty = torch.empty((0, *bucket.size, 3), dtype=torch.uint8)
        return Drawn(frames=empty, length=length, faults=list(faults.items()), failure=failure)

    def _candidates(self, make: Batch, length: int, shared: np.random.Generator) -> Iterator[Bucket]:
        """What the clips of a batch are drawn from; those after the first are for want of anything readable."""
        if make.area is None:
            yield Bucket(size=_sides(make), pools=self._pools, whole=False)
            return
        buckets = self._buckets[make.area, length]
        odds = _odds([bucket.weight for bucket in buckets])
        for _ in range(_BUCKETS):
            yield buckets[_draw(shared, odds)]

    def _clip(self, rng: np.random.Generator, bucket: Bucket, length: int, faults: dict[str, str]) -> Frames:
        """Draw until something can be read and is long and large enough."""
        how, rates = self._config.data.augmentation, self._config.data.rates
        size, odds = bucket.size, _odds([pool.weight for pool in bucket.pools])
        patience = _ATTEMPTS
        while patience > 0:
            patience -= 1
            pool = bucket.pools[_draw(rng, odds)]
            item = pool.items[_draw(rng, pool.odds)]
            sides = pool.source.sides
            side = sides[rng.integers(len(sides))] if sides and not bucket.whole else None
            rate = rates[rng.integers(len(rates))] if rates else None
            at = float(rng.random())
            try:
                frames = self._library.stretch(item, frames=length, at=at, rate=rate, side=side, least=size)
                clip = cover(frames, size) if bucket.whole else window(frames, rng, size, how)
            except Unfit:
                continue
            except (MediaError, OSError) as error:
                faults[item.name] = one_line(error)
                patience -= _DAMAGED if isinstance(error, Damaged) else 0
                continue
            return vary(clip, rng, how)
        raise MediaError(
            f"data.sources: many tries gave no {length} frames of {size[1]}x{size[0]} pixels that can be read; "
            f"give other sources, shorter clips or smaller windows{_first(faults.values())}"
        )

    def _measure(self) -> list[Measured]:
        """Open everything once, to know its size; what cannot be opened goes to `faults`."""

        def measure(entry: tuple[Pool, Item]) -> Measured | Fault:
            pool, item = entry
            height = width = SCENE_SIDE
            if item.path is not None:
                try:
                    info = self._library.info(item.path)
                except (MediaError, OSError) as error:
                    return item.name, one_line(error)
                height, width = info.height, info.width
            return Measured(pool=pool, item=item, height=height, width=width)

        with ThreadPoolExecutor(_PROBES) as threads:
            found = list(threads.map(measure, [(pool, item) for pool in self._pools for item in pool.items]))
        self.faults = [entry for entry in found if isinstance(entry, tuple)]
        measured = [entry for entry in found if isinstance(entry, Measured)]
        if not measured:
            reasons = [reason for _, reason in self.faults]
            raise ConfigError(f"data.sources: none of {len(found)} files can be read{_first(reasons)}")
        return measured

    def _sort(self, measured: Sequence[Measured], area: int, length: int, multiple: int) -> list[Bucket]:
        """Items that are long enough, by the size of whole frames of about `area` pixels."""
        found: dict[tuple[int, int], dict[Pool, list[Item]]] = {}
        totals: dict[Pool, float] = {}
        for entry in measured:
            size = _whole_size(entry, area, multiple)
            if size and self._library.promises(entry.item, length, self._config.data.rates):
                found.setdefault(size, {}).setdefault(entry.pool, []).append(entry.item)
                totals[entry.pool] = totals.get(entry.pool, 0.0) + entry.item.weight
        if not found:
            raise ConfigError(
                f"batches: area={area}: nothing in data.sources has so many pixels, sides of at least {multiple} and "
                f"{length} frames; choose a smaller area or shorter lengths{_first(r for _, r in self.faults)}"
            )
        return [
            Bucket(
                size=size,
                pools=[_share(pool, items, totals[pool]) for pool, items in pools.items()],
                whole=True,
            )
            for size, pools in sorted(found.items())
        ]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """An item and the size of its frames, in pixels."""

    pool: Pool
    item: Item
    height: int
    width: int


def load(clips: Clips, *, first: int, workers: int, device: torch.device) -> Iterator[Drawn]:
    """Batches from number `first` on, read ahead by worker processes."""
    more: dict[str, Any] = {"prefetch_factor": 2} if workers else {}
    loader = DataLoader(
        clips,
        batch_size=None,
        sampler=range(first, len(clips)),
        num_workers=workers,
        pin_memory=device.type == "cuda",
        worker_init_fn=_ignore_signals,
        **more,
    )
    return iter(loader)


def to_device(drawn: Drawn, device: torch.device) -> Tensor:
    """Frames of a batch as the model takes them: float32 `(b*t, 3, h, w)` in [-1, 1], contiguous."""
    frames = drawn.frames.to(device, non_blocking=True).permute(0, 3, 1, 2)
    return frames.contiguous().float() / 127.5 - 1


def _ignore_signals(worker: int) -> None:
    """Leave Ctrl-C and SIGTERM, which may reach every process of a run, to the main one; it ends its workers."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _sides(batch: Batch) -> tuple[int, int]:
    """Height and width of crops."""
    return (batch.size, batch.size) if isinstance(batch.size, int) else batch.size


def _whole_size(entry: Measured, area: int, multiple: int) -> tuple[int, int] | None:
    """Height and width of frames of about `area` pixels, near the aspect of the item; None if it has fewer."""
    if entry.height * entry.width < area or min(entry.height, entry.width) < multiple:
        return None
    scale = (area / (entry.height * entry.width)) ** 0.5
    height, width = (
        min(max(1, round(side * scale / multiple)), side // multiple) * multiple
        for side in (entry.height, entry.width)
    )
    return height, width


def _share(pool: Pool, items: list[Item], total: float) -> Pool:
    """Some items of a pool, which keep their odds; `total` is the weight of all its items that are used."""
    weight = pool.weight * sum(item.weight for item in items) / total
    return Pool(source=pool.source, items=items, weight=weight)


def _odds(weights: Sequence[float]) -> Floats:
    """Of some things to be drawn: sums of their shares, up to 1."""
    sums = np.cumsum(np.array(weights, np.float64))
    return sums / sums[-1]


def _draw(rng: np.random.Generator, odds: Floats) -> int:
    """Number of one thing, in a time that hardly grows with how many there are."""
    return int(odds.searchsorted(rng.random(), side="right"))


def _first(reasons: Iterable[str]) -> str:
    reason = next(iter(reasons), "")
    return f" ({reason})" if reason else ""
