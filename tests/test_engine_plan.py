"""The planner's arithmetic: promises that hold for every shape, limit and machine."""

import re
from dataclasses import dataclass, replace

import pytest
from engines import RUNGS
from hypothesis import given
from hypothesis import strategies as st
from refusals import refused

from temporal_vae.engine import Network, Plan, plan, readable
from temporal_vae.engine.overheads import MIB
from temporal_vae.engine.schedule import WHOLE
from temporal_vae.errors import InputError, MemoryLimitError

SVD = Network(in_channels=3, out_channels=3, latent_channels=4, widths=(128, 256, 512, 512), layers=2)
HEADLINE = {"num_frames": 25, "height": 576, "width": 1024, "workers": 2}

networks = st.builds(
    Network,
    in_channels=st.integers(1, 4),
    out_channels=st.integers(1, 4),
    latent_channels=st.sampled_from([4, 8, 16]),
    widths=st.lists(st.sampled_from([32, 64, 96, 128, 256, 512]), min_size=1, max_size=4).map(tuple),
    layers=st.integers(1, 3),
)
dtypes = st.sampled_from(["float32", "bfloat16", "float16", "float64"])


@dataclass(frozen=True, kw_only=True)
class Request:
    """Some decode or encode; called with a limit, it is planned."""

    task: str
    network: Network
    settings: dict[str, int | str]

    def __call__(self, limit: int | None) -> Plan:
        return plan(self.task, self.network, memory_limit=limit, **self.settings)


@st.composite
def tasks(draw):
    network = draw(networks)
    settings = {
        "num_frames": draw(st.integers(1, 70)),
        "height": draw(st.integers(1, 150)) * network.factor,
        "width": draw(st.integers(1, 150)) * network.factor,
        "dtype": draw(dtypes),
        "device": draw(st.sampled_from(["cpu", "cpu", "cuda"])),
        "workers": draw(st.integers(1, 16)),
    }
    if draw(st.booleans()):
        settings["clips"] = draw(st.integers(1, 3))
        return Request(task="decode", network=network, settings=settings)
    settings["height"] += draw(st.integers(0, network.factor - 1))
    settings["width"] += draw(st.integers(0, network.factor - 1))
    return Request(task="encode", network=network, settings=settings)


def smallest_of(plan):
    """The limit that a refusal names."""
    with pytest.raises(MemoryLimitError) as caught:
        plan(1)
    return int(re.search(r"at least (\d+) MiB", str(caught.value))[1]) * MIB


def limits_of(plan):
    """Limits between the least and all that is wanted, and those where something changes."""
    unlimited, least = plan(None), smallest_of(plan)
    edges = {rung.peak - 1 for rung in unlimited.ladder}
    edges |= {least + (unlimited.peak - least) * i // 4 for i in range(5)}
    return sorted(edge for edge in edges if edge >= least)


@given(tasks())
def test_a_plan_stays_below_its_limit(plan):
    for limit in limits_of(plan):
        made = plan(limit)
        assert made.peak <= limit
        assert made.memory_limit == limit


@given(tasks())
def test_a_refusal_names_the_least_that_works(plan):
    least = smallest_of(plan)
    plan(least)
    with pytest.raises(MemoryLimitError):
        plan(least - MIB)


@given(tasks())
def test_more_memory_never_means_more_work(plan):
    """Of arithmetic. A file saves some: what is read again is not computed again."""
    plans = [made for made in map(plan, limits_of(plan)) if not made.spill_bytes]
    work = [made.extra_work for made in plans]
    assert work == sorted(work, reverse=True)
    assert plan(None).extra_work == 0


@given(tasks())
def test_more_memory_never_means_more_spilling(plan):
    spilled = [plan(limit).spill_bytes for limit in limits_of(plan)]
    assert spilled == sorted(spilled, reverse=True)


@given(tasks())
def test_no_limit_is_the_first_rung(plan):
    made = plan(None)
    assert made.rung == made.ladder[0].name == "whole"
    assert made.spill_bytes == made.ladder[0].spill_bytes == 0
    assert made.peak == made.ladder[0].peak
    assert not any(level.rung != WHOLE for level in made.levels)


@given(tasks())
def test_the_ladder_holds_the_chosen_rung(plan):
    for limit in limits_of(plan):
        made = plan(limit)
        names = [rung.name for rung in made.ladder]
        assert made.rung in names
        assert names == [name for name in RUNGS if name in names]


@given(tasks())
def test_spilled_levels_have_a_file(plan):
    for limit in limits_of(plan):
        made = plan(limit)
        assert bool(made.spill_bytes) == any(level.rung.spills for level in made.levels)


@given(networks, st.integers(1, 60), st.integers(1, 60), st.integers(1, 60), dtypes, st.integers(1, 8))
def test_longer_clips_take_no_less(network, frames, height, width, dtype, workers):
    size = {"height": height * network.factor, "width": width * network.factor}
    ladders = (
        plan("decode", network, num_frames=count, dtype=dtype, workers=workers, **size).ladder
        for count in (frames, frames + 1)
    )
    shorts, longs = ({rung.name: rung for rung in ladder} for ladder in ladders)
    # Below the first rung work memory counts, which comes in whole rows.
    assert shorts["whole"].peak <= longs["whole"].peak
    for name in shorts.keys() & longs.keys():  # a rung that saves nothing is not shown
        assert shorts[name].spill_bytes <= longs[name].spill_bytes


@given(networks, st.integers(1, 60), st.integers(1, 40), st.integers(1, 40), dtypes)
def test_clips_come_one_after_the_other(network, frames, height, width, dtype):
    """A batch of clips takes the memory of one, and its output."""
    size = {"height": height * network.factor, "width": width * network.factor}
    one, three = (
        plan("decode", network, num_frames=frames, clips=clips, dtype=dtype, workers=2, **size)
        for clips in (1, 3)
    )
    assert three.work == 3 * one.work
    assert three.levels == one.levels
    output = 2 * frames * network.out_channels * size["height"] * size["width"]
    output *= {"float32": 4, "float64": 8}.get(dtype, 2)
    assert output <= three.peak - one.peak <= 1.05 * output + 16


@given(tasks())
def test_plans_are_kept_and_printed(plan):
    made = plan(None)
    assert plan(None) is made
    text = str(made).splitlines()
    for rung in made.ladder:
        (line,) = (line for line in text if line.startswith(("   ", "-> ")) and f" {rung.name}  " in line)
        assert line.startswith("->") == (rung.name == made.rung)
        assert readable(rung.peak) in line
    for level in made.levels:
        assert any(f"level {level.size[0]}x{level.size[1]}:" in line for line in text)
    assert f"{made.height}x{made.width}" in text[0]
    assert hash(made) == hash(replace(made))


def test_the_headline():
    """25 frames of 576x1024: within 8.5 GiB without a file, within 2 GiB with one."""
    whole = plan("decode", SVD, **HEADLINE)
    assert whole.peak > 12 * 2**30
    tight = plan("decode", SVD, memory_limit=17 * 2**29, **HEADLINE)
    assert tight.spill_bytes == 0
    assert tight.extra_work < 0.3
    spilled = plan("decode", SVD, memory_limit=2**31, **HEADLINE)
    assert spilled.rung == "spill"
    assert spilled.spill_bytes < whole.peak


def test_work_of_the_published_decoder():
    """Counted by hand for one latent: 25 blocks of convolutions, four levels, one attention."""
    made = plan("decode", SVD, num_frames=1, height=8, width=8)
    blocks_work = 0
    for pixels, inputs, width, blocks in (
        (1, 512, 512, 5),
        (4, 512, 512, 3),
        (16, 512, 256, 3),
        (64, 256, 128, 3),
    ):
        spatial = 9 * inputs * width + 9 * width * width + (blocks - 1) * 18 * width * width
        temporal = blocks * 6 * width * width
        enlarging = 0 if pixels == 1 else 9 * inputs * inputs
        blocks_work += pixels * (spatial + temporal + enlarging)
    edges = 9 * 4 * 512 + 64 * 9 * 128 * 3
    shortcuts = 16 * 512 * 256 + 64 * 256 * 128
    attention = 4 * 512 * 512 + 2 * 512  # of one pixel with itself
    assert made.work == blocks_work + edges + shortcuts + attention + 64 * 3 * 3 * 3


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"dtype": "int8"}, ["dtype 'int8'", "float32", "bfloat16"]),
        ({"num_frames": 0}, ["num_frames=0", "at least 1"]),
        ({"num_frames": 2.5}, ["num_frames=2.5"]),
        ({"height": 0}, ["height=0"]),
        ({"height": 575}, ["575x1024", "multiples of 8"]),
        ({"clips": 0}, ["clips=0"]),
    ],
)
def test_nonsense_is_refused(change, parts):
    refused(InputError, lambda: plan("decode", SVD, **(HEADLINE | change)), "plan:", *parts)


def test_frames_too_small_to_encode():
    refused(
        InputError,
        lambda: plan("encode", SVD, num_frames=1, height=7, width=64),
        "plan:",
        "7x64",
        "at least 8x8",
    )


def test_a_limit_too_small():
    refused(
        MemoryLimitError,
        lambda: plan("decode", SVD, memory_limit=2**20, **HEADLINE),
        "memory limit 1 MiB",
        "25 frames of 576x1024",
        "float32",
        "at least",
        "raise the limit",
    )
    with pytest.raises(MemoryLimitError):
        plan("encode", SVD, memory_limit=2**20, **HEADLINE)
