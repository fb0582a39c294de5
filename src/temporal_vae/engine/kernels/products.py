"""The product of a block of transformed inputs and the transformed weights, at each point: where the time goes.

Both kinds hold three things in scratch: the transformed inputs `(points, tile, c)`, the products `(points, tile, k)`
in float32, and what they need themselves. A kernel hands over the transformed inputs row by row (`begin`, `put`,
`end`), asks for the product, and reads it (`address`). Weights lie as `(points, k / panel, c, panel)`.

`FloatProduct` multiplies in float32. `FixedProduct` multiplies 16-bit integers exactly into 32-bit ones, at twice the
rate: each row of inputs and each column of weights is scaled to its own largest value, so 14 bits of the inputs count
and as many of the weights as cannot overflow. That rounds a convolution by less than storing its result in bfloat16
does; `bfloat16` factors, at the same rate, would round it ten times more, because Winograd filtering enlarges errors.
"""

from __future__ import annotations

from temporal_vae.engine.geometry import LINE, PAD
from temporal_vae.engine.kernels.bfloat import Builder
from temporal_vae.engine.kernels.control import Value
from temporal_vae.engine.processor import Machine

CHUNK = 64  # inputs whose products are summed in integers; then the sums go on in float32
LARGEST = 2**14 - 1  # of the inputs as integers
LARGEST_COLUMN = (2**31 - 1) // (
    LARGEST + 1
) - CHUNK  # sum of magnitudes of a chunk of weights: no sum overflows
_LEAST = 2.0**-100  # the largest value of a row of zeros


class FloatProduct:
    """Inputs and weights in float32."""

    def __init__(
        self, b: Builder, machine: Machine, points: int, arguments: dict[str, Value], scratch: Value
    ) -> None:
        self.b, self.machine, self.points, self.arg = b, machine, points, arguments
        self.in_row = b.add(b.mul(arguments["inputs"], self.width), self.gap)
        self.out_row = b.mul(b.add(arguments["outputs"], PAD), 4)
        # From one point to the next: no power of two, so that the points do not compete for the same cache sets.
        self.in_point = b.add(b.mul(arguments["block"], self.in_row), LINE)
        self.out_point = b.add(b.mul(arguments["block"], self.out_row), LINE)
        self.transformed = scratch
        self.products = b.add(scratch, b.mul(points, self.in_point))
        self.end_of_products = b.add(self.products, b.mul(points, self.out_point))

    width = 4  # bytes of a transformed input
    gap = PAD * 4  # bytes between rows

    def begin(self, row: Value) -> None:
        """Start to fill a row."""
        self.row = self.b.add(self.transformed, self.b.mul(row, self.in_row))

    def put(self, point: int, c: Value, value: Value) -> None:
        """A vector of transformed inputs of the row, from channel `c` on."""
        b = self.b
        b.store(value, b.add(self.row, b.mul(point, self.in_point), b.mul(c, 4)))

    def end(self, points: int) -> None:
        """The first `points` points of the row are complete."""

    def address(self, point: int, row: Value, k: Value) -> Value:
        """Where the product of a row is, from output `k` on."""
        b = self.b
        return b.add(self.products, b.mul(point, self.out_point), b.mul(row, self.out_row), b.mul(k, 4))

    def multiply(self, rows: Value, points: int) -> None:
        """`products[p, i, :] = transformed[p, i, :] @ weights[p]` for the first points and the first `rows` rows."""
        b, high = self.b, self.machine.rows
        panel = self.machine.columns * b.lanes
        inputs, outputs = self.arg["inputs"], self.arg["outputs"]
        with b.loop(0, points) as p, b.loop(self.arg["k_first"], self.arg["k_last"], panel) as k:
            part = b.add(b.mul(p, inputs, outputs), b.mul(k, inputs))
            weights = b.add(self.arg["weights"], b.mul(part, self.width))
            with b.loop(0, rows, high) as row:
                self._register_tile(p, row, k, weights)

    def _register_tile(self, p: Value, row: Value, k: Value, weights: Value) -> None:
        b, high, wide = self.b, self.machine.rows, self.machine.columns
        rows, targets = self._rows(p, row, k)
        sums = [[b.variable(b.zero) for _ in range(wide)] for _ in range(high)]
        with b.loop(0, self.arg["inputs"], 4) as c:
            for step in range(4):
                here = b.mul(b.add(c, step), 4)
                taps = [
                    b.load(b.add(weights, b.mul(here, wide * b.lanes), j * b.lanes * 4)) for j in range(wide)
                ]
                for i in range(high):
                    x = b.broadcast(b.add(rows[i], here))
                    for j in range(wide):
                        b.set(sums[i][j], b.fma(x, taps[j], b.get(sums[i][j])))
        for i in range(high):
            for j in range(wide):
                b.store(b.get(sums[i][j]), b.add(targets[i], j * b.lanes * 4))

    def _rows(self, p: Value, row: Value, k: Value) -> tuple[list[Value], list[Value]]:
        """Addresses of the rows of a register tile: transformed inputs, and products."""
        b, high = self.b, self.machine.rows
        source = b.add(self.transformed, b.mul(p, self.in_point), b.mul(row, self.in_row))
        target = b.add(self.products, b.mul(p, self.out_point), b.mul(row, self.out_row), b.mul(k, 4))
        return (
            [b.add(source, b.mul(i, self.in_row)) for i in range(high)],
            [b.add(target, b.mul(i, self.out_row)) for i in range(high)],
        )


class FixedProduct(FloatProduct):
    """Inputs and weights as scaled 16-bit integers, pairs of channels side by side."""

    width = 2
    gap = LINE

    def __init__(
        self, b: Builder, machine: Machine, points: int, arguments: dict[str, Value], scratch: Value
    ) -> None:
        super().__init__(b, machine, points, arguments, scratch)
        self.scales = self.end_of_products  # (points, block), of the rows of inputs
        self.staged = b.add(
            self.scales, b.mul(arguments["block"], points * 4)
        )  # one row in float32, (points, c)
        self.staged_point = b.mul(b.add(arguments["inputs"], PAD), 4)
        self.maxima = b.add(self.staged, b.mul(self.staged_point, points))  # (points, lanes), of magnitudes

    def begin(self, row: Value) -> None:
        """Start to fill a row."""
        b = self.b
        super().begin(row)
        self.scale = b.add(self.scales, b.mul(row, 4))
        for point in range(self.points):
            b.store_integers(b.integers(0), b.add(self.maxima, point * b.lanes * 4))

    def put(self, point: int, c: Value, value: Value) -> None:
        """A vector of transformed inputs of the row, from channel `c` on."""
        b = self.b
        b.store(value, b.add(self.staged, b.mul(point, self.staged_point), b.mul(c, 4)))
        place = b.add(self.maxima, point * b.lanes * 4)
        # As integers, the bits of magnitudes have the order of the magnitudes, and those of NaN come last.
        b.store_integers(b.larger(b.load_integers(place), b.magnitude_bits(value)), place)

    def end(self, points: int) -> None:
        """The first `points` points of the row are complete: scale them to integers."""
        b = self.b
        with b.loop(0, points) as p:
            bits = b.load_integers(b.add(self.maxima, b.mul(p, b.lanes * 4)))
            largest = b.largest_of_bits(bits, _LEAST)
            scale = b.mul(p, self.arg["block"], 4)
            b.store_one(b.quotient(largest, LARGEST), b.add(self.scale, scale))
            factor = b.spread(b.quotient(LARGEST, largest))
            source = b.add(self.staged, b.mul(p, self.staged_point))
            target = b.add(self.row, b.mul(p, self.in_point))
            with b.loop(0, self.arg["inputs"], b.lanes) as c:
                value = b.ir.fmul(b.load(b.add(source, b.mul(c, 4))), factor)
                b.store_rounded(value, b.add(target, b.mul(c, 2)))

    def _register_tile(self, p: Value, row: Value, k: Value, weights: Value) -> None:
        b, high, wide = self.b, self.machine.rows, self.machine.columns
        rows, targets = self._rows(p, row, k)
        inputs = self.arg["inputs"]
        places = [[b.add(targets[i], j * b.lanes * 4) for j in range(wide)] for i in range(high)]
        with b.loop(0, inputs, CHUNK) as first:
            stop = b.least(b.add(first, CHUNK), inputs)
            sums = [[b.variable(b.integers(0)) for _ in range(wide)] for _ in range(high)]
            with b.loop(first, stop, 4) as c:
                for pair in (0, 2):
                    here = b.mul(b.add(c, pair), 2)
                    at = b.add(weights, b.mul(here, wide * b.lanes))
                    taps = [b.load_integers(b.add(at, j * b.lanes * 4)) for j in range(wide)]
                    for i in range(high):
                        x = b.broadcast_integer(b.add(rows[i], here))
                        for j in range(wide):
                            b.set(sums[i][j], b.dot(b.get(sums[i][j]), x, taps[j]))
            totals = [[b.variable(b.to_float(b.get(sums[i][j]))) for j in range(wide)] for i in range(high)]
            with b.ir.if_then(b.less(0, first)):
                for i in range(high):
                    for j in range(wide):
                        b.set(totals[i][j], b.ir.fadd(b.get(totals[i][j]), b.load(places[i][j])))
            with b.ir.if_then(b.ir.icmp_signed("==", stop, inputs)):
                self._scale(totals, p, row, k)
            for i in range(high):
                for j in range(wide):
                    b.store(b.get(totals[i][j]), places[i][j])

    def _scale(self, totals: list[list[Value]], p: Value, row: Value, k: Value) -> None:
        """From integers to values: by the scale of the row and that of the column."""
        b = self.b
        scales = b.add(self.scales, b.mul(b.add(b.mul(p, self.arg["block"]), row), 4))
        factors = b.add(self.arg["factors"], b.mul(b.add(b.mul(p, self.arg["outputs"]), k), 4))
        columns = [b.load(b.add(factors, j * b.lanes * 4)) for j in range(len(totals[0]))]
        for i, values in enumerate(totals):
            scale = b.broadcast(b.add(scales, i * 4))
            for value, column in zip(values, columns, strict=True):
                b.set(value, b.ir.fmul(b.get(value), b.ir.fmul(scale, column)))
