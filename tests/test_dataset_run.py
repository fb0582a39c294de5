"""`encode-dataset`: what it makes of a folder, compared with direct encoding; what it leaves out, and says so."""

import json
import os
import shutil
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import run
from video_files import render, scene
from video_folders import (
    BROKEN,
    SHORT,
    WHOLE,
    assert_same,
    covering,
    cropped,
    encode_directly,
    index,
    model,
    quarantine,
    read_straight,
    records,
    summary,
    write_videos,
)

from temporal_vae import AutoencoderKLTemporalDecoder
from temporal_vae.distributed import Settings, encode_dataset
from temporal_vae.distributed.dataset import survey
from temporal_vae.distributed.dataset.executors.ranks import RankExecutor
from temporal_vae.distributed.dataset.probing import probe
from temporal_vae.distributed.dataset.run import Request, Run
from temporal_vae.errors import InputError

ALONE = RankExecutor(rank=0, world_size=1)  # in this process, which is quicker to begin
CLIP = 5


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    return write_videos(tmp_path_factory.mktemp("videos"))


@pytest.fixture(scope="module")
def encoded(videos, tmp_path_factory) -> Path:
    """The folder in clips of five frames. By processes, and killed, it is encoded in `test_dataset_kills.py`."""
    dest = tmp_path_factory.mktemp("encoded") / "latents"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(survey, "probe_all", probe_here)
        assert encode(videos, dest, clips_per_shard=4)["exit_code"] == 3
    return dest


def probe_here(paths, reading, workers):
    """Videos are read through in this process: to start others takes longer."""
    return ((path, probe(path, reading)) for path in paths)


@pytest.fixture(autouse=True)
def _probed_here(monkeypatch):
    monkeypatch.setattr(survey, "probe_all", probe_here)


def encode(source: Path, dest: Path, **how) -> dict:
    settings = how.pop("settings", Settings(clip_frames=CLIP))
    return encode_dataset(source, dest, settings=settings, executor=ALONE, device="cpu", **how).to_json()


def direct(path: Path, first: int, count: int = CLIP, **options) -> tuple[torch.Tensor, torch.Tensor]:
    frames = read_straight(path, **options)[1]
    return encode_directly(cropped(frames[first : first + count]))


def assert_tensors(record, mean, logvar) -> None:
    torch.testing.assert_close(record.tensors["mean"], mean, rtol=0, atol=2e-5)
    torch.testing.assert_close(record.tensors["logvar"], logvar, rtol=0, atol=2e-5)


def test_every_clip_is_there_once_and_as_direct_encoding_makes_it(videos, encoded):
    found, rows = records(encoded), index(encoded)
    assert len(rows) == sum(count // CLIP for count, _, _ in WHOLE.values()) + WHOLE["wide.mp4"][0] // CLIP
    assert {row["identity"] for row in rows} == set(found)
    seen = set()
    for row in rows:
        meta = found[row["identity"]].meta
        times, _ = read_straight(videos / row["path"])
        first = times.index(Fraction(meta["start"]))
        assert first % CLIP == 0
        assert [Fraction(time) for time in meta["timestamps"]] == times[first : first + CLIP]
        assert_tensors(found[row["identity"]], *direct(videos / row["path"], first))
        seen.add((row["path"], first))
    assert len(seen) == len(rows)


def test_what_is_left_out_is_counted_and_said(encoded):
    told = summary(encoded)
    assert told["left_out"] == {"unreadable": len(BROKEN), "too short": 1, "unfit": 0, "failed": 0}
    assert told["exit_code"] == 3
    assert not told["complete"]
    assert told["passed_over"] == 1
    assert told["rows"] == len(WHOLE) + 1 + len(BROKEN) + 1
    assert told["duplicates"] == 6
    assert told["tail_frames"] == sum(count % CLIP for count, _, _ in WHOLE.values())
    lines = quarantine(encoded)
    assert {line["source"] for line in lines if line["kind"] == "unreadable"} == set(BROKEN)
    (short,) = [line for line in lines if line["kind"] == "too short"]
    assert short["source"] == SHORT
    assert "2 frames" in short["reason"]


def test_a_video_that_is_there_twice_is_encoded_once_and_listed_twice(encoded):
    rows = index(encoded)
    first, second = ([row for row in rows if row["path"] == name] for name in ("wide.mp4", "again.mp4"))
    assert [row["identity"] for row in first] == [row["identity"] for row in second]
    assert len(first) == 6


def test_the_same_name_in_two_folders_is_two_videos(encoded):
    rows = index(encoded)
    first, second = (
        {row["identity"] for row in rows if row["path"] == name}
        for name in ("a/one_two.mp4", "b/one_two.mp4")
    )
    assert first
    assert second
    assert not first & second


def test_a_second_run_finds_all_and_encodes_nothing(videos, encoded, capsys):
    before = {path: path.stat().st_mtime_ns for path in (encoded / "shards").iterdir()}
    assert run("encode-dataset", videos, encoded, "--clip-frames", CLIP, "--workers", 2, "--json") == 3
    told = json.loads(capsys.readouterr().out)
    assert told["encoded"] == 0
    assert told["found"] == told["clips"]
    assert {path: path.stat().st_mtime_ns for path in (encoded / "shards").iterdir()} == before


@pytest.mark.parametrize("format", ["parquet", "files"])
def test_other_formats_hold_the_same(videos, encoded, tmp_path, format):
    told = encode(videos, tmp_path / "latents", format=format)
    assert told["encoded"] == told["clips"]
    assert_same(records(encoded), records(tmp_path / "latents", format))
    assert {row["format"] for row in index(tmp_path / "latents")} == {format}


def test_another_format_in_the_same_folder_is_written_beside(videos, tmp_path):
    settings = Settings(clip_frames=CLIP, pick="head")
    told = [
        encode(videos, tmp_path / "latents", format=format, settings=settings) for format in ("tar", "files")
    ]
    assert told[0]["encoded"] == told[1]["encoded"] > 0
    assert_same(records(tmp_path / "latents", "tar"), records(tmp_path / "latents", "files"))


def test_short_videos_and_tails_are_kept_where_that_is_asked(videos, tmp_path):
    told = encode(videos, tmp_path / "latents", settings=Settings(clip_frames=CLIP, short="keep"))
    assert told["left_out"]["too short"] == 0
    assert told["tail_frames"] == 0
    found, rows = records(tmp_path / "latents"), index(tmp_path / "latents")
    (two,) = [row for row in rows if row["path"] == SHORT]
    assert_tensors(found[two["identity"]], *direct(videos / SHORT, 0, 2))
    last = [row for row in rows if row["path"] == "two words.mp4"][-1]
    assert last["frames"] == 2
    assert_tensors(found[last["identity"]], *direct(videos / "two words.mp4", 10, 2))


@pytest.mark.parametrize("fps", [10, Fraction(30000, 1001), 60])
def test_resampled_clips_are_those_of_the_resampled_video(videos, tmp_path, fps):
    settings = Settings(clip_frames=CLIP, fps=Fraction(fps), stride=3, pick="head", clips=2)
    encode(videos, tmp_path / "latents", settings=settings)
    found, rows = records(tmp_path / "latents"), index(tmp_path / "latents")
    for name in WHOLE:
        times, frames = read_straight(videos / name, fps=fps)
        mine = [found[row["identity"]] for row in rows if row["path"] == name]
        starts = list(range(0, len(times) - CLIP + 1, 3))[:2]
        assert [Fraction(record.meta["start"]) for record in mine] == [times[first] for first in starts]
        for first, record in zip(starts, mine, strict=True):
            assert_tensors(record, *encode_directly(cropped(frames[first : first + CLIP])))


def test_stretches_of_a_manifest(videos, tmp_path):
    manifest = tmp_path / "rows.jsonl"
    stretches = [
        {"start": 0.2, "end": 0.6, "caption": "a"},
        {"start": 0.6, "caption": "b"},
        {"start": 0.2, "n": 1},
    ]
    rows = [{"path": str(videos / "wide.mp4"), **row} for row in stretches]
    manifest.write_text("\n".join(map(json.dumps, rows)))
    told = encode(manifest, tmp_path / "latents")
    assert told["clips"] == 2 + 3
    assert told["duplicates"] == 5  # the last row holds the two before it
    times, frames = read_straight(videos / "wide.mp4")
    found, listed = records(tmp_path / "latents"), index(tmp_path / "latents")
    assert [row["caption"] for row in listed] == ["a"] * 2 + ["b"] * 3 + [None] * 5
    assert [row["n"] for row in listed] == [None] * 5 + [1] * 5
    for row in listed:
        first = times.index(Fraction(found[row["identity"]].meta["start"]))
        assert_tensors(found[row["identity"]], *encode_directly(frames[first : first + CLIP]))
    assert found[listed[0]["identity"]].meta["columns"] == {"caption": "a"}


def test_buckets_cover_and_cut_evenly(videos, tmp_path):
    encode(videos, tmp_path / "latents", settings=Settings(clip_frames=CLIP, area=32 * 32, pick="head"))
    found, rows = records(tmp_path / "latents"), index(tmp_path / "latents")
    sizes = {row["path"]: tuple(map(int, row["bucket"].split("x"))) for row in rows}
    assert sizes["a/one_two.mp4"] == sizes["b/one_two.mp4"][::-1]
    for row in rows:
        width, height = sizes[row["path"]]
        assert width % model().spatial_factor == height % model().spatial_factor == 0
        frames = read_straight(videos / row["path"])[1][:CLIP]
        assert_tensors(found[row["identity"]], *encode_directly(covering(frames, width, height)))


def test_a_size_of_the_same_aspect_is_that_of_the_reader(videos, tmp_path):
    encode(videos / "wide.mp4", tmp_path / "latents", settings=Settings(clip_frames=CLIP, size=(20, 12)))
    found, rows = records(tmp_path / "latents"), index(tmp_path / "latents")
    for number, row in enumerate(rows):
        frames = read_straight(videos / "wide.mp4", size=(20, 12))[1][number * CLIP :][:CLIP]
        assert_tensors(found[row["identity"]], *encode_directly(frames))


def test_samples_are_drawn_by_seed_and_clip(videos, tmp_path):
    settings = [Settings(clip_frames=CLIP, sample=seed, pick="head") for seed in (0, 1)]
    first, second, other = (tmp_path / name for name in ("first", "second", "other"))
    encode(videos, first, settings=settings[0])
    encode(videos, second, settings=settings[0], clips_per_shard=1)
    encode(videos, other, settings=settings[1])
    assert_same(records(first), records(second))
    assert not records(first).keys() & records(other).keys()
    (one, *_) = [row for row in index(first) if row["path"] == "wide.mp4"]
    mean, logvar = direct(videos / "wide.mp4", 0)
    noise = (records(first)[one["identity"]].tensors["sample"] - mean) / (0.5 * logvar).exp()
    assert abs(float(noise.mean())) < 0.2
    assert abs(float(noise.std()) - 1) < 0.2


def test_latents_are_stored_in_the_dtype_that_is_asked(videos, encoded, tmp_path):
    settings = Settings(clip_frames=CLIP, latent_dtype="bfloat16", pick="head")
    encode(videos, tmp_path / "latents", settings=settings)
    found, full = records(tmp_path / "latents"), records(encoded)
    assert not found.keys() & full.keys()
    (row, *_) = index(tmp_path / "latents")
    mean = found[row["identity"]].tensors["mean"]
    assert mean.dtype == torch.bfloat16
    assert torch.equal(mean, direct(videos / row["path"], 0)[0].bfloat16())


def test_other_settings_neither_reuse_nor_remove(videos, tmp_path):
    dest, settings = tmp_path / "latents", Settings(clip_frames=CLIP, pick="head")
    first = encode(videos, dest, settings=settings)
    before = records(dest)
    second = encode(videos, dest, settings=replace(settings, latent_dtype="float16"))
    assert second["encoded"] == second["clips"] == first["clips"]
    both = records(dest)
    assert len(both) == 2 * len(before)
    assert_same(before, {identity: both[identity] for identity in before})
    third = encode(videos, dest, settings=settings)
    assert third["encoded"] == 0
    assert {row["identity"] for row in index(dest)} == set(before)
    known = json.loads((dest / "dataset.json").read_text())
    assert len(known["settings"]) == 2
    assert known["present"] == third["settings"]
    assert len(list(dest.glob("index-*.parquet"))) == 2


def test_longer_steps_find_what_shorter_ones_made(videos, tmp_path):
    all_of_them = encode(videos, tmp_path / "latents")
    some = encode(videos, tmp_path / "latents", settings=Settings(clip_frames=CLIP, stride=2 * CLIP))
    assert 0 < some["clips"] < all_of_them["clips"]
    assert some["encoded"] == 0
    assert len(index(tmp_path / "latents")) == some["clips"] + some["duplicates"]


def test_a_folder_that_grew_and_a_source_that_changed(tmp_path):
    source, dest = tmp_path / "videos", tmp_path / "latents"
    source.mkdir()
    for number in range(2):
        render(source / f"{number}.mp4", scene(10, seed=number))
    first = encode(source, dest)
    assert (first["encoded"], first["exit_code"]) == (4, 0)
    render(source / "2.mp4", scene(10, seed=2))
    assert encode(source, dest)["encoded"] == 2
    stat = (source / "0.mp4").stat()
    render(source / "0.mp4", scene(10, seed=3))
    os.utime(source / "0.mp4", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    changed = encode(source, dest)
    assert (changed["encoded"], changed["clips"]) == (2, 6)
    assert len(records(dest)) == 8
    found = records(dest)
    for row in index(dest):
        first_frame = round(row["start"] * 25)
        assert_tensors(found[row["identity"]], *direct(source / row["path"], first_frame))
    shutil.move(source / "1.mp4", source / "another name.mp4")
    assert encode(source, dest)["encoded"] == 0
    assert "another name.mp4" in {row["path"] for row in index(dest)}


def test_a_source_that_changes_between_plan_and_work_fails(tmp_path):
    source, dest = tmp_path / "videos", tmp_path / "latents"
    source.mkdir()
    for number in range(2):
        render(source / f"{number}.mp4", scene(10, seed=number))
    request = Request(
        source=source, dest=dest, settings=Settings(clip_frames=CLIP), executor=ALONE, device="cpu"
    )
    with Run(request) as run:
        render(source / "0.mp4", scene(10, seed=5))
        told = run.encode()
    assert (told.encoded, told.left_out["failed"], told.exit_code) == (2, 2, 3)
    assert all("changed since" in line["reason"] for line in quarantine(dest))
    assert encode(source, dest)["encoded"] == 2  # it is another video now
    assert quarantine(dest) == []


def test_one_file_is_read_in_one_go(videos, tmp_path, monkeypatch):
    """Neighbours among clips do not send the reader back to the beginning."""
    from temporal_vae.distributed.dataset import reading

    opened = []
    reader = reading.VideoReader

    def counted(path, **options):
        opened.append(path)
        return reader(path, **options)

    monkeypatch.setattr(reading, "VideoReader", counted)
    encode(videos / "wide.mp4", tmp_path / "latents", settings=Settings(clip_frames=CLIP, stride=2))
    batches = len(list((tmp_path / "latents" / "shards").iterdir()))
    assert len(opened) == batches < len(index(tmp_path / "latents"))


def test_the_plan_says_all_and_does_nothing(videos, tmp_path, capsys):
    words = ("encode-dataset", videos, tmp_path / "latents", "--clip-frames", CLIP, "--dry-run")
    factor, channels = model().spatial_factor, model().config.latent_channels
    assert run(*words, "--area", "32x32") == 0
    shown = capsys.readouterr().out
    for word in (
        "11 of 11 files",
        "13 clips",
        "unreadable",
        "4 rows",
        "cut.mp4",
        "too short",
        "behind",
        "twice",
    ):
        assert word in shown
    assert run(*words, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["clips"] == told["missing"] == 13
    assert told["left_out"]["unreadable"] == 4
    assert told["nbytes"] == sum(
        count // CLIP * CLIP * channels * (height // factor) * (width // factor) * 4 * 2
        for count, height, width in WHOLE.values()
    )
    assert not (tmp_path / "latents" / "shards").exists()


def test_fail_fast_ends_at_what_is_broken(videos, tmp_path, capsys):
    words = ("encode-dataset", videos, tmp_path / "latents", "--clip-frames", CLIP, "--fail-fast")
    assert run(*words) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_what_failed_is_tried_again_when_that_is_asked(tmp_path):
    source, dest = tmp_path / "videos", tmp_path / "latents"
    source.mkdir()
    render(source / "0.mp4", scene(10))
    data = (source / "0.mp4").read_bytes()
    (source / "0.mp4").write_bytes(data[:2000])
    assert encode(source, dest)["left_out"]["unreadable"] == 1
    assert encode(source, dest, retry_quarantined=True)["left_out"]["unreadable"] == 1
    (source / "0.mp4").write_bytes(data)
    assert encode(source, dest)["exit_code"] == 0


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"clip_frames": 0}, "clip_frames=0: at least 1"),
        ({"area": 100, "size": (8, 8)}, "choose buckets"),
        ({"pick": "some"}, "pick='some': choose all, head, uniform"),
        ({"fps": Fraction(0)}, "above 0"),
        ({"latent_dtype": "int8"}, "choose float32"),
        ({"size": (0, 8)}, "at least 1 pixel"),
    ],
)
def test_settings_that_make_no_sense(settings, reason):
    with pytest.raises(InputError, match=reason):
        Settings(**settings)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"size": (20, 22)}, "multiples of 4"),
        ({"area": 15}, "16 at least"),
        ({"area": 4096, "multiple": 10}, "multiple of 4"),
    ],
)
def test_settings_that_do_not_go_with_the_model(tmp_path, settings, reason):
    render(tmp_path / "0.mp4", scene(5))
    with pytest.raises(InputError, match=reason):
        encode(tmp_path, tmp_path / "latents", settings=Settings(**settings))


def test_pictures_that_are_too_small_are_left_out(tmp_path):
    (tmp_path / "videos").mkdir()
    render(tmp_path / "videos/small.mkv", scene(5, 2, 6), codec="ffv1", pix_fmt="bgr0")
    told = encode(tmp_path / "videos", tmp_path / "latents")
    assert told["left_out"]["unfit"] == 1
    assert told["exit_code"] == 3
    assert index(tmp_path / "latents") == []


def test_a_model_that_is_not_there(tmp_path):
    render(tmp_path / "0.mp4", scene(5))
    with pytest.raises(ValueError, match="nowhere"):
        encode(tmp_path, tmp_path / "latents", model=str(tmp_path / "nowhere"))


def test_clips_beyond_the_memory_limit_are_left_out_until_it_is_larger(tmp_path):
    render(tmp_path / "small.mp4", scene(5, 16, 16))
    render(tmp_path / "large.mp4", scene(5, 128, 128))
    model = AutoencoderKLTemporalDecoder.from_embedded()
    limit = model.plan_encode(num_frames=1, height=128, width=128).ladder[-1].peak - 1
    told = encode(tmp_path, tmp_path / "latents", memory_limit=limit)
    assert (told["encoded"], told["left_out"]["failed"], told["exit_code"]) == (1, 1, 3)
    (line,) = quarantine(tmp_path / "latents")
    assert line["reason"].startswith("large.mp4: memory limit ")
    assert "raise the limit" in line["reason"]
    again = encode(tmp_path, tmp_path / "latents")
    assert (again["encoded"], again["found"], again["exit_code"]) == (1, 1, 0)
    assert quarantine(tmp_path / "latents") == []


def test_latents_that_are_not_finite_are_a_failure(tmp_path, monkeypatch):
    from temporal_vae.distributed.dataset.encoder import Encoder

    render(tmp_path / "0.mp4", scene(10))
    real = Encoder._posterior

    def overflowing(self, frames: np.ndarray):
        mean, logvar = real(self, frames)
        return (mean * torch.inf if not overflowing.seen else mean), overflowing.seen.append(1) or logvar

    overflowing.seen = []
    monkeypatch.setattr(Encoder, "_posterior", overflowing)
    told = encode(tmp_path / "0.mp4", tmp_path / "latents")
    assert (told["encoded"], told["left_out"]["failed"]) == (1, 1)
    (line,) = quarantine(tmp_path / "latents")
    assert "not finite" in line["reason"]
    assert encode(tmp_path / "0.mp4", tmp_path / "latents")["left_out"]["failed"] == 1
    again = encode(tmp_path / "0.mp4", tmp_path / "latents", retry_quarantined=True)
    assert (again["encoded"], again["exit_code"]) == (1, 0)
