"""decode-dataset: a video of each clip, whose pixels are those that the model gives for its latents as one clip."""

import errno
import hashlib
import json
import signal
import subprocess
import sys
import time
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import kinds
import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import torch
from command_line import run as command
from fsspec.implementations.memory import MemoryFileSystem
from latent_folders import write_dataset
from video_files import render, scene

from temporal_vae import AutoencoderKLTemporalDecoder, decode_video, encode_video
from temporal_vae.distributed import LatentDataset, LocalExecutor, RankExecutor, decode_dataset
from temporal_vae.distributed.dataset.places import open_place
from temporal_vae.distributed.dataset.request import Progress
from temporal_vae.distributed.dataset.sampling import draw
from temporal_vae.distributed.dataset.shards import FORMATS, Format, Record
from temporal_vae.errors import InputError, LatentFileError, MediaError
from temporal_vae.media.reader import VideoReader
from temporal_vae.video.coder import to_frames, to_tensor
from temporal_vae.video.latents import ModelIdentity

TIMES = [Fraction(0), Fraction(1, 25), Fraction(2, 25), Fraction(1, 5), Fraction(6, 25)]  # at a variable rate
HERE = RankExecutor(rank=0, world_size=1)
LOSSLESS: dict[str, Any] = {"codec": "ffv1", "executor": HERE}


@pytest.fixture(scope="module")
def vae() -> AutoencoderKLTemporalDecoder:
    return AutoencoderKLTemporalDecoder.from_embedded()


@pytest.fixture(scope="module")
def clips(vae: AutoencoderKLTemporalDecoder) -> list[Record]:
    """Clips of two sizes and lengths, as encode-dataset describes them."""
    return [
        _encoded(vae, number, *size) for number, size in enumerate([(5, 32, 48), (5, 48, 32), (2, 32, 48)])
    ]


def _encoded(vae: Any, number: int, count: int, height: int, width: int) -> Record:
    frames = scene(count, height, width, seed=number)
    with torch.inference_mode():
        posterior = vae.encode(to_tensor(frames)).latent_dist
    model = ModelIdentity.of(vae)
    meta = {
        "fps": "25",
        "frames": count,
        "timestamps": [str(stamp) for stamp in TIMES[:count]],
        "size": [width, height],
        "model": {"name": model.name, "config": model.config, "config_sha256": model.config_sha256},
    }
    identity = hashlib.sha256(f"clip {number}".encode()).hexdigest()[:32]
    return Record(identity=identity, tensors={"mean": posterior.mean, "logvar": posterior.logvar}, meta=meta)


def expected(vae: AutoencoderKLTemporalDecoder, latents: torch.Tensor) -> np.ndarray:
    """What the class gives for a clip."""
    with torch.inference_mode():
        return to_frames(vae.decode(latents, num_frames=len(latents)).sample)


def frames_of(path: Path) -> np.ndarray:
    with VideoReader(path) as reader:
        return np.concatenate([clip.frames for clip in reader.clips(25)])


def nearly(found: np.ndarray, right: np.ndarray) -> bool:
    """Whether frames are those of another process, where modules decode pictures as small as these."""
    return found.shape == right.shape and int(np.abs(found.astype(int) - right).max()) <= 1


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("format", FORMATS)
def test_pixels_are_those_of_the_clip_as_one(
    tmp_path: Path, format: Format, vae: AutoencoderKLTemporalDecoder, clips: list[Record]
) -> None:
    write_dataset(tmp_path / "latents", clips, format=format)
    summary = decode_dataset(tmp_path / "latents", tmp_path / "videos", **LOSSLESS)
    assert (summary.clips, summary.decoded, summary.found, summary.left_out) == (3, 3, 0, 0)
    assert (summary.frames, summary.exit_code) == (12, 0)
    for record in clips:
        path = tmp_path / "videos" / summary.folder / f"{record.identity}.mkv"
        assert np.array_equal(frames_of(path), expected(vae, record.tensors["mean"]))
        with VideoReader(path) as reader:
            (clip,) = reader.clips(25)
        assert clip.timestamps == tuple(TIMES[: len(clip)])
        assert (clip.height, clip.width) == tuple(reversed(record.meta["size"]))
    assert json.loads((tmp_path / "videos" / "summary.json").read_text())["complete"] is True


def test_the_rate_is_that_of_the_clip(tmp_path: Path, clips: list[Record]) -> None:
    steady = Record(
        identity=clips[0].identity,
        tensors=clips[0].tensors,
        meta=clips[0].meta
        | {
            "fps": "30000/1001",
            "timestamps": [str(Fraction(3) + i * Fraction(1001, 30000)) for i in range(5)],
        },
    )
    write_dataset(tmp_path / "latents", [steady])
    summary = decode_dataset(tmp_path / "latents", tmp_path / "videos", executor=HERE)
    with VideoReader(tmp_path / "videos" / summary.folder / f"{steady.identity}.mp4") as reader:
        (clip,) = reader.clips(25)
        assert reader.rate == Fraction(30000, 1001)
    assert clip.timestamps == tuple(i * Fraction(1001, 30000) for i in range(5))


def test_the_index_says_which_video_is_of_what(tmp_path: Path, clips: list[Record]) -> None:
    write_dataset(tmp_path / "latents", clips, listed=[0, 1, 0], more={"caption": ["a", "b", "c"]})
    summary = decode_dataset(tmp_path / "latents", tmp_path / "videos", executor=HERE)
    assert (summary.rows, summary.clips, summary.decoded) == (3, 2, 2)
    rows = pq.read_table(tmp_path / "videos" / "index.parquet").to_pylist()
    assert [row["caption"] for row in rows] == ["a", "b", "c"]
    assert [row["file"] for row in rows] == [f"{summary.folder}/{clips[i].identity}.mp4" for i in (0, 1, 0)]
    assert (rows[1]["path"], rows[1]["width"], rows[1]["height"]) == ("videos/1.mp4", 32, 48)
    assert (rows[1]["start"], rows[1]["end"], rows[1]["fps"]) == (0.0, 0.2, "30000/1001")
    assert all((tmp_path / "videos" / row["file"]).is_file() for row in rows)
    assert (tmp_path / "videos" / f"index-{summary.settings[:8]}.parquet").is_file()


def test_what_is_there_is_not_done_again_and_other_settings_are_apart(
    tmp_path: Path, clips: list[Record], by_engine: dict[str, int]
) -> None:
    write_dataset(tmp_path / "latents", clips)
    first = decode_dataset(tmp_path / "latents", tmp_path / "videos", executor=HERE)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "videos").rglob("*.mp4")}
    done = by_engine["decode"]
    again = decode_dataset(tmp_path / "latents", tmp_path / "videos", executor=HERE)
    assert (again.decoded, again.found) == (0, 3)
    assert by_engine["decode"] == done
    (tmp_path / "videos" / first.folder / f"{clips[1].identity}.mp4").unlink()
    again = decode_dataset(tmp_path / "latents", tmp_path / "videos", executor=HERE)
    assert (again.decoded, again.found, by_engine["decode"]) == (1, 2, done + 1)
    folders = {first.folder}
    for options in ({"crf": 30}, {"sample": 1}, {"dtype": "bfloat16"}):
        other = decode_dataset(tmp_path / "latents", tmp_path / "videos", executor=HERE, **options)
        assert (other.decoded, other.found) == (3, 0)
        folders.add(other.folder)
    assert len(folders) == 4
    now = {path: path.stat().st_mtime_ns for path in kept}
    assert sum(now[path] == kept[path] for path in kept) == 2


def test_what_changes_nothing_changes_no_name(tmp_path: Path, clips: list[Record]) -> None:
    write_dataset(tmp_path / "latents", clips[:1])
    decode_dataset(tmp_path / "latents", tmp_path / "videos", **LOSSLESS)
    for options in ({"crf": 3}, {"clip_frames": 4}, {"memory_limit": "1GiB"}):
        assert decode_dataset(tmp_path / "latents", tmp_path / "videos", **LOSSLESS, **options).found == 1


def test_another_decoder_makes_other_videos(
    tmp_path: Path, vae: AutoencoderKLTemporalDecoder, clips: list[Record]
) -> None:
    write_dataset(tmp_path / "latents", clips[:1])
    first = decode_dataset(tmp_path / "latents", tmp_path / "videos", executor=HERE)
    tuned = AutoencoderKLTemporalDecoder.from_embedded()
    with torch.no_grad():
        tuned.decoder.conv_out.bias += 0.5
    tuned.save_pretrained(tmp_path / "tuned")
    second = decode_dataset(
        tmp_path / "latents", tmp_path / "videos", executor=HERE, model=str(tmp_path / "tuned")
    )
    assert first.folder != second.folder
    assert second.decoded == 1


def test_samples_are_drawn_by_seed_and_stored_ones_decoded(
    tmp_path: Path, vae: AutoencoderKLTemporalDecoder, clips: list[Record]
) -> None:
    record = clips[0]
    drawn = draw(record.tensors["mean"], record.tensors["logvar"], 7, record.identity)
    stored = Record(identity=record.identity, tensors={"sample": drawn}, meta=record.meta)
    for name, options in ((record, {"sample": 7}), (stored, {})):
        folder = tmp_path / str(len(options))
        write_dataset(folder / "latents", [name])
        summary = decode_dataset(folder / "latents", folder / "videos", **LOSSLESS, **options)
        path = folder / "videos" / summary.folder / f"{record.identity}.mkv"
        assert np.array_equal(frames_of(path), expected(vae, drawn))


def _broken(record: Record, number: int, **changes: Any) -> Record:
    values: dict[str, Any] = {"tensors": dict(record.tensors), "meta": dict(record.meta)}
    for name, change in changes.items():
        values[name] |= change
    return Record(identity=f"{number:032x}", **values)


def test_latents_that_cannot_be_decoded_are_listed_and_the_others_decoded(
    tmp_path: Path, clips: list[Record]
) -> None:
    (good, *_), mean = clips, clips[0].tensors["mean"]
    other = good.meta["model"] | {"config_sha256": "0" * 64, "name": "other"}
    bad = [
        _broken(good, 1, tensors={"mean": mean * torch.nan}),
        _broken(good, 2, tensors={"mean": mean[:3]}),
        _broken(good, 3, meta={"fps": "fast"}),
        _broken(good, 4, meta={"model": other}),
        _broken(good, 5, meta={"size": None}),
    ]
    write_dataset(tmp_path / "latents", [*bad, good])
    summary = decode_dataset(tmp_path / "latents", tmp_path / "videos", executor=HERE)
    assert (summary.clips, summary.decoded, summary.left_out, summary.exit_code) == (6, 1, 5, 3)
    found = {line["identity"]: line["reason"] for line in lines_of(tmp_path / "videos" / "quarantine.jsonl")}
    assert set(found) == {record.identity for record in bad}
    for number, reason in enumerate(("not finite", "where", "fast", "made by model 'other'", "clip"), 1):
        assert reason in found[f"{number:032x}"]
        assert "\n" not in found[f"{number:032x}"]
    assert len(pq.read_table(tmp_path / "videos" / "index.parquet")) == 1

    again = decode_dataset(tmp_path / "latents", tmp_path / "videos", executor=HERE)
    assert (again.decoded, again.found, again.left_out, again.exit_code) == (0, 1, 5, 3)
    mended = [Record(identity=f"{n:032x}", tensors=good.tensors, meta=good.meta) for n in range(1, 6)]
    write_dataset(tmp_path / "latents", [*mended, good])
    again = decode_dataset(tmp_path / "latents", tmp_path / "videos", executor=HERE)
    assert (again.decoded, again.left_out) == (0, 5)
    again = decode_dataset(tmp_path / "latents", tmp_path / "videos", executor=HERE, retry_quarantined=True)
    assert (again.decoded, again.left_out, again.exit_code) == (5, 0, 0)
    assert lines_of(tmp_path / "videos" / "quarantine.jsonl") == []


def test_the_first_that_is_broken_can_end_the_run(tmp_path: Path, clips: list[Record]) -> None:
    bad = _broken(clips[0], 1, meta={"fps": "fast"})
    write_dataset(tmp_path / "latents", [clips[0], bad, clips[1]])
    with pytest.raises(LatentFileError, match=r"clip 0+1: "):
        decode_dataset(tmp_path / "latents", tmp_path / "videos", executor=HERE, fail_fast=True)
    assert len(list((tmp_path / "videos").rglob("*.mp4"))) == 1
    assert [line["identity"] for line in lines_of(tmp_path / "videos" / "quarantine.jsonl")] == [bad.identity]


def test_a_shard_that_is_gone_leaves_out_its_clips(tmp_path: Path, clips: list[Record]) -> None:
    write_dataset(tmp_path / "latents", clips, per_shard=2)
    place = open_place(tmp_path / "latents")
    shard = place.list("shards")[0]
    data = place.read(shard)
    place.remove(shard)
    summary = decode_dataset(tmp_path / "latents", tmp_path / "videos", executor=HERE)
    assert summary.left_out + summary.decoded == 3
    assert summary.left_out in (1, 2)
    assert all(
        "no such file" in line["reason"] for line in lines_of(tmp_path / "videos" / "quarantine.jsonl")
    )
    place.write(shard, data)  # what is out of reach may be there another time
    again = decode_dataset(tmp_path / "latents", tmp_path / "videos", executor=HERE)
    assert (again.decoded, again.left_out) == (summary.left_out, 0)


def test_pictures_are_decoded_each_by_itself(tmp_path: Path) -> None:
    model, _ = kinds.pair(kinds.PICTURES)
    model.save_pretrained(tmp_path / "model")
    clip = _encoded(model, 0, 3, 16, 24)
    write_dataset(tmp_path / "latents", [clip])
    summary = decode_dataset(
        tmp_path / "latents", tmp_path / "videos", **LOSSLESS, model=str(tmp_path / "model")
    )
    with torch.inference_mode():
        right = to_frames(torch.cat([model.decode(z[None]).sample for z in clip.tensors["mean"]]))
    path = tmp_path / "videos" / summary.folder / f"{clip.identity}.mkv"
    assert nearly(frames_of(path), right)


def test_latent_files_give_what_decode_gives(tmp_path: Path) -> None:
    source, dest = tmp_path / "latents", tmp_path / "videos"
    (source / "more").mkdir(parents=True)
    for name, count in (("a b.safetensors", 4), ("more/a b.safetensors", 7)):
        video = render(tmp_path / "video.mkv", scene(count, 30, 46, seed=count), codec="ffv1", pix_fmt="bgr0")
        encode_video(video, source / name)
    (source / "copy.safetensors").write_bytes((source / "a b.safetensors").read_bytes())
    (source / "broken.safetensors").write_bytes((source / "a b.safetensors").read_bytes()[:-10])
    (source / "notes.txt").write_text("no latents")
    summary = decode_dataset(source, dest, **LOSSLESS, clip_frames=5)
    assert (summary.rows, summary.clips, summary.decoded, summary.left_out) == (4, 3, 2, 1)
    (line,) = lines_of(dest / "quarantine.jsonl")
    assert line["path"] == "broken.safetensors"
    rows = {row["path"]: row for row in pq.read_table(dest / "index.parquet").to_pylist()}
    assert rows["copy.safetensors"]["file"] == rows["a b.safetensors"]["file"]
    assert rows["more/a b.safetensors"]["frames"] == 7
    assert rows["more/a b.safetensors"]["source"] == "video.mkv"
    for name, row in rows.items():
        assert row["identity"] == hashlib.sha256((source / name).read_bytes()).hexdigest()[:32]
        decode_video(source / name, tmp_path / "alone.mkv", clip_frames=5)
        assert np.array_equal(frames_of(dest / row["file"]), frames_of(tmp_path / "alone.mkv"))
    again = decode_dataset(source, dest, **LOSSLESS, clip_frames=5)
    assert (again.decoded, again.found, again.left_out) == (0, 2, 1)


def test_places_may_be_elsewhere(
    tmp_path: Path, vae: AutoencoderKLTemporalDecoder, clips: list[Record]
) -> None:
    MemoryFileSystem.store.clear()
    write_dataset("memory://bucket/latents", clips[:2])
    summary = decode_dataset("memory://bucket/latents", "memory://bucket/videos", **LOSSLESS)
    assert summary.decoded == 2
    video = tmp_path / "video.mkv"
    video.write_bytes(open_place("memory://bucket/videos").read(f"{summary.folder}/{clips[0].identity}.mkv"))
    assert np.array_equal(frames_of(video), expected(vae, clips[0].tensors["mean"]))
    assert decode_dataset("memory://bucket/latents", "memory://bucket/videos", **LOSSLESS).found == 2

    source = open_place("memory://bucket/files")
    encode_video(render(tmp_path / "in.mkv", scene(3)), tmp_path / "in.safetensors")
    source.write("in.safetensors", (tmp_path / "in.safetensors").read_bytes())
    assert decode_dataset(source.url, tmp_path / "local", executor=HERE).decoded == 1


def test_a_full_disk_loses_nothing(
    tmp_path: Path, clips: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_dataset(tmp_path / "latents", clips)
    replace, renamed = Path.replace, []

    def full(path: Path, target: Path) -> Path:
        if Path(target).suffix == ".mp4" and Path(target).parent.name != "videos" and len(renamed) >= 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        renamed.extend([target] if "video" not in Path(target).name else [])
        return replace(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        with pytest.raises(MediaError, match=r"can't be written .no space left on device"):
            decode_dataset(tmp_path / "latents", tmp_path / "videos", executor=HERE)
    kept = list((tmp_path / "videos").rglob("*"))
    assert not [path for path in kept if ".part" in path.name]
    summary = decode_dataset(tmp_path / "latents", tmp_path / "videos", executor=HERE)
    assert summary.decoded + summary.found == 3
    assert summary.found >= 1


def test_clips_beyond_the_limit_are_left_out_until_it_is_larger(
    tmp_path: Path, vae: AutoencoderKLTemporalDecoder, clips: list[Record]
) -> None:
    write_dataset(tmp_path / "latents", clips)
    peaks = [
        min(rung.peak for rung in vae.plan_decode(num_frames=frames, height=height, width=width).ladder)
        for frames, height, width in ((2, 32, 48), (5, 32, 48))
    ]
    limit = sum(peaks) // 2
    summary = decode_dataset(tmp_path / "latents", tmp_path / "videos", **LOSSLESS, memory_limit=limit)
    assert (summary.decoded, summary.left_out, summary.exit_code) == (1, 2, 3)
    for line in lines_of(tmp_path / "videos" / "quarantine.jsonl"):
        assert line["reason"].startswith(f"{line['path']}: memory limit ")
        assert "raise the limit" in line["reason"]
    again = decode_dataset(tmp_path / "latents", tmp_path / "videos", **LOSSLESS)
    assert (again.decoded, again.found, again.left_out) == (2, 1, 0)
    assert lines_of(tmp_path / "videos" / "quarantine.jsonl") == []


def test_what_does_not_go_is_refused_before_anything_is_decoded(
    tmp_path: Path, vae: AutoencoderKLTemporalDecoder, clips: list[Record]
) -> None:
    latents, videos = tmp_path / "latents", tmp_path / "videos"
    latents.mkdir()
    with pytest.raises(LatentFileError, match="latents: holds neither a dataset"):
        decode_dataset(latents, videos)
    (latents / "dataset.json").write_text("{}")
    with pytest.raises(LatentFileError, match="is a dataset that is not finished"):
        decode_dataset(latents, videos)
    write_dataset(latents, clips)
    with pytest.raises(InputError, match="latents: is the source itself"):
        decode_dataset(latents, latents / ".")
    with pytest.raises(InputError, match="latents: holds a dataset of latents"):
        decode_dataset(tmp_path / "others", latents)
    for bad in ({"codec": "png"}, {"crf": 52}, {"clip_frames": 0}, {"memory_limit": "much"}):
        with pytest.raises(InputError):
            decode_dataset(latents, videos, **bad)
    model = ModelIdentity.of(vae)
    settings = clips[0].meta.get("settings", "a1b2c3d4" + "0" * 56)
    probe = [value + 1 for value in model.encoder_probe]
    entry = {"model": {"name": "other", "config": model.config, "encoder_probe": probe}}
    (latents / "dataset.json").write_text(json.dumps({"settings": {settings: entry}}))
    with pytest.raises(LatentFileError, match="made by model 'other'"):
        decode_dataset(latents, videos)
    assert not videos.exists()


def test_processes_decode_the_same_and_one_that_is_killed_is_replaced(
    tmp_path: Path, vae: AutoencoderKLTemporalDecoder, clips: list[Record]
) -> None:
    many = [
        Record(identity=f"{number:032x}", tensors=record.tensors, meta=record.meta)
        for number in range(4)
        for record in [clips[number % 3]]
    ]
    write_dataset(tmp_path / "latents", many)
    killed: list[int] = []

    def kill_one(now: Progress) -> None:
        if now.done and not killed:
            process = max(psutil.Process().children(), key=lambda child: child.memory_info().rss)
            killed.append(process.pid)
            process.kill()

    summary = decode_dataset(
        tmp_path / "latents",
        tmp_path / "videos",
        codec="ffv1",
        executor=LocalExecutor(workers=1),
        progress=kill_one,
    )
    assert killed
    assert (summary.decoded, summary.left_out) == (4, 0)
    for record in many:
        path = tmp_path / "videos" / summary.folder / f"{record.identity}.mkv"
        assert nearly(frames_of(path), expected(vae, record.tensors["mean"]))
    assert [path.name for path in (tmp_path / "videos" / summary.folder).iterdir() if path.is_dir()] == []


def test_a_folder_of_videos_there_and_back(
    tmp_path: Path, footage: Path, vae: AutoencoderKLTemporalDecoder, capsys: pytest.CaptureFixture[str]
) -> None:
    """From real footage to latents, to what a training reads, and to videos, by the commands that people give."""
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "my phone_1.mp4").write_bytes(footage.read_bytes())
    (tmp_path / "list.csv").write_text(
        'path,start,end,caption\nvideos/my phone_1.mp4,0,0.35,"a man, in a car"\n'
        "videos/my phone_1.mp4,0,0.35,again\n"
    )
    latents, dest = tmp_path / "latents", tmp_path / "back"
    words = ("--clip-frames", 4, "--size", "64x48", "--rank", 0, "--world-size", 1)
    assert command("encode-dataset", tmp_path / "list.csv", latents, *words) == 0
    items = list(LatentDataset(latents))
    assert Counter(item["caption"] for item in items) == {"a man, in a car": 2, "again": 2}
    capsys.readouterr()
    assert command("decode-dataset", latents, dest, "--codec", "ffv1", "--workers", 0, "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["rows"], summary["clips"], summary["decoded"]) == (4, 2, 2)
    rows = pq.read_table(dest / "index.parquet").to_pylist()
    assert [row["caption"] for row in rows] == [item["caption"] for item in items]
    for row, item in zip(rows, items, strict=True):
        assert row["path"] == "videos/my phone_1.mp4"
        assert np.array_equal(frames_of(dest / row["file"]), expected(vae, item["latents"]))
    assert command("decode-dataset", latents, dest, "--codec", "ffv1") == 0
    assert "0 videos decoded, 2 were there; nothing left out" in capsys.readouterr().out


def test_the_command_exits_with_3_where_something_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "latents").mkdir()
    (tmp_path / "latents" / "broken.safetensors").write_text("no latents")
    assert command("decode-dataset", tmp_path / "latents", tmp_path / "videos") == 3
    assert "0 videos decoded, 0 were there; 1 left out" in capsys.readouterr().out
    assert command("decode-dataset", tmp_path / "latents", tmp_path / "videos", "--fail-fast") == 1
    assert capsys.readouterr().err.startswith("temporal-vae: broken.safetensors: ")
    assert command("decode-dataset", tmp_path / "nowhere", tmp_path / "videos") == 1
    assert command("decode-dataset", tmp_path / "latents", tmp_path / "videos", "--codec", "png") == 2


_DRIVER = """
import sys
from temporal_vae.distributed import RankExecutor, decode_dataset
if __name__ == "__main__":
    here = RankExecutor(rank=0, world_size=1)
    decode_dataset(sys.argv[1], sys.argv[2], codec="ffv1", executor=here)
"""


@pytest.mark.slow
def test_a_driver_that_is_killed_goes_on(
    tmp_path: Path, vae: AutoencoderKLTemporalDecoder, clips: list[Record]
) -> None:
    many = [Record(identity=f"{n:032x}", tensors=clips[0].tensors, meta=clips[0].meta) for n in range(40)]
    write_dataset(tmp_path / "latents", many)
    script = tmp_path / "driver.py"
    script.write_text(_DRIVER)
    videos, seen = tmp_path / "videos", 0
    for _ in range(3):
        process = subprocess.Popen([sys.executable, str(script), str(tmp_path / "latents"), str(videos)])
        while len(list(videos.glob("videos/*/*.mkv"))) <= seen and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        seen = len(list(videos.glob("videos/*/*.mkv")))
        assert 0 < seen < 40
    summary = decode_dataset(tmp_path / "latents", videos, **LOSSLESS)
    assert (summary.found, summary.decoded) == (seen, 40 - seen)
    names = {path.stem for path in videos.rglob("*.mkv")}
    assert names == {record.identity for record in many}
    assert not [path for path in (videos / summary.folder).iterdir() if path.is_dir()]
    right = expected(vae, clips[0].tensors["mean"])
    assert all(nearly(frames_of(path), right) for path in videos.rglob("*.mkv"))
