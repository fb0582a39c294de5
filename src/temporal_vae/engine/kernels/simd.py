"""A few words to write vector loops with: LLVM instructions for the processor this runs on.

A kernel is a Python function that emits its own instructions through a `Builder` (`bfloat.py`): loops, loads and
arithmetic on vectors of float32 as wide as the machine's registers. `compiler.py` makes machine code of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import factorial
from typing import Literal

from llvmlite import ir

from temporal_vae.engine.kernels.control import I16, I32, Control, Value

Scalar = Literal["float32", "bfloat16", "float16"]
F16, F32, F64 = ir.HalfType(), ir.FloatType(), ir.DoubleType()
LOG2_E = 1.4426950408889634
LN_2 = 0.6931471805599453


class Vectors(Control):
    """Emits one function. Integers are 64 bits wide, floating values are vectors of `lanes` float32."""

    def __init__(self, function: ir.Function, lanes: int) -> None:
        super().__init__(function)
        self.lanes = lanes
        self.vector = ir.VectorType(F32, lanes)

    def splat(self, value: float) -> Value:
        """A constant in every lane."""
        return ir.Constant(self.vector, [value] * self.lanes)

    @property
    def zero(self) -> Value:
        """Zeros."""
        return self.splat(0.0)

    def load(self, address: Value, dtype: Scalar = "float32") -> Value:
        """A vector of consecutive values, widened to float32."""
        if dtype == "float32":
            return self.ir.load(self._at(address, self.vector), align=4)
        if dtype == "float16":
            return self.ir.fpext(
                self.ir.load(self._at(address, ir.VectorType(F16, self.lanes)), align=2), self.vector
            )
        bits = self.ir.load(self._at(address, ir.VectorType(I16, self.lanes)), align=2)
        return self._widened(bits)

    def gather(self, address: Value, stride: Value, dtype: Scalar = "float32") -> Value:
        """A vector of values `stride` bytes apart, widened to float32."""
        kind = {"float32": F32, "bfloat16": I16, "float16": F16}[dtype]
        result = ir.Constant(ir.VectorType(kind, self.lanes), ir.Undefined)
        for lane in range(self.lanes):
            one = self.ir.load(self._at(self.add(address, self.mul(stride, lane)), kind), align=2)
            result = self.ir.insert_element(result, one, ir.Constant(I32, lane))
        if dtype == "float32":
            return result
        if dtype == "float16":
            return self.ir.fpext(result, self.vector)
        return self._widened(result)

    def _widened(self, short: Value) -> Value:
        """The bits of bfloat16 as float32."""
        wide = self.ir.zext(short, self._integer_vector)
        return self.as_float(self.ir.shl(wide, self.integers(16)))

    def store(self, value: Value, address: Value, dtype: Scalar = "float32") -> None:
        """Write a vector, rounded to nearest even in the narrower types."""
        if dtype == "float32":
            self.ir.store(value, self._at(address, self.vector), align=4)
            return
        if dtype == "float16":
            half = ir.VectorType(F16, self.lanes)
            self.ir.store(self.ir.fptrunc(value, half), self._at(address, half), align=2)
            return
        bits = self.ir.bitcast(value, ir.VectorType(I32, self.lanes))
        odd = self.ir.and_(self.ir.lshr(bits, self.integers(16)), self.integers(1))
        rounded = self.ir.lshr(self.ir.add(self.ir.add(bits, self.integers(0x7FFF)), odd), self.integers(16))
        nan = self.ir.fcmp_unordered("uno", value, value)
        rounded = self.ir.select(nan, self.integers(0x7FC0), rounded)
        short = ir.VectorType(I16, self.lanes)
        self.ir.store(self.ir.trunc(rounded, short), self._at(address, short), align=2)

    def broadcast(self, address: Value) -> Value:
        """One float32 in every lane."""
        return self.spread(self.ir.load(self._at(address, F32), align=4))

    def spread(self, one: Value) -> Value:
        """A single float32 in every lane."""
        return self._spread(one, self.vector)

    def _spread(self, one: Value, kind: ir.VectorType) -> Value:
        first = self.ir.insert_element(ir.Constant(kind, ir.Undefined), one, ir.Constant(I32, 0))
        mask = ir.Constant(ir.VectorType(I32, kind.count), [0] * kind.count)
        return self.ir.shuffle_vector(first, ir.Constant(kind, ir.Undefined), mask)

    def fma(self, a: Value, b: Value, c: Value) -> Value:
        """`a * b + c`, rounded once."""
        kind = a.type
        suffix = f"v{kind.count}{'f64' if kind.element == F64 else 'f32'}"
        function = self._intrinsic(f"llvm.fma.{suffix}", kind, 3)
        return self.ir.call(function, [a, b, c])

    def combine(self, values: Sequence[Value], factors: Sequence[float]) -> Value:
        """`sum(factor * value)`; zero factors cost nothing, ones and minus ones an addition."""
        total = None
        for value, factor in sorted(zip(values, factors, strict=True), key=lambda pair: abs(pair[1]) != 1.0):
            if factor == 0.0:
                continue
            if total is None:
                total = value if factor == 1.0 else self.ir.fmul(value, self.splat(factor))
            elif factor == 1.0:
                total = self.ir.fadd(total, value)
            elif factor == -1.0:
                total = self.ir.fsub(total, value)
            else:
                total = self.fma(value, self.splat(factor), total)
        return self.zero if total is None else total

    def exp(self, x: Value) -> Value:
        """`e**x`, within two units in the last place for x <= 0; not below `2**-126`, and NaN where x is."""
        near = self._call("llvm.maxnum", x, self.splat(-126.0 * LN_2))
        whole = self._call("llvm.rint", self.ir.fmul(near, self.splat(LOG2_E)))
        part = self.fma(near, self.splat(LOG2_E), self.ir.fneg(whole))
        value = self.ir.fmul(*self._power_of_two(whole, part, _EXP2))
        return self.ir.select(self.ir.fcmp_ordered("ord", x, x), value, x)

    def _power_of_two(self, whole: Value, part: Value, terms: Sequence[float]) -> tuple[Value, Value]:
        """`2**part` and `2**whole`."""
        power = self.splat(terms[-1])
        for coefficient in reversed(terms[:-1]):
            power = self.fma(power, part, self.splat(coefficient))
        exponent = self.ir.fptosi(whole, self._integer_vector)
        bits = self.ir.shl(self.ir.add(exponent, self.integers(127)), self.integers(23))
        return power, self.as_float(bits)

    def largest(self, value: Value) -> Value:
        """The one largest lane of a vector; NaN is passed over."""
        reduce = self._declared(
            f"llvm.vector.reduce.fmax.v{self.lanes}f32", ir.FunctionType(F32, [self.vector])
        )
        return self.ir.call(reduce, [value])

    def total(self, value: Value) -> Value:
        """The sum of the lanes of a vector."""
        kind = ir.FunctionType(F32, [F32, self.vector])
        reduce = self._declared(f"llvm.vector.reduce.fadd.v{self.lanes}f32", kind)
        return self.ir.call(reduce, [ir.Constant(F32, 0.0), value])

    def silu(self, x: Value, *, rough: bool = False) -> Value:
        """`x / (1 + exp(-x))`, within two units in the last place of float32; `rough` to 1e-4, for bfloat16."""
        z = self.ir.fmul(x, self.splat(-LOG2_E))
        z = self._call("llvm.minnum", z, self.splat(126.0))
        z = self._call("llvm.maxnum", z, self.splat(-126.0))
        whole = self._call("llvm.rint", z)
        terms = _EXP2[:5] if rough else _EXP2
        power, scale = self._power_of_two(whole, self.ir.fsub(z, whole), terms)
        below = self.fma(power, scale, self.splat(1.0))
        if self.lanes != _WIDEST:
            return self.ir.fdiv(x, below)
        # A division takes longer than all that comes before it; an estimate to 14 bits and two steps do not.
        inverse = self._estimated_inverse(below)
        if rough:
            return self.ir.fmul(x, inverse)
        below = self.ir.fneg(below)
        inverse = self.fma(inverse, self.fma(below, inverse, self.splat(1.0)), inverse)
        found = self.ir.fmul(x, inverse)
        better = self.fma(self.fma(below, found, x), inverse, found)
        finite = self.ir.fcmp_ordered("ord", better, better)
        return self.ir.select(finite, better, found)

    def _estimated_inverse(self, value: Value) -> Value:
        mask = ir.IntType(16)
        kind = ir.FunctionType(self.vector, [self.vector, self.vector, mask])
        estimate = self._declared("llvm.x86.avx512.rcp14.ps.512", kind)
        return self.ir.call(estimate, [value, self.zero, ir.Constant(mask, -1)])

    def accumulate(self, value: Value, place: Value, stride: Value) -> None:
        """Add a vector to float64 sums at `place`, and its square to those `stride` bytes further."""
        sums = Sums(self, wide=True)
        sums.add(value)
        sums.store(place, stride)

    def halves(self, value: Value) -> list[Value]:
        """The halves of a vector in float64."""
        half = self.lanes // 2
        undefined, kind = ir.Constant(self.vector, ir.Undefined), ir.VectorType(F64, half)
        order = [
            ir.Constant(ir.VectorType(I32, half), list(range(i * half, (i + 1) * half))) for i in range(2)
        ]
        return [self.ir.fpext(self.ir.shuffle_vector(value, undefined, part), kind) for part in order]

    @property
    def wide_zero(self) -> Value:
        """Zeros in float64, half as many as lanes."""
        return ir.Constant(self._wide, [0.0] * (self.lanes // 2))

    @property
    def _wide(self) -> ir.VectorType:
        return ir.VectorType(F64, self.lanes // 2)

    def wide(self, whole: Value) -> Value:
        """An integer in every lane of a vector of float64."""
        return self._spread(self.ir.sitofp(whole, F64), self._wide)

    def load_wide(self, address: Value) -> Value:
        """A vector of float64."""
        return self.ir.load(self._at(address, self._wide), align=8)

    def store_wide(self, value: Value, address: Value) -> None:
        """Write a vector of float64."""
        self.ir.store(value, self._at(address, self._wide), align=8)

    def add_in_place(self, value: Value, address: Value) -> None:
        """Add float64 to those in memory."""
        self.store_wide(self.ir.fadd(self.load_wide(address), value), address)

    # Single values in float64

    def double(self, address: Value) -> Value:
        """A float64 in memory."""
        return self.ir.load(self._at(address, F64), align=8)

    def parameter(self, address: Value, index: Value, dtype: Scalar) -> Value:
        """One of consecutive values, widened to float64."""
        place = self.add(address, self.mul(index, 4 if dtype == "float32" else 2))
        if dtype == "bfloat16":
            bits = self.ir.zext(self.ir.load(self._at(place, I16), align=2), I32)
            one = self.ir.bitcast(self.ir.shl(bits, ir.Constant(I32, 16)), F32)
        else:
            one = self.ir.load(self._at(place, F32 if dtype == "float32" else F16), align=2)
        return self.ir.fpext(one, F64)

    def square_root(self, value: Value) -> Value:
        """Of a float64."""
        return self.ir.call(self._intrinsic("llvm.sqrt.f64", F64, 1), [value])

    def store_single(self, value: Value, address: Value) -> None:
        """Write a float64 as float32."""
        self.store_one(self.ir.fptrunc(value, F32), address)

    # Vectors of 32-bit integers

    def integers(self, value: int) -> Value:
        """A constant in every lane."""
        return ir.Constant(self._integer_vector, [value] * self.lanes)

    @property
    def _integer_vector(self) -> ir.VectorType:
        return ir.VectorType(I32, self.lanes)

    def load_integers(self, address: Value) -> Value:
        """A vector of consecutive integers."""
        return self.ir.load(self._at(address, self._integer_vector), align=4)

    def store_integers(self, value: Value, address: Value) -> None:
        """Write a vector."""
        self.ir.store(value, self._at(address, self._integer_vector), align=4)

    def broadcast_integer(self, address: Value) -> Value:
        """One integer in every lane."""
        return self._spread(self.ir.load(self._at(address, I32), align=2), self._integer_vector)

    def to_float(self, value: Value) -> Value:
        """As float32."""
        return self.ir.sitofp(value, self.vector)

    def larger(self, a: Value, b: Value) -> Value:
        """The larger integer, lane by lane."""
        return self.ir.select(self.ir.icmp_signed(">", a, b), a, b)

    def magnitude_bits(self, value: Value) -> Value:
        """The bits of the magnitudes of float32."""
        return self.ir.and_(self.ir.bitcast(value, self._integer_vector), self.integers(0x7FFFFFFF))

    def largest_of_bits(self, bits: Value, least: float) -> Value:
        """The one float32 of largest magnitude whose bits are in any lane; NaN if it is there, at least `least`."""
        name = f"llvm.vector.reduce.smax.v{self.lanes}i32"
        reduce = self._declared(name, ir.FunctionType(I32, [self._integer_vector]))
        most = self.ir.call(reduce, [bits])
        floor = self.ir.bitcast(ir.Constant(F32, least), I32)
        most = self.ir.select(self.ir.icmp_signed(">", most, floor), most, floor)
        return self.ir.bitcast(most, F32)

    def quotient(self, a: float | Value, b: float | Value) -> Value:
        """Of two single float32."""
        a, b = (ir.Constant(F32, float(x)) if isinstance(x, (int, float)) else x for x in (a, b))
        return self.ir.fdiv(a, b)

    def store_one(self, value: Value, address: Value) -> None:
        """Write a single float32."""
        self.ir.store(value, self._at(address, F32), align=4)

    def store_rounded(self, value: Value, address: Value) -> None:
        """Write a vector as 16-bit integers, rounded to nearest."""
        short = ir.VectorType(I16, self.lanes)
        whole = self.ir.fptosi(self._call("llvm.rint", value), self._integer_vector)
        self.ir.store(self.ir.trunc(whole, short), self._at(address, short), align=2)

    def store_rounded_pair(self, first: Value, second: Value, address: Value) -> None:
        """Write two vectors as 16-bit integers, rounded to nearest, side by side lane by lane."""
        low, high = (
            self.ir.fptosi(self._call("llvm.rint", value), self._integer_vector) for value in (first, second)
        )
        low = self.ir.and_(low, self.integers(0xFFFF))
        self.store_integers(self.ir.or_(low, self.ir.shl(high, self.integers(16))), address)

    def as_float(self, bits: Value) -> Value:
        """The float32 that have these bits."""
        return self.ir.bitcast(bits, self.vector)

    def dot(self, total: Value, a: Value, b: Value) -> Value:
        """`total + a0 * b0 + a1 * b1`, lane by lane, of pairs of 16-bit integers."""
        kind = self._integer_vector
        return self.ir.call(
            self._intrinsic(f"llvm.x86.avx512.vpdpwssd.{32 * self.lanes}", kind, 3), [total, a, b]
        )

    def _call(self, name: str, *args: Value) -> Value:
        return self.ir.call(self._intrinsic(f"{name}.v{self.lanes}f32", self.vector, len(args)), args)

    def _intrinsic(self, name: str, kind: ir.Type, arguments: int) -> Value:
        return self._declared(name, ir.FunctionType(kind, [kind] * arguments))


_WIDEST = 16  # lanes of AVX-512
# Taylor series of 2**x; on [-0.5, 0.5] its error is 6e-9, a tenth of a float32's rounding.
_EXP2 = tuple(LN_2**n / factorial(n) for n in range(8))


class Sums:
    """Sums of vectors and of their squares: in float64, or of a few vectors in float32."""

    def __init__(self, b: Vectors, *, wide: bool) -> None:
        self._b, self._wide = b, wide
        zero = b.wide_zero if wide else b.zero
        self._places = [[b.variable(zero) for _ in range(2 if wide else 1)] for _ in range(2)]

    def add(self, value: Value) -> None:
        """Another vector."""
        b = self._b
        parts = b.halves(value) if self._wide else [value]
        for part, total, squares in zip(parts, *self._places, strict=True):
            b.set(total, b.ir.fadd(b.get(total), part))
            b.set(squares, b.fma(part, part, b.get(squares)))

    def store(self, place: Value, stride: Value) -> None:
        """Add the sums to the float64 at `place`, and those of squares `stride` bytes further."""
        b = self._b
        for index, places in enumerate(self._places):
            parts = [b.get(one) for one in places]
            for i, part in enumerate(parts if self._wide else b.halves(parts[0])):
                b.add_in_place(part, b.add(place, b.mul(stride, index), i * b.lanes // 2 * 8))
