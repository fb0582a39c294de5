"""What a source stands for, how videos are cut, and what a clip is: whole numbers, without a model."""

import json
from dataclasses import replace
from datetime import date
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from temporal_vae.distributed.dataset.clips import Unfit, buckets, cut, nearest, picture_of, pieces
from temporal_vae.distributed.dataset.identity import home_of, identity_of, recipe_of
from temporal_vae.distributed.dataset.planning import ModelFacts, plan_of
from temporal_vae.distributed.dataset.probing import Probe, Unreadable, packed
from temporal_vae.distributed.dataset.settings import Settings
from temporal_vae.distributed.dataset.sources import Listing, Row, plain, rows_of
from temporal_vae.errors import InputError, MediaError
from temporal_vae.media.timing import at_rate, starting

MODEL = ModelFacts(digest="m", factor=8, channels=4)


def probe_of(times: list[Fraction], width: int = 64, height: int = 48, **more) -> Probe:
    tick, ticks = packed(times)
    values = {
        "stamp": "s",
        "sha256": "0",
        "pixel_aspect": Fraction(1),
        "rate": Fraction(25),
        "shown": Fraction(1, 25),
    }
    return Probe(width=width, height=height, tick=tick, packed=ticks, **values | more)


def steady(count: int, rate: int = 25) -> list[Fraction]:
    return [Fraction(number, rate) for number in range(count)]


# Pieces


@given(
    count=st.integers(0, 60),
    clip_frames=st.integers(1, 12),
    stride=st.integers(1, 15),
    pick=st.sampled_from(("all", "head", "uniform")),
    clips=st.integers(1, 5),
    short=st.sampled_from(("drop", "keep")),
)
def test_pieces_lie_within_and_are_of_the_length_that_was_asked(
    count, clip_frames, stride, pick, clips, short
):
    settings = Settings(clip_frames=clip_frames, stride=stride, pick=pick, clips=clips, short=short)
    found = pieces(count, settings)
    assert found == sorted(set(found))
    for begin, frames in found:
        assert 0 <= begin < begin + frames <= count
        assert frames == clip_frames or (short == "keep" and frames < clip_frames and begin + frames == count)
    assert bool(found) == (count >= clip_frames or (short == "keep" and count > 0))
    if pick == "all" and short == "keep" and stride <= clip_frames:
        assert {number for begin, frames in found for number in range(begin, begin + frames)} == set(
            range(count)
        )
    if pick != "all":
        assert len(found) <= clips
    whole = [begin for begin, frames in found if frames == clip_frames]
    if pick != "uniform":
        assert (
            whole
            == [begin for begin in range(0, count, stride) if begin + clip_frames <= count][: len(whole)]
        )
    if pick == "all":
        assert len(whole) == len(range(0, count - clip_frames + 1, stride))


def test_uniform_clips_are_spread_from_the_beginning_to_the_end():
    settings = Settings(clip_frames=10, pick="uniform", clips=3)
    assert pieces(50, settings) == [(0, 10), (20, 10), (40, 10)]
    assert pieces(50, replace(settings, clips=1)) == [(20, 10)]
    assert pieces(11, settings) == [(0, 10), (1, 10)]


stamps = st.lists(st.integers(1, 120), min_size=1, max_size=40).map(
    lambda gaps: [Fraction(sum(gaps[:number]), 1000) for number in range(len(gaps))]
)
seconds = st.one_of(st.none(), st.integers(0, 3000).map(lambda number: Fraction(number, 1000)))


@given(times=stamps, start=seconds, length=seconds, fps=st.sampled_from((None, 3, 25, Fraction(30000, 1001))))
def test_a_cut_is_that_of_the_frames_that_a_reader_gives(times, start, length, fps):
    fps = None if fps is None else Fraction(fps)
    end = None if length is None else (start or 0) + length + Fraction(1, 1000)
    settings = Settings(clip_frames=3, fps=fps, stride=2)
    probe = probe_of(times)
    stream = starting(((time, time) for time in times), start or Fraction(0))
    shown = stream if fps is None else at_rate(stream, fps, probe.rate, lambda: probe.shown)
    straight = [time for time, _ in shown if end is None or time < end - Fraction(1, 1000)]
    found = cut(probe, settings, start, end)
    assert found.frames == len(straight)
    assert [span.start for span in found.spans] == straight[0 : max(0, len(straight) - 2) : 2]
    assert [span.last for span in found.spans] == straight[2::2][: len(found.spans)]
    assert all(span.read_from <= span.start < span.end for span in found.spans)


# Pictures


@given(
    width=st.integers(16, 4000), height=st.integers(16, 4000), aspect=st.sampled_from((1, Fraction(16, 11)))
)
def test_a_bucket_is_the_nearest_and_nothing_is_stretched(width, height, aspect):
    settings = Settings(area=512 * 320)
    picture = picture_of(settings, width, height, Fraction(aspect), 8)
    shown = Fraction(width, height) * aspect
    sizes = buckets(settings, 8)
    assert picture.size in sizes
    off = [max(Fraction(*size) / shown, shown / Fraction(*size)) for size in sizes]
    assert off[sizes.index(picture.size)] == min(off)
    left, top, right, bottom = picture.box
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    assert left == width - right
    assert top == height - bottom
    assert (right - left) / (bottom - top) * aspect == Fraction(*picture.size)
    assert left == 0 or top == 0


@pytest.mark.parametrize(
    ("area", "multiple"), [(64 * 64, 8), (128 * 128, 16), (256 * 256, 32), (512 * 512, 64)]
)
def test_buckets_are_of_about_the_area_and_of_all_aspects(area, multiple):
    sizes = buckets(Settings(area=area), 8)
    assert all(width % multiple == height % multiple == 0 for width, height in sizes)
    assert all(0.7 < width * height / area < 1.4 for width, height in sizes)
    assert {(height, width) for width, height in sizes} == set(sizes)
    for aspect in (Fraction(1), Fraction(16, 9), Fraction(9, 16), Fraction(4, 3), Fraction(21, 9)):
        own = Fraction(*nearest(sizes, aspect))
        assert max(own / aspect, aspect / own) < 1.13


def test_an_own_size_is_cut_to_the_models_factor():
    picture = picture_of(Settings(), 177, 149, Fraction(1), 8)
    assert (picture.size, picture.box) == ((176, 144), (0, 2, 176, 146))
    with pytest.raises(Unfit, match="7x90 are smaller than"):
        picture_of(Settings(), 7, 90, Fraction(1), 8)


# Identities

CLIP = {
    "source_sha256": "a", "start": Fraction(1, 3), "frames": 5, "fps": None,
    "box": (Fraction(0), Fraction(0), Fraction(8), Fraction(8)), "size": (8, 8),
}  # fmt: skip


def test_an_identity_follows_from_all_that_changes_a_number_and_from_nothing_else():
    def identity(settings=None, model="m", **changes):
        return identity_of(recipe_of(settings or Settings(), model), **CLIP | changes)

    one = identity()
    assert len(one) == 32
    assert one == identity()
    other = [
        *(identity(source_sha256="b"), identity(start=Fraction(1, 2)), identity(frames=6)),
        *(identity(fps=Fraction(25)), identity(size=(16, 16)), identity(box=CLIP["box"][::-1]), identity(model="n")),
        *(identity(Settings(**{name: value})) for name, value in {
            "dtype": "bfloat16", "latent_dtype": "float16", "sample": 0, "background": "white", "hdr": "keep",
            "damaged": "keep", "deinterlace": "never",
        }.items()),
    ]  # fmt: skip
    assert len({one, *other}) == len(other) + 1
    same = {
        "clip_frames": 7,
        "stride": 2,
        "pick": "head",
        "clips": 3,
        "short": "keep",
        "area": 64,
        "multiple": 8,
    }
    assert {identity(Settings(**{name: value})) for name, value in same.items()} == {one}


def test_homes_are_spread_and_neighbours_stay_together():
    homes = [home_of("a", Fraction(number), Fraction(1), 4) for number in range(800)]
    assert all(150 < homes.count(rank) < 250 for rank in range(4))
    assert sum(first != second for first, second in pairwise(homes)) < 100
    assert {home_of("a", Fraction(number), Fraction(1), 1) for number in range(9)} == {0}


def test_settings_are_what_was_written():
    settings = Settings(fps=Fraction(30000, 1001), size=(320, 192), sample=3, latent_dtype="bfloat16")
    assert Settings.from_json(json.loads(json.dumps(settings.to_json()))) == settings
    with pytest.raises(InputError, match="colour is of another release"):
        Settings.from_json({"colour": 1})


# Sources


def listed(path: Path) -> list[tuple[str, Fraction | None, Fraction | None, dict]]:
    return [(row.source, row.start, row.end, row.columns) for row in rows_of(path).rows]


def test_a_folder_is_searched_for_videos(tmp_path):
    for name in ("b.MP4", "a/c d.mkv", "a/b.mp4", "notes.txt", ".hidden.mp4", "a/picture.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = rows_of(tmp_path)
    assert [row.source for row in found.rows] == ["a/b.mp4", "a/c d.mkv", "b.MP4"]
    assert all(Path(row.path).is_absolute() for row in found.rows)
    assert found.passed_over == 2
    (tmp_path / "out").mkdir()
    (tmp_path / "out/decoded.mp4").touch()
    assert len(rows_of(tmp_path, without=tmp_path / "out").rows) == 3
    assert [row.source for row in rows_of(tmp_path / "a/b.mp4").rows] == [str(tmp_path / "a/b.mp4")]
    assert len(rows_of(tmp_path / "**/*.m*").rows) == 3
    with pytest.raises(MediaError, match="holds no video"):
        rows_of(tmp_path / "out", without=tmp_path)
    with pytest.raises(InputError, match="is both SOURCE and DEST"):
        rows_of(tmp_path, without=tmp_path)


def test_manifests_of_three_kinds_say_the_same(tmp_path):
    rows = [
        {"path": "a b.mp4", "start": 0.5, "end": 2.5, "caption": "two, and a half"},
        {"path": "../c.mkv", "caption": None},
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "rows.csv").write_text(
        'path,start,end,caption\na b.mp4,0.5,2.5,"two, and a half"\n../c.mkv,,,\n'
    )
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    expected = [
        ("a b.mp4", Fraction(1, 2), Fraction(5, 2), {"caption": "two, and a half"}),
        ("../c.mkv", None, None),
    ]
    for kind in ("jsonl", "csv", "parquet"):
        found = listed(tmp_path / f"rows.{kind}")
        assert found[0] == expected[0]
        assert found[1][:3] == expected[1]
        assert not any(found[1][3].values())
    assert rows_of(tmp_path / "rows.csv").rows[1].path == str(tmp_path.parent / "c.mkv")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"file": "a.mp4"}', "line 1 has no path"),
        ('{"path": ""}', "line 1 has no path"),
        (
            '"a.mp4"\n{"path": "b.mp4", "start": 2, "end": 1}',
            "line 2: start=2, end=1; let end be after start",
        ),
        ('{"path": "b.mp4", "start": -1}', "start=-1 is no number of 0 or more"),
        ('{"path": "b.mp4", "end": "soon"}', "end='soon' is no number"),
        ("{", "line 1 is no JSON"),
        ("", "names no video"),
    ],
)
def test_rows_that_say_nothing_are_refused(tmp_path, text, reason):
    (tmp_path / "rows.jsonl").write_text(text)
    with pytest.raises((InputError, MediaError), match=reason):
        rows_of(tmp_path / "rows.jsonl")


def test_columns_are_carried_as_json_has_them():
    columns = {"a": 1, "b": [1.5, None], "c": date(2024, 1, 2), "d": float("nan"), "e": "\\ud800"}
    assert plain(columns) == {"a": 1, "b": [1.5, None], "c": "2024-01-02", "d": None, "e": "\\ud800"}


# Plans


def test_a_plan_counts_what_it_leaves_out():
    rows = [
        Row(path="/a", source="a", columns={"n": 1}),
        Row(path="/same", source="same", columns={"n": 2}),
        Row(path="/short", source="short"),
        Row(path="/small", source="small"),
        Row(path="/broken", source="broken"),
        Row(path="/a", source="a", start=Fraction(100)),
    ]
    found = {
        "/a": probe_of(steady(12)),
        "/same": probe_of(steady(12)),
        "/short": probe_of(steady(3)),
        "/small": probe_of(steady(12), width=4),
        "/broken": Unreadable(stamp="", reason="broken: at all"),
    }
    plan = plan_of(Listing(rows=rows, passed_over=3), found, Settings(clip_frames=5), MODEL)
    assert (len(plan.clips), plan.duplicates, plan.tail_frames, plan.videos, plan.rows) == (2, 2, 4, 5, 6)
    assert [(each.kind, each.source) for each in plan.left_out] == [
        ("too short", "short"), ("unfit", "small"), ("unreadable", "broken"), ("too short", "a"),
    ]  # fmt: skip
    assert "holds no frame from 100 s" in plan.left_out[-1].reason
    assert plan.nbytes == 2 * 5 * 4 * 8 * 6 * 4 * 2
    assert plan.seconds == Fraction(10, 25)
    assert next(iter(plan.clips.values())).columns == {"n": 1}
    assert [each.row.columns["n"] for each in plan.listed] == [1, 2]
    shown = str(plan)
    for word in (
        "6 of 5 files",
        "2 of up to 5 frames",
        "64x48: 2 clips",
        "3 files that are no videos",
        "broken: at all",
    ):
        assert word in shown
    assert plan.to_json()["left_out"] == {"unreadable": 1, "too short": 2, "unfit": 1, "failed": 0}
