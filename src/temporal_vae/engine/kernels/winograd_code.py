"""Convolutions by Winograd filtering, with all that surrounds them in the same sweep.

- `WinogradSpatial`: 3x3 convolution of one frame, four by four outputs from six by six inputs;
- `WinogradTemporal`: (3,1,1) convolution over the frames of a clip, four outputs from six inputs; with `F11` in place
  of `F43` a 1x1 convolution.

Blocks of tiles are transformed, multiplied by the transformed weights (`products.py`) and transformed back in the cache
of one core.
"""

from __future__ import annotations

from collections.abc import Sequence

from temporal_vae.engine import processor
from temporal_vae.engine.geometry import BLOCK
from temporal_vae.engine.kernels.bfloat import Builder
from temporal_vae.engine.kernels.control import Value
from temporal_vae.engine.kernels.emitter import Emitter
from temporal_vae.engine.kernels.products import FixedProduct, FloatProduct
from temporal_vae.engine.kernels.simd import Scalar, Sums
from temporal_vae.engine.kernels.winograd import F43, Matrix, Winograd, shortened
from temporal_vae.engine.processor import Machine


class _Filtered(Emitter):
    """What both kernels share."""

    def __init__(
        self, b: Builder, machine: Machine, dtype: Scalar, activate: bool, arguments: dict[str, Value]
    ) -> None:
        arguments = {**arguments, "block": b.integer(BLOCK)}
        super().__init__(b, machine, dtype, activate, arguments)
        self.kind = FixedProduct if processor.arithmetic("cpu", dtype) == "int16" else FloatProduct


def transform(b: Builder, matrix: Matrix, values: Sequence[Value]) -> list[Value]:
    """`matrix @ values`. Rows for points +p and -p share their even and their odd part."""
    done: dict[int, Value] = {}
    signs = [(-1) ** j for j in range(len(values))]
    for i, row in enumerate(matrix):
        if i in done:
            continue
        flipped = [x * s for x, s in zip(row, signs, strict=True)]
        mirror = [-x for x in flipped]
        twin = next((k for k in range(i + 1, len(matrix)) if list(matrix[k]) in (flipped, mirror)), None)
        if twin is None:
            done[i] = b.combine(values, [float(x) for x in row])
            continue
        even = b.combine(values[0::2], [float(x) for x in row[0::2]])
        odd = b.combine(values[1::2], [float(x) for x in row[1::2]])
        done[i] = b.ir.fadd(even, odd)
        first, second = (even, odd) if list(matrix[twin]) == flipped else (odd, even)
        done[twin] = b.ir.fsub(first, second)
    return [done[i] for i in range(len(matrix))]


class WinogradSpatial(_Filtered):
    """Tiles of four by four outputs, in rows, over the tile range `[first, last)` of one frame."""

    def emit(self) -> None:
        """Write the kernel."""
        b, arg = self.b, self.arg
        self.across = b.ir.sdiv(b.add(arg["width"], 3), b.integer(4))  # tiles in a row of tiles
        ring = arg["scratch"]
        place = b.add(ring, b.mul(arg["inputs"], 12 * 4))
        self.product = self.kind(b, self.machine, F43.points**2, arg, place)
        with b.loop(arg["first"], arg["last"], arg["block"]) as first:
            stop = b.least(b.add(first, arg["block"]), arg["last"])
            with b.loop(first, stop) as tile:
                self.gather(tile, first, ring)
            self.product.multiply(b.sub(stop, first), F43.points**2)
            with b.loop(first, stop) as tile:
                self.scatter(tile, b.sub(tile, first))

    def place(self, tile: Value) -> tuple[Value, Value]:
        """Row and column of a tile."""
        row = self.b.ir.sdiv(tile, self.across)
        return row, self.b.sub(tile, self.b.mul(row, self.across))

    def gather(self, tile: Value, first: Value, ring: Value) -> None:
        """Transform the inputs of one tile.

        Neighbours in a row share two columns: their transforms down the column are kept in `ring`.
        """
        b, arg, n = self.b, self.arg, F43.points
        row, column = self.place(tile)
        top, left = b.sub(b.mul(row, 4), 1), b.sub(b.mul(column, 4), 1)
        inside, offsets = [], []
        for i in range(n):
            y = b.add(top, i)
            inside.append(b.ir.and_(b.ir.icmp_signed(">=", y, b.integer(0)), b.less(y, arg["height"])))
            y = b.ir.ashr(b.clamp(y, arg["height"]), arg["enlarge"])
            offsets.append(b.mul(y, arg["source_row"]))
        pixels, within = [], []
        for j in range(n):
            x = b.add(left, j)
            within.append(b.ir.and_(b.ir.icmp_signed(">=", x, b.integer(0)), b.less(x, arg["width"])))
            x = b.ir.ashr(b.clamp(x, arg["width"]), arg["enlarge"])
            pixels.append(b.mul(x, arg["inputs"], self.bytes))
        fresh = b.ir.or_(b.ir.icmp_signed("==", tile, first), b.ir.icmp_signed("==", column, b.integer(0)))

        def down(j: int, here: Value, scale: Value, shift: Value) -> list[Value]:
            values = []
            for i in range(n):
                address = b.add(arg["source"], offsets[i], pixels[j], here)
                known = b.ir.and_(inside[i], within[j])
                values.append(b.ir.select(known, self.activated(address, scale, shift), b.zero))
            return transform(b, F43.input, values)

        step = b.lanes
        with b.ir.if_then(fresh), b.loop(0, arg["inputs"], step) as c:
            scale, shift = self.affine(c)
            for j in range(2):
                for i, value in enumerate(down(j, b.mul(c, self.bytes), scale, shift)):
                    b.store(value, b.add(ring, b.mul(c, 12 * 4), (j * n + i) * step * 4))
        self.product.begin(b.sub(tile, first))
        with b.loop(0, arg["inputs"], step) as c:
            scale, shift = self.affine(c)
            kept = b.add(ring, b.mul(c, 12 * 4))
            columns = [[b.load(b.add(kept, (j * n + i) * step * 4)) for i in range(n)] for j in range(2)]
            columns += [down(j, b.mul(c, self.bytes), scale, shift) for j in range(2, n)]
            for j in range(2):
                for i in range(n):
                    b.store(columns[j + 4][i], b.add(kept, (j * n + i) * step * 4))
            for i in range(n):
                across = transform(b, F43.input, [columns[j][i] for j in range(n)])
                for j in range(n):
                    self.product.put(i * n + j, c, across[j])
        self.product.end(F43.points**2)

    def scatter(self, tile: Value, place: Value) -> None:
        """Transform the products of one tile back, finish and write its outputs."""
        b, arg, n, m = self.b, self.arg, F43.points, F43.outputs
        row, column = self.place(tile)
        top, left = b.mul(row, 4), b.mul(column, 4)
        pixel = b.mul(arg["outputs"], self.bytes)
        targets = [b.add(arg["target"], b.mul(b.add(top, i), arg["target_row"])) for i in range(m)]
        residuals = [b.add(arg["residual"], b.mul(b.add(top, i), arg["target_row"])) for i in range(m)]
        high, wide = b.sub(arg["height"], top), b.sub(arg["width"], left)
        whole = b.ir.and_(
            b.ir.icmp_signed(">=", high, b.integer(m)), b.ir.icmp_signed(">=", wide, b.integer(m))
        )

        def write(i: int, j: int, value: Value, channels: Value, sums: Sums) -> None:
            here = b.add(b.mul(b.add(left, j), pixel), channels)
            value = self.written(value, b.add(targets[i], here), b.add(residuals[i], here), arg["residual"])
            sums.add(value)

        with b.loop(arg["k_first"], arg["k_last"], b.lanes) as k:
            bias = b.load(b.add(arg["bias"], b.mul(k, 4)))
            channels = b.mul(k, self.bytes)
            halves = []
            for i in range(n):
                values = [b.load(self.product.address(i * n + j, place, k)) for j in range(n)]
                halves.append(transform(b, F43.output, values))
            outputs = []
            for j in range(m):
                column_values = transform(b, F43.output, [halves[i][j] for i in range(n)])
                outputs.append([b.ir.fadd(value, bias) for value in column_values])
            sums = Sums(b, wide=True)
            with b.ir.if_else(whole) as (then, otherwise):
                with then:
                    for i in range(m):
                        for j in range(m):
                            write(i, j, outputs[j][i], channels, sums)
                with otherwise:
                    for i in range(m):
                        for j in range(m):
                            with b.ir.if_then(b.ir.and_(b.less(i, high), b.less(j, wide))):
                                write(i, j, outputs[j][i], channels, sums)
            sums.store(b.add(arg["sums"], b.mul(k, 8)), b.mul(arg["outputs"], 8))


class WinogradTemporal(_Filtered):
    """Tiles of one pixel and four frames, or of the frames that are left, over a range of pixels `[first, last)`."""

    def emit(self, f: Winograd, rest: int) -> None:
        """Write the kernel."""
        b, arg = self.b, self.arg
        place = b.add(arg["scratch"], b.mul(arg["block"], arg["inputs"], 2 * 4))
        self.product = self.kind(b, self.machine, f.points, arg, place)
        with b.loop(arg["first"], arg["last"], arg["block"]) as first:
            stop = b.least(b.add(first, arg["block"]), arg["last"])
            rows = b.sub(stop, first)
            fours = b.sub(arg["frames"], rest)
            with b.loop(0, fours, f.outputs) as frame:
                self.tiles(f, frame, first, rows)
            if rest:
                self.tiles(shortened(f, rest), fours, first, rows)

    def tiles(self, f: Winograd, frame: Value, first: Value, rows: Value) -> None:
        """The tiles of `rows` pixels that begin at one frame."""
        self.gather(f, frame, first, rows)
        self.product.multiply(rows, f.points)
        self.scatter(f, frame, first, rows)

    def gather(self, f: Winograd, frame: Value, first: Value, rows: Value) -> None:
        """Transform `points` frames of each pixel; the frames shared with the tile before were kept."""
        b, arg, ring = self.b, self.arg, self.arg["scratch"]
        overlap, start = f.taps - 1, b.ir.icmp_signed("==", frame, b.integer(0))
        known, bases = [], []
        for i in range(f.points):
            t = b.add(frame, i - overlap // 2)
            known.append(b.ir.and_(b.ir.icmp_signed(">=", t, b.integer(0)), b.less(t, arg["frames"])))
            bases.append(self.frame_address("sources", b.clamp(t, arg["frames"])))
        with b.loop(0, rows) as row:
            pixel = b.mul(b.add(first, row), arg["inputs"], self.bytes)
            kept_row = b.add(ring, b.mul(row, arg["inputs"], 2 * 4))
            self.product.begin(row)
            with b.loop(0, arg["inputs"], b.lanes) as c:
                scale, shift = self.affine(c)
                here = b.add(pixel, b.mul(c, self.bytes))
                kept = b.add(kept_row, b.mul(c, 2 * 4))

                def value(i: int, here: Value = here, scale: Value = scale, shift: Value = shift) -> Value:
                    return b.ir.select(known[i], self.activated(b.add(bases[i], here), scale, shift), b.zero)

                places = [b.variable(b.zero) for _ in range(overlap)]
                if overlap:
                    with b.ir.if_else(start) as (then, otherwise):
                        with then:
                            for i in range(overlap):
                                b.set(places[i], value(i))
                        with otherwise:
                            for i in range(overlap):
                                b.set(places[i], b.load(b.add(kept, i * b.lanes * 4)))
                values = [b.get(place) for place in places]
                values += [value(i) for i in range(overlap, f.points)]
                for i in range(overlap):
                    b.store(values[f.outputs + i], b.add(kept, i * b.lanes * 4))
                for i, result in enumerate(transform(b, f.input, values)):
                    self.product.put(i, c, result)
            self.product.end(f.points)

    def scatter(self, f: Winograd, frame: Value, first: Value, rows: Value) -> None:
        """Transform the products of each pixel back, finish and write its frames."""
        b, arg = self.b, self.arg
        frames = [b.add(frame, i) for i in range(f.outputs)]
        targets = [self.frame_address("targets", t) for t in frames]
        residual = b.ir.icmp_signed("!=", arg["residuals"], b.integer(0))
        table = b.ir.select(residual, arg["residuals"], arg["targets"])
        residuals = [b.word(b.add(table, b.mul(t, 8))) for t in frames]
        with b.loop(0, rows) as row:
            pixel = b.mul(b.add(first, row), arg["outputs"], self.bytes)
            with b.loop(arg["k_first"], arg["k_last"], b.lanes) as k:
                bias = b.load(b.add(arg["bias"], b.mul(k, 4)))
                here = b.add(pixel, b.mul(k, self.bytes))
                values = [b.load(self.product.address(i, row, k)) for i in range(f.points)]
                for i, result in enumerate(transform(b, f.output, values)):
                    self.finish(
                        b.ir.fadd(result, bias), b.add(targets[i], here), b.add(residuals[i], here),
                        arg["residuals"], k, frames[i],
                    )  # fmt: skip
