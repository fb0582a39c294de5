"""The frames of a clip that other ranks hold, where a step over time needs them, and the moments of all frames.

Who the others are and how they are spoken to is `Peers`, which `distributed/` implements; what is exchanged follows
from `parts.py`, so a plan knows every byte.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from temporal_vae.engine.geometry import Span, spans
from temporal_vae.engine.parts import CHUNK_BYTES, Part
from temporal_vae.engine.stats import Moments, merge
from temporal_vae.engine.storage import Activations, Joined, Scratch

Wait = Callable[[], None]
Message = tuple[int, Tensor]
"""To or from a rank: a contiguous tensor."""
_Place = tuple[int, Activations, int]
"""To or from a rank: which activations, and which of their frames."""


class Peers(Protocol):
    """The ranks that share a clip. All of them make the same calls in the same order."""

    @property
    def part(self) -> Part:
        """What this rank holds."""

    def exchange(self, sent: Sequence[Message], received: Sequence[Message]) -> Wait:
        """Begin to send and to receive; neither may be touched before what is returned was called, which waits."""

    def everyone(self, values: Tensor) -> list[Tensor]:
        """A few values of each rank, in the order of the ranks."""


class Shared:
    """A clip that is shared with other ranks, on its way through a network."""

    def __init__(
        self, peers: Peers, room: Callable[[int, Activations], Activations], device: torch.device
    ) -> None:
        """`room(count, like)` is for frames that are kept as others are."""
        self._peers, self._room, self._device = peers, room, device
        self._coming: _Coming | None = None

    @property
    def part(self) -> Part:
        """What this rank holds."""
        return self._peers.part

    def order(self, groups: Sequence[Sequence[int]], reach: int) -> tuple[list[Sequence[int]], int]:
        """Groups of frames, those first that others wait for, and how many of these there are."""
        first = self.part.span().start
        wanted = {number - first for one in self.part.transfers(reach) for number in one.sent}
        early = [group for group in groups if wanted.intersection(group)]
        return early + [group for group in groups if group not in early], len(early)

    def begin(self, own: Activations, reach: int) -> None:
        """Begin to send frames to those who need them, and to receive what is beside them."""
        self._coming = self._exchange(self.blank_around(own, reach), reach)

    def around(self, own: Activations, reach: int) -> Joined:
        """Frames and those beside them, which have arrived."""
        if self._coming is None:
            self.begin(own, reach)
        assert self._coming is not None
        coming, self._coming = self._coming, None
        coming.arrive()
        return coming.joined

    def blank_around(self, own: Activations, reach: int) -> Joined:
        """Frames, and room beside them."""
        before, behind = (self._room(count, own) for count in self.part.beside(reach))
        return Joined(before, own, behind)

    def _exchange(self, joined: Joined, reach: int) -> _Coming:
        return _Coming(self._peers, joined, reach, self._device)

    def moments(self, own: Moments, hidden: Activations | None) -> Moments:
        """Of the frames of all ranks together, `(1, c)`: the same bits on every rank.

        Meanwhile what is beside `hidden` comes, which was made by `blank_around`.
        """
        coming = self._exchange(hidden, 1) if isinstance(hidden, Joined) else None
        part = own.over_frames()
        count = torch.full((1,), part.count, dtype=torch.float64, device=part.mean.device)
        values = self._peers.everyone(torch.cat([count, part.mean[0], part.m2[0]]))
        if coming is not None:
            coming.arrive()
        channels = part.mean.shape[1]
        return merge(
            Moments(int(one[0]), *(some[None].contiguous() for some in one[1:].split(channels)))
            for one in values
        )

    def pictures(self, around: Tensor, reach: int) -> None:
        """Bring the pictures `(t, c, h, w)` beside those of this rank to either end of them."""
        own, (before, _) = self.part.span(), self.part.beside(reach)
        first = own.start - before
        sent, received = (
            [
                (transfer.rank, around[numbers.start - first : numbers.stop - first])
                for transfer in self.part.transfers(reach)
                if (numbers := getattr(transfer, name))
            ]
            for name in ("sent", "received")
        )
        self._peers.exchange(sent, received)()


def agreed(peers: Peers, holds: bool) -> bool:
    """Whether something holds on all ranks."""
    values = peers.everyone(torch.full((1,), float(holds), dtype=torch.float64))
    return all(bool(value) for value in values)


class _Coming:
    """Frames beside those of this rank, on their way."""

    def __init__(self, peers: Peers, joined: Joined, reach: int, device: torch.device) -> None:
        self._peers, self.joined = peers, joined
        first = peers.part.span().start - joined.own.start
        self._sent, self._received = (
            [
                (transfer.rank, *joined.place(number - first))
                for transfer in peers.part.transfers(reach)
                for number in getattr(transfer, name)
            ]
            for name in ("sent", "received")
        )
        self._device = device
        self._wait: Wait | None = None
        if all(at.whole(()) is not None for _, at, _ in (*self._sent, *self._received)):
            sent, received = (
                [(rank, _frame(at, frame)) for rank, at, frame in some]
                for some in (self._sent, self._received)
            )
            self._wait = peers.exchange(sent, received)

    def arrive(self) -> None:
        """Wait until they are here."""
        if self._wait is not None:
            self._wait()
        else:
            self._by_chunks()

    def _by_chunks(self) -> None:
        """Frames that are not in memory: the next rows of what goes to each rank, and comes from each, at a time."""
        sending, receiving = _queues(self._sent), _queues(self._received)
        queues = [*sending.values(), *receiving.values()]
        size = max(row_bytes(queue[0][0]) for queue in queues) if queues else 0
        scratch = Scratch(self._device)
        scratch.resize(len(queues) * (max(CHUNK_BYTES, size) + 64))
        for turn in range(max(map(len, queues), default=0)):
            scratch.reset()
            going, coming = (
                [(rank, queue[turn]) for rank, queue in some.items() if turn < len(queue)]
                for some in (sending, receiving)
            )
            sent = [(rank, at.rows(frame, span, scratch).data) for rank, (at, frame, span) in going]
            rows = [at.blank_rows(frame, span, scratch) for _, (at, frame, span) in coming]
            received = [(rank, one.data) for (rank, _), one in zip(coming, rows, strict=True)]
            self._peers.exchange(sent, received)()
            for (_, (at, frame, _span)), one in zip(coming, rows, strict=True):
                at.put_rows(frame, one)


def row_bytes(activations: Activations) -> int:
    """Bytes of a row of a frame."""
    return activations.width * activations.channels * activations.dtype.itemsize


def _frame(activations: Activations, frame: int) -> Tensor:
    """A whole frame in memory."""
    found = activations.whole([frame])
    assert found is not None
    return found[0]


def _queues(frames: Sequence[_Place]) -> dict[int, list[tuple[Activations, int, Span]]]:
    """By rank, the rows of its frames in the order in which they are sent or received."""
    queues: dict[int, list[tuple[Activations, int, Span]]] = {}
    for rank, activations, frame in frames:
        rows = max(1, CHUNK_BYTES // row_bytes(activations))
        pieces = [(activations, frame, span) for span in spans(activations.height, rows)]
        queues.setdefault(rank, []).extend(pieces)
    return queues
