"""From a shape and a memory limit to a plan: integers only, no torch.

A `Plan` says, level by level, what is kept in memory, what is computed twice, and what is spilled; how many frames are
worked on together; how large tiles are; and the peak of memory all that needs. `budget.py` counts what the passes hold,
so the peak is a promise: what the process uses above the loaded model stays below it, and close to it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from temporal_vae.engine.budget import (
    ENOUGH_LATENTS,
    ITEMSIZE,
    MIB,
    STRIP_BYTES,
    Decoder,
    Encoder,
    Flags,
    Network,
    Task,
    peak,
    worst,
)
from temporal_vae.engine.geometry import Cut
from temporal_vae.errors import InputError, MemoryLimitError


@dataclass(frozen=True, kw_only=True)
class LevelPlan:
    """How the activations of one level are treated."""

    size: tuple[int, int]  # height and width
    together: int  # frames that a spatial block works on at a time
    scratch_bytes: int  # of each worker
    weights_bytes: int  # of the packed weights that are held at once
    rematerialise: bool = False  # the enlarged input is computed where it is read, twice, instead of kept
    recompute: bool = False  # the first temporal convolution is computed twice instead of kept
    spill: bool = False  # the state of the clip lives in a file, or for a GPU in host memory
    spill_work: bool = False  # and so do the frames at work


@dataclass(frozen=True, kw_only=True)
class Rung:
    """One step of the memory ladder."""

    name: str
    peak: int  # bytes above the loaded model
    extra_work: float  # share of the arithmetic that is done a second time
    spill_bytes: int

    @property
    def flags(self) -> Flags:
        """What a level does on this rung."""
        return RUNGS[self.name]


RUNGS: dict[str, Flags] = {
    "whole": {},
    "rematerialise upsampling": {"rematerialise": True},
    "recompute temporal": {"recompute": True},
    "rematerialise and recompute": {"rematerialise": True, "recompute": True},
    "spill": {"recompute": True, "spill": True},
    "spill everything": {"recompute": True, "spill": True, "spill_work": True},
}
ENCODER_RUNGS = ("whole", "spill everything")
DEVICES = tuple(STRIP_BYTES)
"""Kinds of devices on which the engine runs."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a clip is decoded or encoded. `print(plan)` shows it, and the ladder it was chosen from."""

    task: str  # "decode" or "encode"
    frames: int  # of a clip, or of the frames that are encoded together
    batch: int  # frames of the whole call
    height: int  # of the pictures
    width: int
    dtype: str
    memory_limit: int | None
    rung: str
    levels: tuple[LevelPlan, ...]  # in the order in which they are computed
    workers: int
    cut: Cut
    spill_bytes: int
    peak: int  # bytes above the loaded model
    extra_work: float
    work: int  # multiply-adds of the network
    ladder: tuple[Rung, ...]

    def __str__(self) -> str:
        limit = "what is free" if self.memory_limit is None else readable(self.memory_limit)
        lines = [
            f"{self.task} {self.batch} frames of {self.height}x{self.width} (height x width), clips of {self.frames}, "
            f"{self.dtype}, {self.workers} threads; limit {limit}",
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
        for level in self.levels:
            names = ("rematerialise", "recompute", "spill everything" if level.spill_work else "spill")
            does = (level.rematerialise, level.recompute, level.spill)
            flags = [name for name, done in zip(names, does, strict=True) if done]
            lines.append(
                f"  level {level.size[0]}x{level.size[1]}: {', '.join(flags) or 'whole'}, "
                f"{level.together} frames together"
            )
        return "\n".join(lines)


def readable(nbytes: int) -> str:
    """`3.25 GiB`."""
    return f"{nbytes / 2**30:.2f} GiB" if nbytes >= 2**30 else f"{nbytes / MIB:.0f} MiB"


@lru_cache(maxsize=256)
def plan_decode(
    network: Network,
    *,
    num_frames: int,
    height: int,
    width: int,
    dtype: str = "float32",
    device: str = "cpu",
    memory_limit: int | None = None,
    clips: int = 1,
    workers: int | None = None,
) -> Plan:
    """Plan the decoding of `clips` clips of `num_frames` frames of `height` x `width` pixels.

    Args:
        network: the configuration.
        num_frames: length of a clip.
        height: of the frames in pixels, a multiple of the network's factor.
        width: of the frames in pixels.
        dtype: of model and activations: float32, bfloat16, float16 or float64.
        device: `"cpu"` or `"cuda"`: whose memory is counted, and which kernels work.
        memory_limit: bytes above the loaded model; None for no limit.
        clips: how many clips one call decodes; one after the other.
        workers: threads; None for all cores.

    Raises:
        InputError: a size that no latents have, or an unknown dtype.
        MemoryLimitError: the limit is below what the last rung needs; the message says how much that is.
    """
    _check(num_frames=num_frames, height=height, width=width, dtype=dtype, device=device, clips=clips)
    if height % network.factor or width % network.factor:
        raise InputError(
            f"plan: {height}x{width} pixels are not made of latents; height and width must be multiples of "
            f"{network.factor}"
        )
    sizes = [(height >> i, width >> i) for i in reversed(range(len(network.widths)))]
    return _choose(
        Decoder(network, num_frames, clips * num_frames, sizes, dtype, device, workers or cores()),
        memory_limit,
        list(RUNGS),
    )


@lru_cache(maxsize=256)
def plan_encode(
    network: Network,
    *,
    num_frames: int,
    height: int,
    width: int,
    dtype: str = "float32",
    device: str = "cpu",
    memory_limit: int | None = None,
    workers: int | None = None,
) -> Plan:
    """Plan the encoding of `num_frames` frames of `height` x `width` pixels, each by itself.

    The arguments and errors are those of `plan_decode`. Frames are encoded a few at a time; how many is
    `plan.frames`.
    """
    _check(num_frames=num_frames, height=height, width=width, dtype=dtype, device=device)
    if min(height, width) < network.factor:
        raise InputError(
            f"plan: frames of {height}x{width} are too small; at least {network.factor}x{network.factor} pixels"
        )
    sizes = [(height >> i, width >> i) for i in range(len(network.widths))]
    threads = workers or cores()
    most = max(1, min(num_frames, -(-ENOUGH_LATENTS // (sizes[-1][0] * sizes[-1][1]))))
    refusal: MemoryLimitError | None = None
    for frames in sorted({most, max(1, most // 2), max(1, most // 4), 1}, reverse=True):
        task = Encoder(network, frames, num_frames, sizes, dtype, device, threads)
        for rungs in (["whole"], list(ENCODER_RUNGS)) if frames == 1 else (["whole"],):
            try:
                return _choose(task, memory_limit, rungs, list(ENCODER_RUNGS))
            except MemoryLimitError as error:
                refusal = error
    assert refusal is not None
    raise refusal


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check(*, dtype: str, device: str, **counts: int) -> None:
    if device not in DEVICES:
        raise InputError(f"plan: device {device!r} is not one of {', '.join(DEVICES)}")
    if dtype not in ITEMSIZE:
        raise InputError(f"plan: dtype {dtype!r} is not one of {', '.join(ITEMSIZE)}")
    for name, count in counts.items():
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise InputError(f"plan: {name}={count!r} must be a whole number of at least 1")


@dataclass(frozen=True, kw_only=True)
class _Path:
    """What some levels do, from the first one on, and what that costs."""

    flags: tuple[Flags, ...] = ()
    spill_bytes: int = 0
    again: int = 0  # multiply-adds that are done a second time
    rungs: int = 0  # how far down the ladder, summed
    peak: int = 0

    def then(self, task: Task, flags: Flags, rung: int) -> _Path:
        """With one more level."""
        level, before = len(self.flags), self.flags[-1] if self.flags else Flags()
        return _Path(
            flags=(*self.flags, flags),
            spill_bytes=self.spill_bytes + task.spilled(level, flags),
            again=self.again + task.again(level, flags),
            rungs=self.rungs + rung,
            peak=max(self.peak, peak(task, level, flags, before)),
        )

    @property
    def cost(self) -> tuple[int, int, int]:
        """A file costs more than arithmetic."""
        return self.spill_bytes, self.again, self.rungs

    def may_go_on(self, task: Task, flags: Flags) -> bool:
        """What grows from level to level does not come back from a file; what shrinks does not go there."""
        if not self.flags:
            return True
        spills, spilled = bool(flags.get("spill")), bool(self.flags[-1].get("spill"))
        return spills >= spilled if task.task == "decode" else spills <= spilled


def _best(
    task: Task, rungs: Sequence[str], limit: int | None, cost: Callable[[_Path], tuple[int, ...]]
) -> _Path | None:
    """The cheapest way through the levels within a limit, each on one of `rungs`; None if there is none.

    A level's peak depends on the level before it only, so the best way to each rung of a level is all that counts.
    """
    paths = [_Path()]
    for _ in task.sizes:
        longer = []
        for rung, name in enumerate(rungs):
            flags = RUNGS[name]
            ways = [path.then(task, flags, rung) for path in paths if path.may_go_on(task, flags)]
            fitting = [way for way in ways if limit is None or way.peak <= limit]
            longer += [min(fitting, key=cost)] if fitting else []
        paths = longer
    return min(paths, key=cost, default=None)


def _choose(task: Task, limit: int | None, rungs: list[str], shown: list[str] | None = None) -> Plan:
    """The cheapest plan within the limit. Levels may stand on different rungs."""
    levels = range(len(task.sizes))
    ladder = _ladder(task, shown or rungs)
    path = _best(task, rungs, limit, lambda path: path.cost)
    if path is None:
        height, width = task.picture
        least = _best(task, rungs, None, lambda path: (path.peak,))
        assert least is not None
        raise MemoryLimitError(
            f"memory limit {readable(limit or 0)}: to {task.task} {task.frames} frames of {height}x{width} in "
            f"{task.dtype} takes at least {-(-least.peak // MIB)} MiB; raise the limit to that"
        )
    chosen = path.flags
    names = [next(name for name in reversed(list(RUNGS)) if RUNGS[name] == flags) for flags in chosen]
    return Plan(
        task=task.task,
        frames=task.frames,
        batch=task.batch,
        height=task.picture[0],
        width=task.picture[1],
        dtype=task.dtype,
        memory_limit=limit,
        rung=max(names, key=list(RUNGS).index),
        levels=tuple(
            LevelPlan(
                size=task.sizes[level],
                together=task.together(level),
                scratch_bytes=task.scratch(level, chosen[level]),
                weights_bytes=task.weights(level) if task.native else 0,
                **chosen[level],
            )
            for level in levels
        ),
        workers=task.workers,
        cut=task.cut,
        spill_bytes=path.spill_bytes,
        peak=path.peak,
        extra_work=path.again / task.work,
        work=task.work // task.frames * task.batch,
        ladder=ladder,
    )


def _ladder(task: Task, names: Sequence[str]) -> tuple[Rung, ...]:
    """The rungs, each below the one before; those that would save nothing are left out."""
    ladder: list[Rung] = []
    for rung in (_rung(task, name) for name in names):
        if not ladder or rung.peak < ladder[-1].peak:
            ladder.append(rung)
    return tuple(ladder)


def _rung(task: Task, name: str) -> Rung:
    flags = [RUNGS[name]] * len(task.sizes)
    levels = range(len(task.sizes))
    return Rung(
        name=name,
        peak=worst(task, flags),
        extra_work=sum(task.again(level, flags[level]) for level in levels) / task.work,
        spill_bytes=sum(task.spilled(level, flags[level]) for level in levels),
    )
