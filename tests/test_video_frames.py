"""Clips, cutting and stitching them, padding, and the arithmetic of time stamps."""

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from video_files import scene

from temporal_vae.errors import InputError
from temporal_vae.media.frames import Clip, Color, clip_starts, crop_to, exact, pad_to_multiple
from temporal_vae.media.timing import at_rate, repair, starting
from temporal_vae.video.stitcher import Stitcher


def clip_of(count: int, start: int = 0) -> Clip:
    return Clip(
        frames=scene(start + count, 6, 8)[start:],
        timestamps=tuple(Fraction(start + i, 25) for i in range(count)),
        rate=Fraction(25),
    )


def test_a_clip_is_cut_and_joined():
    clip = clip_of(10)
    part = clip[2:5]
    assert (len(part), part.height, part.width, part.duration) == (3, 6, 8, Fraction(3, 25))
    assert part.timestamps == (Fraction(2, 25), Fraction(3, 25), Fraction(4, 25))
    joined = clip[:4] + clip[4:]
    assert joined.timestamps == clip.timestamps
    np.testing.assert_array_equal(joined.frames, clip.frames)
    assert len(clip[:0]) == 0
    assert clip[:0].duration == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames": np.zeros((2, 4, 4, 4), np.uint8)}, r"\(2, 4, 4, 4\) .* uint8 \(t, h, w, 3\)"),
        ({"frames": np.zeros((2, 4, 4, 3), np.float32)}, "float32"),
        ({"timestamps": (Fraction(0),)}, "1 time stamps for 2 frames"),
        ({"timestamps": (Fraction(1), Fraction(1))}, "must increase"),
        ({"rate": Fraction(0)}, "above 0"),
    ],
)
def test_clips_that_do_not_fit_together_are_refused(change, message):
    arguments = {
        "frames": np.zeros((2, 4, 4, 3), np.uint8),
        "timestamps": (Fraction(0), Fraction(1)),
        "rate": Fraction(1),
        "color": Color(),
    }
    with pytest.raises(InputError, match=message):
        Clip(**(arguments | change))


def test_one_frame_is_not_a_clip_and_sizes_must_agree():
    with pytest.raises(InputError, match=r"clip\.frames\[3\]"):
        clip_of(4)[3]
    other = Clip(frames=np.zeros((1, 9, 9, 3), np.uint8), timestamps=(Fraction(9),), rate=Fraction(25))
    with pytest.raises(InputError, match="8x6 and 9x9"):
        clip_of(4) + other


@given(st.integers(0, 60), st.integers(1, 20), st.data())
def test_cutting_covers_every_frame_and_adds_a_new_one_each_time(count, clip_frames, data):
    overlap = data.draw(st.integers(0, clip_frames - 1))
    cuts = list(clip_starts(count, clip_frames, overlap))
    covered = [index for start, stop in cuts for index in range(start, stop)]
    assert sorted(set(covered)) == list(range(count))
    for (_, stop), (start, next_stop) in pairwise(cuts):
        assert stop - start == overlap
        assert next_stop > stop
    assert all(stop - start == clip_frames for start, stop in cuts[:-1])


def test_cutting_into_one_and_bad_cuts():
    assert list(clip_starts(7, None)) == [(0, 7)]
    assert list(clip_starts(7, None, 3)) == [(0, 7)]
    assert list(clip_starts(0, None)) == []
    for clip_frames, overlap in ((0, 0), (5, 5), (5, -1)):
        with pytest.raises(InputError, match=r"clip_frames=|overlap="):
            list(clip_starts(7, clip_frames, overlap))


@given(st.integers(1, 40), st.integers(1, 9), st.data())
def test_stitching_gives_back_what_was_cut(count, clip_frames, data):
    overlap = data.draw(st.integers(0, clip_frames - 1))
    whole, stitcher = clip_of(count), Stitcher(overlap)
    pieces = []
    for start, stop in clip_starts(count, clip_frames, overlap):
        pieces += stitcher.push(whole[start:stop])
    pieces += stitcher.finish()
    assert tuple(stamp for piece in pieces for stamp in piece.timestamps) == whole.timestamps
    np.testing.assert_array_equal(np.concatenate([piece.frames for piece in pieces]), whole.frames)
    assert list(stitcher.finish()) == []


def test_the_cross_fade_is_linear():
    def grey(level: int, start: int) -> Clip:
        stamps = tuple(Fraction(start + index) for index in range(5))
        return Clip(frames=np.full((5, 2, 2, 3), level, np.uint8), timestamps=stamps, rate=Fraction(1))

    stitcher = Stitcher(3)
    pieces = [*stitcher.push(grey(0, 0)), *stitcher.push(grey(200, 2)), *stitcher.finish()]
    levels = np.concatenate([piece.frames for piece in pieces])[:, 0, 0, 0]
    assert levels.tolist() == [0, 0, 50, 100, 150, 200, 200]


def test_clips_that_do_not_overlap_are_not_stitched():
    stitcher = Stitcher(2)
    list(stitcher.push(clip_of(5)))
    with pytest.raises(InputError, match=r"does not begin with the 2 frames from 0\.120 s on"):
        list(stitcher.push(clip_of(5, start=5)))


@given(st.integers(1, 20), st.integers(1, 20), st.sampled_from([1, 2, 4, 8]))
def test_padding_repeats_the_edge_and_is_cropped_exactly(height, width, factor):
    frames = np.random.default_rng(0).integers(0, 256, (2, height, width, 3), np.uint8)
    padded = pad_to_multiple(frames, factor)
    assert padded.shape[1] % factor == padded.shape[2] % factor == 0
    assert padded.shape[1] - height < factor
    assert (padded[:, height:, :width] == frames[:, -1:]).all()
    assert (padded[:, :, width:] == padded[:, :, width - 1 : width]).all()
    np.testing.assert_array_equal(crop_to(padded, height, width), frames)


def test_padding_nothing_copies_nothing_and_bad_sizes_are_named():
    frames = np.zeros((1, 8, 16, 3), np.uint8)
    assert pad_to_multiple(frames, 8) is frames
    with pytest.raises(InputError, match="factor=0"):
        pad_to_multiple(frames, 0)
    with pytest.raises(InputError, match="17x8 does not lie within frames of 16x8"):
        crop_to(frames, 8, 17)


def test_broken_stamps_are_repaired_by_the_rate():
    ticks = [100, 140, None, 220, 220, 180, 400]
    assert [tick for tick, _ in repair(((t, None) for t in ticks), Fraction(40))] == [
        100,
        140,
        180,
        220,
        260,
        300,
        400,
    ]
    assert [tick for tick, _ in repair(((t, None) for t in [None, None]), Fraction(1, 3))] == [0, 1]


@pytest.mark.parametrize(("tick", "placed"), [(1, "3/2"), (40, "60")])
def test_one_repeated_stamp_moves_nothing_that_follows(tick, placed):
    """The clock of the file may be too coarse for a place between the neighbours."""
    ticks = [n * tick for n in (0, 1, 1, *range(2, 60))]
    found = [stamp for stamp, _ in repair(((t, None) for t in ticks), Fraction(tick))]
    assert found == [0, tick, Fraction(placed), *(n * tick for n in range(2, 60))]


def test_a_clock_that_is_set_back_goes_on_by_the_rate():
    ticks = [*range(5000, 6000, 40), *range(0, 1000, 40)]
    found = [stamp for stamp, _ in repair(((t, None) for t in ticks), Fraction(40))]
    assert found == list(range(5000, 7000, 40))


def test_frames_before_the_start_are_left_out():
    stream = [(Fraction(n, 30), n) for n in range(9)]
    assert [n for _, n in starting(stream, Fraction(1, 10))] == [3, 4, 5, 6, 7, 8]
    rounded = [(Fraction(round(n * 1000 / 30), 1000), n) for n in range(9)]  # as in Matroska
    assert [n for _, n in starting(rounded, Fraction(7, 30))] == [7, 8]


@pytest.mark.parametrize(
    ("fps", "shown"),
    [
        (25, [0, 1, 2, 3, 4, 5]),
        (50, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]),
        (12.5, [0, 2, 4]),
        (10, [0, 2, 5]),
    ],
)
def test_resampling_takes_the_nearest_frame(fps, shown):
    stream = [(Fraction(n, 25), n) for n in range(6)]
    out = list(at_rate(stream, exact(fps, "fps"), Fraction(25)))
    assert [n for _, n in out] == shown
    assert [time for time, _ in out] == [index / exact(fps, "fps") for index in range(len(shown))]


def test_a_gap_is_filled_with_the_nearest_frame():
    stream = [(Fraction(0), "a"), (Fraction(1), "b")]
    out = list(at_rate(stream, Fraction(4), Fraction(4)))
    assert [item for _, item in out] == ["a", "a", "a", "b", "b"]


def test_numbers_are_taken_exactly():
    assert exact(29.97, "fps") == Fraction(2997, 100)
    assert exact("30000/1001", "fps") == Fraction(30000, 1001)
    for bad in ("fast", float("nan"), "1/0", None):
        with pytest.raises(InputError, match="fps="):
            exact(bad, "fps")
