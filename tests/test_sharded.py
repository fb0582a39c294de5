"""One clip on many ranks, in real processes with gloo: the pixels of one process."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from tests.command_line import run as run_command
from tests.processes import Processes

from temporal_vae import AutoencoderKL, AutoencoderKLTemporalDecoder
from temporal_vae.distributed import decode_sharded, encode_sharded, plan_sharded
from temporal_vae.distributed.clip import ranks as ranks_module
from temporal_vae.distributed.clip.shares import shares
from temporal_vae.errors import InputError, MemoryLimitError, RankError

HEIGHT, WIDTH = 8, 12  # of latents
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 0.05}
SHARED = {"height": 2 * HEIGHT, "width": 2 * WIDTH}


def model(dtype: torch.dtype = torch.float32, *, images: bool = False) -> Any:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"block_out_channels": (32, 64), "down_block_types": ("DownEncoderBlock2D",) * 2}
    if images:
        sizes["up_block_types"] = ("UpDecoderBlock2D",) * 2
    kind = AutoencoderKL if images else AutoencoderKLTemporalDecoder
    return kind(layers_per_block=2, **sizes).to(dtype).eval()


def latents(frames: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(frames, 4, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(1)).to(dtype)


def pictures(count: int) -> torch.Tensor:
    return torch.rand(count, 3, 24, 32, generator=torch.Generator().manual_seed(2)) * 2 - 1


def off(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected.double()).abs().max() / expected.double().abs().max())


# What ranks do


def decode(group: Any, clips: int, frames: int, dtype: torch.dtype, limit: int | None, gather: bool) -> Any:
    vae = model(dtype)
    z = latents(clips * frames, dtype)
    return decode_sharded(vae, z, num_frames=frames, group=group, gather=gather, memory_limit=limit)


def decode_images(group: Any, count: int) -> torch.Tensor:
    return decode_sharded(model(images=True), latents(count), num_frames=1, group=group)


def encode(group: Any, count: int, gather: bool) -> torch.Tensor:
    return encode_sharded(model(), pictures(count), group=group, gather=gather).parameters


def decode_different(group: Any, what: str) -> None:
    vae, z = model(), latents(4)
    if dist.get_rank(group) == 1:
        if what == "the batch":
            z = z + 1
        if what == "the model":
            vae = model().float()
            with torch.no_grad():
                vae.decoder.conv_in.weight.mul_(2)
    frames = 2 if what == "what is asked for" and dist.get_rank(group) == 1 else 4
    decode_sharded(vae, z, num_frames=frames, group=group)


def decode_by_one_that_raises(group: Any) -> None:
    vae = model()
    if dist.get_rank(group) == 1:
        vae.decoder.conv_in.register_forward_hook(lambda *_: None)
    decode_sharded(vae, latents(4), num_frames=4, group=group, timeout=60)


@pytest.fixture(scope="module")
def ranks() -> Iterator[Processes]:
    with Processes(4) as started:
        yield started


CASES = [
    (count, clips, frames, torch.float32, limited)
    for count in (1, 2, 3, 4)
    for clips, frames in ((1, 7), (1, 1), (1, 2), (3, 5), (2, 3))
    for limited in (False, True)
] + [(count, 1, 7, torch.bfloat16, False) for count in (1, 2, 3, 4)]


@pytest.mark.parametrize(("count", "clips", "frames", "dtype", "limited"), CASES)
def test_the_frames_are_those_of_one_process(ranks, count, clips, frames, dtype, limited, monkeypatch):
    monkeypatch.setenv("TEMPORAL_VAE_ENGINE", "always")
    vae, z = model(dtype), latents(clips * frames, dtype)
    limit = None
    if limited:
        plan = plan_sharded(vae, ranks=count, num_frames=frames, clips=clips, **SHARED)
        limit = max(offer.peak for rank in plan.ranks for one in rank.plans for offer in one.ladder[-1:])
    with torch.no_grad():
        expected = vae.decode(z, num_frames=frames).sample
    for found in ranks.run(count, decode, clips, frames, dtype, limit, True):
        assert off(found, expected) <= TOLERANCE[dtype]


def test_without_gathering_each_rank_keeps_its_frames(ranks):
    vae, z = model(), latents(15)
    with torch.no_grad():
        expected = vae.decode(z, num_frames=5).sample
    plan = plan_sharded(vae, ranks=2, num_frames=5, clips=3, **SHARED)
    for found, rank in zip(ranks.run(2, decode, 3, 5, torch.float32, None, False), plan.ranks, strict=True):
        numbers = [number for span in rank.frames for number in span]
        assert off(found, expected[numbers]) <= 2e-5
    assert "rank" in str(plan)
    assert "idle" in str(plan_sharded(vae, ranks=3, num_frames=2, **SHARED))


@pytest.mark.parametrize("gather", [False, True])
def test_several_clips_and_a_shared_one_within_the_least_memory(ranks, gather, monkeypatch):
    monkeypatch.setenv("TEMPORAL_VAE_ENGINE", "always")
    vae, z = model(), latents(10)
    with torch.no_grad():
        expected = vae.decode(z, num_frames=2).sample
    plan = plan_sharded(vae, ranks=2, num_frames=2, clips=5, **SHARED)
    limit = max(rank.least for rank in plan.ranks)
    found = ranks.run(2, decode, 5, 2, torch.float32, limit, gather)
    for frames, rank in zip(found, plan.ranks, strict=True):
        numbers = range(10) if gather else [number for span in rank.frames for number in span]
        assert off(frames, expected[list(numbers)]) <= 2e-5


def test_pictures_are_spread(ranks):
    with torch.no_grad():
        expected = model(images=True).decode(latents(5)).sample
    for found in ranks.run(3, decode_images, 5):
        assert off(found, expected) <= 2e-5


def test_frames_are_encoded_as_by_one_process(ranks):
    with torch.no_grad():
        expected = model().encode(pictures(5)).latent_dist.parameters
    for found in ranks.run(4, encode, 5, True):
        assert off(found, expected) <= 2e-5
    kept = ranks.run(2, encode, 5, False)
    assert [len(found) for found in kept] == [3, 2]
    assert off(torch.cat(kept), expected) <= 2e-5


@pytest.mark.parametrize("what", ["the batch", "the model", "what is asked for"])
def test_ranks_that_do_not_do_the_same_are_told(ranks, what):
    ranks.ask(2, decode_different, what)
    for rank in range(2):
        error = ranks.answer(rank)
        assert isinstance(error, InputError)
        assert str(error).startswith(what)
        assert "rank 1" in str(error)


def test_a_limit_that_is_too_small_is_refused_on_all_ranks(ranks):
    ranks.ask(3, decode, 1, 7, torch.float32, 2**20, True)
    for rank in range(3):
        error = ranks.answer(rank)
        assert isinstance(error, MemoryLimitError)
        assert "3 ranks" in str(error)


def test_a_rank_that_raises_ends_the_others():
    with Processes(3) as some:
        some.ask(3, decode_by_one_that_raises)
        errors = [some.answer(rank) for rank in range(3)]
    assert isinstance(errors[1], InputError)
    for rank in (0, 2):
        assert isinstance(errors[rank], RankError)
        assert errors[rank].rank == 1
        assert "rank 1" in str(errors[rank])
        assert "shared by the engine only" in str(errors[rank])


@pytest.mark.parametrize("how", ["SIGKILL", "SIGSTOP"])
def test_a_rank_that_is_gone_or_stands_still_is_named(how):
    with Processes(3) as some:
        some.run(3, decode, 1, 3, torch.float32, None, True)
        some.ask(3, decode_long, 4.0)
        time.sleep(2)
        begun = time.monotonic()
        os.kill(some.processes[1].pid, getattr(signal, how))
        errors = [some.answer(rank) for rank in (0, 2)]
        took = time.monotonic() - begun
    for error in errors:
        assert isinstance(error, RankError)
        assert error.rank == 1
        assert "rank 1" in str(error)
    assert took < 30


def decode_long(group: Any, timeout: float) -> None:
    vae, z = model(), latents(7)
    while True:
        decode_sharded(vae, z, num_frames=7, group=group, timeout=timeout)


sent = []


def give_up_beside_a_message(group: Any) -> str:
    """Rank 0 gives up while something lies there that rank 1 sent and it never asked for."""
    if dist.get_rank(group) == 1:
        sent.append(dist.isend(torch.zeros(32, dtype=torch.uint8), 0, group))  # kept, or it is not sent
        return "sent"
    time.sleep(1)
    ranks_module._break(group)
    return "alive"


def test_giving_up_does_not_mind_what_was_sent_before():
    with Processes(2) as some:
        some.ask(2, give_up_beside_a_message)
        assert some.answer(0) == "alive"


def test_shares_cover_every_frame_once():
    for clips in range(1, 9):
        for frames in (1, 2, 5):
            for count in range(1, 8):
                found = [
                    number for own in shares(clips, frames, count) for one in own for number in one.frames
                ]
                assert sorted(found) == list(range(clips * frames))


def test_those_at_the_ends_of_a_clip_get_more_frames():
    assert [len(own[0].frames) for own in shares(1, 26, 4)] == [7, 6, 6, 7]
    assert [len(own[0].frames) for own in shares(1, 7, 3)] == [3, 2, 2]


def test_a_plan_of_ranks_is_printed(capsys):
    words = ("plan", "--frames", 25, "--size", "64x96", "--ranks", 4, "--clips", 5)
    assert run_command(*words) == 0
    assert "100-106" in capsys.readouterr().out
    assert run_command(*words, "--json") == 0
    found = json.loads(capsys.readouterr().out)["ranks"]
    assert [rank["frames"] for rank in found][3] == [[75, 100], [119, 125]]
    assert sum(rank["sent"] for rank in found) == sum(rank["received"] for rank in found) > 0


LARGE = {"ranks": 2, "num_frames": 4, "height": 512, "width": 512}
CLIP = 4 * 3 * 512 * 512 * 4  # bytes


def test_results_that_a_rank_holds_count():
    shared = plan_sharded(model(), **LARGE).ranks[0]
    both = plan_sharded(model(), clips=3, **LARGE).ranks[0]
    assert [plan.peak - CLIP for plan in both.plans[1:]] == [shared.peak]
    assert both.peak >= both.joining > 2 * CLIP
    assert shared.joining == 0


def test_a_refusal_counts_what_a_rank_holds():
    enough = max(rank.least for rank in plan_sharded(model(), **LARGE).ranks) + CLIP
    plan_sharded(model(), clips=3, memory_limit=enough, **LARGE)
    with pytest.raises(MemoryLimitError, match=r"4 frames on 2 ranks .* at least \d+ MiB") as caught:
        plan_sharded(model(), clips=5, memory_limit=enough, **LARGE)
    named = int(str(caught.value).split(" MiB; raise")[0].split()[-1]) * 2**20
    plan = plan_sharded(model(), clips=5, memory_limit=named, **LARGE)
    assert enough < max(rank.peak for rank in plan.ranks) <= named


def test_a_refusal_tells_what_it_takes_to_put_results_together():
    size = {**LARGE, "num_frames": 240, "height": 256, "clips": 3}
    rank = plan_sharded(model(), **size).ranks[0]
    assert rank.least == rank.joining
    assert plan_sharded(model(), memory_limit=rank.least, **size).ranks[0].peak <= rank.least
    words = f"at least {-(-rank.least // 2**20)} MiB when it is put together"
    with pytest.raises(MemoryLimitError, match=words):
        plan_sharded(model(), memory_limit=rank.least - 1, **size)


def test_whole_clips_come_before_shared_ones():
    first, second = shares(3, 4, 2)
    assert [one.frames for one in first] == [range(4), range(8, 10)]
    assert [one.frames for one in second] == [range(4, 8), range(10, 12)]
    assert [one.part is None for one in first] == [True, False]
    assert [[one.ranks for one in own] for own in shares(2, 4, 4)] == [[(0, 1)], [(0, 1)], [(2, 3)], [(2, 3)]]
    assert [len(own) for own in shares(2, 4, 3)] == [1, 1, 0]


def test_without_ranks_it_is_said():
    with pytest.raises(InputError, match="init_process_group"):
        decode_sharded(model(), latents(2), num_frames=2)
