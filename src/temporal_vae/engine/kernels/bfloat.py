"""Words for bfloat16: products of pairs of them, and the tiles of AMX, where a processor has such instructions."""

from __future__ import annotations

from llvmlite import ir

from temporal_vae.engine.kernels.control import I32, Value
from temporal_vae.engine.kernels.simd import Vectors


class _BFloat16(ir.types._BaseFloatType):  # type: ignore[misc]  # llvmlite has no types, and not this one
    """LLVM's `bfloat`, to be loaded and handed to instructions only."""

    null = "0.0"
    intrinsic_name = "bf16"

    def __str__(self) -> str:
        return "bfloat"


_BFloat16._create_instance()
BF16 = _BFloat16()


class Builder(Vectors):
    """Emits one function, with all words that there are."""

    # Products of pairs of bfloat16

    def store_bfloat(self, value: Value, address: Value) -> None:
        """Write a vector as bfloat16, rounded to nearest."""
        short = ir.VectorType(BF16, self.lanes)
        name = f"llvm.x86.avx512bf16.cvtneps2bf16.{32 * self.lanes}"
        rounded = self.ir.call(self._declared(name, ir.FunctionType(short, [self.vector])), [value])
        self.ir.store(rounded, self._at(address, short), align=2)

    def load_pairs(self, address: Value) -> Value:
        """A vector of as many pairs as it has lanes."""
        return self.ir.load(self._at(address, self._pairs), align=2)

    def broadcast_pair(self, address: Value) -> Value:
        """One pair in every lane."""
        return self.ir.bitcast(self.broadcast_integer(address), self._pairs)

    def dot_pairs(self, total: Value, a: Value, b: Value) -> Value:
        """`total + a0 * b0 + a1 * b1` in float32, lane by lane, of pairs of bfloat16."""
        name = f"llvm.x86.avx512bf16.dpbf16ps.{32 * self.lanes}"
        kind = ir.FunctionType(self.vector, [self.vector, self._pairs, self._pairs])
        return self.ir.call(self._declared(name, kind), [total, a, b])

    @property
    def _pairs(self) -> ir.VectorType:
        return ir.VectorType(BF16, 2 * self.lanes)

    def store_pairs(self, first: Value, second: Value, address: Value) -> None:
        """Write two vectors as pairs of bfloat16, rounded to nearest."""
        short = ir.VectorType(BF16, 2 * self.lanes)
        name = f"llvm.x86.avx512bf16.cvtne2ps2bf16.{32 * self.lanes}"
        kind = ir.FunctionType(short, [self.vector, self.vector])
        both = self.ir.call(self._declared(name, kind), [second, first])
        order = [index for lane in range(self.lanes) for index in (lane, lane + self.lanes)]
        mask = ir.Constant(ir.VectorType(I32, 2 * self.lanes), order)
        pairs = self.ir.shuffle_vector(both, ir.Constant(short, ir.Undefined), mask)
        self.ir.store(pairs, self._at(address, short), align=2)

    # Tiles of AMX: 16 rows of 64 bytes, eight of them

    def configure_tiles(self) -> None:
        """Make all eight tiles as large as they get; `release_tiles` when done."""
        kind = ir.ArrayType(ir.IntType(8), 64)
        with self.ir.goto_entry_block():
            place = self.ir.alloca(kind)
        sizes = [1, *[0] * 15, *[64, 0] * 8, *[0] * 16, *[16] * 8, *[0] * 8]  # palette, bytes of rows, rows
        self.ir.store(ir.Constant(kind, bytearray(sizes)), place, align=1)
        self._tile("ldtilecfg", self.ir.bitcast(place, ir.IntType(8).as_pointer()))

    def release_tiles(self) -> None:
        """Leave the tiles as they were found."""
        self._tile("tilerelease")

    def zero_tile(self, tile: int) -> None:
        """All zeros."""
        self._tile("tilezero", tile)

    def load_tile(self, tile: int, address: Value, stride: int | Value) -> None:
        """Rows of 64 bytes, `stride` bytes apart."""
        self._tile("tileloadd64", tile, self._at(address, ir.IntType(8)), self.integer(stride))

    def store_tile(self, tile: int, address: Value, stride: int | Value) -> None:
        """Rows of 64 bytes, `stride` bytes apart."""
        self._tile("tilestored64", tile, self._at(address, ir.IntType(8)), self.integer(stride))

    def dot_tiles(self, total: int, a: int, b: int) -> None:
        """`total += a @ b` in float32: `a` 16 rows of 32 bfloat16, `b` 16 rows of 16 pairs of them."""
        self._tile("tdpbf16ps", total, a, b)

    def _tile(self, name: str, *given: int | Value) -> None:
        args = [ir.Constant(ir.IntType(8), one) if isinstance(one, int) else one for one in given]
        kind = ir.FunctionType(ir.VoidType(), [one.type for one in args])
        self.ir.call(self._declared(f"llvm.x86.{name}", kind), args)
