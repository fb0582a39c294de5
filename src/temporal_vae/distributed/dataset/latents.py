"""Encoded clips for training: any of them at once, in an order that all processes agree on."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from temporal_vae.distributed.dataset.index import COLUMNS, read_index
from temporal_vae.distributed.dataset.order import Dealing, Remainder
from temporal_vae.distributed.dataset.places import open_place
from temporal_vae.distributed.dataset.sampling import draw
from temporal_vae.distributed.dataset.settings import digest
from temporal_vae.distributed.dataset.shards import Record, read_record
from temporal_vae.errors import InputError, first_names

_OURS = ("latents", "identity", "fps", "size")


class LatentDataset(Dataset[dict[str, Any]]):
    """What `encode-dataset` wrote, for `torch.utils.data.DataLoader`.

        dataset = LatentDataset("latents/", shuffle=True, seed=0, batch_size=8)
        loader = DataLoader(dataset, batch_size=None, num_workers=4, persistent_workers=True)
        for epoch in range(10):
            dataset.set_epoch(epoch)
            for batch in loader:
                batch["latents"]  # (8, t, z, h, w)

    `dataset[i]` is the i-th item of this epoch for this rank, `len(dataset)` is how many there are: a loader without a
    sampler reads them in turn, with any number of workers, in the same order. A row of the plan is an item of an epoch
    once on one of the ranks. A clip that the manifest lists twice is two rows. A clip is one read of its bytes,
    wherever in its shard they lie, so that shuffling reads nothing in vain.

    An item is a dict:

    - `latents`: the mean of the posterior or what `sample` says, `(t, z, h, w)`, in the dtype that is stored (a sample
      that is drawn: float32);
    - `identity`: that of the clip;
    - `fps`: frames per second, a float;
    - `size`: width and height of the frames that were encoded;
    - the columns of the manifest. A text that is missing is empty, what else is missing nan.

    With `batch_size`, tensors, sizes and numbers of an item are stacked, texts are lists, and all clips of an item have
    latents of one shape, also where a dataset has buckets of several. Such items go to a loader with `batch_size=None`.

    To resume, count the items that were consumed, which the loader may have read ahead of, and save
    `dataset.state_dict(consumed)`. `load_state_dict` goes on behind them, exact to the clip, also with another number
    of ranks: `dataset[0]` is the next item then. The state is the same on all ranks if they consumed as many.

        dataset.load_state_dict(saved["data"])
        for epoch in range(saved["data"]["epoch"], 10):
            dataset.set_epoch(epoch)  # of the epoch that was loaded: its rest
            for consumed, batch in enumerate(loader, 1):
                ...
                save(dataset.state_dict(consumed))

    Args:
        location: folder of the dataset, a path or a URL that fsspec opens. Its run is finished: there is an index.
        columns: of the manifest, or others of the index such as `path`; None is all of the manifest's.
        settings: of several that the folder was encoded with, by the first 8 digits or more of their hash (as in
            `dataset.json`); None is those of the last run.
        batch_size: rows of an item; None is one row, without the axis of a batch.
        shuffle: a new order in each epoch; else that of the index.
        seed: of that order, and of samples.
        sample: draw from the posterior, by the seed, the epoch and the identity, rather than take its mean.
        scaled: as diffusion models take latents: shifted and multiplied by the `scaling_factor` of the model.
        rank: of this process; None is that of `torch.distributed`, or the variable RANK, or 0.
        world_size: number of ranks, likewise.
        remainder: what does not fill a batch or does not go round the ranks: `keep` gives each row once, so that ranks
            may differ by one item and batches be short; `pad` has some rows twice, `drop` leaves some out of an
            epoch, and ranks have the same number of items, as collective training needs it.

    Raises:
        InputError: an argument that is out of range, a column or settings that there are not.
        LatentFileError: no index, or a damaged one.
    """

    def __init__(
        self,
        location: str | Path,
        *,
        columns: Sequence[str] | None = None,
        settings: str | None = None,
        batch_size: int | None = None,
        shuffle: bool = False,
        seed: int = 0,
        sample: bool = False,
        scaled: bool = False,
        rank: int | None = None,
        world_size: int | None = None,
        remainder: Remainder = "keep",
    ) -> None:
        self.location = str(location)
        self._place = open_place(location)
        self.rank, world_size = _place_among(rank, world_size)
        if batch_size is not None and batch_size < 1:
            raise InputError(f"batch_size={batch_size}: at least 1")
        if remainder not in ("keep", "pad", "drop"):
            raise InputError(f"remainder={remainder!r}: choose keep, pad or drop")
        self._dealing = Dealing(
            shuffle=shuffle, seed=seed, batch_size=batch_size, remainder=remainder, world_size=world_size
        )
        self._sample, self._scaled = sample, scaled
        table = read_index(self._place, settings)
        self.columns = _chosen(self._place.shown(""), table.column_names, columns)
        self._rows = table.select([*_NEEDED, *(name for name in self.columns if name not in _NEEDED)])
        shapes = table["shape"].combine_chunks().dictionary_encode().indices
        self._shapes = shapes.to_numpy().astype(np.int64)
        # Shared with workers, which a loader may have started before.
        self._position = torch.zeros(2, dtype=torch.int64).share_memory_()
        self._dealt: tuple[tuple[int, int], Any] | None = None

    @property
    def epoch(self) -> int:
        """Number of the epoch."""
        return int(self._position[0])

    def set_epoch(self, epoch: int) -> None:
        """Begin an epoch; or go on with the one that `load_state_dict` is in the middle of. Call it between loops."""
        if epoch < 0:
            raise InputError(f"epoch={epoch}: 0 or more")
        if epoch != self.epoch:
            self._position[:] = torch.tensor([epoch, 0])

    def state_dict(self, consumed: int = 0) -> dict[str, Any]:
        """Where an epoch stands, for JSON.

        Args:
            consumed: items that this rank took in this epoch, since it began or was loaded.
        """
        if not 0 <= consumed <= len(self):
            raise InputError(
                f"consumed={consumed}: this rank has 0 to {len(self)} items left in epoch {self.epoch}"
            )
        start = int(self._position[1]) + consumed * self._dealing.world_size
        return {"epoch": self.epoch, "start": start, "order": self._order}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another dataset stood when `state_dict` was asked.

        Raises:
            InputError: the state of other rows, of another order or of other batches.
        """
        try:
            position = torch.tensor([state["epoch"], state["start"]], dtype=torch.int64)
            order = state["order"]
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise InputError("state of a LatentDataset: epoch, start and order; this is none") from error
        if order != self._order:
            raise InputError(
                f"{self.location}: the state is that of other rows, or of another seed, batch_size, shuffle or "
                "remainder; begin an epoch with set_epoch instead"
            )
        self._position[:] = position

    def __len__(self) -> int:
        """Items that this rank has in this epoch, behind those that were consumed before `load_state_dict`."""
        return len(self._items())

    def __getitem__(self, index: int) -> dict[str, Any]:
        """An item; see the class.

        Raises:
            IndexError: the epoch is over.
            LatentFileError: a shard that is damaged.
            MediaError: a shard that can't be read.
        """
        items = self._items()
        if not -len(items) <= index < len(items):
            raise IndexError(f"item {index} of {len(items)}")
        if self._dealing.batch_size is None:
            return self._read(int(items[index]))
        read = [self._read(int(row)) for row in items[index]]
        return {name: _stacked([each[name] for each in read]) for name in read[0]}

    @cached_property
    def _order(self) -> str:
        """Hash of all that the order of rows follows from, but for the ranks."""
        rows = hashlib.sha256("".join(self._rows["identity"].to_pylist()).encode()).hexdigest()
        dealing = self._dealing
        return digest([rows, dealing.shuffle, dealing.seed, dealing.batch_size, dealing.remainder])

    def _items(self) -> Any:
        position = epoch, start = int(self._position[0]), int(self._position[1])
        if self._dealt is None or self._dealt[0] != position:
            items = self._dealing.items(self._shapes, epoch)
            self._dealt = position, self._dealing.deal(items, self.rank, start)
        return self._dealt[1]

    def _read(self, number: int) -> dict[str, Any]:
        row = {name: values[0] for name, values in self._rows.slice(number, 1).to_pydict().items()}
        at = row["offset"], row["length"]
        record = read_record(self._place, row["shard"], row["format"], row["identity"], at)
        return {
            "latents": self._latents(record),
            "identity": row["identity"],
            "fps": float(Fraction(row["fps"])),
            "size": tuple(
                map(int, row["bucket"].split("x"))
            ),  # a tensor would double what workers take to send
            **{name: self._value(name, row[name]) for name in self.columns},
        }

    def _latents(self, record: Record) -> Tensor:
        latents = record.tensors.get("sample")
        if latents is None:
            latents = record.tensors["mean"]
            if self._sample:
                seed = int(digest([self._dealing.seed, self.epoch])[:16], 16)
                latents = draw(latents, record.tensors["logvar"], seed, record.identity)
        elif self._sample:
            raise InputError(f"{self.location}: holds samples already, and no posterior to draw them from")
        if self._scaled:
            factor = record.meta["scaling_factor"]
            if factor is None:
                raise InputError(f"{self.location}: scaled: pipelines of this model do not scale by a factor")
            latents = (latents - (record.meta.get("shift_factor") or 0)) * factor
        return latents

    def _value(self, name: str, value: Any) -> Any:
        if value is not None:
            return value
        kind = str(self._rows.schema.field(name).type)
        return "" if kind in ("string", "large_string", "null") else math.nan


_NEEDED = ("identity", "shard", "format", "offset", "length", "bucket", "fps")


def _place_among(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """This process among the ranks, as it is told, or as torch or its launcher knows."""
    if (rank is None) != (world_size is None):
        raise InputError(f"rank={rank}, world_size={world_size}: give both or none")
    if rank is None or world_size is None:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank(), torch.distributed.get_world_size()
        rank, world_size = (_variable(*each) for each in (("RANK", "0"), ("WORLD_SIZE", "1")))
    if not 0 <= rank < world_size:
        raise InputError(f"rank={rank}, world_size={world_size}: a rank is 0 to world_size - 1")
    return rank, world_size


def _variable(name: str, default: str) -> int:
    value = os.environ.get(name, default)
    try:
        return int(value)
    except ValueError:
        raise InputError(f"{name}={value!r}: the variable is to be a number, as launchers set it") from None


def _chosen(shown: str, present: Sequence[str], columns: Sequence[str] | None) -> tuple[str, ...]:
    """The columns of an index that items have."""
    more = [name for name in present if name not in COLUMNS]
    chosen = tuple(more if columns is None else columns)
    if unknown := [name for name in chosen if name not in present]:
        raise InputError(
            f"{shown}: has no column {first_names(unknown)}; there are {', '.join(more or COLUMNS)}"
        )
    if taken := [name for name in chosen if name in _OURS and name != "identity"]:
        raise InputError(
            f"{shown}: column {first_names(taken)} has a name of an item; list others with `columns`"
        )
    return chosen


def _stacked(values: list[Any]) -> Any:
    """Values of a batch: tensors, sizes and numbers as a tensor, others as a list."""
    if isinstance(values[0], Tensor):
        return torch.stack(values)
    if all(isinstance(value, int | float | tuple) for value in values):
        return torch.tensor(values)
    return values
