"""decode-dataset by ranks, under torchrun and on Ray: the videos that one process makes."""

import hashlib
import json
import random
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import torch
from latent_folders import write_dataset
from video_files import scene

from temporal_vae import AutoencoderKLTemporalDecoder
from temporal_vae.distributed import LocalExecutor, RankExecutor, RayExecutor, decode_dataset
from temporal_vae.distributed.dataset import locks
from temporal_vae.distributed.dataset.shards import Record
from temporal_vae.errors import InputError
from temporal_vae.media.reader import VideoReader
from temporal_vae.video.coder import to_tensor
from temporal_vae.video.latents import ModelIdentity

HERE = RankExecutor(rank=0, world_size=1)
COUNT = 9


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of clips, of which the second and the last are broken."""
    vae = AutoencoderKLTemporalDecoder.from_embedded()
    model = ModelIdentity.of(vae)
    meta = {
        "fps": "25",
        "frames": 3,
        "timestamps": ["0", "1/25", "2/25"],
        "size": [48, 32],
        "model": {"name": model.name, "config": model.config, "config_sha256": model.config_sha256},
    }
    records = []
    for number in range(COUNT):
        with torch.inference_mode():
            mean = vae.encode(to_tensor(scene(3, 32, 48, seed=number))).latent_dist.mean
        bad = number in (1, COUNT - 1)
        tensors = {"mean": mean * torch.nan if bad else mean, "logvar": mean}
        identity = hashlib.sha256(f"clip {number}".encode()).hexdigest()[:32]
        records.append(Record(identity=identity, tensors=tensors, meta=meta))
    folder = tmp_path_factory.mktemp("source") / "latents"
    write_dataset(folder, records, per_shard=4)
    return folder


@pytest.fixture(scope="module")
def alone(latents: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process makes of them."""
    dest = tmp_path_factory.mktemp("alone") / "videos"
    decode(latents, dest, HERE)
    return dest


def decode(source: Path, dest: Path, executor: Any, **how: Any) -> Any:
    return decode_dataset(source, dest, executor=executor, codec="ffv1", device="cpu", **how)


def frames_of(path: Path) -> np.ndarray:
    with VideoReader(path) as reader:
        return np.concatenate([clip.frames for clip in reader.clips(25)])


def assert_as_alone(dest: Path, alone: Path) -> None:
    """The same videos with nearly the same pixels, the same index and the same lines in quarantine."""
    names = {path.relative_to(alone) for path in alone.rglob("*.mkv")}
    assert {path.relative_to(dest) for path in dest.rglob("*.mkv")} == names
    assert len(names) == COUNT - 2
    for name in names:
        one, other = (frames_of(folder / name).astype(int) for folder in (dest, alone))
        assert np.abs(one - other).max() <= 1
    found, right = (pq.read_table(folder / "index.parquet").to_pylist() for folder in (dest, alone))
    assert found == right
    assert (dest / "quarantine.jsonl").read_text() == (alone / "quarantine.jsonl").read_text()
    assert len((dest / "quarantine.jsonl").read_text().splitlines()) == 2
    assert not [path for path in dest.rglob("*") if ".part" in path.name]


def test_ranks_share_the_videos_and_the_last_leaves_the_index(latents, alone, tmp_path):
    told = [decode(latents, tmp_path, RankExecutor(rank=number, world_size=3)) for number in range(3)]
    assert sum(each.decoded for each in told) == COUNT - 2
    assert told[0].waiting > 0
    assert not told[0].to_json()["complete"]
    assert told[2].waiting == 0
    assert told[2].exit_code == 3
    assert_as_alone(tmp_path, alone)
    assert decode(latents, tmp_path, HERE).decoded == 0
    assert decode(latents, tmp_path, LocalExecutor(workers=2)).found == COUNT - 2
    again = decode(latents, tmp_path, RankExecutor(rank=1, world_size=2), retry_quarantined=True)
    assert (again.decoded, again.waiting, again.left_out) == (0, 0, 2)


def test_ranks_of_a_launcher_wait_for_each_other(latents, alone, tmp_path):
    first, second = (RankExecutor(rank=number, world_size=2, together=not number) for number in range(2))
    told: list[Any] = []
    other = Thread(target=lambda: told.append(decode(latents, tmp_path, first)))
    other.start()
    other.join(timeout=5)
    assert other.is_alive()
    assert decode(latents, tmp_path, second).waiting == 0
    other.join(timeout=60)
    assert told[0].waiting == 0
    assert_as_alone(tmp_path, alone)


def test_one_run_at_a_time_writes_to_a_folder(latents, tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "_PATIENCE", 0.1)
    refused: list[str] = []

    def meanwhile(now: Any) -> None:
        for executor in (HERE, RankExecutor(rank=0, world_size=2)):
            with pytest.raises(InputError, match="another run is writing there"):
                decode(latents, tmp_path, executor)
            refused.append("once more")

    decode(latents, tmp_path, HERE, progress=meanwhile)
    assert refused


@pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed; pip install 'temporal-vae[ray]'")
def test_ray_makes_the_same_videos(latents, alone, tmp_path):
    told = decode(latents, tmp_path, RayExecutor(concurrency=2))
    assert (told.decoded, told.left_out, told.waiting) == (COUNT - 2, 2, 0)
    assert_as_alone(tmp_path, alone)


def torchrun(latents: Path, dest: Path, *words: str) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    command = ["-m", "temporal_vae", "decode-dataset", str(latents), str(dest), "--codec", "ffv1", *words]
    return subprocess.run([*launcher, *command], capture_output=True, text=True, timeout=300)


def test_torchrun_gives_each_process_its_share(latents, alone, tmp_path):
    """Also where one of them has nothing to do, and the other tries again what was left out."""
    done = torchrun(latents, tmp_path, "--json")
    assert "exitcode  : 3" in done.stderr
    told = [json.loads(line) for line in done.stdout.replace("}\n{", "}\0{").split("\0")]
    assert sum(each["decoded"] for each in told) == COUNT - 2
    assert [each["waiting"] for each in told] == [0, 0]
    assert_as_alone(tmp_path, alone)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("left-out/*.json")}
    assert len(before) == 2
    torchrun(latents, tmp_path, "--retry-quarantined")
    assert all(path.stat().st_mtime_ns > before[path] for path in before)
    assert_as_alone(tmp_path, alone)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_ranks_that_are_killed_go_on(latents, alone, tmp_path, seed):
    chance = random.Random(seed)

    def start(rank: int) -> subprocess.Popen[bytes]:
        words = ("--codec", "ffv1", "--rank", str(rank), "--world-size", "2")
        command = [
            sys.executable,
            "-m",
            "temporal_vae",
            "decode-dataset",
            str(latents),
            str(tmp_path),
            *words,
        ]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    for _ in range(4):
        ranks, seen = [start(rank) for rank in range(2)], len(list(tmp_path.rglob("*.mkv")))
        end = time.monotonic() + 120
        while len(list(tmp_path.rglob("*.mkv"))) == seen and any(rank.poll() is None for rank in ranks):
            assert time.monotonic() < end, "nothing happens"
            time.sleep(0.01)
        for rank in ranks:
            time.sleep(chance.random() * 0.05)
            rank.kill()
        psutil.wait_procs([psutil.Process(rank.pid) for rank in ranks if psutil.pid_exists(rank.pid)], 30)
        for rank in ranks:
            rank.wait()
    assert [rank.wait(300) for rank in (start(0), start(1))] == [3, 3]
    assert_as_alone(tmp_path, alone)
