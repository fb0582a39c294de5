"""Attention of one head over all pixels of a frame, in float32: a few queries at a time, over keys block by block.

A job holds its queries, what they are to become, and their scores with one block of keys, all in the cache of its
core; nothing of the size of all pairs is ever stored. Scores are made probabilities against the largest score so far;
where a later block has a larger one, what was summed before is scaled down (the online softmax of Milakov and
Gimelshein, "Online normalizer calculation for softmax", 2018, as in FlashAttention).

Keys and values lie in the order in which products read them, padded with zeros to whole panels of keys: keys as
`(n / lanes, c, lanes)`, values as `(c / lanes, n, lanes)`.
"""

from __future__ import annotations

from temporal_vae.engine.geometry import ATTENTION_KEYS, LINE
from temporal_vae.engine.kernels.bfloat import Builder
from temporal_vae.engine.kernels.control import Value
from temporal_vae.engine.kernels.direct_code import add_products, no_products
from temporal_vae.engine.kernels.simd import F32
from temporal_vae.engine.processor import Machine

ATTEND = ("keys", "values", "channels", "count", "padded", "rows")
"""What jobs share: addresses of keys and values, their channels, how many there are, with and without the padding, and
how many queries a job has room for."""
ATTEND_JOB = ("queries", "first", "last")
"""The address of the queries `(n, c)`, scaled, and a range of them; what they become is written in their place."""

LEAST = -3.0e38  # below every score


class Attend:
    """Writes the kernel."""

    def __init__(self, b: Builder, machine: Machine, fields: dict[str, Value]) -> None:
        self.b, self.arg = b, fields
        self.high = machine.rows
        self.columns = machine.columns
        self.panel = machine.columns * b.lanes
        self.wide = b.mul(fields["channels"], 4)  # bytes of a query
        self.query_row = b.add(self.wide, LINE)  # no power of two: rows share no cache set
        self.score_row = 4 * ATTENTION_KEYS + LINE
        self.staged = fields["scratch"]
        self.found = b.add(self.staged, b.mul(fields["rows"], self.query_row))
        self.scores = b.add(self.found, b.mul(fields["rows"], self.query_row))
        self.largest = b.add(self.scores, b.mul(fields["rows"], self.score_row))  # a float32 of each query
        self.totals = b.add(self.largest, b.mul(fields["rows"], LINE))  # a vector of each query

    def emit(self) -> None:
        """Write it."""
        b, arg = self.b, self.arg
        count = b.sub(arg["last"], arg["first"])
        queries = b.add(arg["queries"], b.mul(arg["first"], self.wide))
        with b.loop(0, count) as row:
            self._begin(row, b.add(queries, b.mul(row, self.wide)))
        with b.loop(0, arg["padded"], ATTENTION_KEYS) as first:
            keys = b.least(ATTENTION_KEYS, b.sub(arg["padded"], first))
            self._score(first, keys, count)
            with b.loop(0, count) as row:
                self._weigh(row, first, keys)
            self._gather(first, keys, count)
        with b.loop(0, count) as row:
            self._end(row, b.add(queries, b.mul(row, self.wide)))

    def _begin(self, row: Value, query: Value) -> None:
        b = self.b
        staged, found = (b.add(place, b.mul(row, self.query_row)) for place in (self.staged, self.found))
        with b.loop(0, self.wide, b.lanes * 4) as c:
            b.store(b.load(b.add(query, c)), b.add(staged, c))
            b.store(b.zero, b.add(found, c))
        b.store(b.splat(LEAST), b.add(self.largest, b.mul(row, LINE)))
        b.store(b.zero, b.add(self.totals, b.mul(row, LINE)))

    def _score(self, first: Value, keys: Value, count: Value) -> None:
        """Scores of all queries with a block of keys."""
        b, arg = self.b, self.arg
        vector = b.mul(self.wide, b.lanes)  # bytes of a vector of keys
        with b.loop(0, keys, self.panel) as k:
            start = b.mul(b.ir.sdiv(b.add(first, k), b.integer(b.lanes)), vector)
            panels = [b.add(arg["keys"], start, b.mul(vector, j)) for j in range(self.columns)]
            with b.loop(0, count, self.high) as top:
                sums = self._products(self.staged, self.query_row, top, panels, arg["channels"])
                for i, row in enumerate(sums):
                    place = b.add(self.scores, b.mul(b.add(top, i), self.score_row), b.mul(k, 4))
                    for j, total in enumerate(row):
                        b.store(b.get(total), b.add(place, j * b.lanes * 4))
        padding = b.sub(b.add(first, keys), arg["count"])
        with b.ir.if_then(b.less(0, padding)), b.loop(0, count) as row:
            end = b.add(self.scores, b.mul(row, self.score_row), b.mul(keys, 4))
            with b.loop(b.sub(0, padding), 0) as key:
                b.store_one(F32(LEAST), b.add(end, b.mul(key, 4)))

    def _weigh(self, row: Value, first: Value, keys: Value) -> None:
        """Scores of a query become what its keys weigh, and what was found before is scaled to fit."""
        b = self.b
        scores = b.add(self.scores, b.mul(row, self.score_row))
        end = b.mul(keys, 4)
        place, totals = (b.add(base, b.mul(row, LINE)) for base in (self.largest, self.totals))
        most = b.variable(b.splat(LEAST))
        with b.loop(0, end, b.lanes * 4) as k:
            value, so_far = b.load(b.add(scores, k)), b.get(most)
            b.set(most, b.ir.select(b.ir.fcmp_ordered(">", value, so_far), value, so_far))
        before = b.load(place)
        now = b.spread(b.largest(b.get(most)))
        now = b.ir.select(b.ir.fcmp_ordered(">", now, before), now, before)
        b.store(now, place)
        factor = b.exp(b.ir.fsub(before, now))
        total = b.variable(b.ir.fmul(b.load(totals), factor))
        with b.loop(0, end, b.lanes * 4) as k:
            weight = b.exp(b.ir.fsub(b.load(b.add(scores, k)), now))
            b.store(weight, b.add(scores, k))
            b.set(total, b.ir.fadd(b.get(total), weight))
        b.store(b.get(total), totals)
        with b.ir.if_then(b.less(0, first)):
            found = b.add(self.found, b.mul(row, self.query_row))
            with b.loop(0, self.wide, b.lanes * 4) as c:
                b.store(b.ir.fmul(b.load(b.add(found, c)), factor), b.add(found, c))

    def _gather(self, first: Value, keys: Value, count: Value) -> None:
        """Add the values of a block of keys, as they weigh."""
        b, arg = self.b, self.arg
        column = b.mul(arg["padded"], b.lanes * 4)  # bytes of a vector of channels, of all keys
        with b.loop(0, arg["channels"], self.panel) as k:
            start = b.add(b.mul(b.ir.sdiv(k, b.integer(b.lanes)), column), b.mul(first, b.lanes * 4))
            panels = [b.add(arg["values"], start, b.mul(column, j)) for j in range(self.columns)]
            with b.loop(0, count, self.high) as top:
                sums = self._products(self.scores, b.integer(self.score_row), top, panels, keys)
                for i, row in enumerate(sums):
                    place = b.add(self.found, b.mul(b.add(top, i), self.query_row), b.mul(k, 4))
                    for j, total in enumerate(row):
                        here = b.add(place, j * b.lanes * 4)
                        b.store(b.ir.fadd(b.load(here), b.get(total)), here)

    def _products(
        self, source: Value, stride: Value, top: Value, panels: list[Value], inputs: Value
    ) -> list[list[Value]]:
        """A register tile: rows from `top` on, those behind the last query of no meaning."""
        b = self.b
        rows = [b.add(source, b.mul(b.add(top, i), stride)) for i in range(self.high)]
        sums = no_products(b, self.high, self.columns)
        add_products(b, sums, rows, panels, inputs, pairs=False)
        return sums

    def _end(self, row: Value, target: Value) -> None:
        b = self.b
        total = b.spread(b.total(b.load(b.add(self.totals, b.mul(row, LINE)))))
        found = b.add(self.found, b.mul(row, self.query_row))
        with b.loop(0, self.wide, b.lanes * 4) as c:
            b.store(b.ir.fdiv(b.load(b.add(found, c)), total), b.add(target, c))
