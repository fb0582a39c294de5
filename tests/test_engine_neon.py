"""The kernels for ARM processors, run by an emulator: code for NEON computes what this processor's own computes.

Kernels are compiled for ARM and linked to `neon.c`, which QEMU runs. Wherever a kernel is called, the memory that it is
handed goes there and comes back. Needs Debian's qemu-user, gcc-aarch64-linux-gnu and libc6-dev-arm64-cross.
"""

import ctypes
import shutil
import struct
import subprocess
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
import torch
from oracle import error, noise, randomise
from torch import nn

from temporal_vae.engine import processor
from temporal_vae.engine.geometry import attention_room, padded
from temporal_vae.engine.kernels import attention, compiler, native, native_code, operands
from temporal_vae.engine.kernels.naive import NaiveKernels
from temporal_vae.engine.kernels.native import NativeKernels
from temporal_vae.engine.processor import Machine
from temporal_vae.engine.stats import Affine
from temporal_vae.engine.storage import Rows, Scratch
from temporal_vae.engine.workers import Workers

CPU = torch.device("cpu")
COMPILER, EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64"
TRIPLE = "aarch64-unknown-linux-gnu"
NEON = Machine(kernels="neon", name="neoverse-n1", features="+neon", lanes=4, rows=12, columns=2)
PAGE = 4096
MANY, FEW = 10**6, 1

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(processor.host() is None, reason="no kernels for this processor"),
    pytest.mark.skipif(
        not (shutil.which(COMPILER) and shutil.which(EMULATOR)), reason="no emulator of ARM processors"
    ),
]


class Memory:
    """What kernels are handed: every operand passes `address` or is taken from scratch."""

    def __init__(self):
        self.blocks = {}

    def add(self, place, nbytes):
        self.blocks[place] = max(nbytes, self.blocks.get(place, 0))

    def pages(self):
        """Whole pages that cover the blocks, as (first, last) addresses."""
        found = []
        for place, nbytes in sorted(self.blocks.items()):
            first, last = place // PAGE * PAGE, -(-(place + nbytes) // PAGE) * PAGE
            if found and first <= found[-1][1]:
                found[-1] = (found[-1][0], max(last, found[-1][1]))
            else:
                found.append((first, last))
        return found


@pytest.fixture
def emulated(tmp_path, monkeypatch):
    """Sweeps run by the emulator; how many did."""
    memory, numbers, done = Memory(), count(), []
    address, table, place = operands.address, operands.table, Scratch.address

    def watched_address(operand, tensor, *given):
        found = address(operand, tensor, *given)
        memory.add(found, tensor.nbytes)
        return found

    def watched_table(*given):
        found = table(*given)
        memory.add(found.ctypes.data, found.nbytes)
        return found

    def watched_scratch(self, nbytes):
        found = place(self, nbytes)
        memory.add(found, nbytes)
        return found

    def sweep(emit, call, job, machine, *name):
        if name[0] == "pack":  # of weights that nobody hands over by `address`
            return here(emit, call, job, machine, *name)
        objects = []

        def caught(emit, arguments, machine, *_):
            objects.append(for_arm(emit, arguments, machine))

        with monkeypatch.context() as patch:
            patch.setattr(compiler, "function", caught)
            here(emit, call, job, machine, *name)
        code, program = tmp_path / f"{next(numbers)}.o", tmp_path / f"{next(numbers)}"
        code.write_bytes(objects[0])
        source = Path(__file__).with_name("neon.c")
        subprocess.run([COMPILER, "-O1", "-static", "-o", program, source, code], check=True)

        def run(fields, jobs, number, ticket, scratch, most):
            memory.add(fields, 8 * len(call))
            memory.add(jobs, 8 * len(job) * number)
            memory.add(ticket, 8)
            emulate(program, memory, (fields, jobs, number, ticket, scratch, most), tmp_path)
            done.append(name)

        return run

    here, make, own = compiler.sweep, compiler.function, processor.host()
    monkeypatch.setattr(compiler, "sweep", sweep)
    monkeypatch.setattr(
        compiler,
        "function",  # what is not emulated runs here, with vectors as long as those of NEON
        lambda emit, arguments, machine, *name: make(
            emit, arguments, replace(machine, name=own.name, features=own.features), *name
        ),
    )
    for module in (native, attention):
        monkeypatch.setattr(module, "address", watched_address)
    monkeypatch.setattr(attention, "_attend", attention._attend.__wrapped__)
    monkeypatch.setattr(operands, "address", watched_address)
    monkeypatch.setattr(native, "table", watched_table)
    monkeypatch.setattr(Scratch, "address", watched_scratch)
    monkeypatch.setattr(processor, "host", lambda: NEON)
    for name in ("_spatial", "_temporal", "_halve"):
        monkeypatch.setattr(native_code, name, getattr(native_code, name).__wrapped__)
    return done


def for_arm(emit, arguments, machine):
    """An object file for ARM."""
    llvm = compiler.llvm
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    target = llvm.Target.from_triple(TRIPLE).create_target_machine(
        cpu=machine.name, features=machine.features, opt=3, reloc="static"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(llvm, "get_default_triple", lambda: TRIPLE)
        patch.setattr(compiler, "_target", lambda _: target)
        return compiler.compiled(emit, arguments, machine)


def emulate(program, memory, arguments, folder):
    """Call the kernel of a program on the memory, and bring back what it wrote."""
    given, written = folder / "in", folder / "out"
    pages = memory.pages()
    with given.open("wb") as file:
        file.write(struct.pack("<q", len(pages)))
        for first, last in pages:
            file.write(struct.pack("<qq", first, last - first))
        file.write(struct.pack("<6q", *arguments))
        for first, last in pages:
            file.write(ctypes.string_at(first, last - first))
    subprocess.run([EMULATOR, program, given, written], check=True)
    results = written.read_bytes()
    for place, nbytes in memory.blocks.items():
        start = 0
        for first, last in pages:
            if first <= place < last:
                start += place - first
                ctypes.memmove(place, results[start : start + nbytes], nbytes)
                break
            start += last - first


def twins(dtype):
    """The kernels for ARM and those that say what is right, each with scratch and room for weights."""
    found, exact = NativeKernels(dtype, Workers(1, CPU)), NaiveKernels(CPU)
    rooms = [Scratch(CPU) for _ in range(3)]
    for room in rooms:
        room.resize(2**23)
    found.sums.resize(2**20)
    return found, exact, rooms


def close(found, exact, dtype):
    """Within the rounding of what is stored, and of float32."""
    allowed = {torch.float32: 0.0, torch.bfloat16: 2**-8, torch.float16: 2**-11}[dtype]
    assert ((found.double() - exact).abs() <= allowed * exact.abs() + 5e-6 * exact.abs().max()).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("pixels", [MANY, FEW], ids=["many", "few"])
@torch.no_grad()
def test_space(emulated, dtype, pixels):
    found, exact, (room, own, other) = twins(dtype)
    conv = randomise(nn.Conv2d(16, 24, 3)).to(dtype)
    source = noise(9, 14, 16).to(dtype)
    affine = Affine(1 + 0.1 * noise(1, 16), 0.1 * noise(1, 16, seed=3))
    target = torch.zeros(9, 14, 24, dtype=dtype)
    weights = found.spatial_weights(conv, room, pixels)
    moments = found.sweep_space([source], [target], weights, affine, [own], lambda share: None)
    right = torch.zeros(9, 14, 24, dtype=torch.float64)
    expected = exact.spatial(
        Rows(source.double(), 0, 9),
        Rows(right, 0, 9),
        exact.spatial_weights(conv.double(), other, pixels),
        Affine(affine.scale[0].double(), affine.shift[0].double()),
        other,
    )
    close(target, right, dtype)
    assert error(moments.mean, expected.mean) < 1e-2
    assert set(emulated) == {("spatial", str(dtype).removeprefix("torch."), True, weights.direct)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("pixels", [MANY, FEW], ids=["many", "few"])
@pytest.mark.parametrize("frames", [1, 3, 6])
@torch.no_grad()
def test_time(emulated, dtype, pixels, frames):
    found, exact, (room, own, other) = twins(dtype)
    conv = randomise(nn.Conv3d(16, 24, (3, 1, 1))).to(dtype)
    source = [noise(60, 16, seed=t).to(dtype) for t in range(frames)]
    target = [noise(60, 24, seed=9 + t).to(dtype) for t in range(frames)]
    right = [one.double() for one in target]
    affine = Affine(1 + 0.1 * noise(1, 16), 0.1 * noise(1, 16, seed=3))
    weights = found.temporal_weights(conv, frames, room, pixels)
    found.sweep_time(source, target, weights, affine, [own], lambda share: None, add=True)
    exact.temporal(
        [one.double() for one in source],
        right,
        exact.temporal_weights(conv.double(), frames, other, pixels),
        Affine(affine.scale.double(), affine.shift.double()),
        other,
        add=True,
    )
    close(torch.stack(target), torch.stack(right), dtype)
    assert emulated


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_halving(emulated, dtype):
    found, _, (room, own, _) = twins(dtype)
    conv = randomise(nn.Conv2d(16, 24, 3)).to(dtype)
    source, target = noise(8, 10, 16).to(dtype), torch.zeros(4, 5, 24, dtype=dtype)
    found.sweep_halving([source], [target], found.strided_weights(conv, room, FEW), [own], lambda share: None)
    image = nn.functional.pad(source.double().permute(2, 0, 1)[None], (0, 1, 0, 1))
    right = nn.functional.conv2d(image, conv.weight.double(), conv.bias.double(), stride=2)
    close(target, right[0].permute(1, 2, 0), dtype)
    assert emulated


@pytest.mark.parametrize("count", [3, 70, 300])
def test_attention(emulated, count):
    found, _, _ = twins(torch.float32)
    room = Scratch(CPU)
    room.resize(attention_room(32))
    queries, keys, values = noise(3, count, 32)
    asked = attention.KeysAndValues(*torch.full((2, padded(count, 32), 32), torch.nan), count)
    asked.put(0, keys, values)
    target = queries * 32**-0.5
    found.answer(asked, target, [room], lambda share: None)
    wide = [x.double()[None] for x in (queries, keys, values)]
    close(target, nn.functional.scaled_dot_product_attention(*wide)[0], torch.float32)
    assert set(emulated) == {("attend",)}
