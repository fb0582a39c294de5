"""Where tiles are cut: everything once, nothing twice, and enough neighbours."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from temporal_vae.engine.geometry import BLOCK, JOBS, PAD, TILE, Cut, Span, scratch_bytes, spans, tapered

lengths = st.integers(1, 5000)
small = st.integers(1, 64)


def covers(parts, length):
    """The parts are not empty, and follow one another from 0 to `length`."""
    assert all(len(part) > 0 for part in parts)
    assert [part.first for part in parts] == [0, *(part.last for part in parts[:-1])]
    assert parts[-1].last == length


@given(lengths, st.integers(0, 6000), st.integers(1, 9))
def test_spans_are_a_partition(length, size, multiple):
    parts = spans(length, size, multiple)
    covers(parts, length)
    assert all(part.first % multiple == 0 for part in parts)
    assert max(map(len, parts)) <= max(multiple, -(-size // multiple) * multiple)


@given(st.integers(1, 10**5), st.integers(1, 64), st.integers(1, 70), st.integers(1, 9))
def test_tapered_spans_end_in_small_ones(length, block, workers, least):
    parts = tapered(length, block, workers, least)
    covers(parts, length)
    blocks = [-(-len(part) // block) for part in parts]
    assert all(part.first % block == 0 for part in parts)
    assert blocks[:-1] == sorted(blocks[:-1], reverse=True)
    assert max(blocks) <= max(least, -(-length // (block * JOBS * workers)) + 1)
    assert blocks[-1] <= least
    assert len(parts) <= -(-length // (block * least))


@given(lengths, st.integers(1, 6000))
def test_spans_are_nearly_equal(length, size):
    sizes = [len(part) for part in spans(length, size)]
    assert max(sizes) - min(sizes) <= 1


@given(lengths, small, st.sampled_from([1, 4, 32, 512]), small, st.integers(1, 8), st.integers(0, 2**22))
def test_strips_begin_where_winograd_can(height, width, channels, frames, workers, nbytes):
    cut = Cut(strip_bytes=nbytes, run_bytes=nbytes, itemsize=4)
    parts = cut.strips(height, width, channels, frames, workers)
    covers(parts, height)
    assert all(part.first % TILE == 0 for part in parts)


@given(lengths, small, st.sampled_from([1, 4, 32, 512]), st.integers(1, 8), st.integers(0, 2**22))
def test_runs_are_a_partition(pixels, frames, channels, workers, nbytes):
    cut = Cut(strip_bytes=nbytes, run_bytes=nbytes, itemsize=4)
    covers(cut.runs(pixels, frames, channels, workers), pixels)


@pytest.mark.parametrize("workers", [1, 2, 16])
def test_a_large_picture_is_cut_to_the_size_that_was_asked_for(workers):
    cut = Cut(strip_bytes=2**22, run_bytes=2**22, itemsize=4)
    strips = cut.strips(576, 1024, 128, 25, workers)
    assert 2**21 <= max(map(len, strips)) * 1024 * 128 * 4 <= 2**22
    runs = cut.runs(576 * 1024, 25, 128, workers)
    assert 2**21 <= max(map(len, runs)) * 25 * 128 * 4 <= 2**22


@given(st.integers(0, 50), small, st.integers(0, 3))
def test_widened_spans_hold_all_neighbours_that_there_are(first, rows, reach):
    length = first + rows + 7
    wide = Span(first, first + rows).widened(reach, length)
    needed = {y + d for y in range(first, first + rows) for d in range(-reach, reach + 1)}
    assert set(range(wide.first, wide.last)) == {y for y in needed if 0 <= y < length}


@given(st.integers(0, 200), small, st.integers(100, 200))
def test_an_enlarged_row_finds_its_sources(first, rows, height):
    """A 3x3 convolution behind an enlargement reads rows `(y - 1) // 2` to `(y + 1) // 2` of the small picture."""
    span = Span(first, min(first + rows, 2 * height))
    source = span.halved().widened(1, height)
    for y in range(span.first, span.last):
        for row in {(y - 1) // 2, y // 2, (y + 1) // 2} & set(range(height)):
            assert source.first <= row < source.last


@given(st.integers(0, 100), small, st.integers(1, 8), st.integers(0, 9))
def test_aligned_spans_round_outwards(first, rows, multiple, beyond):
    span, length = Span(first, first + rows), first + rows + beyond
    wide = span.aligned(multiple, length)
    assert wide.first <= span.first
    assert wide.last >= span.last
    assert wide.first % multiple == 0
    assert wide.last % multiple == 0 or wide.last == length
    assert len(wide) < len(span) + 2 * multiple


def test_a_block_of_scratch():
    point = 4 * (BLOCK * (64 + PAD + 32 + PAD) + 2 * PAD)
    assert scratch_bytes(64, 32, 36) == 4 * 12 * 64 + 36 * point
    assert scratch_bytes(64, 32, 6) == 4 * 2 * BLOCK * 64 + 6 * point


@pytest.mark.parametrize("module", ["geometry", "processor", "schedule", "cost", "planner"])
def test_no_torch_is_needed(module):
    code = f"import sys, temporal_vae.engine.{module}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
