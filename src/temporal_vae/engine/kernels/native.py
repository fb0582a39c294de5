"""Kernels in machine code: what `native_code` emits, called on tensors.

A kernel works on one tile that a pass holds at hand (`spatial`, `pointwise`, `temporal`), or sweeps over whole frames
in memory with all workers (`sweep_space`, `sweep_time`): a single call of each worker, without the interpreter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from temporal_vae.engine import processor
from temporal_vae.engine.geometry import (
    BLOCK,
    POINTS,
    Span,
    direct_block,
    direct_bytes,
    direct_tile,
    parts_of_a_clip,
    parts_of_a_frame,
    scratch_bytes,
)
from temporal_vae.engine.kernels import Progress, native_code
from temporal_vae.engine.kernels.attention import KeysAndValues, answer
from temporal_vae.engine.kernels.crew import ALL, Crew
from temporal_vae.engine.kernels.jobs import Call, Jobs
from temporal_vae.engine.kernels.norms import affine_of, moments_of
from temporal_vae.engine.kernels.operands import address, check_rows, table, tiles_of
from temporal_vae.engine.kernels.packing import Packing, side_by_side
from temporal_vae.engine.kernels.simd import Scalar
from temporal_vae.engine.stats import Affine, Moments
from temporal_vae.engine.storage import Rows, Scratch
from temporal_vae.engine.workers import Workers


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedWeights:
    """Weights as a kernel reads them, and the bias in float32."""

    values: Tensor
    factors: Tensor | None  # of filtered weights in integers, (points, k)
    bias: Tensor
    inputs: int
    outputs: int
    taps: int  # 9 in space, 3 over time, or 1
    direct: bool  # not filtered
    enlarge: bool = False


class NativeKernels:
    """Kernels for float32, bfloat16 and float16 on this processor."""

    sweeps = True

    def __init__(self, dtype: torch.dtype, workers: Workers, *, scale: int = 1) -> None:
        machine = processor.host()
        assert machine is not None
        crew = Crew(workers)
        self._packing = Packing(machine, dtype, crew)
        self.inputs_multiple = self._packing.inputs_multiple
        self.outputs_multiple = self._packing.outputs_multiple
        self._jobs = Jobs(crew, self.outputs_multiple)
        self.sums = self._jobs.sums
        self.scale = scale
        self._dtype = dtype
        self._name: Scalar = str(dtype).removeprefix("torch.")  # type: ignore[assignment]
        self._pairs = processor.multiplies_pairs(self._name)
        self._arithmetic = processor.arithmetic("cpu", self._name)
        self._fixed = self._arithmetic == "int16"
        self.attends = processor.attends("cpu", self._name)

    def affine(self, moments: Moments, norm: nn.GroupNorm, *, over_frames: bool) -> Affine:
        """The norm of values with these moments: of each frame, or of all frames together."""
        return affine_of(moments, norm, over_frames=over_frames, scale=self.scale)

    # Weights

    def spatial_weights(
        self, conv: nn.Conv2d, room: Scratch, pixels: int, *, enlarge: bool = False, leave: bool = False
    ) -> PackedWeights:
        """Those of a 3x3 convolution; with `enlarge`, of one behind a nearest 2x enlargement."""
        scale, bias_scale = 1 if enlarge or leave else self.scale, 1 if leave else self.scale
        weights = conv.weight.flatten(2)
        return self._pack(
            weights, bias_of(conv), room, pixels, scale=scale, bias_scale=bias_scale, enlarge=enlarge
        )

    def pointwise_weights(self, conv: nn.Conv2d, room: Scratch, pixels: int) -> PackedWeights:
        """Those of a 1x1 convolution."""
        return self._pack(conv.weight.flatten(2), bias_of(conv), room, pixels)

    def strided_weights(self, conv: nn.Conv2d, room: Scratch, pixels: int) -> PackedWeights:
        """Those of a 3x3 convolution as a 1x1 convolution of its nine neighbours side by side."""
        if self._filters(pixels, 1):
            return self._pack(side_by_side(conv.weight)[..., None], bias_of(conv), room, pixels)
        weights = self._pack(conv.weight.flatten(2), bias_of(conv), room, 0)
        shape = self._packing.form(9 * weights.inputs, weights.outputs, 1, direct=True)[1]
        return replace(weights, inputs=9 * weights.inputs, taps=1, values=weights.values.view(shape))

    def temporal_weights(
        self,
        conv: nn.Conv3d,
        frames: int,
        room: Scratch,
        pixels: int,
        *,
        factor: Tensor | None = None,
    ) -> PackedWeights:
        """Those of a (3,1,1) convolution over `frames` frames, times a factor."""
        weight = conv.weight.flatten(2)
        if frames == 1:  # only the middle tap meets a frame
            weight = weight[:, :, 1:2]
        return self._pack(weight, bias_of(conv), room, pixels, factor=factor, scale=self.scale)

    def _pack(
        self,
        weight: Tensor,
        bias: Tensor,
        room: Scratch,
        pixels: int,
        *,
        factor: Tensor | None = None,
        scale: int = 1,
        bias_scale: int | None = None,
        enlarge: bool = False,
    ) -> PackedWeights:
        """Weights `(k, c, taps)` and their bias, times a factor and divided by scales: those of activations."""
        outputs, inputs, taps = weight.shape
        padding = -inputs % self.inputs_multiple, -outputs % self.outputs_multiple
        if any(padding):
            weight = F.pad(weight, (0, 0, 0, padding[0], 0, padding[1]))
            bias = F.pad(bias, (0, padding[1]))
            outputs, inputs, _ = weight.shape
        bias = bias.float() / (self.scale if bias_scale is None else bias_scale)
        if factor is not None:
            bias = bias * factor
        if scale != 1:
            factor = torch.tensor(1 / scale) if factor is None else factor / scale
        direct = not self._filters(pixels, taps)
        values, factors = self._packing.pack(weight, factor, room, direct=direct)
        return PackedWeights(
            values=values,
            factors=factors,
            bias=bias.contiguous(),
            inputs=inputs,
            outputs=outputs,
            taps=taps,
            direct=direct,
            enlarge=enlarge,
        )

    def _filters(self, pixels: int, taps: int) -> bool:
        return processor.filters(self._arithmetic, pixels, taps, pairs=self._pairs)

    # One tile

    def spatial(
        self,
        source: Rows,
        target: Rows,
        weights: PackedWeights,
        affine: Affine | None,
        scratch: Scratch,
        *,
        add: bool = False,
    ) -> Moments:
        """3x3 convolution of rows; `source` reaches one row further, but for the border of the picture."""
        rows, width, outputs = *target.data.shape[:2], weights.outputs
        enlarge = int(weights.enlarge)
        check_rows(source, target, enlarge)
        call = self._over_space(weights, affine is not None, target.height, width)
        source_row, target_row = call.fields[:2]
        output = address("target", target.data, self._dtype, rows, width, outputs) - target.first * target_row
        read = (len(source.data), width >> enlarge, weights.inputs)
        begin = address("source", source.data, self._dtype, *read) - source.first * source_row
        part = Span(target.first, target.first + rows)
        if not weights.direct:
            part = tiles_of(part, width)
        place = (begin, output, output if add else 0, *self._pending(weights, affine))
        return self._alone(call, place, part, rows * width, 1, outputs, scratch)

    def pointwise(self, source: Rows, target: Rows, weights: PackedWeights, scratch: Scratch) -> Moments:
        """1x1 convolution of the rows of `target`."""
        start = target.first - source.first
        pixels = source.data[start : start + len(target.data)].flatten(0, 1)
        return self._tile_over_time([pixels], [target.data.flatten(0, 1)], weights, None, scratch, add=False)

    def temporal(
        self,
        sources: list[Tensor],
        targets: list[Tensor],
        weights: PackedWeights,
        affine: Affine,
        scratch: Scratch,
        *,
        add: bool = False,
    ) -> Moments:
        """(3,1,1) convolution of the same pixels of all frames, `(pixels, c)` each."""
        return self._tile_over_time(sources, targets, weights, affine, scratch, add=add)

    def _tile_over_time(
        self,
        sources: list[Tensor],
        targets: list[Tensor],
        weights: PackedWeights,
        affine: Affine | None,
        scratch: Scratch,
        *,
        add: bool,
    ) -> Moments:
        pixels = len(targets[0])
        call, _tables = self._over_time(sources, targets, weights, affine, add=add)
        return self._alone(call, (), Span(0, pixels), pixels, len(targets), weights.outputs, scratch)

    def _alone(
        self,
        call: Call,
        place: tuple[int, ...],
        part: Span,
        pixels: int,
        frames: int,
        outputs: int,
        scratch: Scratch,
    ) -> Moments:
        """A single job, in the calling thread: all outputs of a part of the target, which has so many pixels."""
        sums = np.empty((frames, 2, outputs))
        job = *place, sums.ctypes.data, part.first, part.last, 0, outputs
        fields, jobs, ticket = (np.array(values, dtype=np.int64) for values in (call.fields, job, (0,)))
        room = scratch.address(call.room)
        call.code(fields.ctypes.data, jobs.ctypes.data, 1, ticket.ctypes.data, room, ALL)
        return moments_of(sums.ctypes.data, pixels, frames, sums[0].nbytes, 1, 0, outputs)

    # Whole frames

    def sweep_space(
        self,
        sources: Sequence[Tensor],
        targets: Sequence[Tensor],
        weights: PackedWeights,
        affine: Affine | None,
        scratch: Sequence[Scratch],
        progress: Progress,
        *,
        add: bool = False,
    ) -> Moments:
        """3x3 convolution of frames `(h, w, c)`, each by itself; moments `(t, c)`.

        Args:
            sources: what is read.
            targets: what is written.
            weights: of the convolution.
            affine: of the norm, a row for each frame, or None.
            scratch: one for each worker.
            progress: told of shares of the work that are done.
            add: add the result to what the targets hold.
        """
        height, width, _ = targets[0].shape
        outputs, enlarge = weights.outputs, int(weights.enlarge)
        call = self._over_space(weights, affine is not None, height, width)
        direct, pairs = weights.direct, self._pairs
        parts = parts_of_a_frame(
            height, width, weights.inputs, self._jobs.crew.count, direct=direct, pairs=pairs
        )
        read = (height >> enlarge, width >> enlarge, weights.inputs)
        check_rows(Rows(sources[0], 0, read[0]), Rows(targets[0], 0, height), enlarge)
        scale, shift = self._pending(weights, affine, len(targets))
        row = 0 if affine is None else 4 * weights.inputs
        frames = []
        for index, (source, target) in enumerate(zip(sources, targets, strict=True)):
            begin = address("source", source, self._dtype, *read)
            output = address("target", target, self._dtype, height, width, outputs)
            pending = scale + row * index, shift + row * index
            frames.append((begin, output, output if add else 0, *pending))
        return self._jobs.over_frames(call, frames, height * width, parts, outputs, scratch, progress)

    def sweep_halving(
        self,
        sources: Sequence[Tensor],
        targets: Sequence[Tensor],
        weights: PackedWeights,
        scratch: Sequence[Scratch],
        progress: Progress,
    ) -> Moments:
        """Stride-2 3x3 convolution, zeros at the right and the bottom, by `strided_weights`; as `sweep_space`."""
        (tall, wide, channels), (height, width, outputs) = sources[0].shape, targets[0].shape
        if not weights.direct or weights.inputs != 9 * channels or (height, width) != (tall // 2, wide // 2):
            raise RuntimeError(f"a kernel halves {tall}x{wide}x{channels}, not to {height}x{width}x{outputs}")
        block, itemsize = direct_block(weights.inputs, 1, pairs=self._pairs), self._dtype.itemsize
        fields = [
            wide * channels * itemsize, width * outputs * itemsize, *self._weights(weights, 1), weights.inputs,
            weights.outputs, height, width, 0, tall, wide, block,
        ]  # fmt: skip
        call = Call(native_code.halve(self._name), fields, self._room(weights))
        parts = parts_of_a_clip(height * width, 1, outputs, self._jobs.crew.count, block)
        frames = []
        for source, target in zip(sources, targets, strict=True):
            begin = address("source", source, self._dtype, tall, wide, channels)
            frames.append((begin, address("target", target, self._dtype, height, width, outputs), 0, 0, 0))
        return self._jobs.over_frames(call, frames, height * width, parts, outputs, scratch, progress)

    def sweep_time(
        self,
        sources: Sequence[Tensor],
        targets: Sequence[Tensor],
        weights: PackedWeights,
        affine: Affine | None,
        scratch: Sequence[Scratch],
        progress: Progress,
        *,
        add: bool = False,
    ) -> Moments:
        """(3,1,1) convolution of a clip, or a 1x1 convolution; as `sweep_space`, of frames `(pixels, c)`."""
        pixels, outputs = len(targets[0]), weights.outputs
        call, _tables = self._over_time(sources, targets, weights, affine, add=add)
        parts = parts_of_a_clip(pixels, len(targets), outputs, self._jobs.crew.count, call.fields[-1])
        return self._jobs.over_time(call, len(targets), pixels, parts, outputs, scratch, progress)

    def answer(
        self, asked: KeysAndValues, queries: Tensor, scratch: Sequence[Scratch], progress: Progress
    ) -> None:
        """What queries find, in their place."""
        answer(self._jobs.crew, asked, queries, scratch, progress)

    # What kernels are called with

    def _over_space(self, weights: PackedWeights, activate: bool, height: int, width: int) -> Call:
        inputs, outputs, itemsize = weights.inputs, weights.outputs, self._dtype.itemsize
        enlarge = int(weights.enlarge)
        tall, wide = direct_tile(inputs, pairs=self._pairs)
        rows = (width >> enlarge) * inputs * itemsize, width * outputs * itemsize
        fields = [*rows, *self._weights(weights, 9), inputs, outputs, height, width, enlarge, tall, wide, 0]
        return Call(native_code.spatial(self._name, activate, weights.direct), fields, self._room(weights))

    def _over_time(
        self,
        sources: Sequence[Tensor],
        targets: Sequence[Tensor],
        weights: PackedWeights,
        affine: Affine | None,
        *,
        add: bool,
    ) -> tuple[Call, tuple[object, object]]:
        """The call, and what must live as long."""
        frames, pixels, taps = len(targets), len(targets[0]), weights.taps
        if len(sources) != frames:
            raise RuntimeError(f"a kernel was given {len(sources)} frames to read and {frames} to write")
        read = table("source", sources, self._dtype, pixels, weights.inputs)
        written = table("target", targets, self._dtype, pixels, weights.outputs)
        places = read.ctypes.data, written.ctypes.data, written.ctypes.data if add else 0
        rest = None if weights.direct else frames % (4 if taps == 3 else 1)
        block = direct_block(weights.inputs, taps, pairs=self._pairs) if weights.direct else BLOCK
        fields = [
            *places, *self._pending(weights, affine, 1), *self._weights(weights, taps), weights.inputs,
            weights.outputs, frames, block,
        ]  # fmt: skip
        code = native_code.temporal(self._name, affine is not None, taps, rest)
        return Call(code, fields, self._room(weights)), (read, written)

    def _pending(self, weights: PackedWeights, affine: Affine | None, *frames: int) -> tuple[int, int]:
        """Addresses of scale and shift: a row for each of so many frames, or a single one."""
        if affine is None:
            return 0, 0
        shape = *frames, weights.inputs
        scale = address("scale", affine.scale, torch.float32, *shape)
        return scale, address("shift", affine.shift, torch.float32, *shape)

    def _weights(self, weights: PackedWeights, taps: int) -> tuple[int, int, int]:
        """Addresses of weights, factors and bias."""
        inputs, outputs, panel = weights.inputs, weights.outputs, self.outputs_multiple
        if inputs % self.inputs_multiple or outputs % panel:
            raise RuntimeError(
                f"a kernel reads weights of whole vectors of channels: multiples of {self.inputs_multiple} to "
                f"multiples of {panel}; they are of {inputs} to {outputs}"
            )
        kind, shape = self._packing.form(inputs, outputs, taps, direct=weights.direct)
        values = address("weights", weights.values, kind, *shape)
        factors = 0
        if self._fixed and not weights.direct:
            factors = address("factors", weights.factors, torch.float32, shape[0], outputs)
        return values, factors, address("bias", weights.bias, torch.float32, outputs)

    def _room(self, weights: PackedWeights) -> int:
        """Bytes of scratch of a kernel."""
        if weights.direct:
            return direct_bytes(weights.inputs, weights.taps, pairs=self._pairs)
        return scratch_bytes(weights.inputs, weights.outputs, POINTS[weights.taps], fixed=self._fixed)


def bias_of(conv: nn.Conv2d | nn.Conv3d) -> Tensor:
    """The bias, which every convolution of the network has."""
    assert conv.bias is not None
    return conv.bias
