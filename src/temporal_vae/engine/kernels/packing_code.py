"""Weights `(k, c, taps)` into the order of `packing.py`: filtered (Winograd), or as they are."""

from __future__ import annotations

from temporal_vae.engine.kernels.bfloat import Builder
from temporal_vae.engine.kernels.simd import Scalar, Value
from temporal_vae.engine.kernels.winograd import F43
from temporal_vae.engine.kernels.winograd_code import transform
from temporal_vae.engine.processor import Machine, multiplies_pairs

PACK = ("weights", "k_stride", "c_stride", "tap_stride", "factor", "values", "inputs", "outputs")
PACK_JOB = ("k",)
"""A vector of outputs, from `k` on."""


class _Pack:
    def __init__(
        self, b: Builder, machine: Machine, dtype: Scalar, taps: int, fields: dict[str, Value]
    ) -> None:
        self.b, self.machine, self.dtype, self.taps, self.arg = b, machine, dtype, taps, fields
        self.factor = b.broadcast(fields["factor"])
        self.source = b.add(fields["weights"], b.mul(fields["k"], fields["k_stride"]))

    def tap(self, c: Value, tap: int) -> Value:
        """A vector of weights of outputs side by side, times the factor."""
        b, arg = self.b, self.arg
        place = b.add(self.source, b.mul(c, arg["c_stride"]), b.mul(arg["tap_stride"], tap))
        return b.ir.fmul(b.gather(place, arg["k_stride"], self.dtype), self.factor)


class PackDirect(_Pack):
    """`(k / lanes, taps, c / group, lanes, group)`."""

    def emit(self) -> None:
        """Write the kernel."""
        b, arg, taps = self.b, self.arg, self.taps
        pairs = multiplies_pairs(self.dtype)
        group, item = (2, 2) if pairs else (1, 4)
        start = b.add(arg["values"], b.mul(arg["k"], arg["inputs"], taps * item))
        of_tap = b.mul(arg["inputs"], b.lanes * item)
        with b.loop(0, arg["inputs"], group) as c:
            for tap in range(taps):
                place = b.add(start, b.mul(of_tap, tap), b.mul(c, b.lanes * item))
                if pairs:
                    b.store_pairs(self.tap(c, tap), self.tap(b.add(c, 1), tap), place)
                else:
                    b.store(self.tap(c, tap), place)


class PackFiltered(_Pack):
    """`(points, k / panel, c, panel)` in float32."""

    def emit(self) -> None:
        """Write the kernel."""
        b, arg = self.b, self.arg
        panel = self.machine.columns * b.lanes
        number = b.ir.sdiv(arg["k"], b.integer(panel))
        start = b.add(
            arg["values"],
            b.mul(number, arg["inputs"], panel * 4),
            b.mul(b.sub(arg["k"], b.mul(number, panel)), 4),
        )
        of_point = b.mul(arg["inputs"], arg["outputs"], 4)
        with b.loop(0, arg["inputs"]) as c:
            place = b.add(start, b.mul(c, panel * 4))
            for index, value in enumerate(self._points(c)):
                b.store(value, b.add(place, b.mul(of_point, index)))

    def _points(self, c: Value) -> list[Value]:
        """The transformed taps."""
        b = self.b
        values = [self.tap(c, tap) for tap in range(self.taps)]
        if self.taps == 3:
            return transform(b, F43.filter, values)
        down = [transform(b, F43.filter, values[column::3]) for column in range(3)]
        return [
            point
            for row in range(F43.points)
            for point in transform(b, F43.filter, [one[row] for one in down])
        ]
