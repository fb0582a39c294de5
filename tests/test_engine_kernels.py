"""The kernels in machine code compute what their twins in plain torch define, on this processor and on others."""

import ctypes
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracle import error, noise, randomise
from torch import nn

from temporal_vae.engine import processor
from temporal_vae.engine.geometry import BLOCK, DIRECT_ROWS, PAD, Span, spans
from temporal_vae.engine.kernels import compiler, kernels_for, native_code
from temporal_vae.engine.kernels.naive import NaiveKernels
from temporal_vae.engine.kernels.native import NativeKernels
from temporal_vae.engine.stats import Affine, Moments
from temporal_vae.engine.storage import Rows, Scratch
from temporal_vae.engine.workers import Workers

CPU = torch.device("cpu")
TYPES = [torch.float32, torch.bfloat16, torch.float16]
ALONE = Workers(1, CPU)
ROUNDING = {
    torch.float32: 2**-24,
    torch.bfloat16: 2**-8,
    torch.float16: 2**-11,
}  # half a unit in the last place
NAMES = {dtype: str(dtype).removeprefix("torch.") for dtype in TYPES}
each_type = pytest.mark.parametrize("dtype", TYPES, ids=NAMES.get)
# Of the largest value: a row of inputs is rounded to 14 bits, and Winograd filtering enlarges that.
FIXED = 1e-3
PAIRS = 4e-3  # of the largest value: inputs are rounded to bfloat16, and small results come of large terms
MANY, FEW = 10**6, 1  # pixels that weights are for: filtered or not
how_many = pytest.mark.parametrize("pixels", [MANY, FEW], ids=["many", "few"])
PLAIN = {"dots": False, "pairs": False, "tiles": False}
MACHINES = {
    "this": {},
    "bf16": {"tiles": False},
    "VNNI": {"tiles": False, "pairs": False},
    "AVX2": {**PLAIN, "lanes": 8, "rows": 6},
    "NEON": {**PLAIN, "lanes": 4},
    "odd": {**PLAIN, "lanes": 8, "rows": 4, "columns": 1},
}

pytestmark = [
    pytest.mark.usefixtures("two_threads"),
    pytest.mark.skipif(processor.host() is None, reason="no kernels for this processor"),
]


@pytest.fixture(
    params=[
        pytest.param(machine, id=name, marks=[pytest.mark.slow] if name == "odd" else [])
        for name, machine in MACHINES.items()
    ]
)
def machine(request, monkeypatch):
    """This processor, or kernels tiled for the registers of another one; the compiler splits or joins vectors."""
    here = processor.host()
    other = replace(here, **request.param)
    if request.param and other == here:
        pytest.skip("as this processor")
    monkeypatch.setattr(processor, "host", lambda: other)
    return other


@pytest.fixture
def this_machine():
    return processor.host()


class Twins:
    """A native kernel and its twin: one in some type, the other in float64 on the very same values."""

    def __init__(self, dtype, pixels=MANY):
        self.dtype = dtype
        self.pixels = pixels
        self.native = NativeKernels(dtype, ALONE)
        self.naive = NaiveKernels(CPU)
        self.rooms = [Scratch(CPU) for _ in range(2)]
        for room in self.rooms:
            room.resize(2**26)

    def rounds_inputs(self, taps):
        """Whether activated inputs are rounded to bfloat16, as modules round them."""
        name = NAMES[self.dtype]
        pairs = processor.multiplies_pairs(name)
        return pairs and not processor.filters(
            processor.arithmetic("cpu", name), self.pixels, taps, pairs=pairs
        )

    def each(self, call):
        """`call(kernels, room, cast)` with both; the target and the moments of both."""
        results = []
        for kernels, dtype in ((self.native, self.dtype), (self.naive, torch.float64)):
            for room in self.rooms:
                room.reset()
            results.append(call(kernels, *self.rooms, lambda x, dtype=dtype: x.to(self.dtype).to(dtype)))
        return results

    def compare(self, call, taps):
        tolerance = FIXED if processor.arithmetic("cpu", NAMES[self.dtype]) == "int16" else 4e-6
        tolerance = PAIRS if self.rounds_inputs(taps) else tolerance
        (found, moments), (exact, expected) = self.each(call)
        assert found.dtype == self.dtype
        scale = exact.abs().max()
        allowed = ROUNDING[self.dtype] * exact.abs() + tolerance * scale
        assert ((found.double() - exact).abs() <= allowed).all()
        assert moments.count == expected.count
        assert error(moments.mean, expected.mean) <= tolerance
        difference = (moments.m2 - expected.m2).abs()
        assert difference.max() <= 4 * tolerance * max(expected.m2.max(), scale)


def conv2d(inputs, outputs, cast, size=3):
    conv = randomise(nn.Conv2d(inputs, outputs, size))
    conv.weight.data, conv.bias.data = cast(conv.weight.data), cast(conv.bias.data)
    return conv


def conv3d(inputs, outputs, cast):
    conv = randomise(nn.Conv3d(inputs, outputs, (3, 1, 1)))
    conv.weight.data, conv.bias.data = cast(conv.weight.data), cast(conv.bias.data)
    return conv


def pending(channels, cast):
    """A norm that is due, in the type that the engine would hand over."""
    wide = torch.float64 if cast(torch.zeros(1)).dtype == torch.float64 else torch.float32
    scale, shift = 1 + 0.3 * noise(channels, seed=5), 0.3 * noise(channels, seed=6)
    return Affine(scale.to(wide), shift.to(wide))


def padded(x, channels):
    return F.pad(x, (0, channels - x.shape[-1]))


@torch.no_grad()
def spatial(twins, inputs, outputs, height, width, *, rows=None, norm=True, add=False, enlarge=False, seed=1):
    """Compare a 3x3 convolution, strip by strip."""
    tall, wide = height << enlarge, width << enlarge

    def call(kernels, weights_room, scratch, cast):
        picture = cast(noise(height, width, inputs, seed=seed))
        target = (
            cast(noise(tall, wide, outputs, seed=2)) if add else cast(torch.full((tall, wide, outputs), 7.0))
        )
        weights = kernels.spatial_weights(
            conv2d(inputs, outputs, cast), weights_room, twins.pixels, enlarge=enlarge
        )
        affine = pending(inputs, cast) if norm else None
        parts = []
        for span in spans(tall, rows or tall, 4):
            source = (span.halved() if enlarge else span).widened(1, height)
            read = Rows(picture[source.first : source.last], source.first, height)
            written = Rows(target[span.first : span.last], span.first, tall)
            parts.append(kernels.spatial(read, written, weights, affine, scratch.reset(), add=add))
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return target, total

    twins.compare(call, 9)


@torch.no_grad()
def temporal(twins, inputs, outputs, frames, pixels, *, add=False, factor=None):
    """Compare a (3,1,1) convolution."""

    def call(kernels, weights_room, scratch, cast):
        sources = [cast(noise(pixels, inputs, seed=3 + t)) for t in range(frames)]
        targets = [cast(noise(pixels, outputs, seed=50 + t)) for t in range(frames)]
        weights = kernels.temporal_weights(
            conv3d(inputs, outputs, cast), frames, weights_room, twins.pixels, factor=factor
        )
        moments = kernels.temporal(sources, targets, weights, pending_clip(inputs, cast), scratch, add=add)
        return torch.stack(targets), moments

    def pending_clip(channels, cast):
        affine = pending(channels, cast)
        return Affine(affine.scale[None], affine.shift[None])

    twins.compare(call, 1 if frames == 1 else 3)


# On this processor and others, in every type


@each_type
@how_many
def test_spatial(machine, dtype, pixels):
    twins = Twins(dtype, pixels)
    spatial(twins, 64, 96, 9, 11)
    spatial(twins, 96, 32, 9, 11, norm=False)
    spatial(twins, 32, 64, 9, 11, add=True, rows=4)
    spatial(twins, 32, 32, 5, 7, norm=False, enlarge=True)


@each_type
@how_many
def test_temporal(machine, dtype, pixels):
    twins = Twins(dtype, pixels)
    for frames in (1, 4, 7):
        temporal(twins, 64, 96, frames, 53)
    temporal(twins, 32, 32, 5, 10, add=True, factor=torch.tensor([0.3]))


@each_type
@how_many
@torch.no_grad()
def test_pointwise(machine, dtype, pixels):
    def call(kernels, weights_room, scratch, cast):
        picture, target = cast(noise(9, 11, 64)), cast(torch.zeros(4, 11, 96))
        weights = kernels.pointwise_weights(conv2d(64, 96, cast, size=1), weights_room, twins.pixels)
        rows = Rows(target, 4, 9)
        return target, kernels.pointwise(Rows(picture[3:], 3, 9), rows, weights, scratch)

    twins = Twins(dtype, pixels)
    twins.compare(call, 1)


@each_type
@how_many
@torch.no_grad()
def test_strided(machine, dtype, pixels):
    """The nine neighbours side by side."""

    def call(kernels, weights_room, scratch, cast):
        neighbours, target = cast(noise(3, 5, 9 * 32)), cast(torch.zeros(3, 5, 64))
        weights = kernels.strided_weights(conv2d(32, 64, cast), weights_room, twins.pixels)
        return target, kernels.pointwise(Rows(neighbours, 0, 3), Rows(target, 0, 3), weights, scratch)

    twins = Twins(dtype, pixels)
    twins.compare(call, 1)


# Whole frames, by all workers


@pytest.fixture(params=[1, 3])
def workers(request):
    with Workers(request.param, CPU).at_work() as workers:
        yield workers


def rooms(count):
    memory = [Scratch(CPU) for _ in range(count)]
    for one in memory:
        one.resize(2**24)
    return memory


@each_type
@how_many
@torch.no_grad()
def test_a_sweep_is_the_same_as_one_tile(this_machine, workers, dtype, pixels):
    """A frame after the other, by all workers; a job that has a part of the outputs too."""
    kernels, (room, *scratch) = NativeKernels(dtype, workers), rooms(1 + workers.count)
    kernels.sums.resize(2**22)
    done = []
    for frames, height, width in ((3, 9, 50), (1, 5, 7)):
        sources = [noise(height, width, 64, seed=t).to(dtype) for t in range(frames)]
        norm = Affine(1 + 0.1 * noise(frames, 64), noise(frames, 64))
        weights = kernels.spatial_weights(conv2d(64, 96, lambda x: x.to(dtype)), room.reset(), pixels)
        alone = [torch.zeros(height, width, 96, dtype=dtype) for _ in range(frames)]
        expected = [
            kernels.spatial(
                Rows(source, 0, height),
                Rows(target, 0, height),
                weights,
                norm.of(t),
                scratch[0].reset(),
            )
            for t, (source, target) in enumerate(zip(sources, alone, strict=True))
        ]
        found = [torch.full_like(target, 7.0) for target in alone]
        moments = kernels.sweep_space(sources, found, weights, norm, scratch, done.append)
        assert all(map(torch.equal, found, alone))
        assert error(moments.mean, torch.cat([one.mean for one in expected])) < 1e-12
        assert error(moments.m2, torch.cat([one.m2 for one in expected])) < 1e-6
        flat = [[one.flatten(0, 1) for one in some] for some in (sources, found, alone)]
        weights = kernels.temporal_weights(
            conv3d(64, 96, lambda x: x.to(dtype)), frames, room.reset(), pixels
        )
        clip = Affine(norm.scale[:1], norm.shift[:1])
        moments = kernels.sweep_time(*flat[:2], weights, clip, scratch, done.append, add=True)
        expected = kernels.temporal(flat[0], flat[2], weights, clip, scratch[0].reset(), add=True)
        assert all(map(torch.equal, found, alone))
        assert error(moments.mean, expected.mean) < 1e-12
        assert error(moments.m2, expected.m2) < 1e-6
    assert sum(done) == pytest.approx(4.0)


@each_type
@pytest.mark.parametrize("size", [(8, 12), (7, 9), (33, 2), (3, 50)])
@torch.no_grad()
def test_halving(this_machine, workers, dtype, size):
    kernels, (room, *scratch) = NativeKernels(dtype, workers), rooms(1 + workers.count)
    kernels.sums.resize(2**22)
    conv = conv2d(32, 64, lambda x: x.to(dtype).float())
    sources = [noise(*size, 32, seed=t).to(dtype) for t in range(2)]
    targets = [torch.zeros(size[0] // 2, size[1] // 2, 64, dtype=dtype) for _ in sources]
    weights = kernels.strided_weights(conv.to(dtype), room, FEW)
    if not weights.direct:
        pytest.skip("integers are multiplied tile by tile")
    moments = kernels.sweep_halving(sources, targets, weights, scratch, lambda share: None)
    for t, (source, target) in enumerate(zip(sources, targets, strict=True)):
        image = F.pad(source.double().permute(2, 0, 1)[None], (0, 1, 0, 1))
        exact = F.conv2d(image, conv.weight.double(), conv.bias.double(), stride=2)[0].permute(1, 2, 0)
        assert error(target.double(), exact) < 2 * ROUNDING[dtype] + 4e-6
        assert error(moments.mean[t], exact.flatten(0, 1).mean(0)) < ROUNDING[dtype] + 1e-5


# Every shape, here


@pytest.mark.parametrize("width", [1, 2, 3, 4, 5, 8, 9, 50, 193, 200])
@pytest.mark.parametrize("height", [1, 3, 4, 6])
@how_many
def test_pictures_of_every_size(this_machine, height, width, pixels):
    twins = Twins(torch.float32, pixels)
    spatial(twins, 32, 32, height, width)
    spatial(twins, 32, 32, height, width, norm=False, enlarge=True)


@pytest.mark.parametrize("rows", [4, 8, 12])
@pytest.mark.parametrize("enlarge", [False, True])
@how_many
def test_strips(this_machine, rows, enlarge, pixels):
    spatial(Twins(torch.float32, pixels), 32, 64, 19, 13, rows=rows, enlarge=enlarge, norm=not enlarge)


@pytest.mark.parametrize("channels", [(32, 160), (160, 96), (96, 96), (224, 32)])
@how_many
def test_widths(this_machine, channels, pixels):
    twins = Twins(torch.float32, pixels)
    spatial(twins, *channels, 6, 5)
    temporal(twins, *channels, 3, 7)


@pytest.mark.parametrize("frames", [*range(1, 14), 60])
@how_many
def test_clips_of_every_length(this_machine, frames, pixels):
    temporal(Twins(torch.float32, pixels), 32, 32, frames, 5)


@pytest.mark.parametrize("pixels", [1, 11, 12, 13, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 5])
@pytest.mark.parametrize("few", [False, True])
def test_runs_of_every_length(this_machine, pixels, few):
    temporal(Twins(torch.float32, FEW if few else MANY), 32, 32, 2, pixels)


@how_many
@torch.no_grad()
def test_few_channels_are_padded(this_machine, pixels):
    """A picture of three colours comes in, with zeros; one of three colours goes out, and the rest is not looked at."""
    kernels = NativeKernels(torch.float32, ALONE)
    rooms = [Scratch(CPU), Scratch(CPU)]
    for room in rooms:
        room.resize(2**24)
    conv = randomise(nn.Conv2d(3, 5, 3, padding=1))
    weights = kernels.spatial_weights(conv, rooms[0], pixels)
    picture, target = noise(6, 7, 3), torch.zeros(6, 7, weights.outputs)
    wide = padded(picture, kernels.inputs_multiple)
    kernels.spatial(Rows(wide, 0, 6), Rows(target, 0, 6), weights, None, rooms[1])
    expected = conv(picture.permute(2, 0, 1)[None])[0].permute(1, 2, 0)
    assert error(target[..., :5], expected) < 2e-6
    assert (target[..., 5:] == 0).all()


@how_many
@torch.no_grad()
def test_scratch_of_a_kernel_is_not_overrun(this_machine, pixels):
    """The last piece of scratch ends where a kernel stops writing; what lies behind it stays."""
    kernels = NativeKernels(torch.float32, ALONE)
    room, scratch = Scratch(CPU), Scratch(CPU)
    room.resize(2**24)
    scratch.resize(2**24)
    conv = randomise(nn.Conv2d(32, 32, 3, padding=1))
    weights = kernels.spatial_weights(conv, room, pixels)
    clip = randomise(nn.Conv3d(32, 32, (3, 1, 1)))
    over_time = kernels.temporal_weights(clip, 5, room, pixels)
    norm = Affine(torch.ones(1, 32), torch.zeros(1, 32))
    calls = [
        lambda: kernels.spatial(
            Rows(noise(8, 50, 32), 0, 8), Rows(torch.zeros(8, 50, 32), 0, 8), weights, None, scratch
        ),
        lambda: kernels.temporal(
            list(noise(5, 100, 32)), list(torch.zeros(5, 100, 32)), over_time, norm, scratch
        ),
    ]
    for call in calls:
        scratch.reset()._memory.fill_(0xAB)
        call()
        assert scratch._used < len(scratch._memory)
        assert (scratch._memory[scratch._used :] == 0xAB).all()


def test_which_kernels(monkeypatch):
    workers = ALONE
    assert type(kernels_for(CPU, torch.float32, workers)) is NativeKernels
    assert type(kernels_for(CPU, torch.float64, workers)) is NaiveKernels
    monkeypatch.setattr(processor, "host", lambda: None)
    assert type(kernels_for(CPU, torch.float32, workers)) is NaiveKernels


# One vector at a time


def vectorised(emit, lanes=None):
    """A function on arrays from an emitter of one vector: `emit(builder, source, target)` with addresses."""
    here = processor.host()
    lanes = lanes or here.lanes  # some words are there for this processor's registers only
    machine = replace(here, lanes=lanes, rows=1, columns=1)

    def loop(b, machine, source, target, count, source_step, target_step):
        with b.loop(0, count, machine.lanes) as i:
            emit(b, b.add(source, b.mul(i, source_step)), b.add(target, b.mul(i, target_step)))

    names = ("source", "target", "count", "source_step", "target_step")
    kernel = compiler.loaded(compiler.compiled(loop, names, machine), len(names))

    def run(source, target):
        assert len(source) % lanes == 0
        kernel(source.ctypes.data, target.ctypes.data, len(source), source.itemsize, target.itemsize)
        return target

    return run


def bits_of(tensor):
    return tensor.view(torch.int16).numpy()


def floats(count, seed=0):
    """Random bits as float32: all magnitudes, infinities and NaN."""
    random = np.random.default_rng(seed)
    special = [0, -0.0, 1, -1, np.inf, -np.inf, np.nan, 65504, 65520, 1e-8, 6e-8, 3.4e38, -3.4e38, 1e-40]
    values = random.integers(0, 2**32, count, dtype=np.uint32).view(np.float32)
    values[: len(special)] = special
    near = (random.integers(-2000, 2000, count // 2) / 1024).astype(np.float32)  # ties between neighbours
    values[count // 2 :] = near
    return values


@pytest.mark.parametrize("lanes", [4, 8, 16])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_values_are_rounded_to_nearest_even(dtype, lanes):
    values = floats(2**15)
    store = vectorised(lambda b, source, target: b.store(b.load(source), target, dtype), lanes)
    found = torch.from_numpy(store(values, np.zeros(len(values), np.int16))).view(getattr(torch, dtype))
    expected = torch.from_numpy(values).to(getattr(torch, dtype))
    nan = torch.isnan(expected)
    assert nan.any()
    assert torch.equal(torch.isnan(found), nan)
    assert torch.equal(found.view(torch.int16)[~nan], expected.view(torch.int16)[~nan])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_every_narrow_value_is_read(dtype):
    every = np.arange(2**16, dtype=np.uint16).view(np.int16)
    load = vectorised(lambda b, source, target: b.store(b.load(source, dtype), target))
    found = torch.from_numpy(load(every, np.zeros(len(every), np.float32)))
    expected = torch.from_numpy(every).view(getattr(torch, dtype)).float()
    assert torch.equal(found.nan_to_num(nan=7.0), expected.nan_to_num(nan=7.0))
    assert torch.equal(torch.isnan(found), torch.isnan(expected))


def silu_of(values, **options):
    silu = vectorised(lambda b, source, target: b.store(b.silu(b.load(source), **options), target))
    return torch.from_numpy(silu(values, np.zeros_like(values)))


def test_silu():
    """Within two units in the last place, of a quarter at least: what is nearly nothing need not be exact nothing."""
    x = np.concatenate([np.linspace(-100, 100, 2**16), np.linspace(-4, 4, 2**16)]).astype(np.float32)
    found, exact = silu_of(x).double(), F.silu(torch.from_numpy(x).double())
    unit = np.spacing(np.maximum(exact.abs().numpy(), 0.25).astype(np.float32))
    assert ((found - exact).abs().numpy() <= 2 * unit.astype(np.float64)).all()


def test_silu_for_bfloat16():
    """A hundredth of the rounding that follows it."""
    x = np.linspace(-20, 20, 2**16).astype(np.float32)
    found, exact = silu_of(x, rough=True).double(), F.silu(torch.from_numpy(x).double())
    assert ((found - exact).abs() <= 1.5e-4 * exact.abs()).all()


@pytest.mark.parametrize("rough", [False, True])
def test_silu_at_the_ends(rough):
    x = np.array([0, -0.0, np.inf, np.nan, 1e30, -1e4, -200, 3.4e38] * 2, np.float32)
    found = silu_of(x, rough=rough)[:8]
    assert found[0] == found[1] == 0
    assert found[2] == float("inf")
    assert torch.isnan(found[3])
    assert found[4] == x[4]
    assert found[7] == x[7]
    assert (found[5:7].abs() < 1e-30).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@each_type
@how_many
@torch.no_grad()
def test_nan_is_not_lost(this_machine, dtype, bad, pixels):
    """One bad value spoils what it touches, so that it is seen; it does not become a number."""
    kernels = NativeKernels(dtype, ALONE)
    room, scratch = Scratch(CPU), Scratch(CPU)
    for memory in (room, scratch):
        memory.resize(2**24)
    weights = kernels.spatial_weights(randomise(nn.Conv2d(32, 32, 3)).to(dtype), room, pixels)
    picture, target = noise(12, 12, 32).to(dtype), torch.zeros(12, 12, 32, dtype=dtype)
    picture[5, 5, 3] = bad
    norm = Affine(torch.ones(32), torch.zeros(32))
    moments = kernels.spatial(Rows(picture, 0, 12), Rows(target, 0, 12), weights, norm, scratch)
    assert not torch.isfinite(target[4:7, 4:7]).any()
    assert torch.isfinite(target[0]).all()
    assert not torch.isfinite(moments.mean).any()


def test_sums_do_not_need_a_small_mean(this_machine):
    """The sums of a kernel are float64: a large common offset leaves the variance intact."""
    kernels = NativeKernels(torch.float32, ALONE)
    room, scratch = Scratch(CPU), Scratch(CPU)
    for memory in (room, scratch):
        memory.resize(2**22)
    conv = nn.Conv2d(32, 32, 1)
    with torch.no_grad():
        conv.weight.copy_(torch.eye(32)[..., None, None])
        conv.bias.fill_(1000.0)
        picture, target = noise(40, 50, 32) * 0.1, torch.zeros(40, 50, 32)
        weights = kernels.pointwise_weights(conv, room, MANY)
        moments = kernels.pointwise(Rows(picture, 0, 40), Rows(target, 0, 40), weights, scratch)
    exact = Moments.of_values(target.double().view(1, -1, 32))
    assert error(moments.mean, exact.mean) < 1e-12
    assert error(moments.m2, exact.m2) < 1e-6


def test_a_kernel_is_compiled_once(this_machine):
    assert native_code.spatial("float32", True, False) is native_code.spatial("float32", True, False)
    assert native_code.temporal("float32", True, 3, 0) is native_code.temporal("float32", True, 3, 0)


def test_geometry_agrees_with_the_kernels(this_machine):
    """Tiles are multiplied `rows` at a time, so that a block must be made of them; scratch rows are padded."""
    for other in MACHINES.values():
        machine = replace(this_machine, **other)
        assert BLOCK % machine.rows == 0
        assert machine.rows <= DIRECT_ROWS
        assert 32 % (machine.lanes * machine.columns) == 0
    assert PAD * ctypes.sizeof(ctypes.c_float) % 64 == 0
    assert len(Span(3, 9)) == 6


# In 16-bit integers


@pytest.fixture
def integers(monkeypatch):
    """Kernels that multiply integers where this processor has better ones."""
    machine = replace(processor.host(), tiles=False, pairs=False)
    if not machine.dots:
        pytest.skip("this processor has no products of 16-bit integers")
    monkeypatch.setattr(processor, "host", lambda: machine)


@torch.no_grad()
def convolved(kernels, picture, weight, dtype):
    """What a kernel makes of a picture `(h, w, c)` and 3x3 weights."""
    room, scratch = Scratch(CPU), Scratch(CPU)
    for memory in (room, scratch):
        memory.resize(2**26)
    conv = nn.Conv2d(weight.shape[1], len(weight), 3).to(dtype)
    conv.weight.copy_(weight)
    conv.bias.zero_()
    height, width, _ = picture.shape
    target = torch.zeros(height, width, len(weight), dtype=dtype)
    weights = kernels.spatial_weights(conv, room, MANY)
    kernels.spatial(Rows(picture.to(dtype), 0, height), Rows(target, 0, height), weights, None, scratch)
    return target.double()


def exactly(picture, weight):
    return F.conv2d(picture.double().permute(2, 0, 1)[None], weight.double(), padding=1)[0].permute(1, 2, 0)


def bfloats(x):
    """Values that bfloat16 has."""
    return x.to(torch.bfloat16).float()


OUTLIERS = {
    "none": lambda x: x,
    "a channel": lambda x: x.index_fill(2, torch.tensor([3]), 30.0),
    "a pixel": lambda x: x.index_fill(0, torch.tensor([5]), 20.0),
    "nearly nothing": lambda x: x * 1e-20,
    "zeros": torch.zeros_like,
}


@pytest.mark.parametrize("spoil", OUTLIERS.values(), ids=OUTLIERS)
def test_integers_round_less_than_bfloat16(integers, spoil):
    """Of inputs that bfloat16 has, and against the rounding of the result alone, which nobody can avoid."""
    picture = bfloats(spoil(F.silu(noise(24, 24, 256))))
    weight = bfloats(noise(64, 256, 3, 3, seed=1) / 48)
    exact = exactly(picture, weight)
    rounding = (exact.to(torch.bfloat16).double() - exact).square().mean()
    found = convolved(NativeKernels(torch.bfloat16, ALONE), picture, weight, torch.bfloat16)
    assert (found - exact).square().mean() <= 4 * rounding


@pytest.mark.parametrize("channels", [32, 64, 96, 512])
def test_sums_of_integers_do_not_overflow(integers, channels):
    """All products of one sign and as large as they come: an overflow would turn it."""
    picture = torch.ones(12, 12, channels)
    for sign in (1.0, -1.0):
        weight = torch.full((32, channels, 3, 3), sign)
        found = convolved(NativeKernels(torch.bfloat16, ALONE), picture, weight, torch.bfloat16)
        assert error(found, exactly(picture, weight)) < 2**-8
