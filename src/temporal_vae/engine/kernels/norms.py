"""From the sums of jobs to moments, and from moments to the norm that waits for the next pass, in machine code.

These are `Moments` and `affine` of `engine/stats.py` for the many small sweeps of a network: a call costs microseconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from struct import pack, unpack

import torch
from llvmlite import ir
from torch import nn

from temporal_vae.engine import processor
from temporal_vae.engine.kernels import compiler
from temporal_vae.engine.kernels.bfloat import Builder
from temporal_vae.engine.kernels.compiler import Function
from temporal_vae.engine.kernels.control import Value
from temporal_vae.engine.kernels.operands import address
from temporal_vae.engine.kernels.simd import F64, Scalar
from temporal_vae.engine.processor import Machine
from temporal_vae.engine.stats import Affine, Moments
from temporal_vae.engine.threads import once


def moments_of(
    sums: int, count: int, frames: int, of_frame: int, jobs: int, of_job: int, outputs: int
) -> Moments:
    """The moments of each frame, of `count` values each, from the sums of its jobs.

    Args:
        sums: address of the sums `(2, outputs)` of jobs, in float64.
        count: values of a frame and channel.
        frames: how many.
        of_frame: bytes from the first job of a frame to that of the next.
        jobs: of each frame.
        of_job: bytes from one to the next.
        outputs: channels.
    """
    both = torch.empty((2, frames, outputs), dtype=torch.float64)
    moments = _moments(processor.host())
    moments(sums, both.data_ptr(), count, frames, of_frame, jobs, of_job, outputs)
    return Moments(count, *both.unbind())


def affine_of(moments: Moments, norm: nn.GroupNorm, *, over_frames: bool, scale: int = 1) -> Affine:
    """As `affine`: one of each frame, or one of all frames together."""
    frames, channels = moments.mean.shape
    rows, together = (1, frames) if over_frames else (frames, 1)
    both = torch.empty((2, rows, channels), dtype=torch.float32)
    parameters = [
        address(name, getattr(norm, name), norm.weight.dtype, channels) for name in ("weight", "bias")
    ]
    values = (
        address(name, getattr(moments, name), torch.float64, frames, channels) for name in ("mean", "m2")
    )
    name: Scalar = str(norm.weight.dtype).removeprefix("torch.")  # type: ignore[assignment]
    affine = _affine(processor.host(), name)
    affine(
        *values, moments.count, rows, together, norm.num_groups, channels // norm.num_groups,
        _bits(norm.eps / scale**2), *parameters, both.data_ptr(),
    )  # fmt: skip
    return Affine(*both.unbind())


def _bits(number: float) -> int:
    """Those of float64, as an integer."""
    bits: int = unpack("<q", pack("<d", number))[0]
    return bits


@once
def _moments(machine: Machine) -> Function:
    """Adds the sums of jobs, `(2, outputs)` each in float64, in their order: means and M2, `(2, frames, outputs)`."""

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

    names = "sums", "moments", "count", "frames", "of_frame", "jobs", "of_job", "outputs"
    return compiler.function(emit, names, machine, "moments")


@once
def _affine(machine: Machine, dtype: Scalar) -> Function:
    """Scales and shifts `(2, rows, c)` in float32, of groups of `channels`; each row is of `together` frames.

    The variance of a group is the mean of those of its channels and frames, and the variance of their means.
    """

    def emit(b: Builder, machine: Machine, **arg: Value) -> None:
        channels = arg["channels"]
        width = b.mul(arg["groups"], channels)
        plane = b.mul(arg["rows"], width, 4)
        count = b.ir.sitofp(arg["count"], F64)
        parts = b.ir.sitofp(b.mul(arg["together"], channels), F64)
        eps = b.ir.bitcast(arg["eps"], F64)
        with b.loop(0, arg["rows"]) as row, b.loop(0, arg["groups"]) as group:
            first = b.mul(group, channels)
            begin = b.mul(b.add(b.mul(row, arg["together"], width), first), 8)
            total, within, spread = (b.variable(ir.Constant(F64, 0.0)) for _ in range(3))
            with _each(b, begin, arg["together"], channels, width) as place:
                b.set(total, b.ir.fadd(b.get(total), b.double(b.add(arg["mean"], place))))
            center = b.ir.fdiv(b.get(total), parts)
            with _each(b, begin, arg["together"], channels, width) as place:
                off = b.ir.fsub(b.double(b.add(arg["mean"], place)), center)
                b.set(spread, b.ir.fadd(b.get(spread), b.ir.fmul(off, off)))
                b.set(within, b.ir.fadd(b.get(within), b.double(b.add(arg["m2"], place))))
            variance = b.ir.fdiv(b.ir.fadd(b.ir.fdiv(b.get(within), count), b.get(spread)), parts)
            inverse = b.ir.fdiv(ir.Constant(F64, 1.0), b.square_root(b.ir.fadd(variance, eps)))
            with b.loop(first, b.add(first, channels)) as k:
                weight, bias = (b.parameter(arg[name], k, dtype) for name in ("weight", "bias"))
                scale = b.ir.fmul(inverse, weight)
                shift = b.ir.fsub(bias, b.ir.fmul(center, scale))
                place = b.add(arg["scale"], b.mul(b.add(b.mul(row, width), k), 4))
                b.store_single(scale, place)
                b.store_single(shift, b.add(place, plane))

    names = (
        "mean", "m2", "count", "rows", "together", "groups", "channels", "eps", "weight", "bias", "scale",
    )  # fmt: skip
    return compiler.function(emit, names, machine, "affine", dtype)


@contextmanager
def _each(b: Builder, begin: Value, frames: Value, channels: Value, width: Value) -> Iterator[Value]:
    """How far from the start of moments `(t, width)` those of a group's frames and channels are, in bytes."""
    with b.loop(0, frames) as frame, b.loop(0, channels) as k:
        yield b.add(begin, b.mul(b.add(b.mul(frame, width), k), 8))
