"""A clip that ranks share gives the pixels of one that is decoded whole: ranks are threads here."""

import threading
from copy import deepcopy
from functools import cache

import pytest
import torch
from tests.ranks import ThreadPeers, on_ranks

from temporal_vae import engine
from temporal_vae.engine import Part, passes
from temporal_vae.engine.networks import Network
from temporal_vae.engine.parts import Transfer
from temporal_vae.engine.trust import _filled, _part
from temporal_vae.errors import InputError, MemoryLimitError

NETWORK = Network(in_channels=3, out_channels=3, latent_channels=4, widths=(32, 64), layers=2)
HEIGHT, WIDTH = 11, 19  # of latents; of pictures twice that
SIZE = {"height": 2 * HEIGHT, "width": 2 * WIDTH}
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-9, torch.bfloat16: 0.05, torch.float16: 0.01}
COUNTS = [(6,), (4, 3), (1, 1, 1, 1, 1), (3, 2, 4), (1, 2), (1, 5, 1)]


@pytest.fixture(autouse=True)
def trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEMPORAL_VAE_ENGINE", "always")


@cache
def decoder(dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    """Of random weights; not to be changed."""
    return _filled(_part("decode", NETWORK), torch.Generator().manual_seed(0)).to(dtype)


def latents(frames: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(frames)
    return torch.randn(frames, 4, HEIGHT, WIDTH, generator=generator).to(dtype)


def shared(part: torch.nn.Module, z: torch.Tensor, counts: tuple[int, ...], limit: int | None = None) -> list:
    """Of each rank its frames, and its peers."""

    def work(peers: ThreadPeers) -> tuple[torch.Tensor, ThreadPeers]:
        span = peers.part.span()
        own = z[span.start : span.stop]
        return engine.decode_part(part, own, NETWORK, peers, memory_limit=limit, workers=2), peers

    return on_ranks(counts, work)


def off(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest error, of the scale of what is right."""
    return float((found.double() - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize(
    ("dtype", "counts"),
    [(torch.float32, counts) for counts in COUNTS] + [(dtype, (3, 2, 4)) for dtype in TOLERANCE],
    ids=str,
)
def test_the_frames_are_those_of_the_modules_on_every_rung(dtype, counts):
    z = latents(sum(counts), dtype)
    expected = decoder(torch.float64)(z.double(), num_frames=len(z)).detach()
    name = str(dtype).removeprefix("torch.")
    part = Part(counts=counts, rank=0)
    offers = engine.plan(
        "decode", NETWORK, num_frames=len(z), dtype=name, workers=2, part=part, **SIZE
    ).ladder
    model = decoder(dtype)
    for limit in (None, *(offer.peak for offer in offers)):
        frames = torch.cat([frames for frames, _ in shared(model, z, counts, limit)])
        assert off(frames, expected) <= TOLERANCE[dtype], limit


@pytest.mark.parametrize("limited", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("counts", [(1, 1, 1, 1), (3, 2, 4), (6,)], ids=str)
def test_a_plan_knows_the_bytes_that_each_rank_sends_and_receives(counts, dtype, limited):
    z, name = latents(sum(counts), dtype), str(dtype).removeprefix("torch.")
    asked = {"num_frames": len(z), "dtype": name, "workers": 2, **SIZE}
    least = engine.plan("decode", NETWORK, part=Part(counts=counts, rank=0), **asked).ladder[-1].peak
    limit = least if limited else None
    for _, peers in shared(decoder(dtype), z, counts, limit):
        plan = engine.plan("decode", NETWORK, part=peers.part, memory_limit=limit, **asked)
        assert (plan.sent, plan.received) == (peers.sent, peers.received)
        assert (plan.sent > 0) == (len(counts) > 1)


def test_all_ranks_stand_on_the_same_rungs():
    asked = {"num_frames": 12, "height": 512, "width": 512, "workers": 2}
    parts = [Part(counts=(1, 2, 9), rank=rank) for rank in range(3)]
    least = engine.plan("decode", NETWORK, part=parts[0], **asked).ladder[-1].peak
    for limit in (None, least * 2, least):
        plans = [engine.plan("decode", NETWORK, part=part, memory_limit=limit, **asked) for part in parts]
        assert len({tuple(level.rung for level in plan.levels) for plan in plans}) == 1
        assert all(limit is None or plan.peak <= limit for plan in plans)
    with pytest.raises(MemoryLimitError, match="12 frames on 3 ranks"):
        engine.plan("decode", NETWORK, part=parts[0], memory_limit=least - 2**20, **asked)


def test_values_that_float16_does_not_hold_are_computed_again_by_all_ranks():
    model = deepcopy(decoder(torch.float16))
    with torch.no_grad():
        model.conv_in.weight *= 30000  # of activations: beyond 65,504
    z = latents(5, torch.float16)
    expected = model.double()(z.double(), num_frames=5).detach()
    frames = torch.cat([frames for frames, _ in shared(model.half(), z, (2, 3))])
    assert off(frames, expected) <= 0.02


def test_work_that_is_told_is_the_work_of_the_plan():
    z, counts, told = latents(7), (4, 3), []

    def work(peers: ThreadPeers) -> int:
        done = []
        span = peers.part.span()
        with engine.reporting(lambda amount, total: done.append((amount, total))):
            engine.decode_part(decoder(), z[span.start : span.stop], NETWORK, peers, workers=2)
        told.append(done[-1])
        return 0

    on_ranks(counts, work)
    assert [amount for amount, total in told] == [total for amount, total in told]


def test_a_decoder_that_was_changed_is_not_shared():
    model = deepcopy(decoder())
    model.conv_in.register_forward_hook(lambda module, inputs, output: output * 2)
    with pytest.raises(InputError, match="shared by the engine only"):
        shared(model, latents(4), (2, 2))


def test_where_the_engine_may_not_work_nothing_is_shared(monkeypatch):
    monkeypatch.setenv("TEMPORAL_VAE_ENGINE", "never")
    with pytest.raises(InputError, match="TEMPORAL_VAE_ENGINE is never"):
        shared(decoder(), latents(4), (2, 2))


def test_who_sends_what_to_whom():
    part = Part(counts=(1, 1, 3), rank=1)
    assert part.beside(2) == (1, 2)
    assert part.transfers(2) == [
        Transfer(rank=0, sent=range(1, 2), received=range(1)),
        Transfer(rank=2, sent=range(1, 2), received=range(2, 4)),
    ]
    far = Part(counts=(1, 1, 3), rank=2)
    assert far.transfers(2)[0] == Transfer(rank=0, sent=range(2, 3), received=range(1))
    assert Part(counts=(4,), rank=0).transfers(2) == []


def test_frames_travel_while_others_are_computed(monkeypatch):
    events: list[tuple[int, str]] = []

    def logged(name: str) -> None:
        call = getattr(passes, name)

        def log(*given, **named):
            events.append((threading.get_ident(), name))
            return call(*given, **named)

        monkeypatch.setattr(passes, name, log)

    logged("convolve")
    logged("convolve_over_time")
    exchange = ThreadPeers.exchange

    def told(peers, *messages):
        events.append((threading.get_ident(), "exchange"))
        return exchange(peers, *messages)

    monkeypatch.setattr(ThreadPeers, "exchange", told)
    z = torch.randn(16, 4, 40, 48, generator=torch.Generator().manual_seed(0))
    expected = torch.cat([frames for frames, _ in shared(decoder(), z, (16,))])
    events.clear()
    frames = torch.cat([frames for frames, _ in shared(decoder(), z, (8, 8))])
    assert off(frames, expected) <= 2e-5
    for thread in {thread for thread, _ in events}:
        names = " ".join(name for one, name in events if one == thread)
        blocks = names.split("convolve_over_time exchange exchange convolve_over_time")
        assert len(blocks) > 6
        assert sum("exchange convolve " in block for block in blocks) > 3  # where frames come in groups


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_halves_are_nearer_than_the_modules(dtype):
    """The bound of `test_engine_types.py`; for the half types, `TOLERANCE` only tells of coarse mistakes."""

    def far(frames: torch.Tensor) -> float:
        return float((frames.double() - exact).square().mean().sqrt())

    z = latents(7, dtype)
    with torch.no_grad():
        exact = deepcopy(decoder(dtype)).double()(z.double(), num_frames=7)
        modules = decoder(dtype)(z, num_frames=7)
    frames = torch.cat([frames for frames, _ in shared(decoder(dtype), z, (3, 2, 2))])
    assert far(frames) < 0.95 * far(modules)
