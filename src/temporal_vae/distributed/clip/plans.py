"""What each rank does of a batch, what that takes, and what ranks tell each other. Integers only, no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from temporal_vae import engine
from temporal_vae.distributed.clip.shares import Share, spread
from temporal_vae.engine import Network, Plan, readable
from temporal_vae.engine.overheads import MIB
from temporal_vae.errors import InputError, MemoryLimitError


@dataclass(frozen=True, kw_only=True)
class RankPlan:
    """What one rank does.

    Attributes:
        frames: numbers of the frames that it computes, in the order in which it holds them.
        plans: how, one for each go, whose peaks count what the rank holds of goes before.
        joining: bytes above the loaded model while the frames of several goes become one tensor.
        sent, received: bytes, while it computes.
        gathered: bytes that it sends when the results are gathered.
    """

    frames: tuple[range, ...]
    plans: tuple[Plan, ...]
    joining: int
    sent: int
    received: int
    gathered: int

    @property
    def peak(self) -> int:
        """Bytes above the loaded model; where results are gathered, those of all ranks come on top."""
        return max([self.joining, *(plan.peak for plan in self.plans)])

    @property
    def least(self) -> int:
        """Bytes below which no limit can be."""
        return max([self.joining, *(min(offer.peak for offer in plan.ladder) for plan in self.plans)])

    @property
    def work(self) -> int:
        """Multiply-adds."""
        return sum(plan.work for plan in self.plans)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        frames = [[span.start, span.stop] for span in self.frames]
        amounts = {name: getattr(self, name) for name in ("peak", "work", "sent", "received", "gathered")}
        return {"frames": frames, **amounts}


@dataclass(frozen=True, kw_only=True)
class ShardedPlan:
    """How ranks share a batch. `print(plan)` shows it."""

    task: engine.Task
    ranks: tuple[RankPlan, ...]

    def __str__(self) -> str:
        lines = [
            f"{self.task} on {len(self.ranks)} ranks",
            f"  {'rank':>4}  {'frames':16} {'peak':>10} {'sent':>10} {'received':>10} {'gathering':>10}",
        ]
        for number, rank in enumerate(self.ranks):
            frames = ", ".join(f"{span.start}-{span.stop - 1}" for span in rank.frames) or "idle"
            amounts = (rank.peak, rank.sent, rank.received, rank.gathered)
            columns = " ".join(f"{readable(amount) if amount else '-':>10}" for amount in amounts)
            lines.append(f"  {number:>4}  {frames:16} {columns}")
        return "\n".join(lines)


def plan_ranks(
    task: engine.Task,
    network: Network,
    *,
    ranks: int,
    num_frames: int,
    height: int,
    width: int,
    clips: int = 1,
    dtype: str = "float32",
    **how: Any,
) -> ShardedPlan:
    """How ranks share clips, or pictures that are computed each by itself.

    Args:
        task: `"decode"` or `"encode"`.
        network: the configuration.
        ranks: how many.
        num_frames: length of a clip; the number of pictures where each is computed by itself.
        height: of the frames in pixels; for decoding a multiple of the network's factor.
        width: of the frames in pixels.
        clips: how many there are.
        dtype: of model and activations.
        **how: `device`, `memory_limit` and `workers` of each rank, as `engine.plan` takes them.

    Raises:
        InputError: a size that no latents have, or a count below 1.
        MemoryLimitError: a limit that is too small for one of the ranks.
    """
    if ranks < 1:
        raise InputError(f"ranks={ranks}: at least 1")
    over_time = task == "decode" and network.temporal
    size = {"height": height, "width": width, "dtype": dtype, **how}

    def planned(share: Share, held: int) -> Plan:
        count = len(share.frames)
        if share.part is not None:
            return engine.plan(task, network, num_frames=num_frames, part=share.part, held=held, **size)
        if over_time:
            clips = count // num_frames
            return engine.plan(task, network, num_frames=num_frames, clips=clips, held=held, **size)
        return engine.plan(task, network, num_frames=count, held=held, **size)

    values = network.out_channels * height * width
    if task == "encode":
        values = 2 * network.latent_channels * (height // network.factor) * (width // network.factor)
    frame, found = values * engine.ITEMSIZE[dtype], []
    for own in spread(task, network, clips * num_frames, num_frames, ranks):
        held = held_before(own, frame, how.get("device", "cpu"))
        plans = tuple(map(planned, own, held))
        joining = _joining(own, plans, held, frame, num_frames)
        _check(how.get("memory_limit"), joining)
        count = sum(len(share.frames) for share in own)
        found.append(
            RankPlan(
                frames=tuple(share.frames for share in own),
                plans=plans,
                joining=joining,
                sent=sum(plan.sent for plan in plans),
                received=sum(plan.received for plan in plans),
                gathered=count * frame * (ranks - 1),
            )
        )
    return ShardedPlan(task=task, ranks=tuple(found))


def held_before(own: Sequence[Share], frame: int, device: str) -> list[int]:
    """Bytes of results that a rank holds before each go, of so many a frame.

    They lie in one tensor from the end of the first go on, of which a CPU takes what was written.
    """
    counts = [len(share.frames) for share in own]
    return [
        frame * sum(counts[:index] if device == "cpu" or not index else counts)
        for index in range(len(counts))
    ]


def _joining(
    own: Sequence[Share], plans: Sequence[Plan], held: Sequence[int], frame: int, num_frames: int
) -> int:
    """Bytes above the loaded model while clips, or the part of one, are copied to where all results are."""
    if len(own) < 2:
        return 0
    counts = [len(share.frames) for share in own]
    there = [*held[1:], frame * sum(counts)]
    copied = [frame * min(count, num_frames) for count in counts]
    return max(plan.kept + some + one for plan, some, one in zip(plans, there, copied, strict=True))


def _check(limit: int | None, joining: int) -> None:
    if limit is not None and joining > limit:
        raise MemoryLimitError(
            f"memory limit {readable(limit)}: what a rank computes takes at least {-(-joining // MIB)} MiB when it is "
            "put together; raise the limit to that"
        )
