"""Who computes what: the frames of a batch among ranks. Integers only, no torch."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from temporal_vae.engine import Network, Part, Task


@dataclass(frozen=True, kw_only=True)
class Share:
    """What a rank computes in one go."""

    frames: range  # of the batch
    part: Part | None = None  # of a clip that ranks share; None for whole clips, or for pictures
    ranks: tuple[int, ...] = ()  # of the group, which share the clip, in the order of their frames


def shares(clips: int, num_frames: int, ranks: int) -> list[list[Share]]:
    """What each rank computes of clips of `num_frames` frames; of pictures, where that is 1.

    Whole clips are spread first. Of those that are left, each is shared by as many ranks as there are for it: by all,
    one clip after the other, where they cannot be divided among the clips. A rank has a frame at least, so that some
    ranks may have nothing to do.
    """
    each, left = divmod(clips, ranks)
    found: list[list[Share]] = [[] for _ in range(ranks)]
    for rank in range(ranks):
        if each:
            found[rank].append(Share(frames=range(rank * each * num_frames, (rank + 1) * each * num_frames)))
    together = ranks // left if left and ranks % left == 0 else ranks
    together = min(together, num_frames)
    for index in range(left):
        first = (each * ranks + index) * num_frames
        members = tuple((index * together + position) % ranks for position in range(together))
        if together == 1:
            found[members[0]].append(Share(frames=range(first, first + num_frames)))
            continue
        counts = _lengths(num_frames, together)
        for position, rank in enumerate(members):
            part = Part(counts=counts, rank=position)
            own = part.span()
            frames = range(first + own.start, first + own.stop)
            found[rank].append(Share(frames=frames, part=part, ranks=members))
    return found


def _lengths(frames: int, ranks: int) -> tuple[int, ...]:
    """How many frames each rank takes of a clip: nearly equal; those at its ends, which have one neighbour, get more."""
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
