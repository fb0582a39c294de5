"""In which order clips are read: shuffled by a seed, cut into batches of one shape, dealt to ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Remainder = Literal["keep", "pad", "drop"]
Rows = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Dealing:
    """How the rows of an index become the items of an epoch.

    Attributes:
        shuffle: whether their order changes with the epoch.
        seed: of that order; the same on all ranks.
        batch_size: rows of one item, all of one shape; None is one row, whatever its shape.
        remainder: where rows do not fill the last batch of a shape, or items do not go round all ranks: `keep` them as
            they are, `pad` with others that come twice, or `drop` them.
        world_size: number of ranks.
    """

    shuffle: bool
    seed: int
    batch_size: int | None
    remainder: Remainder
    world_size: int

    def items(self, shapes: NDArray[np.int64], epoch: int) -> list[Rows] | Rows:
        """The items of an epoch, of all ranks: rows, or batches of them.

        Args:
            shapes: of each row, a number that stands for its shape.
            epoch: number of the epoch.
        """
        rows = np.arange(len(shapes))
        generator = np.random.default_rng([self.seed % 2**64, epoch])
        if self.shuffle:
            generator.shuffle(rows)
        if self.batch_size is None:
            return rows
        batches = [
            batch
            for shape in _as_they_come(shapes[rows])
            for batch in self._batches(rows[shapes[rows] == shape], self.batch_size)
        ]
        if self.shuffle:
            batches = [batches[number] for number in generator.permutation(len(batches))]
        return batches

    def _batches(self, rows: Rows, size: int) -> list[Rows]:
        """Rows of one shape, `size` at a time."""
        whole = len(rows) // size * size
        batches = [rows[first : first + size] for first in range(0, whole, size)]
        if whole < len(rows) and self.remainder != "drop":
            rest = rows[whole:]
            batches.append(np.resize(np.concatenate([rest, rows]), size) if self.remainder == "pad" else rest)
        return batches

    def deal(self, items: Sequence[Any] | Rows, rank: int, start: int) -> Sequence[Any] | Rows:
        """The items of one rank, behind the first `start` items of all."""
        left = items[start:]
        beyond = len(left) % self.world_size
        if beyond and self.remainder == "drop":
            left = left[:-beyond]
        mine = left[rank :: self.world_size]
        if beyond and self.remainder == "pad" and rank >= beyond:
            # The first items once more; there may be fewer than ranks.
            again = items[(rank - beyond) % len(items)]
            mine = [*mine, again] if isinstance(mine, list) else np.append(np.asarray(mine), again)
        return mine


def _as_they_come(values: NDArray[np.int64]) -> list[int]:
    """Each value once, in the order of the first of it."""
    found, first = np.unique(values, return_index=True)
    return [int(value) for value in found[np.argsort(first)]]
