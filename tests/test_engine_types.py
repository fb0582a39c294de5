"""bfloat16 and float16: no further from the exact result than the modules are in the same type."""

from functools import lru_cache

import pytest
import torch
from engines import build, decode, encode
from oracle import noise, randomise

from temporal_vae.engine import processor

each_half = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
each_seed = pytest.mark.parametrize("seed", range(3))
SMALL = {"block_out_channels": (32, 64), "layers_per_block": 2}


def models(dtype, seed):
    """The same weights in float64, and rounded to `dtype`."""
    return [randomise(build(kind, **SMALL), seed) for kind in (torch.float64, dtype)]


def root_mean_square(found, exact):
    return (found.double() - exact).square().mean().sqrt().item()


def largest(found, exact):
    return (found.double() - exact).abs().max().item()


@torch.no_grad()
def errors(dtype, seed):
    """For decode and encode: what the engine makes of it, the modules, and the exact result."""
    _, half = models(dtype, seed)
    z, x = inputs(seed)
    engine = decode(half, z.to(dtype), 4), encode(half, x.to(dtype))
    return zip(engine, *by_modules(dtype, seed), strict=True)


def inputs(seed):
    return noise(4, 4, 8, 12, seed=seed), noise(2, 3, 32, 24, seed=seed)


@lru_cache
@torch.no_grad()
def by_modules(dtype, seed):
    """Decoded and encoded in a type, and exactly."""
    exact, half = models(dtype, seed)
    z, x = inputs(seed)
    return (
        (half.decoder(z.to(dtype), num_frames=4), half.encoder(x.to(dtype))),
        (exact.decoder(z.double(), num_frames=4), exact.encoder(x.double())),
    )


@each_seed
@each_half
def test_nearer_than_the_modules(dtype, seed):
    for engine, modules, exact in errors(dtype, seed):
        assert engine.dtype == modules.dtype == dtype
        assert root_mean_square(engine, exact) < 0.95 * root_mean_square(modules, exact)


@each_half
def test_the_largest_error_is_no_larger(dtype):
    """Of one value; chance has a say, so several seeds together."""
    found = torch.tensor(
        [
            [largest(engine, exact), largest(modules, exact)]
            for seed in range(4)
            for engine, modules, exact in errors(dtype, seed)
        ]
    )
    assert found[:, 0].sum() < 1.05 * found[:, 1].sum()


@each_half
def test_no_further_where_there_are_no_kernels(dtype, monkeypatch):
    monkeypatch.setattr(processor, "host", lambda: None)
    for engine, modules, exact in errors(dtype, seed=1):
        assert root_mean_square(engine, exact) < root_mean_square(modules, exact)


@each_half
@pytest.mark.parametrize("rung", ["rematerialise and recompute", "spill"])
@torch.no_grad()
def test_what_is_not_kept_is_not_rounded(dtype, rung):
    """A rung may round less than another, never more."""
    exact, half = models(dtype, seed=0)
    z = noise(4, 4, 8, 12)
    expected = exact.decoder(z.double(), num_frames=4)
    kept, lean = (decode(half, z.to(dtype), 4, name) for name in ("whole", rung))
    assert root_mean_square(lean, expected) < 1.05 * root_mean_square(kept, expected)
