"""How near each kernel comes to what the processor can do: its arithmetic, and the bytes it has to move.

python -m benchmarks.roofline [--dtype float32 --workers 2]

The roof is measured here, by the same instructions on registers alone: fused multiply-adds of float32, dot products of
pairs of 16-bit integers or of bfloat16, or tiles of them, by one thread; and by reading and writing arrays that fit no
cache, by all. `nominal` counts a convolution's multiply-adds as it is defined, `done` those that the kernel executes in
its product, a quarter of them under Winograd filtering in space and half over time. `of peak` is the share of the roof
that `done` is; the rest is staging, transforms, SiLU, bias, residual and sums, and waiting. `moved` is what has to
travel at least: the source once, the target once and the weights once.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from temporal_vae.engine import processor
from temporal_vae.engine.geometry import POINTS
from temporal_vae.engine.kernels import Sweeping, compiler, kernels_for
from temporal_vae.engine.kernels.attention import KeysAndValues
from temporal_vae.engine.kernels.bfloat import Builder
from temporal_vae.engine.kernels.control import Value
from temporal_vae.engine.stats import Affine
from temporal_vae.engine.storage import Scratch
from temporal_vae.engine.workers import Workers

CPU = torch.device("cpu")
MANY, FEW = (
    10**6,
    1,
)  # pixels that weights are packed for: filtered, where the arithmetic filters at all, or not
CHAINS = 24  # products that do not wait for each other
STEPS = 10**6
ARRAY = 2**26  # values that fit no cache


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """A kernel at work on frames of a size."""

    name: str
    shape: str
    run: Callable[[], Any]
    taps: int
    multiplies: int  # as the convolution is defined
    filtered: bool
    moved: int  # bytes, at least

    @property
    def done(self) -> float:
        """Multiply-adds of its product."""
        outputs = {9: 16, 3: 4, 1: 1}[self.taps]
        share = POINTS[self.taps] / (outputs * self.taps) if self.filtered else 1.0
        return self.multiplies * share


def peak(kind: str) -> float:
    """Multiply-adds a second of one thread on registers alone."""
    machine = processor.host()
    assert machine is not None
    each = {"float32": 1, "int16": 2, "pairs": 2, "tiles": 16 * 32}[kind]

    def emit(b: Builder, machine: processor.Machine, place: Value) -> None:
        if kind == "tiles":
            b.configure_tiles()
            with b.loop(0, STEPS):
                for tile in range(4):
                    b.dot_tiles(tile, 4 + tile % 2, 6 + tile // 2)
            b.release_tiles()
            return
        read = b.load_integers if kind == "int16" else b.load
        sums = [b.variable(read(b.add(place, 4 * i))) for i in range(CHAINS)]  # all different to the compiler
        if kind == "pairs":
            x, y = b.load_pairs(place), b.broadcast_pair(place)
        else:
            x = b.load_integers(place) if kind == "int16" else b.load(place)
            y = b.broadcast_integer(place) if kind == "int16" else b.broadcast(place)

        def multiplied(total: Value) -> Value:
            if kind == "float32":
                return b.fma(x, y, total)
            return b.dot(total, x, y) if kind == "int16" else b.dot_pairs(total, x, y)

        with b.loop(0, STEPS):
            for total in sums:
                b.set(total, multiplied(b.get(total)))
        write = b.store_integers if kind == "int16" else b.store
        for i, total in enumerate(sums):
            write(b.get(total), b.add(place, 4 * i))

    run = compiler.loaded(compiler.compiled(emit, ("place",), machine), 1)
    memory = np.zeros(64, dtype=np.float32)
    seconds = _median(lambda: run(memory.ctypes.data), 9)
    return (4 if kind == "tiles" else CHAINS) * STEPS * each * machine.lanes / seconds


def bandwidth() -> float:
    """Bytes a second that all torch threads read and write together, from and to arrays that fit no cache."""
    source, target = torch.ones(ARRAY), torch.ones(ARRAY)
    return 2 * 4 * ARRAY / _median(lambda: target.copy_(source), 5)


def _median(run: Callable[[], Any], rounds: int) -> float:
    times = []
    for _ in range(rounds + 2):  # the first ones touch memory that was never touched
        began = perf_counter()
        run()
        times.append(perf_counter() - began)
    return median(times[2:])


def kernels_of(dtype: torch.dtype, workers: Workers, scratch: Sequence[Scratch]) -> list[Kernel]:
    """The kernels at shapes of the published decoder and encoder, 8 frames of 256x256."""
    kernels: Sweeping[Any] = kernels_for(CPU, dtype, workers)  # type: ignore[assignment]
    kernels.sums.resize(2**26)
    machine, name = processor.host(), str(dtype).removeprefix("torch.")
    assert machine is not None
    arithmetic, pairs = processor.arithmetic("cpu", name), processor.multiplies_pairs(name)
    found = []

    def add(name: str, frames: int, side: int, inputs: int, outputs: int, taps: int, pixels: int) -> None:
        filtered = processor.filters(arithmetic, pixels, taps, pairs=pairs)
        if pixels == FEW and not filtered and processor.filters(arithmetic, MANY, taps, pairs=pairs) is False:
            return  # the same as with many
        room = Scratch(CPU)
        room.resize(2**26)
        target_side = side // 2 if name == "halve" else side
        source = [torch.randn(side, side, inputs).to(dtype) for _ in range(frames)]
        target = [torch.empty(target_side, target_side, outputs, dtype=dtype) for _ in range(frames)]
        affine = Affine(torch.ones(frames, inputs), torch.zeros(frames, inputs))
        flat: list[list[Tensor]] = [[one.flatten(0, 1) for one in some] for some in (source, target)]

        def quiet(share: float) -> None:
            """Nobody asks."""

        run: Callable[[], Any]
        if taps == 3:
            weights = kernels.temporal_weights(
                nn.Conv3d(inputs, outputs, (3, 1, 1)).to(dtype), frames, room, pixels
            )
            clip = Affine(affine.scale[:1], affine.shift[:1])
            run = lambda: kernels.sweep_time(flat[0], flat[1], weights, clip, scratch, quiet)  # noqa: E731
        elif taps == 1:
            weights = kernels.pointwise_weights(nn.Conv2d(inputs, outputs, 1).to(dtype), room, pixels)
            run = lambda: kernels.sweep_time(flat[0], flat[1], weights, None, scratch, quiet)  # noqa: E731
        elif name == "halve":
            weights = kernels.strided_weights(nn.Conv2d(inputs, outputs, 3).to(dtype), room, pixels)
            if not weights.direct:
                return
            run = lambda: kernels.sweep_halving(source, target, weights, scratch, quiet)  # noqa: E731
        else:
            conv = nn.Conv2d(inputs, outputs, 3).to(dtype)
            weights = kernels.spatial_weights(conv, room, pixels)
            run = lambda: kernels.sweep_space(source, target, weights, affine, scratch, quiet)  # noqa: E731
        counted = frames * target_side**2
        moved = dtype.itemsize * (frames * (side**2 * inputs + target_side**2 * outputs))
        moved += weights.values.nbytes
        form = "filtered" if filtered and name != "halve" else "direct"
        found.append(
            Kernel(
                name=f"{name}, {form}",
                shape=f"{frames}x{side}x{side}, {inputs} to {outputs}",
                run=run,
                taps=taps,
                multiplies=counted * inputs * outputs * taps,
                filtered=form == "filtered",
                moved=moved,
            )
        )

    for pixels in (MANY, FEW):
        for frames, side, channels in ((2, 256, 128), (2, 128, 256), (8, 64, 512), (8, 32, 512)):
            add("spatial", frames, side, channels, channels, 9, pixels)
        for side, channels in ((128, 128), (64, 512)):
            add("temporal", 8, side, channels, channels, 3, pixels)
    add("pointwise", 8, 128, 512, 256, 1, MANY)
    add("halve", 4, 128, 128, 128, 9, MANY)
    return found


def attention_of(dtype: torch.dtype, workers: Workers, scratch: Sequence[Scratch]) -> list[Kernel]:
    """Attention over the pixels of a frame, and that of torch in the same type, float32."""
    kernels: Sweeping[Any] = kernels_for(CPU, dtype, workers)  # type: ignore[assignment]
    if not kernels.attends:
        return []
    found = []
    for side, channels in ((64, 512), (128, 512)):
        count = side**2
        queries, keys, values = torch.randn(3, count, channels)
        asked = KeysAndValues(torch.empty(count, channels), torch.empty(count, channels), count)
        asked.put(0, keys, values)

        def own(asked: KeysAndValues = asked, queries: Tensor = queries) -> None:
            kernels.answer(asked, queries.clone(), scratch, lambda share: None)

        def of_torch(q: Tensor = queries, k: Tensor = keys, v: Tensor = values) -> None:
            functional.scaled_dot_product_attention(q[None, None], k[None, None], v[None, None])

        for name, run in (("attention", own), ("attention, by torch", of_torch)):
            found.append(
                Kernel(
                    name=name,
                    shape=f"{side}x{side}, {channels}",
                    run=run,
                    taps=1,
                    multiplies=2 * count**2 * channels,
                    filtered=False,
                    moved=4 * 4 * count * channels,
                )
            )
    return found


@torch.no_grad()
def main() -> None:
    """Print the roof and the kernels under it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(options.workers)
    machine, dtype = processor.host(), getattr(torch, options.dtype)
    if machine is None:
        raise SystemExit("there are no kernels for this processor")
    arithmetic = processor.arithmetic("cpu", options.dtype)
    direct = "float32"
    if processor.multiplies_pairs(options.dtype):
        direct = "tiles" if machine.tiles else "pairs"
    filtered = arithmetic if arithmetic in ("float32", "int16") else direct
    roofs = {kind: peak(kind) for kind in dict.fromkeys((filtered, direct))}
    memory = bandwidth()
    print(f"{machine.name}, kernels {machine.kernels}, {options.dtype}, {options.workers} workers")
    for kind, rate in roofs.items():
        print(f"  {kind}: {rate / 1e9:.0f} GMAC/s on one core, by registers alone")
    print(f"  memory: {memory / 1e9:.1f} GB/s by all")
    print(f"{'kernel':22} {'frames':24} {'ms':>8} {'nominal':>9} {'done':>9} {'of peak':>8} {'moved':>10}")
    with Workers(options.workers, CPU).at_work() as workers:
        scratch = [Scratch(CPU) for _ in range(options.workers)]
        for one in scratch:
            one.resize(2**25)
        for kernel in kernels_of(dtype, workers, scratch) + attention_of(dtype, workers, scratch):
            seconds = _median(kernel.run, options.rounds)
            roof = roofs[filtered if kernel.filtered else direct] * options.workers
            print(
                f"{kernel.name:22} {kernel.shape:24} {seconds * 1e3:8.2f} {kernel.multiplies / seconds / 1e9:9.0f} "
                f"{kernel.done / seconds / 1e9:9.0f} {kernel.done / seconds / roof:8.0%} "
                f"{kernel.moved / seconds / 1e9:5.1f} GB/s",
                flush=True,
            )


if __name__ == "__main__":
    main()
