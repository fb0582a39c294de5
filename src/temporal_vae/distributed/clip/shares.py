"""Who computes what: the frames of a batch among ranks. Integers only, no torch."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from temporal_vae.engine import Network, Part, Task


@dataclass(frozen=True, kw_only=True)
class Share:
    """What a rank computes in one go."""

    frames: range  # of the batch
    part: Part | None = None  # of a clip that ranks share; None for whole clips, or for pictures
    ranks: tuple[int, ...] = ()  # of the group, which share the clip, in the order of their frames

    def of(self, batch: Any) -> Any:
        """Its frames of a batch, or its place in a result: a view."""
        return batch[self.frames.start : self.frames.stop]

    def clips(self, num_frames: int) -> list[Share]:
        """Each clip by itself, where they are whole."""
        if self.part is not None:
            return [self]
        starts = range(self.frames.start, self.frames.stop, num_frames)
        return [Share(frames=range(start, start + num_frames)) for start in starts]


def shares(clips: int, num_frames: int, ranks: int) -> list[list[Share]]:
    """What each rank computes of clips of `num_frames` frames; of pictures, where that is 1.

    Whole clips are spread first. Of those that are left, each is given to as many ranks as there are for it, one at
    least and none without a frame, so that some ranks may have nothing to do: to share every clip with all would take
    more communication than it saves.
    """
    each, left = divmod(clips, ranks)
    found: list[list[Share]] = [[] for _ in range(ranks)]
    for rank in range(ranks):
        if each:
            found[rank].append(Share(frames=range(rank * each * num_frames, (rank + 1) * each * num_frames)))
    together = min(ranks // left, num_frames) if left else 0
    for index in range(left):
        first = (each * ranks + index) * num_frames
        members = tuple(range(index * together, (index + 1) * together))
        for position, rank in enumerate(members):
            part = Part(counts=_lengths(num_frames, together), rank=position)
            own = part.span()
            frames = range(first + own.start, first + own.stop)
            found[rank].append(
                Share(frames=frames, part=part, ranks=members) if together > 1 else Share(frames=frames)
            )
    return found


def _lengths(frames: int, ranks: int) -> tuple[int, ...]:
    """How many frames each rank takes of a clip: nearly equal; at its ends, where ranks have one neighbour, more."""
    least, more = divmod(frames, ranks)
    order = sorted(range(ranks), key=lambda rank: min(rank, ranks - 1 - rank))
    longer = set(order[:more])
    return tuple(least + (rank in longer) for rank in range(ranks))


def spread(task: Task, network: Network, count: int, num_frames: int, ranks: int) -> list[list[Share]]:
    """What each rank computes of a batch of `count` frames, in clips of `num_frames` where the task sees clips."""
    if task == "decode" and network.temporal:
        return shares(count // num_frames, num_frames, ranks)
    return [[Share(frames=span)] if span else [] for span in evenly(count, ranks)]


def evenly(count: int, parts: int) -> list[range]:
    """`count` things in consecutive parts that differ by one at most, larger ones first; some may be empty."""
    least, more = divmod(count, parts)
    edges = [index * least + min(index, more) for index in range(parts + 1)]
    return [range(start, stop) for start, stop in pairwise(edges)]
