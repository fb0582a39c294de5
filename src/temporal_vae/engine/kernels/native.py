"""Kernels in machine code: what `native_code` emits, called on tensors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from temporal_vae.engine import processor
from temporal_vae.engine.geometry import BLOCK, TILE, scratch_bytes
from temporal_vae.engine.kernels import native_code, simd
from temporal_vae.engine.kernels.products import CHUNK, LARGEST_COLUMN
from temporal_vae.engine.kernels.winograd import F11, F43, Winograd
from temporal_vae.engine.stats import Affine, Moments
from temporal_vae.engine.storage import Rows, Scratch
from temporal_vae.engine.workers import Workers


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedWeights:
    """Transformed weights in float32, or as integers to be multiplied by a factor; and the bias in float32."""

    values: Tensor  # (points, k / panel, c, panel), or int16 (points, k / panel, c / 2, panel, 2)
    factors: Tensor | None  # of integers, (points, k)
    bias: Tensor
    inputs: int
    outputs: int
    winograd: Winograd
    enlarge: bool = False


class NativeKernels:
    """Kernels for float32, bfloat16 and float16 on this processor."""

    def __init__(self, dtype: torch.dtype, workers: Workers) -> None:
        machine = processor.host()
        assert machine is not None
        self.inputs_multiple = machine.lanes
        self.outputs_multiple = machine.lanes * machine.columns
        self._workers = workers
        self._dtype = dtype
        self._name: simd.Scalar = str(dtype).removeprefix("torch.")  # type: ignore[assignment]
        self._fixed = processor.arithmetic("cpu", self._name) == "int16"

    def spatial_weights(self, conv: nn.Conv2d, room: Scratch, *, enlarge: bool = False) -> PackedWeights:
        """Those of a 3x3 convolution; with `enlarge`, of one behind a nearest 2x enlargement."""
        return self._pack(conv.weight.flatten(2), bias_of(conv), F43, 2, room, enlarge=enlarge)

    def pointwise_weights(self, conv: nn.Conv2d, room: Scratch) -> PackedWeights:
        """Those of a 1x1 convolution."""
        return self._pack(conv.weight.flatten(2), bias_of(conv), F11, 1, room)

    def strided_weights(self, conv: nn.Conv2d, room: Scratch) -> PackedWeights:
        """Those of a 3x3 convolution as a 1x1 convolution of its nine neighbours side by side."""
        return self._pack(side_by_side(conv.weight)[..., None], bias_of(conv), F11, 1, room)

    def temporal_weights(
        self, conv: nn.Conv3d, frames: int, room: Scratch, *, factor: Tensor | None = None
    ) -> PackedWeights:
        """Those of a (3,1,1) convolution over `frames` frames, times a factor."""
        weight = conv.weight.flatten(2)
        if frames == 1:  # only the middle tap meets a frame
            return self._pack(weight[:, :, 1:2], bias_of(conv), F11, 1, room, factor=factor)
        return self._pack(weight, bias_of(conv), F43, 1, room, factor=factor)

    def _pack(
        self,
        weight: Tensor,
        bias: Tensor,
        winograd: Winograd,
        axes: int,
        room: Scratch,
        *,
        factor: Tensor | None = None,
        enlarge: bool = False,
    ) -> PackedWeights:
        outputs, inputs, taps = weight.shape
        padding = -inputs % self.inputs_multiple, -outputs % self.outputs_multiple
        if any(padding):
            weight = F.pad(weight, (0, 0, 0, padding[0], 0, padding[1]))
            bias = F.pad(bias, (0, padding[1]))
            outputs, inputs, _ = weight.shape
        matrix = torch.tensor([[float(x) for x in row] for row in winograd.filter], dtype=torch.float64)
        if axes == 2:
            matrix = torch.kron(matrix, matrix)
        bias = bias.float()
        if factor is not None:
            matrix, bias = matrix * factor, bias * factor
        panel, points = self.outputs_multiple, matrix.float()
        shape = (len(points), outputs // panel, inputs, panel)
        values = room.take(shape, torch.int16 if self._fixed else torch.float32)
        factors = room.take((len(points), outputs), torch.float32) if self._fixed else None

        def pack(index: int, worker: int) -> None:
            columns = slice(index * panel, (index + 1) * panel)
            part = weight[columns].float()  # (panel, c, taps)
            transformed = (points @ part.permute(2, 1, 0).reshape(taps, -1)).view(-1, inputs, panel)
            if factors is None:
                values[:, index] = transformed
                return
            factors[:, columns] = _to_integers(transformed)
            pairs = transformed.unflatten(1, (-1, 2)).transpose(2, 3)
            values[:, index].view(pairs.shape).copy_(pairs)

        self._workers.run(pack, range(outputs // panel))
        return PackedWeights(
            values=values,
            factors=factors,
            bias=bias.contiguous(),
            inputs=inputs,
            outputs=outputs,
            winograd=winograd,
            enlarge=enlarge,
        )

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
        sums = torch.zeros((1, 2, outputs), dtype=torch.float64)
        across = -(-width // TILE)
        itemsize, enlarge = self._dtype.itemsize, int(weights.enlarge)
        small = width >> enlarge
        source_row, target_row = small * weights.inputs * itemsize, width * outputs * itemsize
        _check_rows(source, target, enlarge)
        output = address("target", target.data, self._dtype, rows, width, outputs) - target.first * target_row
        first = address("source", source.data, self._dtype, len(source.data), small, weights.inputs)
        native_code.spatial(self._name, affine is not None)(
            first - source.first * source_row,
            source_row,
            output,
            target_row,
            output if add else 0,
            target_row,
            *self._pending(weights, affine),
            *self._weights(weights, F43.points**2),
            sums.data_ptr(),
            self._room(weights, F43.points**2, scratch).data_ptr(),
            weights.inputs,
            outputs,
            target.height,
            width,
            enlarge,
            target.first // TILE * across,
            -(-(target.first + rows) // TILE) * across,
            BLOCK,
        )
        return Moments.of_sums(rows * width, sums)

    def _pending(self, weights: PackedWeights, affine: Affine | None) -> tuple[int, int]:
        """Addresses of scale and shift."""
        if affine is None:
            return 0, 0
        scale = address("scale", affine.scale, torch.float32, weights.inputs)
        return scale, address("shift", affine.shift, torch.float32, weights.inputs)

    def _weights(self, weights: PackedWeights, points: int) -> tuple[int, int, int]:
        """Addresses of weights, factors and bias."""
        inputs, outputs, panel = weights.inputs, weights.outputs, self.outputs_multiple
        if inputs % self.inputs_multiple or outputs % panel:
            raise RuntimeError(
                f"a kernel reads weights of whole vectors of channels: multiples of {self.inputs_multiple} to "
                f"multiples of {panel}; they are of {inputs} to {outputs}"
            )
        kind = torch.int16 if self._fixed else torch.float32
        values = address("weights", weights.values, kind, points, outputs // panel, inputs, panel)
        factors = 0
        if self._fixed:
            factors = address("factors", weights.factors, torch.float32, points, outputs)
        return values, factors, address("bias", weights.bias, torch.float32, outputs)

    def _room(self, weights: PackedWeights, points: int, scratch: Scratch) -> Tensor:
        """Scratch of a kernel."""
        nbytes = scratch_bytes(weights.inputs, weights.outputs, points, fixed=self._fixed)
        return scratch.take((nbytes,), torch.uint8)

    def pointwise(self, source: Rows, target: Rows, weights: PackedWeights, scratch: Scratch) -> Moments:
        """1x1 convolution of the rows of `target`."""
        start = target.first - source.first
        pixels = source.data[start : start + len(target.data)].flatten(0, 1)
        return self._over_time([pixels], [target.data.flatten(0, 1)], weights, None, scratch, add=False)

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
        return self._over_time(sources, targets, weights, affine.of(0), scratch, add=add)

    def _over_time(
        self,
        sources: list[Tensor],
        targets: list[Tensor],
        weights: PackedWeights,
        affine: Affine | None,
        scratch: Scratch,
        *,
        add: bool,
    ) -> Moments:
        frames, pixels = len(targets), len(targets[0])
        if len(sources) != frames:
            raise RuntimeError(f"a kernel was given {len(sources)} frames to read and {frames} to write")
        sums = torch.zeros((frames, 2, weights.outputs), dtype=torch.float64)
        inputs = _table("source", sources, self._dtype, pixels, weights.inputs)
        outputs = _table("target", targets, self._dtype, pixels, weights.outputs)
        rest = frames % weights.winograd.outputs
        native_code.temporal(self._name, affine is not None, weights.winograd is F11, rest)(
            inputs.ctypes.data,
            outputs.ctypes.data,
            outputs.ctypes.data if add else 0,
            *self._pending(weights, affine),
            *self._weights(weights, weights.winograd.points),
            sums.data_ptr(),
            self._room(weights, weights.winograd.points, scratch).data_ptr(),
            weights.inputs,
            weights.outputs,
            frames,
            0,
            pixels,
            BLOCK,
        )
        return Moments.of_sums(pixels, sums)


def _to_integers(weights: Tensor) -> Tensor:
    """Round weights `(points, c, k)` in place to integers whose products do not overflow; the factors `(points, k)`."""
    magnitudes = weights.abs()
    sums = torch.stack([chunk.sum(1) for chunk in magnitudes.split(CHUNK, 1)]).amax(0)
    factors = torch.maximum(sums / LARGEST_COLUMN, magnitudes.amax(1) / (2**15 - 1))
    factors.clamp_(min=torch.finfo(torch.float32).tiny)
    weights.div_(factors[:, None]).round_()
    return factors


def side_by_side(weight: Tensor) -> Tensor:
    """The taps of a convolution `(k, c, rows, columns)` as one row of weights each, `(k, taps * c)`."""
    return weight.flatten(2).transpose(1, 2).flatten(1)


def bias_of(conv: nn.Conv2d | nn.Conv3d) -> Tensor:
    """The bias, which every convolution of the network has."""
    assert conv.bias is not None
    return conv.bias


def address(operand: str, tensor: Tensor | None, dtype: torch.dtype, *shape: int) -> int:
    """Where the values of an operand begin that native code reads or writes as `shape` of `dtype`, row after row.

    Native code looks at nothing itself: whatever is handed to it passes here.

    Raises:
        RuntimeError: the operand is something else; native code would run past its end.
    """
    if (
        tensor is None
        or tensor.shape != shape
        or tensor.dtype != dtype
        or tensor.device.type != "cpu"
        or not tensor.is_contiguous()
    ):
        found = "nothing" if tensor is None else f"{tuple(tensor.shape)} of {tensor.dtype} on {tensor.device}"
        raise RuntimeError(f"a kernel reads {operand} as {shape} of {dtype}, contiguous; it is {found}")
    return tensor.data_ptr()


def _check_rows(source: Rows, target: Rows, enlarge: int) -> None:
    """Whether the kernel's tiles end where the target does, and the source has every row that they read."""
    first, end, height = target.first, target.first + len(target.data), target.height
    whole = first % TILE == 0 and (end % TILE == 0 or end == height) and 0 <= first < end <= height
    top, bottom = max(0, first - 1) >> enlarge, min(end, height - 1) >> enlarge
    there = 0 <= source.first <= top and bottom < source.first + len(source.data) <= source.height
    if not whole or not there or source.height << enlarge != height or target.data.shape[1] & enlarge:
        raise RuntimeError(
            f"a kernel writes rows {first} to {end} of {height} from rows {source.first} to "
            f"{source.first + len(source.data)} of {source.height}, enlarged by {1 << enlarge}"
        )


def _table(
    operand: str, tensors: list[Tensor], dtype: torch.dtype, *shape: int
) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """The addresses of the frames of a clip."""
    return np.array([address(operand, tensor, dtype, *shape) for tensor in tensors], dtype=np.int64)
