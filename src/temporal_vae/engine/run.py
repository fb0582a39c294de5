"""The steps of a plan, one after the other, on a network's parameters.

What the steps are, and in which order they come, is written in `schedule.py`; what a pass does is written in
`passes.py`. Here activations are made room for, weights are packed, passes are called, and the moments that one pass
gathers become the norm of the next.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import cast

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from temporal_vae.engine import attention, passes
from temporal_vae.engine.gate import is_plain
from temporal_vae.engine.kernels import Weights, kernels_for
from temporal_vae.engine.passes import Advance, Context, Convolution, Rematerialised
from temporal_vae.engine.planned import LevelPlan, Plan
from temporal_vae.engine.progress import at_most
from temporal_vae.engine.schedule import Pass, Place, Step
from temporal_vae.engine.shared import Peers, Shared, agreed
from temporal_vae.engine.spill import HostMemory, SpillFile, spill_file
from temporal_vae.engine.stats import Affine, Moments, stack
from temporal_vae.engine.storage import Activations, Joined, Pool, Scratch, SpilledActivations
from temporal_vae.engine.workers import Workers

SCALES = 2**8, 2**16, 2**24
"""What activations in float16 are divided by: they hold no value above 65,504, and networks make larger ones. What the
first of these does not hold is computed again with the next."""


class _Overflow(Exception):
    """An activation is infinite."""


def run(network: nn.Module, x: Tensor, plan: Plan, advance: Advance, peers: Peers | None = None) -> Tensor:
    """Run a network as planned; in float16 so that the result is finite wherever it is in float32.

    Args:
        network: whose parameters the steps of the plan name.
        x: latents or frames `(n, c, h, w)`; clips of `plan.frames`, one after the other, or the part of a clip.
        plan: for the shape, dtype and device of `x`.
        advance: told of the multiply-adds that are done; all of them are `plan.work`.
        peers: the ranks that hold the rest of the clip, where it is planned so.

    Returns:
        Frames, or moments of latents: `(n, c, h, w)`.
    """
    last = plan.levels[-1]
    channels = next(one.outputs for step in last.steps for one in step.passes if one.kind == "leave")
    before, behind = (0, 0) if plan.part is None else plan.part.beside(1)
    result = x.new_empty((before + x.shape[0] + behind, channels, *last.size))
    own = result[before : before + x.shape[0]]
    if x.dtype != torch.float16 or not _takes_scaled(network):
        _fill(result, network, x, plan, advance, peers, scale=1)
        return own
    advance = at_most(plan.work, advance)
    for scale in SCALES:
        with suppress(_Overflow):
            _fill(result, network, x, plan, advance, peers, scale=scale)
            finite = bool(own.isfinite().all())
            if finite if peers is None else agreed(peers, finite):
                break
    return own


def _takes_scaled(network: nn.Module) -> bool:
    """Whether no attention has another processor, which would norm activations as they are."""
    return all(is_plain(part) for part in network.modules() if isinstance(part, Attention))


def _fill(
    result: Tensor,
    network: nn.Module,
    x: Tensor,
    plan: Plan,
    advance: Advance,
    peers: Peers | None,
    *,
    scale: int,
) -> None:
    """Compute a result; where there are peers, with room for the pictures beside it.

    Raises:
        _Overflow: a value is infinite that a larger scale may hold.
    """
    steps = [(step, level) for level in plan.levels for step in level.steps]
    reaches = [step.reach if step.state is not None else 0 for step, _ in steps[1:]] + [0]
    with _context(plan, x, advance, scale) as context:
        for start in range(0, x.shape[0], plan.frames):
            part = slice(start, start + plan.frames)
            clip = _Clip(context, network, x[part], result if peers else result[part], peers)
            for (step, level), reach in zip(steps, reaches, strict=True):
                clip.run(step, level, reach=reach)


@contextmanager
def _context(plan: Plan, example: Tensor, advance: Advance, scale: int) -> Iterator[Context]:
    device = example.device
    workers = Workers(plan.workers, device)
    with ExitStack() as stack_:
        store: SpillFile | HostMemory | None = None
        if plan.spill_bytes and device.type == "cpu":
            store = stack_.enter_context(spill_file(plan.spill_bytes))
        elif plan.spill_bytes:
            store = HostMemory(plan.spill_bytes, device)
        stack_.enter_context(workers.at_work())
        stack_.enter_context(torch._C.DisableTorchFunction())  # buffers are not for the default device
        yield Context(
            kernels=kernels_for(device, example.dtype, workers, scale=scale),
            workers=workers,
            scratch=[Scratch(device) for _ in range(plan.workers)],
            weights=Scratch(device),
            cut=plan.cut,
            pool=Pool(device),
            store=store,
            dtype=example.dtype,
            scale=scale,
            advance=advance,
        )


@dataclass(frozen=True, slots=True)
class _Packed:
    """The weights of a pass as kernels read them; none where torch computes."""

    weights: Weights | None = None
    shortcut: Weights | None = None


@dataclass(slots=True)
class _Group:
    """What the passes of a step share on their way over some frames."""

    frames: Sequence[int]
    places: dict[Place, Activations]  # none for an activation that is computed where it is read
    moments: Moments | None  # of what was written last
    recomputed: dict[Place, Convolution] = field(default_factory=dict)  # what computes such an activation


class _Clip:
    """A clip on its way through a network: its state after the steps so far, and the moments of that."""

    def __init__(
        self, context: Context, network: nn.Module, source: Tensor, target: Tensor, peers: Peers | None
    ) -> None:
        """`target` has room for the pictures beside those of this clip, where peers hold the rest of it."""
        self._context, self._modules = context, dict(network.named_modules())
        self._shared = None if peers is None else Shared(peers, self._room, source.device)
        self._count = source.shape[0]
        before = 0 if peers is None else peers.part.beside(1)[0]
        self._source, self._target, self._around = source, target[before : before + self._count], target
        self._state: Activations | None = None
        self._moments: Moments | None = None

    def run(self, step: Step, level: LevelPlan, *, reach: int) -> None:
        """One more step; a step that makes another state begins and ends with an empty pool.

        `reach`: how far beside the frames at hand the step behind it reads the state.
        """
        pool = self._context.pool
        if step.made is not None:
            pool.clear()
        self._context.use(level)
        places, room = self._places(step), self._context.weights.reset()
        packed = [self._pack(one, level, room, self._length(step)) for one in step.passes]
        gathered = {}
        groups, early = _groups(self._count, step.together), 0
        if self._shared is not None and step.reach:
            groups = [range(self._length(step))]
        elif self._shared is not None and reach:
            groups, early = self._shared.order(groups, reach)
        for index, frames in enumerate(groups):
            group = _Group(frames, places, None if self._moments is None else self._moments.of(frames))
            self._prepare(group)
            for one, weights in zip(step.passes, packed, strict=True):
                group.moments = self._pass(one, weights, group)
            self._release(group, step)
            if group.moments is not None:
                gathered[frames[0]] = group.moments
            if self._shared is not None and index + 1 == early:
                self._shared.begin(places.get("made", places["state"]), reach)
        self._state = places.get("made", self._state)
        self._moments = stack(moments for _, moments in sorted(gathered.items())) if gathered else None
        if self._shared is None:
            self._check(self._moments)
        if step.releases:
            pool.clear()

    def _check(self, moments: Moments | None) -> None:
        """Raise `_Overflow` where values are infinite that a larger scale may hold."""
        if self._context.scale in SCALES[:-1] and not _finite(moments):
            raise _Overflow

    def _length(self, step: Step) -> int:
        """Frames that a step goes over, those of other ranks included."""
        return self._count + (sum(self._shared.part.beside(step.reach)) if self._shared is not None else 0)

    def _room(self, count: int, like: Activations) -> Activations:
        """For frames that are kept as others are."""
        shape = count, like.height, like.width, like.channels
        made = self._context.activations(shape, spilled=isinstance(like, SpilledActivations))
        for frame in range(count):
            made.prepare(frame)
        return made

    def _places(self, step: Step) -> dict[Place, Activations]:
        """Where the activations of a step are."""
        places: dict[Place, Activations] = {} if self._state is None else {"state": self._state}
        names: tuple[Place, ...] = ("made", "hidden", "enlarged")
        for name in names:
            activation = step.place(name)
            if activation is not None and activation.keep != "recomputed":
                shape = (self._count, *activation.size, activation.channels)
                places[name] = self._context.activations(shape, spilled=activation.keep == "spilled")
        if self._shared is not None and step.reach and step.state is not None and self._state is not None:
            places["state"] = self._shared.around(self._state, step.reach)
            if "hidden" in places:
                places["hidden"] = self._shared.blank_around(places["hidden"], step.reach)
        return places

    def _prepare(self, group: _Group) -> None:
        """Make room for what a group of frames writes."""
        for name, activations in group.places.items():
            for frame in group.frames if name != "state" else ():
                activations.prepare(frame)

    def _release(self, group: _Group, step: Step) -> None:
        """Forget what was for a group of frames only, and a state that was read for the last time."""
        for name, activations in group.places.items():
            for frame in group.frames:
                if name == "state" and step.releases:
                    activations.release(frame, reuse=False)  # of another size than what comes
                elif name in ("hidden", "enlarged"):
                    activations.release(frame)
            if name == "state" and isinstance(activations, Joined):
                activations.release_beside()

    def _pass(self, one: Pass, packed: _Packed, group: _Group) -> Moments | None:
        """One pass over a group of frames; the moments of what it wrote."""
        context, frames, places = self._context, group.frames, group.places
        if one.kind == "attend":
            module = cast("Attention", self._module(one.module))
            assert group.moments is not None
            return attention.attend(
                context, module, places["state"], frames, moments=group.moments, work=one.work
            )
        if one.kind == "finish":
            conv = cast("nn.Conv3d", self._module(one.module))
            if self._shared is not None:
                self._shared.pictures(self._around, reach=1)
            passes.finish_over_time(context, conv, self._around, work=one.work)
            return None
        assert packed.weights is not None
        convolution = Convolution(packed.weights, self._pending(one, group), one.work)
        if one.kind == "enter":
            return passes.enter(context, convolution, self._source, places["made"], frames)
        before = group.recomputed.get(one.source)
        source = places[one.source if before is None else "state"]
        if one.kind == "leave":
            passes.leave(context, convolution, source, self._target, frames)
            return None
        if one.kind == "halve":
            return passes.halve(context, convolution, source, places["made"], frames)
        target = places.get(one.target)
        if target is None:
            group.recomputed[one.target] = convolution
        if one.kind == "temporal":
            moments = passes.convolve_over_time(
                context, convolution, source, target, add=one.add, before=before
            )
            return moments.of(source.own) if isinstance(source, Joined) else moments
        read = source if before is None else Rematerialised(context, source, before.weights)
        beside = None if packed.shortcut is None else (packed.shortcut, places["made"])
        return passes.convolve(context, convolution, read, target, frames, add=one.add, shortcut=beside)

    def _pending(self, one: Pass, group: _Group) -> Affine | None:
        """The norm in front of a pass, of each frame by itself or of the clip."""
        if one.norm is None:
            return None
        moments = group.moments
        assert moments is not None, "a norm needs the moments of what it normalises"
        over_frames = one.kind == "temporal"
        if over_frames and self._shared is not None:
            hidden = group.places.get("hidden") if one.source == "hidden" else None
            moments = self._shared.moments(moments, hidden)
            self._check(moments)
        norm = cast("nn.GroupNorm", self._module(one.norm))
        return self._context.kernels.affine(moments, norm, over_frames=over_frames)

    def _module(self, name: str) -> nn.Module:
        """A part of the network that a step names."""
        found = self._modules.get(name)
        if found is None:
            raise RuntimeError(f"the schedule reads {name}, which this network does not have")
        return found

    def _pack(self, one: Pass, level: LevelPlan, room: Scratch, frames: int) -> _Packed:
        """The weights of a pass over so many frames, and of its shortcut."""
        kernels = self._context.kernels
        if one.kind in ("attend", "finish"):
            return _Packed()
        module = self._module(one.module)
        if one.kind == "temporal":
            conv = cast("nn.Conv3d", module)
            factor = None if one.mixer is None else _blend(self._module(one.mixer))
            return _Packed(kernels.temporal_weights(conv, frames, room, level.pixels, factor=factor))
        conv2d = cast("nn.Conv2d", module)
        if one.kind == "halve":
            return _Packed(kernels.strided_weights(conv2d, room, level.pixels))
        enlarge, leave = one.kind == "enlarge", one.kind == "leave"
        weights = kernels.spatial_weights(conv2d, room, level.pixels, enlarge=enlarge, leave=leave)
        if one.shortcut is None:
            return _Packed(weights)
        shortcut = cast("nn.Conv2d", self._module(one.shortcut))
        return _Packed(weights, kernels.pointwise_weights(shortcut, room, level.pixels))


def _blend(mixer: nn.Module) -> Tensor:
    """`a` of `y = a * temporal(s) + (1 - a) * s = s + a * (what the temporal block adds to s)`."""
    factor = cast("Tensor", mixer.mix_factor)
    return torch.sigmoid(factor.to(torch.promote_types(factor.dtype, torch.float32)))


def _finite(moments: Moments | None) -> bool:
    return moments is None or bool(moments.mean.isfinite().all())


def _groups(count: int, size: int) -> list[Sequence[int]]:
    return [range(start, min(start + size, count)) for start in range(0, count, size)]
