"""Memory that nobody has written holds NaN here: whoever reads it is found out."""

import pytest
import torch
from engines import ENCODER_RUNGS, ENGINE, RUNGS, build, decode, encode, tiles
from oracle import assert_close, noise

from temporal_vae.engine import processor, storage

DEEP = {"block_out_channels": (32, 64, 96), "layers_per_block": 2}


def poison(tensor):
    """All bits set: NaN in every float type."""
    if tensor.numel():
        tensor.view(-1).view(torch.uint8).fill_(0xFF)
    return tensor


@pytest.fixture
def poisoned(monkeypatch):
    """Fresh memory is poisoned, and what is used again is poisoned again. Lists what was."""
    done = []

    def instead(owner, name, after):
        usual = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args, **kwargs: after(usual(*args, **kwargs)))

    def fresh(tensor):
        done.append("fresh")
        return poison(tensor)

    def emptied(scratch):
        done.append("scratch")
        poison(scratch._memory)
        return scratch

    usual_give = storage.Pool.give

    def give(pool, tensor):
        done.append("pool")
        usual_give(pool, poison(tensor))

    instead(storage, "fresh", fresh)
    instead(torch, "empty", fresh)
    instead(torch.Tensor, "new_empty", fresh)
    instead(storage.Scratch, "reset", emptied)
    monkeypatch.setattr(storage.Pool, "give", give)
    return done


@pytest.fixture(params=["native", "naive"])
def kernels(request, monkeypatch):
    if request.param == "naive":
        monkeypatch.setattr(processor, "host", lambda: None)
    elif processor.host() is None:
        pytest.skip("no kernels for this processor")
    return request.param


each_cut = pytest.mark.parametrize(("rows", "pixels"), [(8, 20), pytest.param(4, 7, marks=pytest.mark.slow)])


@each_cut
@pytest.mark.parametrize("rung", RUNGS)
@torch.no_grad()
def test_decode(poisoned, kernels, rung, rows, pixels):
    model, z = build(**DEEP), noise(4, 4, 3, 5)
    expected = model.decoder(z, num_frames=2)
    with tiles(rows, pixels):
        assert_close(decode(model, z, 2, rung, workers=2), expected, ENGINE)
    assert {"fresh", "scratch"} <= set(poisoned)
    assert "pool" in poisoned or "spill" in rung


@each_cut
@pytest.mark.parametrize("rung", ENCODER_RUNGS)
@torch.no_grad()
def test_encode(poisoned, kernels, rung, rows, pixels):
    model, x = build(**DEEP), noise(2, 3, 23, 29)
    expected = model.encoder(x)
    with tiles(rows, pixels):
        assert_close(encode(model, x, rung, workers=2), expected, ENGINE)
    assert {"fresh", "scratch"} <= set(poisoned)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_types(poisoned, dtype):
    model = build(dtype, **DEEP)
    for rung in ("rematerialise and recompute", "spill"):
        assert torch.isfinite(decode(model, noise(3, 4, 3, 5).to(dtype), 3, rung)).all()
    assert torch.isfinite(encode(model, noise(2, 3, 23, 29).to(dtype))).all()
    assert poisoned


def test_poison_works():
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        assert torch.isnan(poison(torch.zeros(3, 5, dtype=dtype))).all()
