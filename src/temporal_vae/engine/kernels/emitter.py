"""What every kernel reads and writes: activations with a pending norm, residuals, and the sums for the next norm.

What is stored may be float32, bfloat16 or float16; all arithmetic is float32, but for the products, which some
processors compute in bfloat16 or in integers. Activations are `(h, w, c)`.
"""

from __future__ import annotations

from temporal_vae.engine.geometry import ITEMSIZE
from temporal_vae.engine.kernels.bfloat import Builder
from temporal_vae.engine.kernels.control import Value
from temporal_vae.engine.kernels.simd import Scalar
from temporal_vae.engine.processor import Machine, multiplies_pairs


class Emitter:
    """Writes a kernel."""

    def __init__(
        self, b: Builder, machine: Machine, dtype: Scalar, activate: bool, arguments: dict[str, Value]
    ) -> None:
        self.b, self.machine, self.dtype, self.activate = b, machine, dtype, activate
        self.arg = arguments
        self.bytes = ITEMSIZE[dtype]

    def clear_sums(self, frames: Value | int = 1) -> None:
        """Begin a job with sums of zero, for its outputs `[k_first, k_last)`."""
        b, arg = self.b, self.arg
        with b.loop(0, b.mul(frames, 2)) as row, b.loop(arg["k_first"], arg["k_last"], b.lanes) as k:
            place = b.add(arg["sums"], b.mul(b.add(b.mul(row, arg["outputs"]), k), 8))
            for half in range(2):
                b.store_wide(b.wide_zero, b.add(place, half * b.lanes // 2 * 8))

    def activated(self, address: Value, scale: Value, shift: Value, *, rough: bool = False) -> Value:
        """One vector of the stored activation after the pending norm and SiLU."""
        x = self.b.load(address, self.dtype)
        return self.b.silu(self.b.fma(x, scale, shift), rough=rough) if self.activate else x

    def affine(self, channel: Value, frame: Value | int = 0) -> tuple[Value, Value]:
        """Scale and shift of one vector of channels."""
        if not self.activate:
            return None, None
        b = self.b
        offset = b.mul(b.add(b.mul(frame, self.arg["inputs"]), channel), 4)
        return b.load(b.add(self.arg["scale"], offset)), b.load(b.add(self.arg["shift"], offset))

    def frame_address(self, name: str, frame: Value) -> Value:
        """Address of a frame from the table `name`."""
        return self.b.word(self.b.add(self.arg[name], self.b.mul(frame, 8)))

    def finish(
        self,
        value: Value,
        target: Value,
        residual: Value,
        has_residual: Value,
        k: Value,
        frame: Value | int,
    ) -> None:
        """Add the residual, write, and add to the sums of the frame."""
        b, arg = self.b, self.arg
        value = self.written(value, target, residual, has_residual)
        stride = b.mul(arg["outputs"], 8)
        b.accumulate(value, b.add(arg["sums"], b.mul(frame, stride, 2), b.mul(k, 8)), stride)

    def written(self, value: Value, target: Value, residual: Value, has_residual: Value) -> Value:
        """Write a vector, with the residual added to it if there is one."""
        b = self.b
        total = b.variable(value)
        with b.ir.if_then(b.ir.icmp_signed("!=", has_residual, b.integer(0))):
            b.set(total, b.ir.fadd(b.load(residual, self.dtype), value))
        value = b.get(total)
        if multiplies_pairs(self.dtype):
            b.store_bfloat(value, target)
        else:
            b.store(value, target, self.dtype)
        return value
