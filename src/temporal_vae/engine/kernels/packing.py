"""Weights in the order in which kernels read them: filtered, or as they are.

Filtered weights are transformed to the points of Winograd filtering: `(points, k / panel, c, panel)` in float32, or in
16-bit integers `(points, k / panel, c / 2, panel, 2)` with factors `(points, k)`. Others keep their taps:
`(k / lanes, taps, c / group, lanes, group)`, in pairs of bfloat16 or single float32.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from temporal_vae.engine import processor
from temporal_vae.engine.geometry import POINTS
from temporal_vae.engine.kernels import native_code
from temporal_vae.engine.kernels.compiler import Sweep
from temporal_vae.engine.kernels.crew import Crew
from temporal_vae.engine.kernels.products import CHUNK, LARGEST_COLUMN
from temporal_vae.engine.kernels.simd import Scalar
from temporal_vae.engine.kernels.winograd import F11, F43
from temporal_vae.engine.processor import Machine
from temporal_vae.engine.storage import Scratch


class Packing:
    """How weights lie for activations of a dtype on a processor."""

    def __init__(self, machine: Machine, dtype: torch.dtype) -> None:
        name = str(dtype).removeprefix("torch.")
        self._fixed = processor.arithmetic("cpu", name) == "int16"
        self._pairs = processor.multiplies_pairs(name)
        self._lanes = machine.lanes
        self.inputs_multiple = 32 if self._pairs and machine.tiles else machine.lanes
        self.outputs_multiple = machine.lanes * machine.columns

    def form(
        self, inputs: int, outputs: int, taps: int, *, direct: bool
    ) -> tuple[torch.dtype, tuple[int, ...]]:
        """Type and shape of packed weights."""
        if direct and self._pairs:
            return torch.bfloat16, (outputs // self._lanes, taps, inputs // 2, self._lanes, 2)
        if direct:
            return torch.float32, (outputs // self._lanes, taps, inputs, self._lanes)
        kind = torch.int16 if self._fixed else torch.float32
        return kind, (POINTS[taps], outputs // self.outputs_multiple, inputs, self.outputs_multiple)

    def direct(self, weight: Tensor, factor: Tensor | None, room: Scratch, crew: Crew) -> tuple[Tensor, None]:
        """Weights `(k, c, taps)`, times a factor, in another order."""
        outputs, inputs, taps = weight.shape
        kind, shape = self.form(inputs, outputs, taps, direct=True)
        values = room.take(shape, kind)
        self._sweep(weight, factor, values, native_code.pack(self._name(weight), taps, True), crew)
        return values, None

    def _sweep(self, weight: Tensor, factor: Tensor | None, values: Tensor, code: Sweep, crew: Crew) -> None:
        """Pack with all workers, each a few outputs at a time."""
        outputs, inputs, _ = weight.shape
        scale = torch.ones(1) if factor is None else factor.detach().float().reshape(1)
        strides = [stride * weight.element_size() for stride in weight.stride()]
        fields = [weight.data_ptr(), *strides, scale.data_ptr(), values.data_ptr(), inputs, outputs]
        jobs = np.arange(0, outputs, self._lanes)[:, None]
        crew.sweep(code, fields, jobs, [0] * crew.count, lambda share: None)

    @staticmethod
    def _name(weight: Tensor) -> Scalar:
        return str(weight.dtype).removeprefix("torch.")  # type: ignore[return-value]

    def filtered(
        self, weight: Tensor, factor: Tensor | None, room: Scratch, crew: Crew
    ) -> tuple[Tensor, Tensor | None]:
        """Weights `(k, c, taps)`, times a factor, transformed to the points of filtering; and factors of integers."""
        outputs, inputs, taps = weight.shape
        kind, shape = self.form(inputs, outputs, taps, direct=False)
        if not self._fixed:
            values = room.take(shape, kind)
            self._sweep(weight, factor, values, native_code.pack(self._name(weight), taps, False), crew)
            return values, None
        winograd = F11 if taps == 1 else F43
        matrix = torch.tensor([[float(x) for x in row] for row in winograd.filter], dtype=torch.float64)
        if taps == 9:
            matrix = torch.kron(matrix, matrix)
        if factor is not None:
            matrix = matrix * factor
        panel, points = self.outputs_multiple, matrix.float()
        values = room.take(shape, kind)
        factors = room.take((len(points), outputs), torch.float32)

        def pack(index: int, worker: int) -> None:
            columns = slice(index * panel, (index + 1) * panel)
            part = weight[columns].float()  # (panel, c, taps)
            transformed = (points @ part.permute(2, 1, 0).reshape(taps, -1)).view(-1, inputs, panel)
            factors[:, columns] = _to_integers(transformed)
            pairs = transformed.unflatten(1, (-1, 2)).transpose(2, 3)
            values[:, index].view(pairs.shape).copy_(pairs)

        crew.workers.run(pack, range(outputs // panel))
        return values, factors


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
