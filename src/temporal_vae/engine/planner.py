"""From a shape and a memory limit to a plan: integers only, no torch.

A `Plan` says, level by level, on which rung of the memory ladder a level stands, what its steps are, and the peak of
memory all that needs. `cost.py` counts what the steps hold, so the peak is a promise: what the process uses above the
loaded model stays below it, and close to it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from numbers import Integral

from temporal_vae.engine import networks, schedule
from temporal_vae.engine.cost import STRIP_BYTES, Workload
from temporal_vae.engine.geometry import ITEMSIZE, VECTOR
from temporal_vae.engine.networks import Network
from temporal_vae.engine.overheads import MIB, first_use
from temporal_vae.engine.parts import Part, exchanged
from temporal_vae.engine.planned import Cost, LevelPlan, Offer, Plan, readable
from temporal_vae.engine.schedule import ENCODER_RUNGS, IMAGE_RUNGS, RUNGS, WHOLE, Rung, Task
from temporal_vae.errors import InputError, MemoryLimitError

ENOUGH_LATENTS = 8192  # pixels of the lowest level that make packing its weights worth the while
DEVICES = tuple(STRIP_BYTES)
"""Kinds of devices on which the engine runs."""
DTYPES = tuple(ITEMSIZE)


def plan(
    task: Task,
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
    part: Part | None = None,
    held: int = 0,
) -> Plan:
    """Plan the decoding of clips, or of what is computed picture by picture: encoding, and image autoencoders.

    Pictures are computed each by itself, a few at a time; how many is `Plan.frames`.

    Args:
        task: `"decode"` or `"encode"`.
        network: the configuration.
        num_frames: length of a clip, or the number of pictures.
        height: of the frames in pixels; for decoding a multiple of the network's factor.
        width: of the frames in pixels.
        dtype: of model and activations: float32, bfloat16, float16 or float64.
        device: `"cpu"` or `"cuda"`: whose memory is counted, and which kernels work.
        memory_limit: bytes above the loaded model; None for no limit.
        clips: how many clips one call decodes, one after the other.
        workers: threads, or streams of a GPU; None for all cores.
        part: of the clip, where other ranks decode the rest: the plan is for this rank. All ranks stand on the same
            rungs of the ladder: those on which each of them keeps the limit.
        held: bytes of results of earlier calls, which count.

    Raises:
        InputError: a size that no latents have, an unknown dtype, or levels that the engine does not run.
        MemoryLimitError: the limit is below what the last rung needs; the message says how much that is.
    """
    counts = {"num_frames": num_frames, "height": height, "width": width, "clips": clips}
    _check(network, dtype=dtype, device=device, **counts)
    whole = {name: int(count) for name, count in counts.items()}
    return _plan(
        task,
        network,
        dtype=dtype,
        device=device,
        memory_limit=memory_limit,
        workers=workers or cores(),
        part=part,
        held=held,
        **whole,
    )


@lru_cache(maxsize=256)
def _plan(
    task: Task, network: Network, *, num_frames: int, height: int, width: int, dtype: str, device: str,
    memory_limit: int | None, clips: int, workers: int, part: Part | None,
    held: int,
) -> Plan:  # fmt: skip
    factor, batch = network.factor, clips * num_frames
    sizes = [(height >> level, width >> level) for level in range(len(network.widths))]
    latents, item = sizes[-1][0] * sizes[-1][1], ITEMSIZE[dtype]
    if task == "encode":
        if min(height, width) < factor:
            raise InputError(
                f"plan: frames of {height}x{width} are too small; at least {factor}x{factor} pixels"
            )
        output = (
            3 * batch * 2 * network.latent_channels * latents
        )  # the moments before and after `quant_conv`
        layers, rungs = _encoder(network), ENCODER_RUNGS  # type: tuple[schedule.Layers, tuple[Rung, ...]]
    else:
        if height % factor or width % factor:
            raise InputError(
                f"plan: {height}x{width} pixels are not made of latents; height and width must be multiples of {factor}"
            )
        output = batch * network.out_channels * height * width
        if not network.temporal:
            output += (
                2 * batch * network.latent_channels * latents
            )  # behind `post_quant_conv`, and while it computes
        layers, rungs, sizes = _decoder(network), RUNGS if network.temporal else IMAGE_RUNGS, sizes[::-1]

    def load(frames: int) -> Workload:
        return Workload(
            name=task, layers=layers, sizes=tuple(sizes), frames=frames, batch=batch, output=output * item, dtype=dtype,
            device=device, workers=workers, held=held,
        )  # fmt: skip

    if part is not None:
        of_frame = output * item // batch
        loads = [
            replace(
                load(one.frames),
                batch=one.frames,
                part=one,
                output=of_frame * (one.frames + sum(one.beside(1))),
            )
            for one in map(part.of, range(part.ranks))
        ]
        return choose(loads[part.rank], memory_limit, rungs, others=loads)
    if load(1).over_time:
        return choose(load(num_frames), memory_limit, rungs)
    most = max(1, min(batch, -(-ENOUGH_LATENTS // latents)))
    refusal: MemoryLimitError | None = None
    for frames in sorted({most, max(1, most // 2), max(1, most // 4), 1}, reverse=True):
        for some in ((WHOLE,), rungs) if frames == 1 else ((WHOLE,),):
            try:
                return choose(load(frames), memory_limit, some, rungs, load(1))
            except MemoryLimitError as error:
                refusal = error
    assert refusal is not None
    raise refusal


_decoder, _encoder = lru_cache(networks.decoder), lru_cache(networks.encoder)


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check(network: Network, *, dtype: str, device: str, **counts: int) -> None:
    for width in (*network.widths, *(network.decoder_widths or ())):
        if width % VECTOR:
            raise InputError(
                f"plan: a level has {width} channels; the engine runs multiples of {VECTOR}, modules run all others"
            )
    if device not in DEVICES:
        raise InputError(f"plan: device {device!r} is not one of {', '.join(DEVICES)}")
    if dtype not in ITEMSIZE:
        raise InputError(f"plan: dtype {dtype!r} is not one of {', '.join(ITEMSIZE)}")
    for name, count in counts.items():
        if not isinstance(count, Integral) or isinstance(count, bool) or int(count) < 1:
            raise InputError(f"plan: {name}={count!r} must be a whole number of at least 1")


@dataclass(frozen=True, kw_only=True)
class _Path:
    """On which rungs some levels stand, from the first one on, and what that costs."""

    rungs: tuple[Rung, ...] = ()
    spill_bytes: int = 0
    work: int = 0  # multiply-adds of a clip
    again: int = 0  # of these, those that are done a second time
    down: int = 0  # how far down the ladder, summed
    peak: int = 0

    def then(self, rung: Rung, cost: Cost, down: int) -> _Path:
        """With one more level."""
        return _Path(
            rungs=(*self.rungs, rung),
            spill_bytes=self.spill_bytes + cost.spilled,
            work=self.work + cost.work,
            again=self.again + cost.again,
            down=self.down + down,
            peak=max(self.peak, cost.peak),
        )

    def keep(self, rung: Rung) -> schedule.Keep:
        """Where the state before the next level is kept."""
        return (self.rungs[-1] if self.rungs else rung).state

    @property
    def price(self) -> tuple[int, int, int]:
        """A file costs more than arithmetic."""
        return self.spill_bytes, self.again, self.down

    def may_go_on(self, load: Workload, rung: Rung) -> bool:
        """What grows from level to level does not come back from a file; what shrinks does not go there."""
        if not self.rungs:
            return True
        spills, spilled = rung.spills, self.rungs[-1].spills
        grows = load.sizes[0] <= load.sizes[-1]
        return spills >= spilled if grows else spills <= spilled


def _best(
    loads: Sequence[Workload],
    rungs: Sequence[Rung],
    limit: int | None,
    price: Callable[[_Path], tuple[int, ...]],
) -> _Path | None:
    """The cheapest way through the levels within a limit, each on one of `rungs`; None if there is none.

    A level's peak depends on the level before it only, so the best way to each rung of a level is all that counts.
    Where ranks share a clip, a level takes what it takes where it takes most.
    """
    load, paths = loads[0], [_Path()]
    for index in range(len(load.sizes)):
        longer = []
        for down, rung in enumerate(rungs):
            ways = [
                path.then(rung, _largest(loads, index, rung, path.keep(rung)), down)
                for path in paths
                if path.may_go_on(load, rung)
            ]
            fitting = [way for way in ways if limit is None or way.peak <= limit]
            longer += [min(fitting, key=price)] if fitting else []
        paths = longer
    return min(paths, key=price, default=None)


def _largest(loads: Sequence[Workload], index: int, rung: Rung, before: schedule.Keep) -> Cost:
    """What a level takes where it takes most memory."""
    return max((load.cost(index, rung, before) for load in loads), key=lambda cost: cost.peak)


def choose(
    load: Workload,
    limit: int | None,
    rungs: Sequence[Rung],
    shown: Sequence[Rung] | None = None,
    single: Workload | None = None,
    others: Sequence[Workload] = (),
) -> Plan:
    """The cheapest plan within the limit. Levels may stand on different rungs.

    The ladder that is shown has other rungs where they differ, and below the first one `single`: one picture at a time.
    With `others`, which share the clip, all of them keep the limit.
    """
    loads = others or (load,)
    path = _best(loads, rungs, limit, lambda path: path.price)
    height, width = max(load.sizes)  # of the pictures, the largest level
    if path is None:
        least = _best(loads, rungs, None, lambda path: (path.peak,))
        assert least is not None
        frames = (
            f"{sum(load.part.counts)} frames on {load.part.ranks} ranks"
            if load.part
            else f"{load.frames} frames"
        )
        raise MemoryLimitError(
            f"memory limit {readable(limit or 0)}: to {load.name} {frames} of {height}x{width} in "
            f"{load.dtype} takes at least {-(-least.peak // MIB)} MiB; raise the limit to that"
        )
    if others:
        path = _on(load, path.rungs, rungs)
    levels, sent, received = _levels(load, path.rungs), 0, 0
    if load.part is not None:
        steps = [step for one in levels for step in one.steps]
        sent, received = exchanged(steps, load.part, load.item, agree=load.dtype == "float16")
    return Plan(
        task=load.name,
        frames=load.frames,
        clips=load.over_time,
        batch=load.batch,
        height=height,
        width=width,
        dtype=load.dtype,
        memory_limit=limit,
        rung=max(path.rungs, key=RUNGS.index).name,
        levels=levels,
        workers=load.workers,
        cut=load.cut,
        spill_bytes=path.spill_bytes,
        peak=path.peak,
        kept=first_use(load.arithmetic, shared=load.part is not None),
        extra_work=path.again / load.work,
        work=path.work * load.batch // load.frames,
        ladder=_ladder(loads, others or [single or load], shown or rungs),
        part=load.part,
        sent=sent,
        received=received,
    )


def _on(load: Workload, chosen: Sequence[Rung], rungs: Sequence[Rung]) -> _Path:
    """What it takes to stand on the rungs that were chosen for all."""
    path = _Path()
    for index, rung in enumerate(chosen):
        path = path.then(rung, load.cost(index, rung, path.keep(rung)), rungs.index(rung))
    return path


def _levels(load: Workload, rungs: Sequence[Rung]) -> tuple[LevelPlan, ...]:
    levels = []
    for index, rung in enumerate(rungs):
        before = rungs[max(0, index - 1)].state
        cost = load.cost(index, rung, before)
        levels.append(
            LevelPlan(
                size=load.sizes[index],
                together=load.together(index, rung),
                rung=rung,
                scratch_bytes=cost.scratch,
                weights_bytes=cost.weights,
                sums_bytes=cost.sums,
                pixels=load.pixels(load.sizes[index]),
                steps=tuple(load.steps(index, rung, before)),
            )
        )
    return tuple(levels)


def _ladder(
    first: Sequence[Workload], others: Sequence[Workload], rungs: Sequence[Rung]
) -> tuple[Offer, ...]:
    """The rungs, each below the one before; those that would save nothing are left out."""
    ladder: list[Offer] = []
    for rung in rungs:
        loads = others if ladder else first
        costs = [_largest(loads, index, rung, rung.state) for index in range(len(loads[0].sizes))]
        offer = Offer(
            name=rung.name,
            peak=max(cost.peak for cost in costs),
            extra_work=sum(cost.again for cost in costs) / loads[0].work,
            spill_bytes=sum(cost.spilled for cost in costs),
        )
        if not ladder or offer.peak < ladder[-1].peak:
            ladder.append(offer)
    return tuple(ladder)
