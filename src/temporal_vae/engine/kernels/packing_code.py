"""Weights `(k, c, taps)` into the order of `packing.py`: filtered (Winograd), in integers or not, or as they are."""

from __future__ import annotations

from abc import ABC, abstractmethod

from temporal_vae.engine.geometry import POINTS
from temporal_vae.engine.kernels.bfloat import Builder
from temporal_vae.engine.kernels.control import Value
from temporal_vae.engine.kernels.products import CHUNK, LARGEST_COLUMN
from temporal_vae.engine.kernels.simd import Scalar
from temporal_vae.engine.kernels.winograd import F43
from temporal_vae.engine.kernels.winograd_code import transform
from temporal_vae.engine.processor import Machine, multiplies_pairs

PACK = ("weights", "k_stride", "c_stride", "tap_stride", "factor", "values", "factors", "inputs", "outputs")
TINY = 2.0**-126  # the least factor, of weights that are zero
PACK_JOB = ("k",)
"""A vector of outputs, from `k` on."""


class _Pack(ABC):
    def __init__(
        self, b: Builder, machine: Machine, dtype: Scalar, taps: int, fields: dict[str, Value]
    ) -> None:
        self.b, self.machine, self.dtype, self.taps, self.arg = b, machine, dtype, taps, fields
        self.factor = b.broadcast(fields["factor"])
        self.source = b.add(fields["weights"], b.mul(fields["k"], fields["k_stride"]))

    @abstractmethod
    def emit(self) -> None:
        """Write the kernel."""

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
        of_point = b.mul(arg["inputs"], arg["outputs"], 4)
        with b.loop(0, arg["inputs"]) as c:
            place = self.place(c, 4)
            for index, value in enumerate(self.points(c)):
                b.store(value, b.add(place, b.mul(of_point, index)))

    def place(self, c: Value, item: int) -> Value:
        """Where the packed weights of an input are, at the first point."""
        b, arg = self.b, self.arg
        panel = self.machine.columns * b.lanes
        number = b.ir.sdiv(arg["k"], b.integer(panel))
        within = b.sub(arg["k"], b.mul(number, panel))
        start = b.mul(number, arg["inputs"], panel * item)
        return b.add(arg["values"], start, b.mul(c, panel * item), b.mul(within, 4))

    def points(self, c: Value) -> list[Value]:
        """The transformed taps."""
        b = self.b
        values = [self.tap(c, tap) for tap in range(self.taps)]
        if self.taps == 1:
            return values
        if self.taps == 3:
            return transform(b, F43.filter, values)
        down = [transform(b, F43.filter, values[column::3]) for column in range(3)]
        return [
            point
            for row in range(F43.points)
            for point in transform(b, F43.filter, [one[row] for one in down])
        ]


class PackFixed(PackFiltered):
    """`(points, k / panel, c / 2, panel, 2)` in 16-bit integers, with the factors `(points, k)` that they stand for.

    No sum of a chunk of products overflows: a factor is that of the largest weight, or of the largest sum of a chunk.
    """

    def emit(self) -> None:
        """Write the kernel."""
        b, arg, vector = self.b, self.arg, self.b.lanes * 4
        row = b.mul(arg["inputs"], vector)
        tables = b.add(arg["scratch"], b.mul(row, POINTS[self.taps]))

        def table(which: int, point: int | Value) -> Value:
            """Of magnitudes, for each point: sums of the chunk at hand, the largest of those, the largest weights."""
            return b.add(tables, b.mul(b.add(b.mul(point, 3), which), vector))

        with b.loop(0, POINTS[self.taps]) as point:
            for which in range(3):
                b.store(b.zero, table(which, point))
        with b.loop(0, arg["inputs"], CHUNK) as first:
            with b.loop(first, b.least(b.add(first, CHUNK), arg["inputs"])) as c:
                for point, value in enumerate(self.points(c)):
                    b.store(value, b.add(arg["scratch"], b.mul(row, point), b.mul(c, vector)))
                    bits = b.magnitude_bits(value)
                    b.store(b.ir.fadd(b.load(table(0, point)), b.as_float(bits)), table(0, point))
                    b.store_integers(b.larger(b.load_integers(table(2, point)), bits), table(2, point))
            with b.loop(0, POINTS[self.taps]) as point:
                most = b.larger(b.load_integers(table(0, point)), b.load_integers(table(1, point)))
                b.store_integers(most, table(1, point))
                b.store(b.zero, table(0, point))
        with b.loop(0, POINTS[self.taps]) as point:
            self._round(point, b.add(arg["scratch"], b.mul(row, point)), table(1, point), table(2, point))

    def _round(self, point: Value, source: Value, sums: Value, largest: Value) -> None:
        """The weights of one point, as integers."""
        b, arg, vector = self.b, self.arg, self.b.lanes * 4
        by_sum = b.ir.fdiv(b.load(sums), b.splat(LARGEST_COLUMN))
        by_largest = b.ir.fdiv(b.load(largest), b.splat(2**15 - 1))
        bits = b.larger(b.magnitude_bits(by_sum), b.magnitude_bits(by_largest))  # in the order of magnitudes
        factor = b.as_float(b.larger(bits, b.magnitude_bits(b.splat(TINY))))
        b.store(factor, b.add(arg["factors"], b.mul(b.add(b.mul(point, arg["outputs"]), arg["k"]), 4)))
        inverse = b.ir.fdiv(b.splat(1.0), factor)
        of_point = b.mul(point, arg["inputs"], arg["outputs"], 2)
        with b.loop(0, arg["inputs"], 2) as c:
            first, second = (
                b.ir.fmul(b.load(b.add(source, b.mul(b.add(c, i), vector))), inverse) for i in range(2)
            )
            b.store_rounded_pair(first, second, b.add(self.place(c, 2), of_point))
