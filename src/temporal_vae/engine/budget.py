"""What a level takes, in bytes and in work: the arithmetic behind a plan. Integers only, no torch.

`Decoder` and `Encoder` count what `run.py` and `passes.py` hold at each step, with the formulas that cut their tiles.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from temporal_vae.engine import processor
from temporal_vae.engine.geometry import BLOCK, QUERIES, TILE, Cut, scratch_bytes

MIB = 2**20
ITEMSIZE = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
FIRST_USE = {"float32": 84 * MIB, "int16": 112 * MIB, "torch": 136 * MIB}
"""What libraries take when they are first used, by arithmetic: a compiler, kernels, caches of allocators."""
PER_WORKER = 2 * MIB  # of each thread: its stack and its share of the allocator
SLACK = 1.01  # of what tensors need, for pages and allocators
STRIP_BYTES = {"cpu": 4 * MIB, "cuda": 256 * MIB}  # of a tile: a cache, or enough to fill a GPU
TEMPORARIES = 8  # strips that torch holds per worker where its own operations do the work
PANEL = 32  # channels that the native kernels write at least; inputs come in 16
WIDEST_INPUT = 16
ENOUGH_LATENTS = 8192  # pixels of the lowest level that make packing its weights worth the while
ATTENTION_COPIES = 3  # activations of a frame that attention holds besides its input: normal, keys, values
REPACKED = 2  # and of keys and values again, as torch lays 16-bit types out for its products
ATTENTION_PARTS = 4  # and of the queries at hand, in float32 at least
ATTENTION_BUFFERS = 8 * MIB  # of the matrix products in it

Flags = dict[str, bool]
"""What a level does beside the usual, see `LevelPlan`."""


@dataclass(frozen=True, kw_only=True)
class Network:
    """What a plan needs to know of a configuration."""

    channels: int  # of a picture
    latent_channels: int
    widths: tuple[int, ...]  # of the levels, the full picture first
    layers: int

    @property
    def factor(self) -> int:
        """Pixels of a frame per latent, along height and along width."""
        return 2 ** (len(self.widths) - 1)


@dataclass(frozen=True)
class Task(ABC):
    """The arithmetic that encoder and decoder share. Levels come in the order in which they are computed."""

    network: Network
    frames: int
    batch: int
    sizes: Sequence[tuple[int, int]]
    dtype: str
    device: str
    workers: int

    task: ClassVar[str]

    @property
    @abstractmethod
    def widths(self) -> tuple[int, ...]:
        """Channels before the first level, then those of each level."""

    @property
    @abstractmethod
    def output(self) -> int:
        """Bytes of the result."""

    @property
    @abstractmethod
    def work(self) -> int:
        """Multiply-adds of the network on `frames` frames, as the passes count them."""

    @abstractmethod
    def held(self, level: int, flags: Flags, before: Flags) -> int:
        """Bytes of activations in memory at the worst moment of a level; `before` is what the level before it does."""

    @abstractmethod
    def scratch(self, level: int, flags: Flags) -> int:
        """Bytes of scratch of one worker at the worst job of a level."""

    @abstractmethod
    def weights(self, level: int) -> int:
        """Bytes of packed weights at the worst moment of a level."""

    @abstractmethod
    def again(self, level: int, flags: Flags) -> int:
        """Multiply-adds that are done a second time."""

    @property
    def item(self) -> int:
        """Bytes of a value."""
        return ITEMSIZE[self.dtype]

    @property
    def picture(self) -> tuple[int, int]:
        """Height and width of the pictures, the largest level."""
        return max(self.sizes)

    @property
    def arithmetic(self) -> processor.Arithmetic:
        """How convolutions multiply."""
        return processor.arithmetic(self.device, self.dtype)

    @property
    def native(self) -> bool:
        """Whether the processor's own kernels do the work, rather than torch's."""
        return self.arithmetic != "torch"

    @property
    def fixed(self) -> bool:
        """Whether they multiply 16-bit integers."""
        return self.arithmetic == "int16"

    @property
    def strip(self) -> int:
        """Bytes of a tile, at most about."""
        return STRIP_BYTES[self.device]

    @property
    def cut(self) -> Cut:
        """How large tiles are."""
        return Cut(strip_bytes=self.strip, run_bytes=self.strip, itemsize=self.item)

    def frame(self, level: int, channels: int) -> int:
        """Bytes of one frame of activations."""
        height, width = self.sizes[level]
        return height * width * channels * self.item

    def together(self, level: int) -> int:
        """Frames that give every worker a few blocks of tiles."""
        height, width = self.sizes[level]
        blocks = -(-height // TILE) * -(-width // TILE) // BLOCK
        return max(1, min(self.frames, -(-4 * self.workers // max(1, blocks))))

    def packed(self, *convs: tuple[int, int, int]) -> int:
        """Bytes of packed weights: `(inputs, outputs, points)` each."""
        total = 0
        for inputs, outputs, points in convs:
            inputs, outputs = _padded(inputs, WIDEST_INPUT), _padded(outputs, PANEL)
            factors = outputs * points * 4 if self.fixed else 0
            total += inputs * outputs * points * (2 if self.fixed else 4) + factors + 128
        return total

    @property
    def packing(self) -> int:
        """Bytes of temporaries of one worker that packs weights."""
        return (108 if self.fixed else 72) * max(self.network.widths) * PANEL * 4

    def kernel(self, inputs: int, outputs: int, points: int) -> int:
        """Bytes of scratch that a kernel takes."""
        if not self.native:
            return 0
        inputs, outputs = _padded(inputs, WIDEST_INPUT), _padded(outputs, PANEL)
        return scratch_bytes(inputs, outputs, points, fixed=self.fixed) + 64

    def rows(self, level: int, channels: int) -> int:
        """Rows of a strip, at most."""
        height, width = self.sizes[level]
        together = self.together(level)
        return max(map(len, self.cut.strips(height, width, channels, together, self.workers)))

    def convolution(
        self,
        level: int,
        inputs: int,
        outputs: int,
        *,
        spilled: bool,
        shortcut: bool = False,
        rematerialise: bool = False,
        source_level: int | None = None,
    ) -> int:
        """Bytes of scratch that a job of a 3x3 pass takes."""
        rows, width = self.rows(level, outputs), self.sizes[level][1]
        total = self.kernel(inputs, outputs, 36)
        if shortcut:
            total += self.kernel(inputs, outputs, 1)
        if rematerialise:
            total += (rows + 2 * TILE) * width * inputs * self.item + self.kernel(inputs, inputs, 36) + 64
        if spilled:
            reach = rows + 2 if source_level is None else rows // 2 + 3
            read = reach * (width if source_level is None else self.sizes[source_level][1]) * inputs
            total += (read + (2 if shortcut else 1) * rows * width * outputs) * self.item + 256
        return total

    def attention(self, level: int, flags: Flags) -> int:
        """Bytes that attention takes; a spilled frame is brought back for it."""
        height, width = self.sizes[level]
        channels = self.network.widths[-1]
        queries = min(QUERIES, height * width) * channels * max(self.item, 4)
        copies = ATTENTION_COPIES + (REPACKED if self.item == 2 else 0) + bool(flags.get("spill"))
        return copies * self.frame(level, channels) + ATTENTION_PARTS * queries + ATTENTION_BUFFERS

    def handed_on(self, level: int, flags: Flags, before: Flags) -> int:
        """Bytes in memory while the level before writes to this one; 0 where either counts them itself."""
        return 0

    def spilled(self, level: int, flags: Flags) -> int:
        """Bytes of the file that a level takes: its state, and the frames at work."""
        state, widest = (self.frame(level, self.widths[level + i]) for i in (1, 0))
        group = self.together(level)
        nbytes = self.frames * state if flags.get("spill") else 0
        return nbytes + (group * (state + widest) if flags.get("spill_work") else 0)


def _padded(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


class Decoder(Task):
    """A clip is decoded: levels from the smallest to the full picture."""

    task = "decode"

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels before the first level, then those of each level."""
        return (self.network.widths[-1], *reversed(self.network.widths))

    @property
    def output(self) -> int:
        """Bytes of the result."""
        height, width = self.sizes[-1]
        return self.batch * self.network.channels * height * width * self.item

    def held(self, level: int, flags: Flags, before: Flags) -> int:
        """Bytes of activations in memory at the worst moment of a level."""
        t, g = self.frames, min(self.frames, self.together(level))
        before_frame = 0 if level == 0 else self.frame(level - 1, self.widths[level])
        if before.get("spill"):
            before_frame = 0
        frame = self.frame(level, self.widths[level + 1])
        own = 0 if flags.get("spill") else frame
        work = 0 if flags.get("spill_work") else frame
        changes = self.widths[level] != self.widths[level + 1]
        large = self.frame(level, self.widths[level]) if changes and level > 0 else 0
        if flags.get("spill_work") or flags.get("rematerialise"):
            large = 0
        entry = max(
            t * before_frame + g * (own + large + work), g * before_frame + t * own + g * (large + work)
        )
        if level == 0:
            entry = max(entry, t * own + self.attention(0, flags))
        state = t * own + max(g * work, 0 if flags.get("recompute") else t * frame)
        return max(entry, state)

    def scratch(self, level: int, flags: Flags) -> int:
        """Bytes of scratch of one worker at the worst job of a level."""
        spilled, inputs, width = bool(flags.get("spill")), self.widths[level], self.widths[level + 1]
        changes = inputs != width
        t, network = self.frames, self.network
        height, across = self.sizes[level]
        passes = [self.convolution(level, width, width, spilled=spilled)]
        if changes:
            passes.append(
                self.convolution(
                    level, inputs, width, spilled=spilled, shortcut=True,
                    rematerialise=bool(flags.get("rematerialise")) and level > 0,
                )
            )  # fmt: skip
        if level > 0:
            enlarging = self.convolution(level, inputs, inputs, spilled=spilled, source_level=level - 1)
            if flags.get("rematerialise"):
                enlarging += self.rows(level, inputs) * across * inputs * self.item
            passes.append(enlarging)
        run = max(map(len, self.cut.runs(height * across, t, width, self.workers)))
        windows = 2 if spilled else 1 if flags.get("recompute") else 0
        points = 1 if t == 1 else 6
        kernels = 2 if flags.get("recompute") else 1
        passes.append(
            windows * t * (run * width * self.item + 64) + kernels * self.kernel(width, width, points)
        )
        edge = network.latent_channels if level == 0 else network.channels
        if level == 0:
            rows = max(map(len, self.cut.strips(height, across, width, t, self.workers)))
            passes.append(
                self.kernel(edge, width, 36)
                + ((rows + 2) * across * _padded(edge, WIDEST_INPUT) + rows * across * width) * self.item
                + 128
            )
        if level == len(self.sizes) - 1:
            rows = max(map(len, self.cut.strips(height, across, width, t, self.workers)))
            passes.append(
                self.kernel(width, edge, 36)
                + ((rows + 2) * across * (width if spilled else 0) + rows * across * _padded(edge, PANEL))
                * self.item
                + 128
            )
        return max(passes)

    def weights(self, level: int) -> int:
        """Bytes of packed weights at the worst moment of a level."""
        inputs, width = self.widths[level], self.widths[level + 1]
        entry = [(inputs, width, 36), (width, width, 36)]
        if level > 0:
            entry.append((inputs, inputs, 36))
        if inputs != width:
            entry.append((inputs, width, 1))
        inside = (width, width, 36)
        return max(self.packed(*entry), self.packed(inside, inside))

    def again(self, level: int, flags: Flags) -> int:
        """Multiply-adds per clip that are done a second time."""
        height, width = self.sizes[level]
        pixels, channels, inputs = self.frames * height * width, self.widths[level + 1], self.widths[level]
        blocks = self.network.layers + 1 + (min(2, self.network.layers) if level == 0 else 0)
        total = 0
        if flags.get("recompute"):
            total += blocks * pixels * 3 * channels * channels
        if flags.get("rematerialise") and level > 0 and inputs != channels:
            total += pixels * 9 * inputs * inputs
        return total

    @property
    def work(self) -> int:
        """Multiply-adds per clip, as the passes count them."""
        network, total = self.network, 0
        for level, (inputs, width) in enumerate(pairwise(self.widths)):
            pixels = self.frames * self.sizes[level][0] * self.sizes[level][1]
            blocks = network.layers + 1
            first = 9 * inputs * width + 9 * width * width + 6 * width * width
            total += pixels * (first + (blocks - 1) * 24 * width * width)
            if level == 0:
                total += pixels * (
                    9 * network.latent_channels * width + min(2, network.layers) * 24 * width * width
                )
                total += pixels * 4 * width * width if network.layers > 1 else 0
            else:
                total += pixels * 9 * inputs * inputs
        return total + pixels * 9 * self.widths[-1] * network.channels


class Encoder(Task):
    """A few frames are encoded: levels from the full picture to the smallest."""

    task = "encode"

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels before the first level, then those of each level."""
        return (self.network.widths[0], *self.network.widths)

    @property
    def output(self) -> int:
        """Bytes of the result."""
        height, width = self.sizes[-1]
        return 3 * self.batch * 2 * self.network.latent_channels * height * width * self.item

    def held(self, level: int, flags: Flags, before: Flags) -> int:
        """Bytes of activations in memory at the worst moment of a level."""
        t, g = self.frames, min(self.frames, self.together(level))
        inputs, width, last = self.widths[level], self.widths[level + 1], len(self.sizes) - 1
        own = self.frame(level, width)
        narrow = self.frame(level, inputs)
        worst = t * own + g * own
        if inputs != width:
            worst = max(worst, t * narrow + 2 * g * own, g * narrow + t * own + g * own)
        if level == last:
            worst = max(worst, t * own + self.attention(level, flags))
        else:
            below = self.frame(level + 1, width)
            worst = max(worst, t * own + below, own + t * below)
        if flags.get("spill"):
            return self.attention(level, flags) if level == last else 0
        return worst

    def handed_on(self, level: int, flags: Flags, before: Flags) -> int:
        """Bytes in memory while the passes of the level before, which is spilled, halve its state into this level."""
        kept = before.get("spill") and not flags.get("spill")
        return self.frames * self.frame(level, self.widths[level]) if kept else 0

    def scratch(self, level: int, flags: Flags) -> int:
        """Bytes of scratch of one worker at the worst job of a level."""
        spilled, inputs, width = bool(flags.get("spill")), self.widths[level], self.widths[level + 1]
        across, network = self.sizes[level][1], self.network
        passes = [self.convolution(level, width, width, spilled=spilled)]
        if inputs != width:
            passes.append(self.convolution(level, inputs, width, spilled=spilled, shortcut=True))
        rows = self.rows(level, width)
        if level == 0:
            edge = _padded(network.channels, WIDEST_INPUT)
            rows = max(map(len, self.cut.strips(*self.sizes[0], width, self.frames, self.workers)))
            passes.append(
                self.kernel(edge, width, 36)
                + ((rows + 2) * across * edge + rows * across * width * spilled) * self.item
                + 128
            )
        if level < len(self.sizes) - 1:
            below = max(map(len, self.cut.strips(*self.sizes[level + 1], 9 * width, 1, self.workers)))
            neighbours = below * (across // 2) * 9 * width * self.item
            windows = ((2 * below + 1) * across + below * (across // 2)) * width * self.item * spilled
            passes.append(self.kernel(9 * width, width, 1) + neighbours + windows + 256)
        else:
            edge = _padded(2 * network.latent_channels, PANEL)
            rows = max(map(len, self.cut.strips(*self.sizes[level], width, self.frames, self.workers)))
            passes.append(
                self.kernel(width, edge, 36)
                + ((rows + 2) * across * width * spilled + rows * across * edge) * self.item
                + 128
            )
        return max(passes)

    def weights(self, level: int) -> int:
        """Bytes of packed weights at the worst moment of a level."""
        inputs, width = self.widths[level], self.widths[level + 1]
        inside = (width, width, 36)
        entry = self.packed((inputs, width, 36), inside, (inputs, width, 1))
        return max(entry, self.packed(inside, inside), self.packed((9 * width, width, 1)))

    def spilled(self, level: int, flags: Flags) -> int:
        """Bytes of the file that a level takes; what comes from the level before is as wide as that one was."""
        before = self.frames * self.frame(level, self.widths[level]) if flags.get("spill") else 0
        return super().spilled(level, flags) + before

    def again(self, level: int, flags: Flags) -> int:
        """Nothing is computed twice."""
        return 0

    @property
    def work(self) -> int:
        """Multiply-adds per group of frames, as the passes count them."""
        network, total = self.network, 0
        for level, (inputs, width) in enumerate(pairwise(self.widths)):
            pixels = self.frames * self.sizes[level][0] * self.sizes[level][1]
            total += pixels * (9 * inputs * width + (2 * network.layers - 1) * 9 * width * width)
            if level == 0:
                total += pixels * 9 * network.channels * width
            if level < len(self.sizes) - 1:
                total += self.frames * self.sizes[level + 1][0] * self.sizes[level + 1][1] * 9 * width * width
        return total + pixels * width * (40 * width + 18 * network.latent_channels)


def peak(task: Task, level: int, flags: Flags, before: Flags) -> int:
    """Bytes above the loaded model at the worst moment of a level; `before` is what the level before it does."""
    tensors = task.held(level, flags, before) + _work_memory(task, level, flags)
    if level and (handed := task.handed_on(level, flags, before)):
        tensors = max(tensors, handed + _work_memory(task, level - 1, before))
    return int((task.output + tensors) * SLACK) + FIRST_USE[task.arithmetic]


def _work_memory(task: Task, level: int, flags: Flags) -> int:
    """Bytes of what the workers and the kernels of a level take."""
    if not task.native:
        return task.workers * TEMPORARIES * task.strip
    return task.workers * (task.scratch(level, flags) + task.packing + PER_WORKER) + task.weights(level)


def worst(task: Task, flags: Sequence[Flags]) -> int:
    """Bytes above the loaded model at the worst moment of all."""
    befores: list[Flags] = [{}, *flags]
    return max(peak(task, level, own, befores[level]) for level, own in enumerate(flags))
