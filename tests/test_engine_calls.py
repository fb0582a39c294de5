"""A call takes its limit with it: nothing of it stays with a model that others use at the same time."""

import threading

import pytest
import torch
from engines import ENGINE, build
from oracle import assert_close, noise
from refusals import refused

from temporal_vae import engine
from temporal_vae.engine import calls
from temporal_vae.errors import InputError, MemoryLimitError

pytestmark = pytest.mark.usefixtures("two_threads")
FRAMES, SIZE = 6, (24, 20)


@pytest.fixture(scope="module")
def vae():
    return build(block_out_channels=(32, 64))


@pytest.fixture
def plans(monkeypatch):
    """The plans by which the engine computed, by the thread that asked."""
    found, compute = {}, calls.run

    def run(network, x, plan, advance):
        found.setdefault(threading.current_thread().name, []).append(plan)
        return compute(network, x, plan, advance)

    monkeypatch.setattr(calls, "run", run)
    return found


@torch.no_grad()
def test_two_threads_under_two_limits(vae, plans):
    """Each decodes and encodes as its own limit asks, again and again, and gets what it gets alone."""
    z, x = noise(FRAMES, 4, *SIZE), noise(FRAMES, 3, 2 * SIZE[0], 2 * SIZE[1])
    size = {"num_frames": FRAMES, "height": 2 * SIZE[0], "width": 2 * SIZE[1]}
    tight = {
        "decode": min(offer.peak for offer in vae.plan_decode(**size).ladder),
        "encode": min(offer.peak for offer in vae.plan_encode(**size).ladder),
    }
    limits, together = {"tight": tight, "wide": dict.fromkeys(tight, 2**32)}, threading.Barrier(2)

    def compute(limit):
        posterior = vae.encode(x, memory_limit=limit["encode"]).latent_dist
        return vae.decode(z, num_frames=FRAMES, memory_limit=limit["decode"]).sample, posterior.parameters

    alone = {name: compute(limit) for name, limit in limits.items()}
    wrong = []

    def work(name):
        with torch.no_grad():
            for _ in range(4):
                together.wait(30)
                found = compute(limits[name])
                if not all(map(torch.equal, found, alone[name])):
                    wrong.append(name)

    threads = [threading.Thread(target=work, args=(name,), name=name) for name in limits]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert vae.memory_limit is None
    for name, limit in limits.items():
        assert len(plans[name]) == 8
        assert all(plan.peak <= plan.memory_limit == limit[plan.task] for plan in plans[name])
    assert all(plan.spill_bytes for plan in plans["tight"] if plan.task == "decode")
    assert not any(plan.spill_bytes for plan in plans["wide"])
    for name in limits:
        assert_close(alone[name][0], vae.decoder(z, num_frames=FRAMES), ENGINE)


@torch.no_grad()
def test_a_limit_of_a_call_goes_before_that_of_the_model(vae, plans):
    z = noise(2, 4, 6, 6)
    try:
        vae.enable_tiling(memory_limit="3GiB")
        vae.decode(z, num_frames=2)
        vae.decode(z, num_frames=2, memory_limit="2GiB")
        next(vae.decode_stream([z], memory_limit="1GiB"))
        assert vae.memory_limit == 3 * 2**30
    finally:
        vae.disable_tiling()
    limits = [plan.memory_limit for found in plans.values() for plan in found]
    assert limits == [3 * 2**30, 2 * 2**30, 2**30]
    refused(InputError, lambda: vae.decode(z, num_frames=2, memory_limit="much"), "much", "4GiB")
    with pytest.raises(MemoryLimitError):
        vae.encode(noise(1, 3, 16, 16), memory_limit="1MiB")


@torch.no_grad()
def test_the_door(vae):
    """Encoder and decoder, without a model around them."""
    network, z, x = vae.network, noise(4, 4, 5, 6), noise(3, 3, 12, 10)
    decoded = engine.decode(vae.decoder, z, network, num_frames=2, memory_limit=2**30, workers=1)
    assert_close(decoded, vae.decoder(z, num_frames=2), ENGINE)
    assert_close(engine.encode(vae.encoder, x, network, workers=3), vae.encoder(x), ENGINE)
    plan = engine.plan("encode", network, num_frames=3, height=12, width=10, workers=3)
    assert plan == engine.plan_like("encode", network, x, num_frames=3, height=12, width=10, workers=3)
    assert all(hasattr(engine, name) for name in engine.__all__)
    with pytest.raises(AttributeError, match="no attribute 'decoder'"):
        _ = engine.decoder


@pytest.mark.parametrize(
    ("dtype", "fast", "limit", "engine"),
    [
        ("float32", True, None, False),
        ("bfloat16", True, None, False),
        ("bfloat16", False, None, True),  # torch has no such products here
        ("float32", True, 2**32, True),
    ],
)
@torch.no_grad()
def test_modules_compute_what_is_small(monkeypatch, by_engine, dtype, fast, limit, engine):
    monkeypatch.setattr(calls, "LEAST_PIXELS", dict.fromkeys(calls.LEAST_PIXELS, 2 * 48 * 40))
    monkeypatch.setattr(calls.processor, "torch_is_fast", lambda device, dtype: fast)
    vae = build(block_out_channels=(32, 64)).to(getattr(torch, dtype))
    for frames, wanted in ((1, engine), (2, True)):
        by_engine.clear()
        vae.decode(noise(frames, 4, *SIZE).to(vae.dtype), num_frames=frames, memory_limit=limit)
        vae.encode(noise(frames, 3, 48, 40).to(vae.dtype), memory_limit=limit)
        assert by_engine == ({"decode": 1, "encode": 1} if wanted else {})
