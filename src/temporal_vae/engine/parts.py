"""A clip among several ranks: which frames each of them holds, and what they tell each other. Integers only, no torch.

Spatial passes, attention and the norms of single frames need nothing of other ranks. A convolution over time reads a
frame beside those at hand on either side, two where what lies between two convolutions is computed twice; a norm over
time needs the moments of all frames. Whatever is beside is held by the ranks next to this one, by the next but one
where those hold too few frames.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate

from temporal_vae.engine.schedule import Step

CHUNK_BYTES = 2 * 2**20
"""Of a frame that is not in memory: as much is sent at a time."""
VALUE_BYTES = 8
"""Of a count, a mean, a sum of squared deviations, or a yes or no: float64."""


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """What one rank and another send each other, as frames of the clip."""

    rank: int  # the other one
    sent: range
    received: range


@dataclass(frozen=True, kw_only=True)
class Part:
    """The frames of a clip that one of several ranks holds: they follow each other."""

    counts: tuple[int, ...]  # frames of each rank, in their order
    rank: int  # which of them this is

    @property
    def frames(self) -> int:
        """How many this rank holds."""
        return self.counts[self.rank]

    @property
    def ranks(self) -> int:
        """How many share the clip."""
        return len(self.counts)

    def of(self, rank: int) -> Part:
        """What another rank holds."""
        return Part(counts=self.counts, rank=rank)

    def span(self, rank: int | None = None) -> range:
        """The frames that a rank holds, by default this one, as numbers within the clip."""
        edges = [0, *accumulate(self.counts)]
        rank = self.rank if rank is None else rank
        return range(edges[rank], edges[rank + 1])

    def beside(self, reach: int) -> tuple[int, int]:
        """How many frames of other ranks are there within `reach` before those of this rank, and behind them."""
        own = self.span()
        return min(reach, own.start), min(reach, sum(self.counts) - own.stop)

    def transfers(self, reach: int) -> list[Transfer]:
        """What this rank and others send each other so that all of them know what is within `reach`."""
        found = []
        for rank in range(self.ranks):
            sent = _shared(self.span(), self.of(rank)._around(reach))
            received = _shared(self.span(rank), self._around(reach))
            if rank != self.rank and (sent or received):
                found.append(Transfer(rank=rank, sent=sent, received=received))
        return found

    def _around(self, reach: int) -> range:
        """Its frames and those within reach of them."""
        own, (before, behind) = self.span(), self.beside(reach)
        return range(own.start - before, own.stop + behind)


def exchanged(steps: Iterable[Step], part: Part, itemsize: int, *, agree: bool) -> tuple[int, int]:
    """Bytes that a rank sends to others and receives from them while it takes some steps: a fold over the schedule.

    Where they `agree` at the end whether the result is finite, that is counted once: as often as it is computed.
    """
    others = part.ranks - 1
    sent = received = others * VALUE_BYTES * agree
    for step in steps:
        for values, reach in _borders(step):
            for transfer in part.transfers(reach):
                sent += len(transfer.sent) * values * itemsize
                received += len(transfer.received) * values * itemsize
        for one in step.passes:
            if one.kind == "temporal":  # behind a norm over time
                moments = (1 + 2 * one.inputs) * VALUE_BYTES
                sent, received = sent + others * moments, received + others * moments
    return sent, received


def _borders(step: Step) -> list[tuple[int, int]]:
    """Values of a frame that is sent, and how far it is from those who need it."""
    if not step.reach:
        return []
    if step.state is None:  # the pictures
        last = step.passes[-1]
        return [(step.size[0] * step.size[1] * last.outputs, step.reach)]
    held = [step.state, *([step.hidden] if step.hidden and step.hidden.keep != "recomputed" else [])]
    return [(activation.values, step.reach) for activation in held]


def _shared(first: range, second: range) -> range:
    """The numbers in both."""
    return range(max(first.start, second.start), min(first.stop, second.stop))
