"""What steps take, in bytes and in work: a fold over the schedule. Integers only, no torch.

Tiles are cut here by the formulas that cut them in the passes (`geometry.py`); what a pass takes of a worker's scratch
follows from what it reads and writes, and what is alive at once from what a step needs, makes and releases.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from math import prod

from temporal_vae.engine import overheads, processor
from temporal_vae.engine.geometry import (
    BLOCK,
    ITEMSIZE,
    POINTS,
    TILE,
    VECTOR,
    Cut,
    direct_block,
    direct_bytes,
    enough_frames,
    finish_channels,
    packing_bytes,
    padded,
    parts_of_a_clip,
    parts_of_a_frame,
    scratch_bytes,
    sums_bytes,
)
from temporal_vae.engine.overheads import MIB, PER_WORKER, SLACK, TEMPORARIES, first_use
from temporal_vae.engine.parts import CHUNK_BYTES, Part
from temporal_vae.engine.planned import Cost
from temporal_vae.engine.schedule import (
    WHOLE,
    Activation,
    Keep,
    Layer,
    Layers,
    Level,
    Pass,
    Rung,
    Step,
    TemporalBlock,
)

STRIP_BYTES = {"cpu": 4 * MIB, "cuda": 256 * MIB}  # of a tile: a cache, or enough to fill a GPU


@dataclass(frozen=True, slots=True, kw_only=True)
class _StepCost:
    """What a step takes."""

    makes: bool  # another state: it begins and ends with an empty pool
    alive: int  # bytes of the states, at the worst moment
    pooled: int  # bytes from the pool, which keeps them for the next step
    besides: int  # bytes of temporaries
    scratch: int
    weights: int
    sums: int
    work: int
    again: int


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A network that is to be run on a shape, and what its levels take wherever they stand."""

    name: str  # of the task
    layers: Layers
    sizes: Sequence[tuple[int, int]]  # of the levels, in the order in which they are computed
    frames: int  # of a clip, of this rank's part of one, or of the pictures that are computed together
    batch: int  # frames of the whole call
    output: int  # bytes of the result
    dtype: str
    device: str
    workers: int
    part: Part | None = None  # where other ranks hold the rest of the clip
    held: int = 0  # bytes of results of calls before this one

    @cached_property
    def item(self) -> int:
        """Bytes of a value."""
        return ITEMSIZE[self.dtype]

    @cached_property
    def arithmetic(self) -> processor.Arithmetic:
        """How convolutions multiply."""
        return processor.arithmetic(self.device, self.dtype)

    @cached_property
    def native(self) -> bool:
        """Whether the processor's own kernels do the work, rather than torch's."""
        return self.arithmetic != "torch"

    @cached_property
    def cut(self) -> Cut:
        """How large tiles are."""
        nbytes = STRIP_BYTES[self.device]
        return Cut(strip_bytes=nbytes, run_bytes=nbytes, itemsize=self.item)

    @cached_property
    def work(self) -> int:
        """Multiply-adds of a clip."""
        return sum(self.cost(index, WHOLE, "memory").work for index in range(len(self.sizes)))

    @cached_property
    def pairs(self) -> bool:
        """Whether pairs of bfloat16 are multiplied where nothing is filtered."""
        return self.native and processor.multiplies_pairs(self.dtype)

    @cached_property
    def over_time(self) -> bool:
        """Whether frames belong to clips, rather than each being a picture by itself."""
        return any(isinstance(layer, TemporalBlock) for level in self.layers for layer in level)

    def pixels(self, size: tuple[int, int]) -> int:
        """Of all frames of a clip; of all pictures of the call, so that it does not matter how many at a time."""
        return (self.frames if self.over_time else self.batch) * size[0] * size[1]

    def together(self, index: int, rung: Rung) -> int:
        """Frames that a spatial step works on: enough, or as many as take no more than a temporal block in memory."""
        over_time = any(isinstance(layer, TemporalBlock) for layer in self.layers[index])
        room = self.frames // 4 if over_time and rung.temporal == "memory" else 1
        return max(room, enough_frames(*self.sizes[index], self.frames, self.workers))

    def steps(self, index: int, rung: Rung, before: Keep) -> list[Step]:
        """Those of a level on a rung; `before` is where the state of the level before is kept."""
        level = self._level(index, rung, before)
        return [layer.step(level) for layer in self.layers[index]]

    def cost(self, index: int, rung: Rung, before: Keep) -> Cost:
        """What a level takes on a rung; `before` is where the state of the level before is kept."""
        key = (index, rung, before)
        if key not in self._costs:
            level, written = self._level(index, rung, before), self._written(index)
            self._costs[key] = self._cost(level, self.layers[index], written)
        return self._costs[key]

    def _level(self, index: int, rung: Rung, before: Keep) -> Level:
        return Level(
            frames=self.frames,
            size=self.sizes[index],
            together=self.together(index, rung),
            rung=rung,
            size_before=self.sizes[max(0, index - 1)],
            keep_before=before,
        )

    def _written(self, index: int) -> int:
        """Bytes of the result that are there at a level; a CPU takes memory when it is first written."""
        if self.device != "cpu" or index == len(self.sizes) - 1:
            return self.output
        return self.output * (self.batch - min(self.batch, self.frames)) // self.batch  # of the clips before

    def _cost(self, level: Level, layers: Sequence[Layer], written: int) -> Cost:
        """The fold over the steps of a level."""
        known: dict[Layer, _StepCost] = {}
        spilled: dict[int, int] = {}  # frames in the file at once, by their size
        alive = pool = scratch = weights = sums = work = again = 0
        for layer in layers:
            if layer not in known:
                step = layer.step(level)
                known[layer] = self._step(step, level.rung)
                if level.rung.spills:
                    self._spill(step, self._beside(level.rung.reach), spilled)
            cost = known[layer]
            pool = max(0 if cost.makes else pool, cost.pooled)
            alive = max(alive, cost.alive + pool + cost.besides)
            pool = 0 if cost.makes else pool
            scratch, weights = max(scratch, cost.scratch), max(weights, cost.weights)
            sums = max(sums, cost.sums)
            work, again = work + cost.work, again + cost.again
        tensors = written + alive + self._work_memory(scratch, weights + sums)
        return Cost(
            peak=self.held + int(tensors * SLACK) + first_use(self.arithmetic, shared=self.part is not None),
            alive=alive,
            scratch=scratch,
            weights=weights,
            sums=sums,
            work=work,
            again=again,
            spilled=sum(nbytes * frames for nbytes, frames in spilled.items()),
        )

    def _work_memory(self, scratch: int, weights: int) -> int:
        """Bytes of what the workers and the kernels take."""
        if not self.native:
            return self.workers * TEMPORARIES * STRIP_BYTES[self.device]
        packing = packing_bytes(self._widest, 9) if self.arithmetic == "int16" else 0
        return self.workers * (scratch + packing + PER_WORKER) + weights

    def _beside(self, reach: int) -> int:
        """Frames of other ranks that are held with those of this one."""
        return sum(self.part.beside(reach)) if self.part is not None else 0

    def _count(self, step: Step) -> int:
        """Frames of the clip that a step goes over, those of other ranks included."""
        return self.frames + self._beside(step.reach)

    def _step(self, step: Step, rung: Rung) -> _StepCost:
        count, makes = self._count(step), step.made is not None
        together = count if step.reach else min(step.together, self.frames)
        held = self.frames + self._beside(rung.reach)  # what others send comes while a spatial step works
        state, made = self._held(step.state), self._held(step.made)
        alive = held * state
        if makes:  # group by group the one comes and the other goes
            alive = max(self.frames * state + together * made, together * state + held * made)
        pooled = together * (self._held(step.hidden) + self._held(step.enlarged))
        besides = sums = work = again = 0
        if self.part is not None and step.state is not None and step.state.keep == "spilled" and step.reach:
            row = step.size[1] * step.state.channels * self.item
            besides = 2 * len(self.part.transfers(step.reach)) * max(CHUNK_BYTES, row)
        for one in step.passes:
            pixels = step.size[0] * step.size[1]
            done = count * pixels * one.work
            target = step.place(one.target)
            work += done
            again += done if target is not None and target.keep == "recomputed" else 0
            again += (count - self.frames) * pixels * one.work
            if one.kind == "attend":
                assert step.state is not None
                pooled, besides = self._attention(step.state)
            elif self.native and one.kind in ("spatial", "enlarge", "halve", "temporal"):
                sums = max(sums, self._sums(step, one, together))
            elif one.kind == "finish":
                channels = finish_channels(one.outputs)
                besides = self.workers * self._run(step.size, channels, count) * count * channels * self.item
        return _StepCost(
            makes=makes,
            alive=alive,
            pooled=pooled,
            besides=besides,
            scratch=max(self._scratch(step, one) for one in step.passes),
            weights=sum(self._weights(step, one) for one in step.passes) if self.native else 0,
            sums=sums,
            work=work,
            again=again,
        )

    def _sums(self, step: Step, one: Pass, together: int) -> int:
        """Bytes of the sums of a sweep over whole frames, and of the one for its shortcut."""
        (inputs, taps, direct), pairs = self._product(step, one), self.pairs
        over_time, counts = [], []
        if one.kind in ("halve", "temporal"):
            over_time.append((inputs, taps, direct))
        else:
            counts.append(len(parts_of_a_frame(*step.size, inputs, self.workers, direct=direct, pairs=pairs)))
        if one.shortcut is not None:
            over_time.append((inputs, 1, self._is_direct(step, 1)))
        for *product, plain in over_time:
            block = direct_block(*product, pairs=pairs) if plain else BLOCK
            counts.append(len(parts_of_a_clip(prod(step.size), together, one.outputs, self.workers, block)))
        return sums_bytes(max(counts), together, padded(one.outputs, VECTOR))

    def _held(self, activation: Activation | None) -> int:
        """Bytes of a frame in memory."""
        return activation.values * self.item if activation and activation.keep == "memory" else 0

    def _spill(self, step: Step, beside: int, spilled: dict[int, int]) -> None:
        """Count the frames in the file; a state of another size was counted where it was made."""
        together = min(step.together, self.frames)
        counts: dict[int, int] = {}
        for activation, frames in (
            (step.state, self.frames + beside if step.state and step.state.size == step.size else 0),
            (step.made, self.frames + beside),
            (step.hidden, together),
            (step.enlarged, together),
        ):
            if activation is not None and activation.keep == "spilled":
                nbytes = activation.values * self.item
                counts[nbytes] = counts.get(nbytes, 0) + frames
        for nbytes, frames in counts.items():
            spilled[nbytes] = max(spilled.get(nbytes, 0), frames)

    def _attention(self, state: Activation) -> tuple[int, int]:
        """Bytes from the pool, and of temporaries; a spilled frame is brought back."""
        pooled, besides = overheads.attention_bytes(self.device, self.dtype, prod(state.size), state.channels)
        return pooled + (state.values * self.item if state.keep == "spilled" else 0), besides

    def _scratch(self, step: Step, one: Pass) -> int:
        """Bytes of scratch that a job takes; each piece may take 64 more."""
        if one.kind == "attend":
            return overheads.attention_scratch(self.device, self.dtype, one.inputs)
        if one.kind == "finish":
            return 0
        if one.kind == "temporal":
            return self._scratch_over_time(step, one)
        source, target, across = step.place(one.source), step.place(one.target), step.size[1]
        frames = min(step.together, self.frames)
        inputs, taps, direct = self._product(step, one)
        rows = self._rows(step.size, one.inputs if one.kind == "leave" else one.outputs, frames)
        reach = rows + 2
        total = windows = 0
        if one.kind == "halve":
            rows = self._rows(step.size, inputs, frames)
            reach = 2 * rows + 1
            windows += rows * across * inputs
        elif one.kind == "enlarge":
            reach = rows // 2 + 3
        if source is None:
            windows += reach * across * padded(inputs, VECTOR)
        elif source.keep == "spilled":
            windows += reach * source.size[1] * one.inputs
        elif source.keep == "recomputed":  # with the rows around that tiles end in
            windows += (rows + 2 * TILE) * across * inputs
            total += self._kernel(inputs, inputs, taps, direct)
            if step.state is not None and step.state.keep == "spilled":
                windows += (rows // 2 + TILE + 3) * step.state.size[1] * inputs
        if target is None:
            windows += rows * across * padded(one.outputs, VECTOR)
        elif target.keep != "memory":
            windows += rows * across * one.outputs
        if one.shortcut is not None:
            total += self._kernel(inputs, one.outputs, 1, self._is_direct(step, 1))
            spills = step.made is not None and step.made.keep == "spilled"
            windows += rows * across * one.outputs if spills else 0
        return total + self._kernel(inputs, one.outputs, taps, direct) + windows * self.item + 5 * 64

    def _scratch_over_time(self, step: Step, one: Pass) -> int:
        """As `_scratch`; a job holds the same pixels of all frames."""
        source, target = step.place(one.source), step.place(one.target)
        assert source is not None
        assert target is not None
        windows, kernels = 0, 1
        if source.keep == "recomputed":  # from the state, which is also where the result goes
            windows, kernels = 1, 2
            source = step.state
        windows += source is not None and source.keep == "spilled"
        windows += target.keep != "memory" and target != source
        count = self._count(step)
        run = self._run(step.size, one.outputs, count) * one.outputs * self.item
        kernel = self._kernel(one.inputs, one.outputs, *self._product(step, one)[1:])
        return windows * count * (run + 64) + kernels * kernel

    def _weights(self, step: Step, one: Pass) -> int:
        """Bytes of packed weights that a pass reads."""
        if one.kind in ("attend", "finish"):
            return 0
        inputs, taps, direct = self._product(step, one)
        packed = self._packed(inputs, one.outputs, taps, direct)
        if one.shortcut is not None:
            packed += self._packed(inputs, one.outputs, 1, self._is_direct(step, 1))
        return packed

    def _product(self, step: Step, one: Pass) -> tuple[int, int, bool]:
        """Channels that a pass multiplies, taps, and whether it does so directly."""
        if one.kind == "temporal":
            inputs, taps = one.inputs, 1 if self._count(step) == 1 else 3
        elif one.kind == "halve":  # nine neighbours side by side
            inputs, taps = 9 * one.inputs, 1
        else:
            inputs, taps = one.inputs, 9
        return inputs, taps, self._is_direct(step, taps)

    def _is_direct(self, step: Step, taps: int) -> bool:
        """Whether convolutions of a step are not filtered."""
        return not processor.filters(self.arithmetic, self.pixels(step.size), taps, pairs=self.pairs)

    def _packed(self, inputs: int, outputs: int, taps: int, direct: bool) -> int:
        inputs, outputs = padded(inputs, VECTOR), padded(outputs, VECTOR)
        if direct:
            return inputs * outputs * taps * (2 if self.pairs else 4) + 128
        points = POINTS[taps]
        if self.arithmetic == "int16":
            return inputs * outputs * points * 2 + outputs * points * 4 + 128
        return inputs * outputs * points * 4 + 128

    def _kernel(self, inputs: int, outputs: int, taps: int, direct: bool) -> int:
        """Bytes of scratch that a kernel takes."""
        if not self.native:
            return 0
        inputs, outputs = padded(inputs, VECTOR), padded(outputs, VECTOR)
        if direct:
            return direct_bytes(inputs, taps, pairs=self.pairs) + 64
        return scratch_bytes(inputs, outputs, POINTS[taps], fixed=self.arithmetic == "int16") + 64

    @cached_property
    def _rows(self) -> Callable[[tuple[int, int], int, int], int]:
        """Rows of a strip, at most, by size, channels and frames."""
        strips, workers = self.cut.strips, self.workers
        return cache(lambda size, c, frames: max(map(len, strips(size[0], size[1], c, frames, workers))))

    @cached_property
    def _run(self) -> Callable[[tuple[int, int], int, int], int]:
        """Pixels of a run, at most, by size, channels and frames."""
        runs, workers = self.cut.runs, self.workers
        return cache(lambda size, c, frames: max(map(len, runs(prod(size), frames, c, workers))))

    @cached_property
    def _widest(self) -> int:
        """Channels of the widest activation."""
        steps = (step for i in range(len(self.sizes)) for step in self.steps(i, WHOLE, "memory"))
        return max(max(one.inputs, one.outputs) for step in steps for one in step.passes)

    @cached_property
    def _costs(self) -> dict[tuple[int, Rung, Keep], Cost]:
        return {}
