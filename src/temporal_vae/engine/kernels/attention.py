"""Attention over the pixels of a frame by all of a crew: keys and values as kernels read them, and who asks them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from temporal_vae.engine import processor
from temporal_vae.engine.geometry import VECTOR, attention_room, attention_rows, padded, spans
from temporal_vae.engine.kernels import Progress, compiler
from temporal_vae.engine.kernels.attention_code import ATTEND, ATTEND_JOB, Attend
from temporal_vae.engine.kernels.bfloat import Builder
from temporal_vae.engine.kernels.compiler import Sweep
from temporal_vae.engine.kernels.control import Value
from temporal_vae.engine.kernels.crew import Crew
from temporal_vae.engine.kernels.operands import address
from temporal_vae.engine.processor import Machine
from temporal_vae.engine.storage import Scratch
from temporal_vae.engine.threads import once


class KeysAndValues:
    """Those of all pixels of a frame, in float32.

    Args:
        keys: room for them, `(padded(n, VECTOR), c)`.
        values: as much.
        count: `n`, how many pixels there are.
    """

    def __init__(self, keys: Tensor, values: Tensor, count: int) -> None:
        machine = processor.host()
        assert machine is not None
        self.count, (self.padded, self.channels) = count, keys.shape
        if self.padded != padded(count, VECTOR) or self.channels % VECTOR or keys.shape != values.shape:
            raise RuntimeError(
                f"a kernel keeps {count} keys and values in {tuple(keys.shape)}, {tuple(values.shape)}"
            )
        lanes = self._lanes = machine.lanes
        self.keys = keys.view(self.padded // lanes, self.channels, lanes)
        self.values = values.view(self.channels // lanes, self.padded, lanes)
        self.keys[-(VECTOR // lanes) :] = 0  # the padding, and what is put over it
        self.values[:, count:] = 0

    def put(self, first: int, keys: Tensor, values: Tensor) -> None:
        """Those of some pixels `(m, c)`; they begin and end on multiples of `VECTOR`, or end with the last pixel."""
        lanes, many = self._lanes, len(keys)
        if first % VECTOR or (many % VECTOR and first + many != self.count):
            raise RuntimeError(
                f"keys {first} to {first + many} of {self.count} begin and end on multiples of {VECTOR}"
            )
        begin, whole = first // lanes, many // lanes
        blocks, rest = keys[: whole * lanes], keys[whole * lanes :]
        self.keys[begin : begin + whole] = blocks.view(-1, lanes, self.channels).transpose(1, 2)
        if len(rest):
            self.keys[begin + whole, :, : len(rest)] = rest.T
        self.values[:, first : first + many] = values.view(many, -1, lanes).transpose(0, 1)


def answer(
    crew: Crew, asked: KeysAndValues, queries: Tensor, scratch: Sequence[Scratch], progress: Progress
) -> None:
    """`queries = softmax(queries @ keys.T) @ values`, in place.

    Args:
        crew: who works.
        asked: keys and values.
        queries: `(n, c)` in float32, scaled.
        scratch: one for each of the crew.
        progress: told of shares of the work that are done.
    """
    shape, rows = (len(queries), asked.channels), attention_rows(len(queries), crew.count)
    fields = [
        address("keys", asked.keys, torch.float32, *asked.keys.shape),
        address("values", asked.values, torch.float32, *asked.values.shape),
        asked.channels, asked.count, asked.padded, rows,
    ]  # fmt: skip
    begin = address("queries", queries, torch.float32, *shape)
    jobs = np.array([(begin, part.first, part.last) for part in spans(len(queries), rows)], dtype=np.int64)
    room = attention_room(asked.channels)
    crew.sweep(
        _attend(processor.host()), fields, jobs, [one.reset().address(room) for one in scratch], progress
    )


@once
def _attend(machine: Machine) -> Sweep:
    def emit(b: Builder, machine: Machine, **fields: Value) -> None:
        Attend(b, machine, fields).emit()

    return compiler.sweep(emit, ATTEND, ATTEND_JOB, machine, "attend")
