"""The processor's own kernels; each runs over jobs, in the cache of one core.

- `spatial`: 3x3 convolution of one frame, behind a nearest 2x enlargement or not;
- `halve`: stride-2 3x3 convolution of one frame;
- `temporal`: (3,1,1) convolution over the frames of a clip, or a 1x1 convolution.

Each reads the stored activation, applies the pending norm (a scale and shift per channel) and SiLU, multiplies by the
weights, adds bias and residual, gathers the float64 sums for the next norm and writes. Products come by Winograd
filtering (`winograd_code.py`) or directly (`direct_code.py`). `pack` brings weights into the order of either.
"""

from __future__ import annotations

from collections.abc import Callable
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


MOMENTS = ("sums", "moments", "count", "frames", "of_frame", "jobs", "of_job", "outputs")
"""What `moments` reads and writes, how many values each frame has, and bytes from a frame and a job to the next."""


def moments() -> Callable[..., None]:
    """Adds the sums of jobs, `(2, outputs)` each in float64, in their order: means and M2, `(2, frames, outputs)`."""
    return _moments(_machine())


@once
def _moments(machine: Machine) -> Callable[..., None]:
    def emit(b: Builder, machine: Machine, **arg: Value) -> None:
        step, plane = b.lanes // 2, b.mul(arg["frames"], arg["outputs"], 8)
        count = b.wide(arg["count"])
        with b.loop(0, arg["frames"]) as frame:
            mean = b.add(arg["moments"], b.mul(frame, arg["outputs"], 8))
            places = mean, b.add(mean, plane)
            for place in places:
                with b.loop(0, arg["outputs"], step) as k:
                    b.store_wide(b.wide_zero, b.add(place, b.mul(k, 8)))
            with b.loop(0, arg["jobs"]) as job:
                source = b.add(arg["sums"], b.mul(frame, arg["of_frame"]), b.mul(job, arg["of_job"]))
                for index, place in enumerate(places):
                    row = b.add(source, b.mul(arg["outputs"], 8 * index))
                    with b.loop(0, arg["outputs"], step) as k:
                        b.add_in_place(b.load_wide(b.add(row, b.mul(k, 8))), b.add(place, b.mul(k, 8)))
            with b.loop(0, arg["outputs"], step) as k:
                here = [b.add(place, b.mul(k, 8)) for place in places]
                total, squares = map(b.load_wide, here)
                mean = b.ir.fdiv(total, count)
                m2 = b.ir.fsub(squares, b.ir.fmul(total, mean))
                negative = b.ir.fcmp_ordered("<", m2, b.wide_zero)
                b.store_wide(mean, here[0])
                b.store_wide(b.ir.select(negative, b.wide_zero, m2), here[1])

    return compiler.function(emit, MOMENTS, machine, "moments")


def _machine() -> Machine:
    machine = processor.host()
    assert machine is not None
    return machine
