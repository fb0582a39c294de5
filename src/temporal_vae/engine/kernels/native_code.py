"""The processor's own kernels; each runs over jobs, in the cache of one core.

- `spatial`: 3x3 convolution of one frame, behind a nearest 2x enlargement or not;
- `halve`: stride-2 3x3 convolution of one frame;
- `temporal`: (3,1,1) convolution over the frames of a clip, or a 1x1 convolution.

Each reads the stored activation, applies the pending norm (a scale and shift per channel) and SiLU, multiplies by the
weights, adds bias and residual, gathers the float64 sums for the next norm and writes. Products come by Winograd
filtering (`winograd_code.py`) or directly (`direct_code.py`). `pack` brings weights into the order of either.
"""

from __future__ import annotations

from typing import Literal

from temporal_vae.engine import processor
from temporal_vae.engine.kernels import compiler
from temporal_vae.engine.kernels.bfloat import Builder
from temporal_vae.engine.kernels.compiler import Sweep
from temporal_vae.engine.kernels.control import Value
from temporal_vae.engine.kernels.direct_code import DirectHalve, DirectSpatial, DirectTemporal
from temporal_vae.engine.kernels.packing_code import PACK, PACK_JOB, PackDirect, PackFiltered, PackFixed
from temporal_vae.engine.kernels.simd import Scalar
from temporal_vae.engine.kernels.winograd import F11, F43
from temporal_vae.engine.kernels.winograd_code import WinogradSpatial, WinogradTemporal
from temporal_vae.engine.processor import Machine
from temporal_vae.engine.threads import once

Form = Literal["direct", "filtered", "fixed"]
"""Of weights: as they are, filtered, or filtered in integers."""
SPATIAL = (
    "source_row", "target_row", "weights", "factors", "bias", "inputs", "outputs", "height", "width", "enlarge", "tall",
    "wide", "block",
)  # fmt: skip
"""What the jobs of a sweep over space share.

`tall` and `wide` is the size of tiles that are multiplied directly, or of a source that is halved; `block` is how many
pixels of that are staged.
"""
SPATIAL_JOB = ("source", "target", "residual", "scale", "shift", "sums", "first", "last", "k_first", "k_last")
"""A range of the tiles of one frame, of its rows where they are multiplied directly, or of its pixels where they are
halved; and a range of outputs."""
TEMPORAL = (
    "sources", "targets", "residuals", "scale", "shift", "weights", "factors", "bias", "inputs", "outputs", "frames",
    "block",
)  # fmt: skip
"""What the jobs of a sweep over time share."""
TEMPORAL_JOB = ("sums", "first", "last", "k_first", "k_last")
"""A range of the pixels of all frames, and one of outputs."""


def spatial(dtype: Scalar, activate: bool, direct: bool) -> Sweep:
    """The 3x3 kernel for activations of `dtype`, with norm and SiLU before it or without; Winograd or direct."""
    return _spatial(_machine(), dtype, activate, direct)


def halve(dtype: Scalar) -> Sweep:
    """The stride-2 3x3 kernel for activations of `dtype`."""
    return _halve(_machine(), dtype)


@once
def _halve(machine: Machine, dtype: Scalar) -> Sweep:
    def emit(b: Builder, machine: Machine, **fields: Value) -> None:
        kernel = DirectHalve(b, machine, dtype, False, fields)
        kernel.clear_sums()
        kernel.emit()

    return compiler.sweep(emit, SPATIAL, SPATIAL_JOB, machine, "halve", dtype)


def temporal(dtype: Scalar, activate: bool, taps: int, rest: int | None) -> Sweep:
    """The kernel of three taps over time, or of one, for activations of `dtype`.

    `rest` is the number of frames that are left over when a clip is cut into fours; None multiplies directly.
    """
    return _temporal(_machine(), dtype, activate, taps, rest)


def pack(dtype: Scalar, taps: int, form: Form) -> Sweep:
    """What packs weights of `dtype`."""
    return _pack(_machine(), dtype, taps, form)


@once
def _pack(machine: Machine, dtype: Scalar, taps: int, form: Form) -> Sweep:
    def emit(b: Builder, machine: Machine, **fields: Value) -> None:
        kind = PackDirect if form == "direct" else PackFixed if form == "fixed" else PackFiltered
        kind(b, machine, dtype, taps, fields).emit()

    return compiler.sweep(emit, PACK, PACK_JOB, machine, "pack", dtype, taps, form)


@once
def _spatial(machine: Machine, dtype: Scalar, activate: bool, direct: bool) -> Sweep:
    def emit(b: Builder, machine: Machine, **fields: Value) -> None:
        kernel = (DirectSpatial if direct else WinogradSpatial)(b, machine, dtype, activate, fields)
        kernel.clear_sums()
        kernel.emit()

    return compiler.sweep(emit, SPATIAL, SPATIAL_JOB, machine, "spatial", dtype, activate, direct)


@once
def _temporal(machine: Machine, dtype: Scalar, activate: bool, taps: int, rest: int | None) -> Sweep:
    def emit(b: Builder, machine: Machine, **fields: Value) -> None:
        kernel = (DirectTemporal if rest is None else WinogradTemporal)(b, machine, dtype, activate, fields)
        kernel.clear_sums(fields["frames"])
        if isinstance(kernel, DirectTemporal):
            kernel.emit(taps)
        else:
            kernel.emit(F43 if taps == 3 else F11, rest or 0)

    return compiler.sweep(emit, TEMPORAL, TEMPORAL_JOB, machine, "temporal", dtype, activate, taps, rest)


def _machine() -> Machine:
    machine = processor.host()
    assert machine is not None
    return machine
