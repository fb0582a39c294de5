"""Batches of clips. Each depends on the seed, its number and the process alone, so that a resumed run sees the same.

Source -> Item -> a stretch of frames -> a window of it -> Drawn (a batch)
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
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
from temporal_vae.errors import ConfigError, MediaError
from temporal_vae.training.config import Batch, Source, TrainConfig, batches_of
from temporal_vae.training.footage import SCENE_SIDE, Library, Unfit
from temporal_vae.training.sources import Item, items_of
from temporal_vae.training.windows import cover, vary, window
from temporal_vae.video.frames import Frames

_ATTEMPTS = 200  # items drawn for one clip before giving up
_MULTIPLE = 16  # sides of whole frames are multiples of it, so that few sizes occur
_PROBES = 8  # files opened at a time

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


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Items of one source, with their odds."""

    source: Source
    items: list[Item]

    @cached_property
    def shares(self) -> NDArray[np.float64]:
        """Probability of each item."""
        return _shares([item.weight for item in self.items])


class Clips(Dataset[Drawn]):
    """All batches of one process of a run, by number: step by step, `accumulate` batches in each.

    Args:
        config: of the run.
        rank: number of the process.
        multiple: sides of whole frames are multiples of this (and of 16).

    Attributes:
        faults: files that could not be opened when their sizes were asked for.

    Raises:
        ConfigError: no sources, or sources that hold nothing.
    """

    def __init__(self, config: TrainConfig, *, rank: int = 0, multiple: int = 1) -> None:
        if not config.data.sources:
            raise ConfigError("data.sources: names nothing to learn from; give a path, or a number of scenes")
        self._config, self._rank = config, rank
        self._library = Library(parse_memory(config.data.cache))
        self._pools = [Pool(source=source, items=items_of(source)) for source in config.data.sources]
        self.faults: list[Fault] = []
        self._buckets: dict[int, list[Bucket]] = {}
        areas = sorted({batch.area for batch in config.batches if batch.area is not None})
        if areas:
            measured = self._probe()
            for area in areas:
                self._buckets[area] = _buckets(measured, area, lcm(multiple, _MULTIPLE))

    def __len__(self) -> int:
        return self._config.steps * self._config.optimizer.accumulate

    def __getitem__(self, number: int) -> Drawn:
        config = self._config
        step, part = divmod(number, config.optimizer.accumulate)
        shared = np.random.default_rng((config.seed, 0, step))  # the same for all processes: equal work
        makes = batches_of(config, step)
        make = makes[shared.choice(len(makes), p=_shares([make.weight for make in makes]))]
        length = make.lengths[shared.integers(len(make.lengths))]
        size, pools = self._place(make, shared)
        faults: dict[str, str] = {}
        clips: list[Frames] = []
        failure = ""
        try:
            for clip in range(make.frames // length):
                rng = np.random.default_rng((config.seed, 1, step, part, self._rank, clip))
                clips.append(self._clip(rng, length, size, pools, make.area is not None, faults))
        except MediaError as error:
            clips, failure = [np.empty((0, *size, 3), np.uint8)], str(error)
        frames = torch.from_numpy(np.concatenate(clips))
        return Drawn(frames=frames, length=length, faults=list(faults.items()), failure=failure)

    def _place(self, make: Batch, shared: np.random.Generator) -> tuple[tuple[int, int], list[Pool]]:
        """Height and width of the frames of a batch, and what its clips are drawn from."""
        if make.area is None:
            size = (make.size, make.size) if isinstance(make.size, int) else make.size
            return size, self._pools
        buckets = self._buckets[make.area]
        odds = _shares([sum(pool.source.weight for pool in bucket.pools) for bucket in buckets])
        bucket = buckets[shared.choice(len(buckets), p=odds)]
        return bucket.size, bucket.pools

    def _clip(
        self,
        rng: np.random.Generator,
        length: int,
        size: tuple[int, int],
        pools: list[Pool],
        whole: bool,
        faults: dict[str, str],
    ) -> Frames:
        """Draw until something can be read and is long and large enough."""
        how, rates = self._config.data.augmentation, self._config.data.rates
        odds = _shares([pool.source.weight for pool in pools])
        for _ in range(_ATTEMPTS):
            pool = pools[rng.choice(len(pools), p=odds)]
            item = pool.items[rng.choice(len(pool.items), p=pool.shares)]
            sides = pool.source.sides
            side = sides[rng.integers(len(sides))] if sides and not whole else None
            rate = rates[rng.integers(len(rates))] if rates else None
            at = float(rng.random())
            try:
                frames = self._library.stretch(item, frames=length, at=at, rate=rate, side=side)
                clip = cover(frames, size) if whole else window(frames, rng, size, how)
            except Unfit:
                continue
            except (MediaError, OSError) as error:
                faults[item.name] = " ".join(str(error).split())
                continue
            return vary(clip, rng, how)
        raise MediaError(
            f"data.sources: in {_ATTEMPTS} tries nothing had {length} frames of {size[1]}x{size[0]} pixels that can be "
            f"read; give other sources, shorter clips or smaller windows{_first(faults)}"
        )

    def _probe(self) -> list[Measured]:
        """Open everything once, to know its size; what cannot be opened goes to `faults`."""
        entries = [(pool, item) for pool in self._pools for item in pool.items]

        def measure(entry: tuple[Pool, Item]) -> Measured | Fault:
            pool, item = entry
            if item.path is None:
                return Measured(source=pool.source, item=item, height=SCENE_SIDE, width=SCENE_SIDE)
            try:
                info = self._library.info(item)
            except (MediaError, OSError) as error:
                return item.name, " ".join(str(error).split())
            return Measured(source=pool.source, item=item, height=info.height, width=info.width)

        with ThreadPoolExecutor(_PROBES) as pool:
            found = list(pool.map(measure, entries))
        self.faults = [entry for entry in found if isinstance(entry, tuple)]
        return [entry for entry in found if isinstance(entry, Measured)]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """An item and the size of its frames, in pixels."""

    source: Source
    item: Item
    height: int
    width: int


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """Items whose whole frames are scaled to one size `(height, width)`."""

    size: tuple[int, int]
    pools: list[Pool]


def load(clips: Clips, *, first: int, workers: int, device: torch.device) -> Iterator[Drawn]:
    """Batches from number `first` on, read ahead by worker processes."""
    more: dict[str, Any] = {"prefetch_factor": 2} if workers else {}
    loader = DataLoader(
        clips,
        batch_size=None,
        sampler=range(first, len(clips)),
        num_workers=workers,
        pin_memory=device.type == "cuda",
        worker_init_fn=_ignore_interrupts,
        **more,
    )
    return iter(loader)


def to_device(drawn: Drawn, device: torch.device) -> Tensor:
    """Frames of a batch as the model takes them: float32 `(b*t, 3, h, w)` in [-1, 1], channels-last in memory."""
    frames = drawn.frames.to(device, non_blocking=True)
    return (frames.float() / 127.5 - 1).permute(0, 3, 1, 2)


def _ignore_interrupts(worker: int) -> None:
    """Leave Ctrl-C, which reaches every process of a terminal, to the main process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _buckets(measured: Sequence[Measured], area: int, multiple: int) -> list[Bucket]:
    """Items by the size of whole frames of about `area` pixels; those that have fewer pixels are left out."""
    found: dict[tuple[int, int], dict[Source, list[Item]]] = {}
    for entry in measured:
        scale = (area / (entry.height * entry.width)) ** 0.5
        height, width = (
            max(1, round(side * scale / multiple)) * multiple for side in (entry.height, entry.width)
        )
        if height <= entry.height and width <= entry.width:
            found.setdefault((height, width), {}).setdefault(entry.source, []).append(entry.item)
    if not found:
        raise ConfigError(
            f"batches.area={area}: nothing in data.sources has so many pixels; choose a smaller one"
        )
    return [
        Bucket(size=size, pools=[Pool(source=source, items=items) for source, items in sources.items()])
        for size, sources in sorted(found.items())
    ]


def _shares(weights: Sequence[float]) -> NDArray[np.float64]:
    shares = np.array(weights, np.float64)
    return shares / shares.sum()


def _first(faults: dict[str, str]) -> str:
    return f" ({next(iter(faults.values()))})" if faults else ""
