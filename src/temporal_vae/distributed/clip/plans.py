"""What each rank does of a batch, what that takes, and what ranks tell each other. Integers only, no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from temporal_vae import engine
from temporal_vae.distributed.clip.shares import Share, spread
from temporal_vae.engine import Network, Plan, readable
from temporal_vae.errors import InputError


@dataclass(frozen=True, kw_only=True)
class RankPlan:
    """What one rank does.

    Attributes:
        frames: numbers of the frames that it computes, in the order in which it holds them.
        plans: how, one for each go.
        sent, received: bytes, while it computes.
        gathered: bytes that it sends when the results are gathered.
    """

    frames: tuple[range, ...]
    plans: tuple[Plan, ...]
    sent: int
    received: int
    gathered: int

    @property
    def peak(self) -> int:
        """Bytes above the loaded model."""
        return max((plan.peak for plan in self.plans), default=0)

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

    def planned(share: Share) -> Plan:
        count = len(share.frames)
        if share.part is not None:
            return engine.plan(task, network, num_frames=num_frames, part=share.part, **size)
        if over_time:
            return engine.plan(task, network, num_frames=num_frames, clips=count // num_frames, **size)
        return engine.plan(task, network, num_frames=count, **size)

    values = network.out_channels * height * width
    if task == "encode":
        values = 2 * network.latent_channels * (height // network.factor) * (width // network.factor)
    found = []
    for own in spread(task, network, clips * num_frames, num_frames, ranks):
        plans = tuple(map(planned, own))
        count = sum(len(share.frames) for share in own)
        found.append(
            RankPlan(
                frames=tuple(share.frames for share in own),
                plans=plans,
                sent=sum(plan.sent for plan in plans),
                received=sum(plan.received for plan in plans),
                gathered=count * values * engine.ITEMSIZE[dtype] * (ranks - 1),
            )
        )
    return ShardedPlan(task=task, ranks=tuple(found))
