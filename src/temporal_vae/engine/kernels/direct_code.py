"""Convolutions as they are defined: every tap is multiplied, and nothing is transformed.

Weights only change their order, so where a level has few pixels this is faster than filtering, which transforms all of
them first. On processors that multiply tiles of bfloat16 it is faster everywhere.

A kernel stages a tile of its source with the neighbours around it, normalised and activated, in the type of the
products: one row of memory for each pixel, pixel after pixel. A tap is then the same rows from another beginning on,
and the pixels of the tile are multiplied many at a time, whatever their place. What neighbours at the side of a tile
make between two rows of it is not looked at.

Weights lie as `(k / lanes, taps, c / group, lanes, group)`: groups are pairs of channels for bfloat16, or one.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from temporal_vae.engine.geometry import DIRECT_ROWS, LINE
from temporal_vae.engine.kernels.bfloat import Builder
from temporal_vae.engine.kernels.control import Value
from temporal_vae.engine.kernels.emitter import Emitter
from temporal_vae.engine.kernels.simd import Scalar, Sums
from temporal_vae.engine.processor import Machine, multiplies_pairs


def no_products(b: Builder, rows: int, columns: int) -> list[list[Value]]:
    """Sums of a register tile: vectors of zeros."""
    return [[b.variable(b.zero) for _ in range(columns)] for _ in range(rows)]


def add_products(
    b: Builder,
    sums: list[list[Value]],
    rows: list[Value],
    weights: list[Value],
    inputs: Value,
    *,
    pairs: bool,
) -> None:
    """`sums[i][j] += rows[i] @ weights[j]`, a register tile.

    Args:
        b: emits it.
        sums: vectors of outputs, for each row and column.
        rows: addresses of `inputs` values each, in the type of the products.
        weights: addresses of `(inputs, lanes)` each, in pairs or not.
        inputs: a multiple of 4.
        pairs: pairs of bfloat16 are multiplied, rather than float32.
    """
    group, item = (2, 2) if pairs else (1, 4)
    with b.loop(0, inputs, 4) as c:
        for step in range(0, 4, group):
            here = b.mul(b.add(c, step), item)
            there = b.mul(here, b.lanes)
            across = [(b.load_pairs if pairs else b.load)(b.add(weight, there)) for weight in weights]
            for row, totals in zip(rows, sums, strict=True):
                at = b.add(row, here)
                x = b.broadcast_pair(at) if pairs else b.broadcast(at)
                for total, weight in zip(totals, across, strict=True):
                    so_far = b.get(total)
                    b.set(total, b.dot_pairs(so_far, x, weight) if pairs else b.fma(x, weight, so_far))


class _Direct(Emitter):
    """Staged rows times weights, a panel of outputs and a few rows at a time."""

    def __init__(
        self, b: Builder, machine: Machine, dtype: Scalar, activate: bool, arguments: dict[str, Value]
    ) -> None:
        super().__init__(b, machine, dtype, activate, arguments)
        self.pairs = multiplies_pairs(dtype)
        self.tiles = self.pairs and machine.tiles
        self.item = 2 if self.pairs else 4  # bytes of a staged value
        self.row = b.add(
            b.mul(arguments["inputs"], self.item), LINE
        )  # no power of two: rows share no cache set
        self.high = DIRECT_ROWS if self.tiles else machine.rows  # rows that are multiplied at a time
        self.columns = machine.columns  # vectors across a panel
        self.panel = self.columns * b.lanes
        self.products = arguments["scratch"]  # (high, panel), in float32
        self.staged = b.add(self.products, DIRECT_ROWS * self.panel * 4)

    @abstractmethod
    def taps(self) -> AbstractContextManager[tuple[Value, Value]]:
        """A loop over the taps: which of the weights, and where the staged rows begin for it."""

    def stage(self, source: Value, place: Value, inside: Value, channels: Value) -> None:
        """Stage one pixel, or zeros for one outside."""
        b = self.b
        with b.ir.if_else(inside) as (then, otherwise):
            with then:
                self.stage_values(source, place, channels)
            with otherwise, b.loop(0, channels, b.lanes) as c:
                self._put(b.zero, b.add(place, b.mul(c, self.item)))

    def stage_values(self, source: Value, place: Value, channels: Value) -> None:
        """Stage one pixel."""
        b = self.b
        with b.loop(0, channels, b.lanes) as c:
            scale, shift = self.affine(c)
            value = self.activated(b.add(source, b.mul(c, self.bytes)), scale, shift, rough=self.pairs)
            self._put(value, b.add(place, b.mul(c, self.item)))

    def _put(self, value: Value, place: Value) -> None:
        if self.pairs:
            self.b.store_bfloat(value, place)
        else:
            self.b.store(value, place)

    def multiply(self, first: Value, k: Value, taps: int) -> None:
        """`products[i, :] = sum over taps of staged[first + i, :] @ weights[tap][:, k:k + panel]`."""
        b = self.b
        channels = b.mul(self.arg["inputs"], b.lanes * self.item)  # bytes of a vector of outputs, for a tap
        panels = [
            b.add(self.arg["weights"], b.mul(k, self.arg["inputs"], taps * self.item), b.mul(channels, taps * j))
            for j in range(self.columns)
        ]  # fmt: skip
        (self._by_tiles if self.tiles else self._by_vectors)(first, panels, channels)

    def _by_vectors(self, first: Value, panels: list[Value], channels: Value) -> None:
        b, high = self.b, self.high
        sums = no_products(b, high, len(panels))
        with self.taps() as (tap, base):
            start = b.add(base, b.mul(first, self.row))
            rows = [b.add(start, b.mul(self.row, i)) for i in range(high)]
            weights = [b.add(panel, b.mul(tap, channels)) for panel in panels]
            add_products(b, sums, rows, weights, self.arg["inputs"], pairs=self.pairs)
        for i in range(high):
            for j, total in enumerate(sums[i]):
                b.store(b.get(total), b.add(self.products, (i * self.panel + j * b.lanes) * 4))

    def _by_tiles(self, first: Value, panels: list[Value], channels: Value) -> None:
        """Two by two tiles of sums, from two of rows and two of weights."""
        b = self.b
        sums = [[0, 1], [2, 3]]
        for tile in (0, 1, 2, 3):
            b.zero_tile(tile)
        with self.taps() as (tap, base):
            start = b.add(base, b.mul(first, self.row))
            weights = [b.add(panel, b.mul(tap, channels)) for panel in panels]
            with b.loop(0, self.arg["inputs"], 32) as c:
                for i in range(2):
                    b.load_tile(4 + i, b.add(start, b.mul(self.row, 16 * i), b.mul(c, 2)), self.row)
                for j in range(2):
                    b.load_tile(6 + j, b.add(weights[j], b.mul(c, 2 * b.lanes)), LINE)
                for i in range(2):
                    for j in range(2):
                        b.dot_tiles(sums[i][j], 4 + i, 6 + j)
        for i in range(2):
            for j in range(2):
                place = b.add(self.products, (16 * i * self.panel + j * b.lanes) * 4)
                b.store_tile(sums[i][j], place, self.panel * 4)

    def biases(self, k: Value) -> list[Value]:
        """Those of a panel."""
        b = self.b
        return [b.load(b.add(self.arg["bias"], b.mul(b.add(k, j * b.lanes), 4))) for j in range(self.columns)]

    def no_sums(self) -> list[Sums]:
        """Those of a few rows of products; of bfloat16, float32 is more than they are worth."""
        return [Sums(self.b, wide=not self.pairs) for _ in range(self.columns)]

    def write(
        self, row: Value, k: Value, target: Value, residual: Value, has_residual: Value,
        biases: list[Value], sums: list[Sums],
    ) -> None:  # fmt: skip
        """Finish a row of products: bias, residual, sums."""
        b = self.b
        for j, bias in enumerate(biases):
            product = b.load(b.add(self.products, b.mul(row, self.panel * 4), j * b.lanes * 4))
            here = b.mul(b.add(k, j * b.lanes), self.bytes)
            value = self.written(
                b.ir.fadd(product, bias), b.add(target, here), b.add(residual, here), has_residual
            )
            sums[j].add(value)

    def add_sums(self, sums: list[Sums], k: Value, frame: Value | int) -> None:
        """Add the sums of a panel to those of a frame."""
        b = self.b
        stride = b.mul(self.arg["outputs"], 8)
        for j, part in enumerate(sums):
            place = b.add(self.arg["sums"], b.mul(frame, stride, 2), b.mul(b.add(k, j * b.lanes), 8))
            part.store(place, stride)

    def write_rows(
        self, k: Value, rows: Value, taps: int, target: Value, residual: Value, has_residual: Value,
        frame: Value | int,
    ) -> None:  # fmt: skip
        """Multiply and finish the outputs `[k, k + panel)` of staged pixels whose targets lie side by side."""
        b = self.b
        pixel, biases = b.mul(self.arg["outputs"], self.bytes), self.biases(k)
        with b.loop(0, rows, self.high) as start:
            self.multiply(start, k, taps)
            sums = self.no_sums()
            with b.loop(0, b.least(self.high, b.sub(rows, start))) as row:
                there = b.mul(b.add(start, row), pixel)
                self.write(row, k, b.add(target, there), b.add(residual, there), has_residual, biases, sums)
            self.add_sums(sums, k, frame)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Around all that is multiplied."""
        if self.tiles:
            self.b.configure_tiles()
        yield
        if self.tiles:
            self.b.release_tiles()


class DirectSpatial(_Direct):
    """Tiles of `tall` by `wide` outputs over the rows `[first, last)` of one frame."""

    def emit(self) -> None:
        """Write the kernel."""
        b, arg = self.b, self.arg
        with (
            self.at_work(),
            b.loop(arg["first"], arg["last"], arg["tall"]) as top,
            b.loop(0, arg["width"], arg["wide"]) as left,
        ):
            tall = b.least(arg["tall"], b.sub(arg["last"], top))
            wide = b.least(arg["wide"], b.sub(arg["width"], left))
            self.across = b.add(wide, 2)  # staged pixels of a row
            self._stage(top, left, tall)
            count = b.sub(b.mul(tall, self.across), 2)
            with b.loop(arg["k_first"], arg["k_last"], self.panel) as k:
                self._panel(k, top, left, wide, count)

    @contextmanager
    def taps(self) -> Iterator[tuple[Value, Value]]:
        """Nine of them."""
        b = self.b
        with b.loop(0, 3) as down, b.loop(0, 3) as right:
            pixel = b.add(b.mul(down, self.across), right)
            yield b.add(b.mul(down, 3), right), b.add(self.staged, b.mul(pixel, self.row))

    def _stage(self, top: Value, left: Value, tall: Value) -> None:
        b, arg = self.b, self.arg
        with b.loop(0, b.add(tall, 2)) as down:
            y = b.sub(b.add(top, down), 1)
            known = b.ir.and_(b.ir.icmp_signed(">=", y, b.integer(0)), b.less(y, arg["height"]))
            line = b.mul(b.ir.ashr(b.clamp(y, arg["height"]), arg["enlarge"]), arg["source_row"])
            with b.loop(0, self.across) as right:
                x = b.sub(b.add(left, right), 1)
                within = b.ir.and_(b.ir.icmp_signed(">=", x, b.integer(0)), b.less(x, arg["width"]))
                column = b.ir.ashr(b.clamp(x, arg["width"]), arg["enlarge"])
                source = b.add(arg["source"], line, b.mul(column, arg["inputs"], self.bytes))
                place = b.mul(b.add(b.mul(down, self.across), right), self.row)
                self.stage(source, b.add(self.staged, place), b.ir.and_(known, within), arg["inputs"])

    def _panel(self, k: Value, top: Value, left: Value, wide: Value, count: Value) -> None:
        """The outputs `[k, k + panel)` of a tile."""
        b, arg = self.b, self.arg
        pixel = b.mul(arg["outputs"], self.bytes)
        here = b.add(b.mul(top, arg["target_row"]), b.mul(left, pixel))
        to_residual = b.sub(arg["residual"], arg["target"])
        next_line = b.sub(arg["target_row"], b.mul(self.across, pixel))
        biases = self.biases(k)
        column, target = b.variable(b.integer(0)), b.variable(b.add(arg["target"], here))
        with b.loop(0, count, self.high) as first:
            self.multiply(first, k, 9)
            sums = self.no_sums()
            with b.loop(0, b.least(self.high, b.sub(count, first))) as row:
                x, place = b.get(column), b.get(target)
                with b.ir.if_then(b.less(x, wide)):
                    self.write(row, k, place, b.add(place, to_residual), arg["residual"], biases, sums)
                ends = b.ir.icmp_signed("==", b.add(x, 1), self.across)
                b.set(column, b.ir.select(ends, b.integer(0), b.add(x, 1)))
                b.set(target, b.add(place, pixel, b.ir.select(ends, next_line, b.integer(0))))
            self.add_sums(sums, k, 0)


class DirectTemporal(_Direct):
    """Blocks of pixels, frame after frame, over the pixels `[first, last)` of a clip."""

    def emit(self, taps: int) -> None:
        """Write the kernel."""
        b, arg = self.b, self.arg
        reach = taps // 2
        self.count = taps
        self.slot = b.mul(arg["block"], self.row)
        with self.at_work(), b.loop(arg["first"], arg["last"], arg["block"]) as first:
            rows = b.least(arg["block"], b.sub(arg["last"], first))
            if reach:
                self._stage(b.integer(0), first, rows)
            with b.loop(0, arg["frames"]) as frame:
                ahead = b.add(frame, reach)
                with b.ir.if_then(b.less(ahead, arg["frames"])):
                    self._stage(ahead, first, rows)
                self.frame = frame
                with b.loop(arg["k_first"], arg["k_last"], self.panel) as k:
                    self._panel(k, frame, first, rows)

    @contextmanager
    def taps(self) -> Iterator[tuple[Value, Value]]:
        """Those that meet a frame."""
        b, reach = self.b, self.count // 2
        start = b.ir.select(b.less(self.frame, reach), b.sub(reach, self.frame), b.integer(0))
        stop = b.least(self.count, b.sub(b.add(self.arg["frames"], reach), self.frame))
        with b.loop(start, stop) as tap:
            yield tap, self._place(b.sub(b.add(self.frame, tap), reach))

    def _place(self, frame: Value) -> Value:
        """Where a frame is staged."""
        b = self.b
        return b.add(self.staged, b.mul(b.ir.srem(frame, b.integer(self.count)), self.slot))

    def _stage(self, frame: Value, first: Value, rows: Value) -> None:
        b, arg = self.b, self.arg
        pixel = b.mul(arg["inputs"], self.bytes)
        source = b.add(self.frame_address("sources", frame), b.mul(first, pixel))
        place = self._place(frame)
        with b.loop(0, rows) as row:
            self.stage_values(
                b.add(source, b.mul(row, pixel)), b.add(place, b.mul(row, self.row)), arg["inputs"]
            )

    def _panel(self, k: Value, frame: Value, first: Value, rows: Value) -> None:
        """The outputs `[k, k + panel)` of a block of pixels."""
        b, arg = self.b, self.arg
        here = b.mul(first, arg["outputs"], self.bytes)
        has_residual = b.ir.icmp_signed("!=", arg["residuals"], b.integer(0))
        table = b.ir.select(has_residual, arg["residuals"], arg["targets"])
        residual = b.add(b.word(b.add(table, b.mul(frame, 8))), here)
        target = b.add(self.frame_address("targets", frame), here)
        self.write_rows(k, rows, self.count, target, residual, arg["residuals"], frame)


class DirectHalve(_Direct):
    """A stride-2 3x3 convolution of one frame, over the pixels `[first, last)` of its target.

    The nine neighbours of each output are staged side by side, `inputs` channels all together, with zeros beyond the
    right and the lower border of the source, which is `tall` by `wide`.
    """

    def emit(self) -> None:
        """Write the kernel."""
        b, arg = self.b, self.arg
        pixel = b.mul(arg["outputs"], self.bytes)
        with self.at_work(), b.loop(arg["first"], arg["last"], arg["block"]) as first:
            rows = b.least(arg["block"], b.sub(arg["last"], first))
            with b.loop(0, rows) as row:
                self._stage(b.add(first, row), b.add(self.staged, b.mul(row, self.row)))
            target = b.add(arg["target"], b.mul(first, pixel))
            with b.loop(arg["k_first"], arg["k_last"], self.panel) as k:
                self.write_rows(k, rows, 1, target, target, b.integer(0), 0)

    @contextmanager
    def taps(self) -> Iterator[tuple[Value, Value]]:
        """One: the neighbours are inputs."""
        yield self.b.integer(0), self.staged

    def _stage(self, pixel: Value, place: Value) -> None:
        b, arg = self.b, self.arg
        channels = b.ir.sdiv(arg["inputs"], b.integer(9))
        down = b.ir.sdiv(pixel, arg["width"])
        right = b.sub(pixel, b.mul(down, arg["width"]))
        for tap in range(9):
            y, x = b.add(b.mul(down, 2), tap // 3), b.add(b.mul(right, 2), tap % 3)
            inside = b.ir.and_(b.less(y, arg["tall"]), b.less(x, arg["wide"]))
            source = b.add(arg["source"], b.mul(y, arg["source_row"]), b.mul(x, channels, self.bytes))
            self.stage(source, b.add(place, b.mul(channels, tap * self.item)), inside, channels)
