"""The core of `encode-dataset` around an encoder that computes nothing: deaths, ranks, locks, disks, many rows."""

import errno
import json
import os
import time
from fractions import Fraction
from pathlib import Path
from threading import Thread

import pytest
from fake_encoders import DiesAtStart, DiesOnce, DiesOver, FailsAtStart, Quick, Unforeseen
from video_files import render, scene
from video_folders import index, quarantine, records

from temporal_vae import outputs
from temporal_vae.distributed import Settings
from temporal_vae.distributed.dataset import locks, survey
from temporal_vae.distributed.dataset import run as core
from temporal_vae.distributed.dataset.encode_job import Batch, EncodeJob
from temporal_vae.distributed.dataset.executors import Deaths, ModelSpec
from temporal_vae.distributed.dataset.executors.local import LocalExecutor
from temporal_vae.distributed.dataset.executors.processes import WorkerError
from temporal_vae.distributed.dataset.executors.ranks import RankExecutor, rank_of_launcher
from temporal_vae.distributed.dataset.probing import Probe, packed, probe
from temporal_vae.distributed.dataset.request import Request
from temporal_vae.distributed.dataset.run import Run
from temporal_vae.errors import InputError, MediaError

CLIP = 4
HERE = RankExecutor(rank=0, world_size=1, make=Quick)


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for number, name in enumerate(("a.mp4", "bad.mp4", "c.mp4")):
        render(folder / name, scene(12, 16, 16, seed=number))
    return folder


@pytest.fixture(autouse=True)
def _probed_here(monkeypatch):
    monkeypatch.setattr(
        survey, "probe_all", lambda paths, reading, workers: ((path, probe(path, reading)) for path in paths)
    )


def run(source: Path, dest: Path, executor, **how) -> dict:
    settings = how.pop("settings", Settings(clip_frames=CLIP))
    request = Request(
        source=source, dest=dest, settings=settings, executor=executor, device="cpu", clips_per_shard=2, **how
    )
    with Run(request) as work:
        return work.encode().to_json()


# Workers


def test_a_batch_whose_worker_died_comes_again(videos, tmp_path):
    told = run(videos / "a.mp4", tmp_path, LocalExecutor(workers=1, make=DiesOnce))
    assert (told["encoded"], told["exit_code"]) == (3, 0)
    assert set(records(tmp_path)) == {row["identity"] for row in index(tmp_path)}
    assert len(list(tmp_path.glob("*.died"))) == len(list((tmp_path / "shards").iterdir())) > 1


def test_a_worker_holds_no_more_than_it_may(videos, tmp_path, monkeypatch):
    sizes = []

    class Counts(RankExecutor):
        def run(self, job, batches):
            def counted():
                for batch in batches:
                    sizes.append(len(batch.clips))
                    yield batch

            return super().run(job, counted())

    executor = Counts(rank=0, world_size=1, make=Quick)
    told = run(videos, tmp_path / "free", executor)
    assert told["encoded"] == sum(sizes)
    assert max(sizes) == 2
    sizes.clear()
    monkeypatch.setattr(core, "_HELD_BYTES", 1)
    told = run(videos, tmp_path / "held", executor)
    assert told["encoded"] == sum(sizes)
    assert set(sizes) == {1}


@pytest.mark.slow
def test_a_clip_that_kills_its_worker_alone_is_quarantined(videos, tmp_path):
    told = run(videos, tmp_path, LocalExecutor(workers=2, make=DiesOver))
    assert (told["encoded"], told["left_out"]["failed"], told["exit_code"]) == (8, 1, 3)
    (line,) = quarantine(tmp_path)
    assert line["source"] == "bad.mp4"
    assert "a worker died 3 times" in line["reason"]
    assert len(records(tmp_path)) == 8
    again = run(videos, tmp_path, HERE)
    assert (again["encoded"], again["left_out"]["failed"]) == (0, 1)
    retried = run(videos, tmp_path, HERE, retry_quarantined=True)
    assert (retried["encoded"], retried["exit_code"]) == (1, 0)


def test_deaths_are_counted_for_each_batch():
    clip = object.__new__(type("Clip", (), {"identity": "a"}))
    other = object.__new__(type("Clip", (), {"identity": "b"}))
    model = ModelSpec(name="none", subfolder=None, device="cpu", identity="")
    deaths = Deaths(EncodeJob(model=model, settings=Settings(), dest="none", format="tar"))
    batch = Batch(number=0, clips=(clip, other))  # type: ignore[arg-type]
    assert deaths.after(batch) == deaths.after(batch) == ([batch], None)
    singles, report = deaths.after(batch)
    assert ([each.clips for each in singles], report) == ([(clip,), (other,)], None)


@pytest.mark.parametrize(
    ("encoder", "error", "reason"),
    [
        (DiesAtStart, WorkerError, r"end while they start \(exit code 7\)"),
        (FailsAtStart, MediaError, "nowhere: no such model"),
        (Unforeseen, WorkerError, r"fake_encoders.py:\d+ \(KeyError: 'a mistake'\)"),
    ],
)
def test_workers_that_cannot_work_end_the_run(videos, tmp_path, encoder, error, reason):
    with pytest.raises(error, match=reason):
        run(videos, tmp_path, LocalExecutor(workers=1, make=encoder))
    assert run(videos, tmp_path, HERE)["exit_code"] == 0


# Ranks


def test_ranks_share_the_clips_and_the_last_leaves_the_index(videos, tmp_path):
    ranks = [RankExecutor(rank=number, world_size=3, make=Quick) for number in range(3)]
    told = [run(videos, tmp_path, rank, settings=Settings(clip_frames=1)) for rank in ranks]
    assert sum(each["encoded"] for each in told) == 36
    assert [each["waiting"] for each in told][-1] == 0
    assert told[0]["waiting"] == 36 - told[0]["encoded"]
    assert len(records(tmp_path)) == 36
    assert {row["identity"] for row in index(tmp_path)} == set(records(tmp_path))
    other = [
        run(videos, tmp_path, RankExecutor(rank=number, world_size=2, make=Quick)) for number in range(2)
    ]
    assert sum(each["encoded"] for each in other) == 9
    assert run(videos, tmp_path, HERE)["encoded"] == 0


def test_ranks_of_a_launcher_wait_for_each_other(videos, tmp_path):
    """It ends all of them when the first says that something was left out."""
    first, second = (
        RankExecutor(rank=number, world_size=2, make=Quick, together=not number) for number in range(2)
    )
    settings, told = Settings(clip_frames=1), {}
    other = Thread(target=lambda: told.update(run(videos, tmp_path, first, settings=settings)))
    other.start()
    other.join(timeout=3)
    assert other.is_alive()
    assert run(videos, tmp_path, second, settings=settings)["waiting"] == 0
    other.join(timeout=30)
    assert told["waiting"] == 0


def test_ranks_read_each_video_once(videos, tmp_path, monkeypatch):
    asked: list[str] = []

    def counted(paths, reading, workers):
        for path in paths:
            asked.append(path)
            yield path, probe(path, reading)

    monkeypatch.setattr(survey, "probe_all", counted)
    for number in range(2):
        run(videos, tmp_path, RankExecutor(rank=number, world_size=2, make=Quick))
    assert len(asked) == len(set(asked)) == 3


def test_torchrun_tells_the_rank(monkeypatch):
    assert rank_of_launcher() is None
    for name, value in {"RANK": "2", "WORLD_SIZE": "3", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert rank_of_launcher() == RankExecutor(rank=2, world_size=3, local_rank=1, together=True)
    with pytest.raises(InputError, match="ranks count from 0"):
        RankExecutor(rank=3, world_size=3)


# Locks, disks, ledgers


def test_two_drivers_exclude_each_other_and_ranks_do_not(videos, tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "_PATIENCE", 0.1)
    first, second = (RankExecutor(rank=number, world_size=2, make=Quick) for number in range(2))
    other = RankExecutor(rank=0, world_size=3, make=Quick)

    def request(executor) -> Request:
        return Request(source=videos, dest=tmp_path, executor=executor, device="cpu")

    with Run(request(HERE)):
        for executor in (HERE, first):
            with pytest.raises(InputError, match="another run is writing there"):
                Run(request(executor))
    with Run(request(first)), Run(request(second)):
        for executor in (HERE, first, other):
            with pytest.raises(InputError, match="another run is writing there"):
                Run(request(executor))
    with Run(request(HERE)):
        pass


def test_a_full_disk_loses_nothing(videos, tmp_path, monkeypatch):
    sync, calls = os.fsync, []

    def full(number: int) -> None:
        calls.append(number)
        if len(calls) > 12:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(number)

    with monkeypatch.context() as patch:
        patch.setattr(outputs.os, "fsync", full)
        with pytest.raises(MediaError, match="no space left on device"):
            run(videos, tmp_path, HERE)
    done = records(tmp_path)
    assert 0 < len(done) < 9
    told = run(videos, tmp_path, HERE)
    assert told["encoded"] + told["found"] == told["clips"] == 9
    assert told["found"] == len(done)
    assert not [path for path in tmp_path.rglob("*") if ".part" in path.name]


def test_a_lost_ledger_is_made_again_from_the_shards(videos, tmp_path):
    run(videos, tmp_path, HERE)
    before = {path: path.read_bytes() for path in (tmp_path / "shards").iterdir()}
    (tmp_path / "ledger.sqlite").unlink()
    told = run(videos, tmp_path, HERE)
    assert (told["encoded"], told["found"]) == (0, 9)
    assert {path: path.read_bytes() for path in (tmp_path / "shards").iterdir()} == before
    index(tmp_path)


def test_shards_that_somebody_removed_are_made_again(videos, tmp_path):
    run(videos, tmp_path, HERE)
    next((tmp_path / "shards").iterdir()).unlink()
    assert 0 < run(videos, tmp_path, HERE)["encoded"] <= 2
    assert len(records(tmp_path)) == 9
    index(tmp_path)


def test_shards_of_ranks_that_somebody_removed_are_made_again(videos, tmp_path):
    for number in range(2):
        run(videos, tmp_path, RankExecutor(rank=number, world_size=2, make=Quick))
    for shard in (tmp_path / "shards").iterdir():
        shard.unlink()
    assert run(videos, tmp_path, HERE)["encoded"] == 9
    index(tmp_path)


@pytest.mark.parametrize("format", ["tar", "parquet", "files"])
def test_what_was_written_and_not_entered_is_adopted_and_not_there_twice(videos, tmp_path, format):
    """As where a driver dies between a shard and the ledger, and batches are cut in another way afterwards."""
    run(videos, tmp_path, HERE, format=format)
    (tmp_path / "ledger.sqlite").unlink()
    request = Request(
        source=videos,
        dest=tmp_path,
        settings=Settings(clip_frames=CLIP),
        executor=HERE,
        device="cpu",
        format=format,
    )
    with Run(request) as work:
        assert not work.missing
    orphan = records(tmp_path, format)
    chosen = list(orphan.values())[:3]
    from temporal_vae.distributed.dataset.places import open_place
    from temporal_vae.distributed.dataset.shards import write_shard

    write_shard(open_place(tmp_path), format, chosen)  # of clips that are in other shards already
    told = run(videos, tmp_path, HERE, format=format)
    assert (told["encoded"], told["found"]) == (0, 9)
    assert len(records(tmp_path, format)) == 9


def test_a_damaged_shard_that_no_ledger_knows_is_made_again(videos, tmp_path, caplog):
    run(videos, tmp_path, HERE)
    (tmp_path / "ledger.sqlite").unlink()
    shard = next((tmp_path / "shards").iterdir())
    shard.write_bytes(shard.read_bytes()[:700])
    told = run(videos, tmp_path, HERE)
    assert 0 < told["encoded"] <= 2
    assert "encoded anew" in caplog.text
    assert len(records(tmp_path)) == 9


def test_a_ledger_that_is_none(videos, tmp_path):
    (tmp_path / "ledger.sqlite").write_text("no ledger" * 100)
    with pytest.raises(MediaError, match=r"ledger.sqlite: the ledger can't be read"):
        run(videos, tmp_path, HERE)


def test_a_dataset_in_memory_keeps_its_ledger_in_the_cache(videos, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    dest = f"memory://{tmp_path.name}"
    assert run(videos, dest, HERE)["encoded"] == 9
    assert run(videos, dest, HERE)["found"] == 9
    (ledger,) = (tmp_path / "cache").rglob("ledger.sqlite")
    ledger.unlink()
    assert run(videos, dest, HERE)["found"] == 9


def test_ranks_on_two_machines_see_what_the_other_did(videos, tmp_path, monkeypatch):
    """Their ledgers are in caches of their own, and a copy of each beside the shards."""
    dest, told = f"memory://{tmp_path.name}", []
    for number in range(2):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / f"machine {number}"))
        rank = RankExecutor(rank=number, world_size=2, make=Quick)
        told.append(run(videos, dest, rank, settings=Settings(clip_frames=1)))
    assert told[0]["waiting"] == told[1]["encoded"] > 0
    assert told[1]["waiting"] == 0
    assert told[1]["found"] == told[0]["encoded"]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "machine 2"))
    assert run(videos, dest, HERE, settings=Settings(clip_frames=1))["found"] == 36


def test_a_folder_that_can_not_be_made(videos, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(MediaError, match="can't be written"):
        run(videos, tmp_path / "file" / "latents", HERE)
    with pytest.raises(InputError, match="is both SOURCE and DEST"):
        run(videos, videos, HERE)
    with pytest.raises(MediaError, match="no such file or folder"):
        run(videos / "nowhere", tmp_path / "latents", HERE)
    assert not (tmp_path / "latents").exists()


# Many rows


def many(count: int, tmp_path: Path, monkeypatch) -> tuple[Path, dict[str, Probe]]:
    """A manifest of so many rows of as many files, none of which is there, and what is found of them."""
    tick, times = packed(Fraction(number, 25) for number in range(100))
    rows = [{"path": f"videos/{number}.mp4", "caption": f"number {number}"} for number in range(count)]
    manifest = tmp_path / "rows.jsonl"
    manifest.write_text("\n".join(map(json.dumps, rows)))

    def found(path: str, reading: dict[str, str]) -> Probe:
        number = int(Path(path).stem)
        return Probe(
            stamp="one",
            sha256=f"{number:064x}",
            width=256,
            height=144,
            pixel_aspect=Fraction(1),
            rate=Fraction(25),
            tick=tick,
            packed=times,
            shown=Fraction(1, 25),
        )

    monkeypatch.setattr(survey, "stamp_of", lambda path: "one")
    monkeypatch.setattr(
        survey, "probe_all", lambda paths, reading, workers: ((path, found(path, reading)) for path in paths)
    )
    return manifest


def seconds_of(count: int, tmp_path: Path, monkeypatch) -> tuple[float, float, float]:
    """To plan rows, to plan and encode them with nothing, and to find them all done."""
    tmp_path.mkdir()
    manifest = many(count, tmp_path, monkeypatch)
    request = Request(
        source=manifest,
        dest=tmp_path / "latents",
        settings=Settings(clip_frames=100),
        executor=HERE,
        device="cpu",
        clips_per_shard=1000,
    )
    taken = []
    for run_it in (False, True, True):
        began = time.process_time()
        with Run(request) as work:
            if run_it:
                told = work.encode()
                assert told.clips == count
        taken.append(time.process_time() - began)
    assert (told.encoded, told.found) == (0, count)
    return taken[0], taken[1], taken[2]


def test_costs_grow_with_the_rows_and_no_faster(tmp_path, monkeypatch):
    few = seconds_of(500, tmp_path / "few", monkeypatch)
    many = seconds_of(4000, tmp_path / "many", monkeypatch)
    for less, more in zip(few, many, strict=True):
        assert more < 8 * 2 * less + 0.5
    assert many[0] < 10
    assert many[2] < 10


@pytest.mark.slow
def test_a_hundred_thousand_rows(tmp_path, monkeypatch, capsys):
    plan, _, resume = seconds_of(100_000, tmp_path / "rows", monkeypatch)
    with capsys.disabled():
        print(f"\n100,000 rows: {plan:.1f} s to plan, {resume:.1f} s to resume")
    assert plan < 60
    assert resume < 60
