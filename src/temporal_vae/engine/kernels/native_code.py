"""The processor's own kernels: convolutions by minimal filtering, with all that surrounds them in the same sweep.

Two functions, each over a range of tiles that one thread works on in its own cache:

- `spatial`: 3x3 convolution of one frame, four by four outputs from six by six inputs;
- `temporal`: (3,1,1) convolution over the frames of a clip, four outputs from six inputs; with `F11` in place of
  `F43` a 1x1 convolution.

Each reads the stored activation, applies the pending norm (a scale and shift per channel) and SiLU, transforms,
multiplies by the transformed weights, transforms back, adds bias and residual, gathers the float64 sums for the next
norm and writes. What is stored may be float32, bfloat16 or float16; all arithmetic is float32.

Layouts: activations `(h, w, c)`; transformed inputs `(points, tile, c)` and products `(points, tile, k)` in the
thread's own scratch; transformed weights `(points, k / panel, c, panel)`, see `weights.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from temporal_vae.engine.geometry import PAD
from temporal_vae.engine.kernels import simd
from temporal_vae.engine.kernels.minimal import F11, F43, Filtering, Matrix
from temporal_vae.engine.kernels.simd import Builder, Machine, Scalar, Value

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
SPATIAL = (
    "source", "source_row", "target", "target_row", "residual", "residual_row", "scale", "shift", "weights", "bias",
    "sums", "scratch", "inputs", "outputs", "height", "width", "enlarge", "first", "last", "block",
)  # fmt: skip
TEMPORAL = (
    "sources", "targets", "residuals", "scale", "shift", "weights", "bias", "sums", "scratch", "inputs", "outputs",
    "frames", "first", "last", "block",
)  # fmt: skip


@lru_cache(maxsize=16)
def spatial(dtype: Scalar, activate: bool) -> simd.Kernel:
    """The 3x3 kernel for activations of `dtype`, with norm and SiLU before it or without."""
    machine = _machine()

    def emit(b: Builder, machine: Machine, **arguments: Value) -> None:
        _Spatial(b, machine, dtype, activate, arguments).emit()

    return simd.compile_kernel(emit, SPATIAL, machine)


@lru_cache(maxsize=16)
def temporal(dtype: Scalar, activate: bool, pointwise: bool) -> simd.Kernel:
    """The (3,1,1) kernel, or the 1x1 one, for activations of `dtype`."""
    machine = _machine()

    def emit(b: Builder, machine: Machine, **arguments: Value) -> None:
        _Temporal(b, machine, dtype, activate, F11 if pointwise else F43, arguments).emit()

    return simd.compile_kernel(emit, TEMPORAL, machine)


def _machine() -> Machine:
    machine = simd.host()
    assert machine is not None
    return machine


class _Common:
    """What both kernels share: loading, transforms and the product."""

    def __init__(
        self, b: Builder, machine: Machine, dtype: Scalar, activate: bool, arguments: dict[str, Value]
    ) -> None:
        self.b, self.machine, self.dtype, self.activate = b, machine, dtype, activate
        self.arg = arguments
        self.bytes = BYTES[dtype]
        self.in_row = b.mul(b.add(arguments["inputs"], PAD), 4)  # bytes of a row of scratch
        self.out_row = b.mul(b.add(arguments["outputs"], PAD), 4)
        # from one point to the next: an odd number of cache lines, so that the points do not compete for the same sets
        self.in_point = b.add(b.mul(arguments["block"], self.in_row), PAD * 4)
        self.out_point = b.add(b.mul(arguments["block"], self.out_row), PAD * 4)

    def activated(self, address: Value, scale: Value, shift: Value) -> Value:
        """One vector of the stored activation after the pending norm and SiLU."""
        x = self.b.load(address, self.dtype)
        return self.b.silu(self.b.fma(x, scale, shift)) if self.activate else x

    def affine(self, channel: Value, frame: Value | int = 0) -> tuple[Value, Value]:
        """Scale and shift of one vector of channels."""
        if not self.activate:
            return None, None
        b = self.b
        offset = b.mul(b.add(b.mul(frame, self.arg["inputs"]), channel), 4)
        return b.load(b.add(self.arg["scale"], offset)), b.load(b.add(self.arg["shift"], offset))

    def product(self, points: int, transformed: Value, products: Value, rows: Value) -> None:
        """`products[p, i, :] = transformed[p, i, :] @ weights[p]` for all points and the first `rows` rows."""
        b, high, wide = self.b, self.machine.rows, self.machine.columns
        panel = wide * b.lanes
        inputs, outputs = self.arg["inputs"], self.arg["outputs"]
        panel_bytes = b.mul(inputs, panel * 4)
        point_bytes = b.mul(inputs, outputs, 4)
        with b.loop(0, points) as p:
            source, target = (
                b.add(transformed, b.mul(p, self.in_point)),
                b.add(products, b.mul(p, self.out_point)),
            )
            weights = b.add(self.arg["weights"], b.mul(p, point_bytes))
            with b.loop(0, outputs, panel) as k:
                part = b.add(weights, b.mul(b.ir.sdiv(k, b.integer(panel)), panel_bytes))
                with b.loop(0, rows, high) as row:
                    self._register_tile(
                        b.add(source, b.mul(row, self.in_row)),
                        part,
                        b.add(target, b.mul(row, self.out_row), b.mul(k, 4)),
                    )

    def _register_tile(self, source: Value, weights: Value, target: Value) -> None:
        b, high, wide = self.b, self.machine.rows, self.machine.columns
        width = b.lanes * 4
        sums = [[b.variable(b.zero) for _ in range(wide)] for _ in range(high)]
        rows = [b.add(source, b.mul(i, self.in_row)) for i in range(high)]
        with b.loop(0, self.arg["inputs"], 4) as c:
            for step in range(4):
                here = b.mul(b.add(c, step), 4)
                taps = [b.load(b.add(weights, b.mul(here, wide * b.lanes), j * width)) for j in range(wide)]
                for i in range(high):
                    x = b.broadcast(b.add(rows[i], here))
                    for j in range(wide):
                        b.set(sums[i][j], b.fma(x, taps[j], b.get(sums[i][j])))
        for i in range(high):
            for j in range(wide):
                b.store(b.get(sums[i][j]), b.add(target, b.mul(i, self.out_row), j * width))


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


class _Spatial(_Common):
    """Tiles of four by four outputs, in rows, over the tile range `[first, last)` of one frame."""

    def emit(self) -> None:
        b, arg = self.b, self.arg
        self.across = b.ir.sdiv(b.add(arg["width"], 3), b.integer(4))  # tiles in a row of tiles
        ring = arg["scratch"]
        transformed = b.add(ring, b.mul(arg["inputs"], 12 * 4))
        products = b.add(transformed, b.mul(F43.points**2, self.in_point))
        with b.loop(arg["first"], arg["last"], arg["block"]) as first:
            stop = b.least(b.add(first, arg["block"]), arg["last"])
            with b.loop(first, stop) as tile:
                self.gather(tile, first, b.add(transformed, b.mul(b.sub(tile, first), self.in_row)), ring)
            self.product(F43.points**2, transformed, products, b.sub(stop, first))
            with b.loop(first, stop) as tile:
                self.scatter(tile, b.add(products, b.mul(b.sub(tile, first), self.out_row)))

    def place(self, tile: Value) -> tuple[Value, Value]:
        """Row and column of a tile."""
        row = self.b.ir.sdiv(tile, self.across)
        return row, self.b.sub(tile, self.b.mul(row, self.across))

    def gather(self, tile: Value, first: Value, target: Value, ring: Value) -> None:
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
        point = self.in_point
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
                    b.store(across[j], b.add(target, b.mul(i * n + j, point), b.mul(c, 4)))

    def scatter(self, tile: Value, source: Value) -> None:
        """Transform the products of one tile back, finish and write its outputs."""
        b, arg, n, m = self.b, self.arg, F43.points, F43.outputs
        row, column = self.place(tile)
        top, left = b.mul(row, 4), b.mul(column, 4)
        pixel = b.mul(arg["outputs"], self.bytes)
        point = self.out_point
        targets = [b.add(arg["target"], b.mul(b.add(top, i), arg["target_row"])) for i in range(m)]
        residuals = [b.add(arg["residual"], b.mul(b.add(top, i), arg["residual_row"])) for i in range(m)]
        high, wide = b.sub(arg["height"], top), b.sub(arg["width"], left)
        whole = b.ir.and_(
            b.ir.icmp_signed(">=", high, b.integer(m)), b.ir.icmp_signed(">=", wide, b.integer(m))
        )

        def write(i: int, j: int, value: Value, channels: Value, k: Value) -> None:
            here = b.add(b.mul(b.add(left, j), pixel), channels)
            finish(self, value, b.add(targets[i], here), b.add(residuals[i], here), arg["residual"], k, 0)

        with b.loop(0, arg["outputs"], b.lanes) as k:
            bias = b.load(b.add(arg["bias"], b.mul(k, 4)))
            channels = b.mul(k, self.bytes)
            halves = []
            for i in range(n):
                values = [b.load(b.add(source, b.mul(i * n + j, point), b.mul(k, 4))) for j in range(n)]
                halves.append(transform(b, F43.output, values))
            outputs = []
            for j in range(m):
                column_values = transform(b, F43.output, [halves[i][j] for i in range(n)])
                outputs.append([b.ir.fadd(value, bias) for value in column_values])
            with b.ir.if_else(whole) as (then, otherwise):
                with then:
                    for i in range(m):
                        for j in range(m):
                            write(i, j, outputs[j][i], channels, k)
                with otherwise:
                    for i in range(m):
                        for j in range(m):
                            with b.ir.if_then(b.ir.and_(b.less(i, high), b.less(j, wide))):
                                write(i, j, outputs[j][i], channels, k)


def finish(
    kernel: _Common,
    value: Value,
    target: Value,
    residual: Value,
    has_residual: Value,
    k: Value,
    frame: Value | int,
) -> None:
    """Add the residual, write, and add to the sums of the frame."""
    b, arg = kernel.b, kernel.arg
    total = b.variable(value)
    with b.ir.if_then(b.ir.icmp_signed("!=", has_residual, b.integer(0))):
        b.set(total, b.ir.fadd(b.load(residual, kernel.dtype), value))
    value = b.get(total)
    b.store(value, target, kernel.dtype)
    with b.ir.if_then(b.ir.icmp_signed("!=", arg["sums"], b.integer(0))):
        stride = b.mul(arg["outputs"], 8)
        b.accumulate(value, b.add(arg["sums"], b.mul(frame, stride, 2), b.mul(k, 8)), stride)


class _Temporal(_Common):
    """Tiles of one pixel and four frames, over the pixel range `[first, last)` of a clip."""

    def __init__(
        self,
        b: Builder,
        machine: Machine,
        dtype: Scalar,
        activate: bool,
        filtering: Filtering,
        arguments: dict[str, Value],
    ) -> None:
        super().__init__(b, machine, dtype, activate, arguments)
        self.filtering = filtering

    def emit(self) -> None:
        b, arg, f = self.b, self.arg, self.filtering
        overlap = f.taps - 1
        ring = arg["scratch"]
        transformed = b.add(ring, b.mul(arg["block"], arg["inputs"], 2 * 4))
        products = b.add(transformed, b.mul(f.points, self.in_point))
        with b.loop(arg["first"], arg["last"], arg["block"]) as first:
            stop = b.least(b.add(first, arg["block"]), arg["last"])
            rows = b.sub(stop, first)
            with b.loop(0, arg["frames"], f.outputs) as frame:
                for_first = b.ir.icmp_signed("==", frame, b.integer(0))
                self.gather(frame, first, rows, transformed, ring, overlap, for_first)
                self.product(f.points, transformed, products, rows)
                self.scatter(frame, first, rows, products)

    def frame_address(self, name: str, frame: Value) -> Value:
        """Address of a frame from the table `name`."""
        return self.b.ir.load(self.b._at(self.b.add(self.arg[name], self.b.mul(frame, 8)), simd.I64))

    def gather(
        self,
        frame: Value,
        first: Value,
        rows: Value,
        transformed: Value,
        ring: Value,
        overlap: int,
        start: Value,
    ) -> None:
        """Transform `points` frames of each pixel; the `overlap` frames shared with the tile before are kept."""
        b, arg, f = self.b, self.arg, self.filtering
        known, bases = [], []
        for i in range(f.points):
            t = b.add(frame, i - overlap // 2)
            known.append(b.ir.and_(b.ir.icmp_signed(">=", t, b.integer(0)), b.less(t, arg["frames"])))
            bases.append(self.frame_address("sources", b.clamp(t, arg["frames"])))
        point = self.in_point
        with b.loop(0, rows) as row:
            pixel = b.mul(b.add(first, row), arg["inputs"], self.bytes)
            kept_row = b.add(ring, b.mul(row, arg["inputs"], 2 * 4))
            target = b.add(transformed, b.mul(row, self.in_row))
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
                    b.store(result, b.add(target, b.mul(i, point), b.mul(c, 4)))

    def scatter(self, frame: Value, first: Value, rows: Value, products: Value) -> None:
        """Transform the products of each pixel back, finish and write its frames."""
        b, arg, f = self.b, self.arg, self.filtering
        point = self.out_point
        frames = [b.add(frame, i) for i in range(f.outputs)]
        inside = [b.less(t, arg["frames"]) for t in frames]
        clamped = [b.clamp(t, arg["frames"]) for t in frames]
        targets = [self.frame_address("targets", t) for t in clamped]
        residual = b.ir.icmp_signed("!=", arg["residuals"], b.integer(0))
        table = b.ir.select(residual, arg["residuals"], arg["targets"])
        residuals = [b.ir.load(b._at(b.add(table, b.mul(t, 8)), simd.I64)) for t in clamped]
        with b.loop(0, rows) as row:
            pixel = b.mul(b.add(first, row), arg["outputs"], self.bytes)
            source = b.add(products, b.mul(row, self.out_row))
            with b.loop(0, arg["outputs"], b.lanes) as k:
                bias = b.load(b.add(arg["bias"], b.mul(k, 4)))
                here = b.add(pixel, b.mul(k, self.bytes))
                values = [b.load(b.add(source, b.mul(i, point), b.mul(k, 4))) for i in range(f.points)]
                for i, result in enumerate(transform(b, f.output, values)):
                    with b.ir.if_then(inside[i]):
                        finish(
                            self, b.ir.fadd(result, bias), b.add(targets[i], here), b.add(residuals[i], here),
                            arg["residuals"], k, frames[i],
                        )  # fmt: skip
