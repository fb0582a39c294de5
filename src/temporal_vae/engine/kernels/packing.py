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
from temporal_vae.engine.geometry import POINTS, packing_bytes
from temporal_vae.engine.kernels import native_code
from temporal_vae.engine.kernels.crew import Crew
from temporal_vae.engine.kernels.simd import Scalar
from temporal_vae.engine.processor import Machine
from temporal_vae.engine.storage import Scratch


class Packing:
    """How weights lie for activations of a dtype on a processor."""

    def __init__(self, machine: Machine, dtype: torch.dtype, crew: Crew) -> None:
        name = str(dtype).removeprefix("torch.")
        self._fixed = processor.arithmetic("cpu", name) == "int16"
        self._pairs = processor.multiplies_pairs(name)
        self._lanes, self._crew = machine.lanes, crew
        self._scratch = torch.empty((crew.count, 0), dtype=torch.uint8)
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

    def pack(
        self, weight: Tensor, factor: Tensor | None, room: Scratch, *, direct: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Weights `(k, c, taps)`, times a factor, as kernels read them; and the factors of integers.

        All of the crew pack, a vector of outputs at a time.
        """
        outputs, inputs, taps = weight.shape
        kind, shape = self.form(inputs, outputs, taps, direct=direct)
        values = room.take(shape, kind)
        fixed = kind == torch.int16
        factors = room.take((shape[0], outputs), torch.float32) if fixed else None
        scale = torch.ones(1) if factor is None else factor.detach().float().reshape(1)
        fields = [
            weight.data_ptr(), *(stride * weight.element_size() for stride in weight.stride()), scale.data_ptr(),
            values.data_ptr(), 0 if factors is None else factors.data_ptr(), inputs, outputs,
        ]  # fmt: skip
        name: Scalar = str(weight.dtype).removeprefix("torch.")  # type: ignore[assignment]
        code = native_code.pack(name, taps, "direct" if direct else "fixed" if fixed else "filtered")
        jobs = np.arange(0, outputs, self._lanes)[:, None]
        rooms = self._rooms(packing_bytes(inputs, taps, self._lanes) if fixed else 0)
        self._crew.sweep(code, fields, jobs, rooms, lambda share: None)
        return values, factors

    def _rooms(self, nbytes: int) -> list[int]:
        """Addresses of scratch for each of the crew; what was taken once is kept."""
        if self._scratch.shape[1] < nbytes:
            self._scratch = torch.empty((self._crew.count, nbytes), dtype=torch.uint8)
        return [one.data_ptr() for one in self._scratch]


def side_by_side(weight: Tensor) -> Tensor:
    """The taps of a convolution `(k, c, rows, columns)` as one row of weights each, `(k, taps * c)`."""
    return weight.flatten(2).transpose(1, 2).flatten(1)
