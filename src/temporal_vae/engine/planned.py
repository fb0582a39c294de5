"""What a plan says: how a clip is computed, what that takes, and what else there was to choose from. Integers only."""

from __future__ import annotations

from dataclasses import dataclass, field

from temporal_vae.engine.geometry import Cut
from temporal_vae.engine.overheads import MIB
from temporal_vae.engine.parts import Part
from temporal_vae.engine.schedule import Rung, Step


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a level takes on a rung."""

    peak: int  # bytes above the loaded model at its worst moment
    alive: int  # of these, activations
    scratch: int  # bytes of each worker
    weights: int  # bytes of the packed weights that are held at once
    sums: int  # bytes of the sums of the jobs of a pass
    work: int  # multiply-adds of a clip
    again: int  # of these, those that are done a second time
    spilled: int  # bytes of the file


@dataclass(frozen=True, kw_only=True)
class LevelPlan:
    """How one level is computed."""

    size: tuple[int, int]  # height and width
    together: int  # frames that a spatial block works on at a time
    rung: Rung  # where its activations are kept
    scratch_bytes: int  # of each worker
    weights_bytes: int  # of the packed weights that are held at once
    sums_bytes: int  # of the jobs of a pass
    pixels: int  # of all frames that weights are packed for
    steps: tuple[Step, ...] = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Offer:
    """What all levels on one rung take."""

    name: str  # of the rung
    peak: int  # bytes above the loaded model
    extra_work: float  # share of the arithmetic that is done a second time
    spill_bytes: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a clip is decoded or encoded. `print(plan)` shows it, and the ladder it was chosen from."""

    task: str  # "decode" or "encode"
    frames: int  # of a clip, of a part of one, or of the pictures that are computed together
    clips: bool  # whether frames belong to clips, rather than each being a picture by itself
    batch: int  # frames of the whole call
    height: int  # of the pictures
    width: int
    dtype: str
    memory_limit: int | None
    rung: str  # the lowest that a level stands on
    levels: tuple[LevelPlan, ...]  # in the order in which they are computed
    workers: int
    cut: Cut
    spill_bytes: int
    peak: int  # bytes above the loaded model
    kept: int  # of these, what libraries take for good
    extra_work: float
    work: int  # multiply-adds of the network on the whole batch
    ladder: tuple[Offer, ...]
    part: Part | None = None  # of the clip, where other ranks hold the rest
    sent: int = 0  # bytes that go to other ranks
    received: int = 0  # bytes that come from them

    def __str__(self) -> str:
        limit = "what is free" if self.memory_limit is None else readable(self.memory_limit)
        lines = [
            f"{self.task} {self.batch} frames of {self.height}x{self.width} (height x width), "
            f"{f'clips of {self.frames}' if self.clips else f'{self.frames} at a time'}, {self.dtype}, "
            f"{self.workers} threads; limit {limit}",
            "",
            f"  {'rung':28} {'peak':>10} {'extra work':>11} {'spilled':>10}",
        ]
        for rung in self.ladder:
            mark = "->" if rung.name == self.rung else "  "
            spilled = readable(rung.spill_bytes) if rung.spill_bytes else "-"
            lines.append(
                f"{mark} {rung.name:28} {readable(rung.peak):>9} {rung.extra_work:>10.1%} {spilled:>11}"
            )
        lines += [
            "",
            f"chosen: peak {readable(self.peak)} above the loaded model, {self.extra_work:.1%} extra work",
        ]
        if self.part is not None:
            span = self.part.span()
            lines.append(
                f"frames {span.start} to {span.stop - 1} of {sum(self.part.counts)}, the others on "
                f"{self.part.ranks - 1} ranks: {readable(self.sent)} sent, {readable(self.received)} received"
            )
        lines += [
            f"  level {level.size[0]}x{level.size[1]}: {level.rung.name}, {level.together} frames together"
            for level in self.levels
        ]
        return "\n".join(lines)


def readable(nbytes: int) -> str:
    """`3.25 GiB`."""
    return f"{nbytes / 2**30:.2f} GiB" if nbytes >= 2**30 else f"{nbytes / MIB:.0f} MiB"
