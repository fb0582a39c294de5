"""How several ranks divide the same work, without a word between them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from temporal_vae.distributed.dataset.settings import digest

_CHUNK = 64  # files of other ranks that are read before it is looked what those have found


@dataclass(frozen=True, kw_only=True)
class Share:
    """One of several ranks that do the same work, each its part of it."""

    rank: int = 0
    ranks: int = 1

    def is_ours(self, name: str) -> bool:
        """Whether something is for this rank, by its name."""
        return self._home(name) == self.rank

    def _home(self, name: str) -> int:
        return int(digest(name)[:8], 16) % self.ranks if self.ranks > 1 else 0

    def first(self, paths: Iterable[str]) -> Iterator[list[str]]:
        """Paths in the order in which this rank reads them: its own at once, then those of the others bit by bit."""
        homes: dict[int, list[str]] = {number: [] for number in range(self.ranks)}
        for path in paths:
            homes[self._home(path)].append(path)
        yield homes[self.rank]
        for number in range(1, self.ranks):
            others = iter(homes[(self.rank + number) % self.ranks])
            while chunk := list(islice(others, _CHUNK)):
                yield chunk
