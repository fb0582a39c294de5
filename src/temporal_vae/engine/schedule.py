"""A network as steps, in integers: what is computed, in which order, from which activations into which. No torch.

A network is a sequence of layers, level by level, which `networks.py` writes down. A layer becomes a `Step` once it is
known how large its level is and on which rung of the memory ladder it stands. Everything else is derived from steps:
memory and work (`cost.py`), the way within a limit (`planner.py`), and what is executed (`run.py`).

The state of a clip goes from step to step. A spatial step works on a few frames at a time, with activations for those
frames only, and adds its result to the state in place; a temporal step needs the whole clip twice, once for each of
its norms. Between levels, each group of frames is enlarged, consumed and released, so that two levels never stand in
memory whole together.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Protocol

Task = Literal["decode", "encode"]
Keep = Literal["memory", "spilled", "recomputed"]
"""Where an activation is kept: in memory; in a file, or for a GPU in host memory; or nowhere, and computed where it is
read."""

Kind = Literal["enter", "spatial", "enlarge", "halve", "temporal", "attend", "leave", "finish"]
Place = Literal["pictures", "state", "made", "hidden", "enlarged"]
"""What passes of one step read and write: the call's input or output, the state before, the state after if it is
another, what lies between two convolutions, and an enlarged state."""


@dataclass(frozen=True, kw_only=True)
class Rung:
    """A step of the memory ladder: where the activations of a level are kept."""

    name: str
    state: Keep = "memory"  # of the clip
    enlarged: Keep = "memory"  # the state of the level before at the size of this one, of the frames at work
    spatial: Keep = "memory"  # between the convolutions of a spatial block, of the frames at work
    temporal: Keep = "memory"  # between those of a temporal block, of the clip

    @property
    def spills(self) -> bool:
        return self.state == "spilled"

    @property
    def reach(self) -> int:
        """Frames on either side of those at hand that a temporal block reads."""
        return 2 if self.temporal == "recomputed" else 1


RUNGS = (
    Rung(name="whole"),
    Rung(name="rematerialise upsampling", enlarged="recomputed"),
    Rung(name="recompute temporal", temporal="recomputed"),
    Rung(name="rematerialise and recompute", enlarged="recomputed", temporal="recomputed"),
    Rung(name="spill", state="spilled", temporal="recomputed"),
    Rung(
        name="spill everything", state="spilled", enlarged="spilled", spatial="spilled", temporal="recomputed"
    ),
)
WHOLE, EVERYTHING = RUNGS[0], RUNGS[-1]
ENCODER_RUNGS = (WHOLE, EVERYTHING)
IMAGE_RUNGS = tuple(rung for rung in RUNGS if rung.spills or rung.temporal == "memory")  # without clips


@dataclass(frozen=True, slots=True)
class Activation:
    """Frames of a clip `(h, w, c)`, and where they are kept."""

    size: tuple[int, int]
    channels: int
    keep: Keep

    @property
    def values(self) -> int:
        """Of one frame."""
        return self.size[0] * self.size[1] * self.channels


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """One sweep over activations: read, normalise, compute, write.

    Modules are named as in the network; the pass reads their parameters.
    """

    kind: Kind
    module: str  # the convolution or attention
    inputs: int  # channels
    outputs: int
    work: int  # multiply-adds for each pixel of the target
    source: Place
    target: Place
    norm: str | None = None  # of the source, with the SiLU behind it
    add: bool = False  # to what the target holds
    shortcut: str | None = (
        None  # a 1x1 convolution of the source without its norm, into the state that is made
    )
    mixer: str | None = None  # whose factor the result is multiplied by


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Passes that go over the clip together, a group of frames after the other."""

    size: tuple[int, int]  # of what is computed
    together: int  # frames of a group
    passes: tuple[Pass, ...]
    state: Activation | None = None  # what is there before
    made: Activation | None = None  # what is there afterwards, if it is not the same
    hidden: Activation | None = None  # for the frames of a group
    enlarged: Activation | None = None
    releases: bool = False  # the state, each frame as soon as it was read

    @property
    def reach(self) -> int:
        """Frames on either side of those at hand that are read, where others hold a part of the clip."""
        kinds = {one.kind for one in self.passes}
        if "temporal" in kinds:
            return 2 if self.hidden is not None and self.hidden.keep == "recomputed" else 1
        return int("finish" in kinds)

    def place(self, place: Place) -> Activation | None:
        """The activation that a pass calls so; None for the pictures of the call."""
        return None if place == "pictures" else getattr(self, place)


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """The shape of a level, and where it and the one before it stand."""

    frames: int  # of the clip
    size: tuple[int, int]
    together: int  # frames that a spatial step works on
    rung: Rung
    size_before: tuple[int, int]
    keep_before: Keep  # of the state


class Layer(Protocol):
    """A part of a network that goes over the clip by itself. Two are equal if they cost the same."""

    def step(self, level: Level) -> Step:
        """What it does at a level."""


@dataclass(frozen=True, kw_only=True)
class Enter:
    """A 3x3 convolution of what the call is given: pictures or latents."""

    conv: str = field(compare=False)
    inputs: int
    outputs: int

    def step(self, level: Level) -> Step:
        one = Pass(
            kind="enter", module=self.conv, inputs=self.inputs, outputs=self.outputs,
            work=9 * self.inputs * self.outputs, source="pictures", target="made",
        )  # fmt: skip
        made = Activation(level.size, self.outputs, level.rung.state)
        return Step(size=level.size, together=level.frames, passes=(one,), made=made)


@dataclass(frozen=True, kw_only=True)
class SpatialBlock:
    """A residual block of 3x3 convolutions, behind a nearest 2x enlargement and its convolution or not."""

    name: str = field(compare=False)
    inputs: int
    outputs: int
    enlarging: str | None = None  # the convolution behind the enlargement

    def step(self, level: Level) -> Step:
        # What the block computes is added to its input in place. Where the number of channels changes, it gets a place
        # of its own, and what the shortcut makes of the input is put there first. An enlarged input that the block adds
        # to is put in its place at once.
        rung, inputs, outputs = level.rung, self.inputs, self.outputs
        changes = inputs != outputs
        state = Activation(level.size, inputs, rung.state)
        enlarged: Activation | None = None
        source: Place = "state"
        passes = []
        if self.enlarging is not None:
            state = Activation(level.size_before, inputs, level.keep_before)
            enlarged = Activation(level.size, inputs, rung.enlarged) if changes else None
            source = "enlarged" if changes else "made"
            passes.append(Pass(
                kind="enlarge", module=self.enlarging, inputs=inputs, outputs=inputs, work=9 * inputs * inputs,
                source="state", target=source,
            ))  # fmt: skip
        makes = changes or self.enlarging is not None
        passes += [
            Pass(
                kind="spatial", module=f"{self.name}.conv1", norm=f"{self.name}.norm1", inputs=inputs,
                outputs=outputs, work=(9 + changes) * inputs * outputs, source=source, target="hidden",
                shortcut=f"{self.name}.conv_shortcut" if changes else None,
            ),
            Pass(
                kind="spatial", module=f"{self.name}.conv2", norm=f"{self.name}.norm2", inputs=outputs,
                outputs=outputs, work=9 * outputs * outputs, source="hidden", target="made" if makes else "state",
                add=True,
            ),
        ]  # fmt: skip
        return Step(
            size=level.size,
            together=level.together,
            passes=tuple(passes),
            state=state,
            made=Activation(level.size, outputs, rung.state) if makes else None,
            hidden=Activation(level.size, outputs, rung.spatial),
            enlarged=enlarged,
            releases=makes,
        )


@dataclass(frozen=True, kw_only=True)
class TemporalBlock:
    """A residual block of (3,1,1) convolutions that is blended with its input by a learned factor.

    `y = a * temporal(s) + (1 - a) * s` is `s` and `a` times what the block adds to `s`.
    """

    name: str = field(compare=False)
    mixer: str = field(compare=False)
    channels: int

    def step(self, level: Level) -> Step:
        channels = self.channels
        first, second = (
            Pass(
                kind="temporal", module=f"{self.name}.conv{i}", norm=f"{self.name}.norm{i}", inputs=channels,
                outputs=channels, work=3 * channels * channels, source="state" if i == 1 else "hidden",
                target="hidden" if i == 1 else "state", add=i == 2, mixer=self.mixer if i == 2 else None,
            )
            for i in (1, 2)
        )  # fmt: skip
        return Step(
            size=level.size,
            together=level.frames,
            passes=(first, second),
            state=Activation(level.size, channels, level.rung.state),
            hidden=Activation(level.size, channels, level.rung.temporal),
        )


@dataclass(frozen=True, kw_only=True)
class Attend:
    """Attention of each frame over its own pixels: four products with weights, and two of all pixels with all."""

    attention: str = field(compare=False)
    channels: int

    def step(self, level: Level) -> Step:
        height, width = level.size
        work = 4 * self.channels**2 + 2 * height * width * self.channels
        one = Pass(
            kind="attend", module=self.attention, inputs=self.channels, outputs=self.channels, work=work,
            source="state", target="state", norm=f"{self.attention}.group_norm", add=True,
        )  # fmt: skip
        state = Activation(level.size, self.channels, level.rung.state)
        return Step(size=level.size, together=1, passes=(one,), state=state)


@dataclass(frozen=True, kw_only=True)
class Halve:
    """A stride-2 3x3 convolution of the state of the level before."""

    conv: str = field(compare=False)
    channels: int

    def step(self, level: Level) -> Step:
        one = Pass(
            kind="halve", module=self.conv, inputs=self.channels, outputs=self.channels,
            work=9 * self.channels**2, source="state", target="made",
        )  # fmt: skip
        return Step(
            size=level.size,
            together=1,
            passes=(one,),
            state=Activation(level.size_before, self.channels, level.keep_before),
            made=Activation(level.size, self.channels, level.rung.state),
            releases=True,
        )


@dataclass(frozen=True, kw_only=True)
class Leave:
    """Norm, SiLU and a 3x3 convolution into what the call returns: pictures, or moments of latents."""

    norm: str = field(compare=False)
    conv: str = field(compare=False)
    inputs: int
    outputs: int

    def step(self, level: Level) -> Step:
        one = Pass(
            kind="leave", module=self.conv, norm=self.norm, inputs=self.inputs, outputs=self.outputs,
            work=9 * self.inputs * self.outputs, source="state", target="pictures",
        )  # fmt: skip
        state = Activation(level.size, self.inputs, level.rung.state)
        return Step(size=level.size, together=level.frames, passes=(one,), state=state, releases=True)


@dataclass(frozen=True, kw_only=True)
class Finish:
    """A (3,1,1) convolution of the pictures of a clip, in place."""

    conv: str = field(compare=False)
    channels: int

    def step(self, level: Level) -> Step:
        one = Pass(
            kind="finish", module=self.conv, inputs=self.channels, outputs=self.channels,
            work=3 * self.channels**2, source="pictures", target="pictures",
        )  # fmt: skip
        return Step(size=level.size, together=level.frames, passes=(one,))


Layers = tuple[tuple[Layer, ...], ...]
"""The layers of a network, level by level in the order in which they are computed."""
