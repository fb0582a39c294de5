"""The engine computes what the modules compute, however the work is cut, kept and shared out."""

import pytest
import torch
from engines import (
    ENCODER_RUNGS,
    ENGINE,
    ON_TWO_LATENTS,
    RUNGS,
    assert_as_exact,
    build,
    decode,
    decode_plan,
    encode,
    encode_plan,
    tiles,
)
from hypothesis import given
from hypothesis import strategies as st
from oracle import CONFIGS, assert_close, noise

from temporal_vae.engine.run import run

pytestmark = pytest.mark.usefixtures("two_threads")

each_config = pytest.mark.parametrize("options", CONFIGS.values(), ids=CONFIGS)
each_rung = pytest.mark.parametrize("rung", RUNGS)
# How many clips, and strips and runs of how many rows and pixels.
each_cut = pytest.mark.parametrize(
    ("clips", "rows", "pixels"), [(1, 8, 30), pytest.param(2, 4, 9, marks=pytest.mark.slow)]
)
each_encoder_rung = pytest.mark.parametrize("rung", ENCODER_RUNGS)

DEEP = {"block_out_channels": (32, 64, 96), "layers_per_block": 2}


@pytest.fixture(scope="module")
def deep():
    """Three levels, attention in encoder and decoder, widths that grow and no two alike."""
    return build(**DEEP)


@pytest.fixture(scope="module")
def exact():
    """The same in float64."""
    return build(torch.float64, **DEEP)


@pytest.fixture(scope="module")
def whole(deep):
    """Two clips of three frames by the modules, and their latents."""
    z = noise(6, 4, 5, 7)
    with torch.no_grad():
        return z, deep.decoder(z, num_frames=3)


# Every configuration, on every rung


@each_cut
@each_rung
@each_config
@torch.no_grad()
def test_decode(options, rung, clips, rows, pixels):
    model = build(**options)
    z = noise(3 * clips, model.config.latent_channels, 3, 5)
    with tiles(rows, pixels):
        assert_close(decode(model, z, 3, rung, workers=2), model.decoder(z, num_frames=3), ENGINE)


@each_cut
@each_encoder_rung
@each_config
@torch.no_grad()
def test_encode(options, rung, clips, rows, pixels):
    model = build(**options)
    x = noise(3 * clips, model.config.in_channels, 25, 19)
    with tiles(rows, pixels):
        assert_close(encode(model, x, rung, workers=2), model.encoder(x), ENGINE)


@pytest.mark.parametrize("pixels", [20, pytest.param(5, marks=pytest.mark.slow)])
@each_config
@torch.no_grad()
def test_float64(options, pixels):
    """There, only the order of sums differs."""
    model = build(torch.float64, **options)
    z, x = noise(3, model.config.latent_channels, 3, 5), noise(2, model.config.in_channels, 17, 13)
    with tiles(4, pixels):
        expected = model.decoder(z.double(), num_frames=3)
        for rung in ("whole", "rematerialise and recompute", "spill"):
            assert_close(decode(model, z.double(), 3, rung), expected, 1e-12)
        expected = model.encoder(x.double())
        for rung in ENCODER_RUNGS:
            assert_close(encode(model, x.double(), rung), expected, 1e-12)


# However it is cut


@pytest.mark.parametrize("rung", ["whole", "rematerialise and recompute", "spill"])
@pytest.mark.parametrize(
    ("rows", "pixels"),
    [(4, 7), (8, 50), pytest.param(12, 48, marks=pytest.mark.slow), (1000, 100000)],
)
def test_tile_sizes_change_nothing(deep, whole, rung, rows, pixels):
    z, expected = whole
    with tiles(rows, pixels):
        assert_close(decode(deep, z, 3, rung, workers=2), expected, ENGINE)


@torch.no_grad()
def test_runs_of_one_pixel(deep):
    z = noise(3, 4, 2, 3)
    with tiles(4, 1):
        for rung in ("whole", "recompute temporal"):
            assert_close(decode(deep, z, 3, rung), deep.decoder(z, num_frames=3), ENGINE)


@pytest.mark.parametrize("workers", [2, pytest.param(3, marks=pytest.mark.slow), 5])
def test_threads_change_not_one_bit(deep, whole, workers):
    """Tiles that are the same give the same, whoever computes them; sums are merged in the order of the tiles."""
    z, _ = whole
    x = noise(3, 3, 21, 26)
    threads = torch.get_num_threads()
    with tiles(8, 10):
        for rung in ("whole", "rematerialise and recompute", "spill"):
            assert torch.equal(decode(deep, z[:3], 3, rung, workers), decode(deep, z[:3], 3, rung))
        assert torch.equal(encode(deep, x, workers=workers), encode(deep, x))
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("workers", [1, 2, 3, 5])
def test_threads_cut_as_they_like(deep, whole, workers):
    z, expected = whole
    assert_close(decode(deep, z, 3, workers=workers), expected, ENGINE)


@pytest.mark.parametrize("together", [1, 2, 3, 6])
@torch.no_grad()
def test_groups_of_encoded_frames(deep, together):
    x = noise(6, 3, 16, 20)
    with tiles(4, 9):
        grouped = encode(deep, x, together=together)
        assert torch.equal(grouped, encode(deep, x))
    assert_close(grouped, deep.encoder(x), ENGINE)


# Whatever the shape

SIZES = [(1, 1), (1, 2), (1, 9), (9, 1), (2, 3), (4, 4), (5, 7), (11, 13), (3, 50)]


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_latents_of_every_size(deep, exact, size):
    z = noise(2, 4, *size)
    modules, expected = deep.decoder(z, num_frames=2), exact.decoder(z.double(), num_frames=2)
    for rung in ("whole", "rematerialise and recompute", "spill"):
        assert_as_exact(decode(deep, z, 2, rung), modules, expected)


@pytest.mark.parametrize("size", [(4, 4), (5, 4), (4, 7), (7, 6), (9, 40), (31, 8), (23, 29), (13, 53)])
@torch.no_grad()
def test_frames_of_every_size(deep, exact, size):
    x = noise(2, 3, *size)
    modules, expected = deep.encoder(x), exact.encoder(x.double())
    for rung in ENCODER_RUNGS:
        assert_as_exact(encode(deep, x, rung), modules, expected)


@pytest.mark.parametrize("frames", [*range(1, 10), 13, 25, 60])
@torch.no_grad()
def test_clips_of_every_length(frames):
    model = build(block_out_channels=(64,), layers_per_block=1)
    z = noise(frames, 4, 3, 5)
    expected = model.decoder(z, num_frames=frames)
    for rung in ("whole", "recompute temporal", "spill"):
        assert_close(decode(model, z, frames, rung), expected, ENGINE)


def test_each_clip_of_a_batch_is_a_clip(deep):
    z = noise(8, 4, 5, 7)
    together = decode(deep, z, 2, workers=2)
    alone = [decode(deep, clip, 2, workers=2) for clip in z.split(2)]
    assert torch.equal(together, torch.cat(alone))


LAYOUTS = {
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "a view": lambda x: torch.cat([x, x], 3)[..., : x.shape[3]],
    "every other": lambda x: x.repeat_interleave(2, 0)[::2],
    "turned": lambda x: x.flip(2).contiguous().flip(2).transpose(2, 3).contiguous().transpose(2, 3),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@torch.no_grad()
def test_layouts_of_the_input(deep, layout):
    z, x = noise(4, 4, 5, 7), noise(4, 3, 17, 22)
    strange = layout(z), layout(x)
    assert not strange[0].is_contiguous()
    assert torch.equal(strange[0], z)
    assert torch.equal(decode(deep, strange[0], 2), decode(deep, z, 2))
    assert torch.equal(encode(deep, strange[1]), encode(deep, x))


def test_one_frame_again_and_again(deep):
    """Expanded: all frames are the same memory."""
    z = noise(1, 4, 5, 7)
    assert torch.equal(decode(deep, z.expand(4, -1, -1, -1), 4), decode(deep, z.repeat(4, 1, 1, 1), 4))


def test_the_input_stays_as_it_is_and_the_result_is_new(deep):
    z, x = noise(4, 4, 5, 7), noise(4, 3, 16, 20)
    before = z.clone(), x.clone()
    first, second = decode(deep, z, 2), decode(deep, z, 2)
    assert torch.equal(first, second)
    assert first.data_ptr() != second.data_ptr()
    assert not first.requires_grad
    encode(deep, x)
    assert torch.equal(z, before[0])
    assert torch.equal(x, before[1])


def test_inference_mode(deep):
    z = noise(4, 4, 5, 7)
    expected = decode(deep, z, 2)
    with torch.inference_mode():
        deep.enable_tiling()
        assert_close(deep.decode(z, num_frames=2).sample, expected, ENGINE)


# Whatever hypothesis thinks of

MODELS = [
    {"block_out_channels": (64,), "layers_per_block": 1, "latent_channels": 4},
    {"block_out_channels": (32, 64), "layers_per_block": 2, "latent_channels": 16, "in_channels": 1},
    {"block_out_channels": (96, 64), "layers_per_block": 3, "latent_channels": 8, "out_channels": 1},
    {"block_out_channels": (32, 32, 64, 64), "layers_per_block": 1, "latent_channels": 20},
]
TYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
built = {(index, dtype): build(dtype, **options) for index, options in enumerate(MODELS) for dtype in TYPES}
some_model = st.integers(0, len(MODELS) - 1)
some_type = st.sampled_from([torch.float32, *TYPES])


@given(
    index=some_model,
    dtype=some_type,
    frames=st.integers(1, 9),
    clips=st.integers(1, 2),
    size=st.tuples(st.integers(1, 9), st.integers(2, 9)),
    rung=st.sampled_from(list(RUNGS)),
    workers=st.integers(1, 5),
)
@torch.no_grad()
def test_any_decode(index, dtype, frames, clips, size, rung, workers):
    """The plan's work memory suffices (`Scratch.take`), its work is done (`decode`), and the result is right."""
    z = noise(clips * frames, MODELS[index]["latent_channels"], *size).to(dtype)
    found = decode(built[index, dtype], z, frames, rung, workers)
    assert torch.isfinite(found).all()
    if dtype == torch.float32:
        exact = built[index, torch.float64].decoder(z.double(), num_frames=frames)
        assert_as_exact(found, built[index, dtype].decoder(z, num_frames=frames), exact)


@given(
    index=some_model,
    frames=st.integers(1, 9),
    size=st.tuples(st.integers(1, 9), st.integers(2, 9)),
    share=st.floats(0, 1),
    encoded=st.booleans(),
)
@torch.no_grad()
def test_any_limit(index, frames, size, share, encoded):
    """Levels on rungs of their own, as the planner mixes them; every plan that it can make runs."""
    model, exact = built[index, torch.float32], built[index, torch.float64]
    channels = model.config.in_channels if encoded else model.config.latent_channels
    if encoded:
        size = tuple(length * model.spatial_factor for length in size)
    x = noise(frames, channels, *size)
    plan = encode_plan if encoded else decode_plan
    part = "encoder" if encoded else "decoder"
    pixels = size if encoded else tuple(length * model.spatial_factor for length in size)
    settings = {"frames": frames, "size": pixels}
    rungs = ENCODER_RUNGS if encoded else RUNGS
    network = model.network
    peaks = [plan(network, rung, **settings).peak for rung in rungs]
    limit = int(min(peaks) + share * (max(peaks) - min(peaks)))
    made = plan(network, *rungs, limit=limit, **settings)
    options = {} if encoded else {"num_frames": frames}
    found = run(getattr(model, part), x, made, lambda amount: None)
    bound = ON_TWO_LATENTS if pixels == (model.spatial_factor, 2 * model.spatial_factor) else ENGINE
    modules = getattr(model, part)(x, **options)
    assert_as_exact(found, modules, getattr(exact, part)(x.double(), **options), bound)


@given(
    index=some_model,
    dtype=some_type,
    frames=st.integers(1, 6),
    size=st.tuples(st.integers(9, 40), st.integers(16, 40)),
    rung=st.sampled_from(ENCODER_RUNGS),
    workers=st.integers(1, 5),
)
@torch.no_grad()
def test_any_encode(index, dtype, frames, size, rung, workers):
    x = noise(frames, MODELS[index].get("in_channels", 3), *size).to(dtype)
    found = encode(built[index, dtype], x, rung, workers)
    assert torch.isfinite(found).all()
    if dtype == torch.float32:
        exact = built[index, torch.float64].encoder(x.double())
        assert_as_exact(found, built[index, dtype].encoder(x), exact)
