"""Datasets on a disk that is really full: one line says so, nothing is lost, and with room the same command goes on."""

import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import fsspec
import pyarrow.parquet as pq
import pytest
from full_disks import (
    PAGE,
    Disk,
    assert_exactly,
    assert_kept,
    assert_once_stopped,
    assert_stopped,
    can_have_namespace,
    decoded,
    here,
    in_ledger,
    in_process,
    mounted,
)
from video_files import render, scene
from video_folders import assert_as_whole, half_written, index, records, summary

from temporal_vae import encode_video, outputs
from temporal_vae.distributed import Settings, decode_dataset, encode_dataset
from temporal_vae.distributed.dataset import survey
from temporal_vae.distributed.dataset.executors.ranks import RankExecutor
from temporal_vae.distributed.dataset.places import open_place
from temporal_vae.distributed.dataset.probing import probe
from temporal_vae.distributed.dataset.shards import FORMATS
from temporal_vae.errors import MediaError, MemoryLimitError

HERE = RankExecutor(rank=0, world_size=1)  # in this process

CLIP, FRAMES = 3, 15
ALONE = ("--rank", 0, "--world-size", 1)
FULL = os.strerror(errno.ENOSPC).lower()
INSIDE = "TEMPORAL_VAE_TEST_NAMESPACE"


@pytest.fixture
def disk(tmp_path):
    with mounted(tmp_path / "disk") as found:
        if found is None:
            pytest.skip("this user may mount no disk; see test_in_a_namespace")
        yield found


def test_in_a_namespace(request, tmp_path):
    """All of this file, where only the root of a namespace may mount a disk."""
    with mounted(tmp_path / "disk") as found:
        if found is not None or INSIDE in os.environ:
            pytest.skip("disks can be mounted without one")
    if not can_have_namespace():
        pytest.skip("this machine lets its users mount no disk")
    command = ["unshare", "-rm", sys.executable, "-m", "pytest", "-q", __file__, "-p", "no:cacheprovider"]
    command += ["-m", request.config.option.markexpr, "--basetemp", tmp_path / "inside"]
    done = subprocess.run(
        [*map(str, command)], env={**os.environ, INSIDE: "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    """Two whole videos and one that is none."""
    folder = tmp_path_factory.mktemp("videos")
    for seed in range(2):
        render(folder / f"{seed}.mp4", scene(FRAMES, 48, 64, seed), options={"g": "8"})
    (folder / "text.mp4").write_text("no video")
    return folder


@pytest.fixture(scope="module")
def whole(videos, tmp_path_factory) -> Path:
    """What an uninterrupted run makes elsewhere."""
    dest = tmp_path_factory.mktemp("whole") / "latents"
    encode_dataset(videos, dest, settings=Settings(clip_frames=CLIP), executor=HERE, device="cpu")
    return dest


@pytest.fixture
def _probed_here(monkeypatch):
    """Videos are read through in this process: to start others takes longer."""
    monkeypatch.setattr(
        survey, "probe_all", lambda paths, reading, workers: ((path, probe(path, reading)) for path in paths)
    )


@pytest.fixture
def run(capsys, _probed_here):
    return here(capsys)


def encoding(source: Path, dest: object, *words: object) -> tuple[object, ...]:
    few = ("--clip-frames", CLIP, "--device", "cpu", "--clips-per-shard", 2)
    return ("encode-dataset", source, dest, *few, *(words or ALONE))


# Shards


@pytest.mark.parametrize("format", FORMATS)
def test_a_disk_that_is_full_amid_the_shards(disk: Disk, videos, whole, format, tmp_path, run):
    """The ledger has a disk of its own, so that it is a shard that finds this one full."""
    dest, before = disk.path / "latents", {}
    words = encoding(videos, dest, *ALONE, "--format", format, "--ledger", tmp_path / "ledger.sqlite")
    disk.take(pages=40 * 4096 // PAGE + 8)
    for _ in range(2):  # a second time there is no more room than before
        assert_stopped(run(*words), dest, "clips/" if format == "files" else "shards/")
        before = assert_kept(before, dest, format)
        assert 0 < len(before) < len(records(whole))
    disk.make_room()
    assert run(*words).code == 3
    assert_kept(before, dest, format)
    assert_exactly(dest, whole, format)
    folder = dest / ("clips" if format == "files" else "shards")
    assert summary(dest)["nbytes"] == sum(each.stat().st_size for each in folder.rglob("*") if each.is_file())


def stop_and_go_on(
    disk: Disk, videos: Path, whole: Path, format: str, *words: object, again=in_process
) -> None:
    dest = disk.path / "latents"
    command = encoding(videos, dest, *words, "--format", format)
    disk.take(pages=40 * 4096 // PAGE + 8)
    assert_once_stopped(in_process(*command), dest)
    before = records(dest, format)
    assert 0 < len(before) < len(records(whole))
    disk.make_room()
    assert again(*command).code == 3
    assert_kept(before, dest, format)
    found = records(dest, format)
    assert found.keys() == records(whole).keys()
    assert not half_written(dest)
    if format == "tar":
        assert_as_whole(dest, whole)


def test_the_same_in_a_process(disk: Disk, videos, whole, run):
    stop_and_go_on(disk, videos, whole, "tar", *ALONE, again=run)


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("workers", [1, 2])
def test_workers_of_this_machine(disk: Disk, videos, whole, format, workers):
    stop_and_go_on(disk, videos, whole, format, "--workers", workers)


@pytest.mark.slow
def test_ranks_that_share_a_full_disk(disk: Disk, videos, whole):
    dest = disk.path / "latents"
    commands = [encoding(videos, dest, "--rank", rank, "--world-size", 2) for rank in range(2)]
    disk.take(pages=50 * 4096 // PAGE + 8)
    ended = [in_process(*command) for command in commands]
    assert any(each.code == 1 for each in ended)
    for each in ended:
        if each.code == 1:
            assert_stopped(each, dest, "shards/", "ledger-", "dataset.json", "quarantine.jsonl")
    before = records(dest)
    disk.make_room()
    assert {in_process(*command).code for command in commands} <= {0, 3}
    assert_kept(before, dest, "tar")
    assert_as_whole(dest, whole)


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
def test_page_by_page(disk: Disk, videos, whole, format, run):
    """A disk that grows by a page between runs: whatever it is that finds it full."""
    dest, before, words = disk.path / "latents", {}, encoding(videos, disk.path / "latents")
    for pages in range(2, 200):
        disk.take(pages=pages)
        ended = run(*words, "--format", format)
        before = assert_kept(before, dest, format)
        if ended.code == 3:
            break
        assert_stopped(ended, dest, f"{dest}/")
    assert_exactly(dest, whole, format)


# The ledger


def test_a_ledger_that_finds_the_disk_full(disk: Disk, videos, whole, tmp_path, run):
    """Its disk grows by a page at a time; shards, which are elsewhere, are taken in when it has room for them."""
    dest, ledger = tmp_path / "latents", disk.path / "ledger.sqlite"
    words = encoding(videos, dest, *ALONE, "--ledger", ledger)
    before, ahead = {}, 0
    for pages in range(1, 40):
        disk.take(pages=pages)
        ended = run(*words)
        before = assert_kept(before, dest, "tar")
        if ended.code == 3:
            break
        assert_stopped(ended, dest, str(ledger))
        ahead = max(ahead, len(before) - in_ledger(ledger))
    assert ahead, "no shard was written that the ledger had no room for"
    assert in_ledger(ledger) == len(records(whole))
    assert_exactly(dest, whole)


def test_a_disk_that_is_full_while_videos_are_read_through(disk: Disk, videos, whole, run):
    dest = disk.path / "latents"
    assert run(*encoding(videos / "0.mp4", dest, *ALONE, "--dry-run")).code == 0
    disk.fill()
    assert_stopped(run(*encoding(videos, dest)), dest, "latents/ledger.sqlite")
    disk.make_room()
    assert run(*encoding(videos, dest)).code == 3
    assert_exactly(dest, whole)


# What is beside the shards


def test_a_disk_that_is_full_at_the_end(disk: Disk, videos, run):
    """The index of the settings, that of the plan, the summary: one page less than each of them takes."""
    dest = disk.path / "latents"
    words = encoding(videos / "0.mp4", dest)  # nothing is left out: the file that says what is takes no page
    assert run(*words).code == 0
    rows, shards = index(dest), records(dest).keys()
    pages = -(-(dest / "index.parquet").stat().st_size // PAGE)
    named = [name.name for name in dest.glob("index-*")] + ["index.parquet", "summary.json"]
    for name, leave in zip(named, (pages - 1, 2 * pages - 1, 2 * pages), strict=True):
        for each in named:
            (dest / each).unlink(missing_ok=True)
        disk.fill(leave)
        assert_stopped(run(*words), dest, f"latents/{name}:")
        assert not (dest / name).exists()
        disk.make_room()
    assert run(*words).code == 0
    assert index(dest) == rows
    assert records(dest).keys() == shards
    assert summary(dest)["encoded"] == 0


def test_what_is_left_out_has_no_room(disk: Disk, videos, whole, run):
    dest = disk.path / "latents"
    assert run(*encoding(videos, dest)).code == 3
    was = (dest / "quarantine.jsonl").read_text()
    disk.fill()
    assert_stopped(run(*encoding(videos, dest)), dest, "latents/quarantine.jsonl")
    assert (dest / "quarantine.jsonl").read_text() == was
    disk.make_room()
    assert run(*encoding(videos, dest)).code == 3
    assert_exactly(dest, whole)


def test_a_disk_that_takes_no_more_files(disk: Disk, videos, whole, run):
    dest, seen, before = disk.path / "latents", set(), {}
    for count in (2, 3, 5, 7, 8, 30):
        disk.take_files(count)
        ended = run(*encoding(videos, dest))
        if ended.code == 3:
            break
        names = {".driver.lock", "ledger.sqlite", "quarantine.jsonl", "shards/"}
        assert_stopped(ended, dest, *names)
        seen |= {name for name in names if name in ended.err}
        assert "no inodes left" in ended.err
        before = assert_kept(before, dest, "tar")
    assert seen >= {"ledger.sqlite", "shards/"}
    assert_exactly(dest, whole)


def test_what_the_dead_left_makes_room_first(disk: Disk, videos, run):
    """A worker that is ended half-way leaves what may be all the room there was."""
    dest = disk.path / "latents"
    assert run(*encoding(videos / "0.mp4", dest)).code == 0
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left = outputs.temporary_name(dest / "shards" / "a.tar")
    left = left.with_name(left.name.replace(f"-{os.getpid()}-", f"-{dead.pid}-"))
    disk.fill()
    shutil.move(disk.path / "filler", left)
    assert run(*encoding(videos, dest)).code == 3
    assert not left.exists()


# Temporary folders


@pytest.fixture
def small_temporary(disk: Disk, monkeypatch) -> Path:
    """The temporary folder, with hardly any room."""
    monkeypatch.setattr(tempfile, "tempdir", str(disk.path))
    disk.fill(2)
    return disk.path


def test_a_temporary_folder_that_is_full(small_temporary, videos, tmp_path, monkeypatch, run):
    """What goes to a store is held in one; the ledger is in the cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    ended = run(*encoding(videos, "memory://full/latents"))
    assert_stopped(ended, small_temporary, "memory://full/latents/shards/")
    assert f"temporary folder {small_temporary}: {FULL}" in ended.err
    assert "TMPDIR" in ended.err
    assert [path.name for path in small_temporary.iterdir()] == ["filler"]


def test_a_place_whose_temporary_folder_is_full(small_temporary):
    place = open_place("memory://full/place")
    place.write("a", b"before")
    with pytest.raises(MediaError, match=f"place/a: can't be written .temporary folder .*: {FULL}"):
        place.write("a", bytes(3 * PAGE))
    assert place.read("a") == b"before"


def test_latents_are_not_broken_where_the_temporary_folder_is_full(small_temporary, videos, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(tmp_path))
        encode_video(videos / "0.mp4", tmp_path / "0.safetensors")
    fsspec.filesystem("memory").pipe_file(
        "/full/files/0.safetensors", (tmp_path / "0.safetensors").read_bytes()
    )
    with pytest.raises((MediaError, MemoryLimitError), match=FULL):
        decode_dataset("memory://full/files", tmp_path / "videos", executor=HERE)


# Videos


@pytest.fixture(scope="module")
def right(whole, tmp_path_factory) -> dict[str, str]:
    """The videos that an uninterrupted run makes elsewhere."""
    dest = tmp_path_factory.mktemp("right")
    decode_dataset(whole, dest, device="cpu", executor=HERE)
    return decoded(dest, CLIP)


def test_videos_on_a_full_disk(disk: Disk, whole, right, run):
    dest = disk.path / "videos"
    words = ("decode-dataset", whole, dest, "--device", "cpu", "--workers", 0)
    disk.take(pages=4)
    assert_stopped(run(*words), dest, f"{dest}/videos/")
    before = decoded(dest, CLIP)
    assert 0 < len(before) < len(right)
    assert before.items() <= right.items()
    disk.make_room()
    assert run(*words).code == 0
    assert decoded(dest, CLIP) == right
    told = json.loads((dest / "summary.json").read_text())
    assert (told["found"], told["decoded"]) == (len(before), len(right) - len(before))
    assert len(pq.read_table(dest / "index.parquet")) == len(index(whole))
    assert not half_written(dest)


def stop_decoding_and_go_on(disk: Disk, whole: Path, right: dict, make, *words: object) -> None:
    """A disk that grows by a page between runs."""
    dest, before = disk.path / "videos", {}
    command = ("decode-dataset", whole, dest, "--device", "cpu", *words)
    for step in range(2, 60):
        make(step)
        ended = in_process(*command)
        now = decoded(dest, CLIP)
        assert before.keys() <= now.keys() <= right.keys()
        before = now
        if ended.code == 0:
            break
        assert_stopped(ended, dest, f"{dest}/")
    assert ended.code == 0
    assert decoded(dest, CLIP).keys() == right.keys()
    assert not half_written(dest)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_videos_page_by_page(disk: Disk, whole, right, workers):
    steps = lambda step: disk.take(pages=2 * step)  # noqa: E731
    stop_decoding_and_go_on(disk, whole, right, steps, "--workers", workers)


@pytest.mark.slow
def test_videos_file_by_file(disk: Disk, whole, right):
    stop_decoding_and_go_on(disk, whole, right, lambda step: disk.take_files(2 * step), "--workers", 1)
