"""`encode-dataset`, killed: at the end there is exactly what a run without interruption makes."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from pathlib import Path

import psutil
import pytest
from video_files import render, scene
from video_folders import assert_as_whole, half_written, write_videos

from temporal_vae.distributed import Settings, encode_dataset
from temporal_vae.distributed.dataset.executors.ranks import RankExecutor
from temporal_vae.distributed.dataset.request import Progress

CLIP = 3
LIMIT = "1GiB"  # or it depends on the number of workers who computes what is small, modules or engine
PATIENCE = 600  # seconds that processes may take for anything on a machine busy with other things
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    """Enough for many batches, and what is broken."""
    folder = write_videos(tmp_path_factory.mktemp("videos"))
    render(folder / "long.mp4", scene(120, 32, 32, seed=7), options={"g": "30"})
    return folder


running: list[subprocess.Popen[bytes]] = []


@pytest.fixture(autouse=True)
def _nobody_stays() -> Iterator[None]:
    """What a test that fails leaves running would slow down the next ones."""
    yield
    for process in running:
        process.kill()
        process.communicate()
    running.clear()


def start(videos: Path, dest: Path, *words: object) -> subprocess.Popen[bytes]:
    command = (sys.executable, "-m", "temporal_vae", "encode-dataset", videos, dest, "--clip-frames", CLIP)
    more = ("--device", "cpu", "--clips-per-shard", 2, "--memory-limit", LIMIT, *words)
    pipe = subprocess.PIPE
    process = subprocess.Popen(list(map(str, (*command, *more))), env=ENVIRONMENT, stdout=pipe, stderr=pipe)
    running.append(process)
    return process


@pytest.fixture(scope="module")
def whole(videos, tmp_path_factory) -> Path:
    """What an uninterrupted run makes."""
    dest = tmp_path_factory.mktemp("whole") / "latents"
    process = start(videos, dest, "--workers", 1)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 3, (out, err)
    return dest


def shards(dest: Path) -> int:
    return len(list((dest / "shards").glob("*.tar"))) if (dest / "shards").is_dir() else 0


def wait_for(condition, process: subprocess.Popen[bytes]) -> None:
    """Wait until something is so or the process is over."""
    end = time.monotonic() + PATIENCE
    while not condition() and process.poll() is None:
        assert time.monotonic() < end, "nothing happens"
        time.sleep(0.01)


def workers_of(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Processes that a driver started to encode or to read."""
    with suppress(psutil.NoSuchProcess):
        return [
            child
            for child in psutil.Process(process.pid).children()
            if "spawn_main" in " ".join(child.cmdline())
        ]
    return []


def gone(processes: list[psutil.Process]) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=PATIENCE)
    return not alive


def kill_and_resume(videos: Path, dest: Path, kills: int, seed: int, workers: int = 2) -> None:
    """Kill the driver some times: at a random number of shards, and a random moment after that."""
    chance = random.Random(seed)
    for _ in range(kills):
        process = start(videos, dest, "--workers", workers)
        before, more = shards(dest), chance.randrange(1, 6)
        wait_for(lambda before=before, more=more: shards(dest) >= before + more, process)
        time.sleep(chance.random() * 0.3)
        started = workers_of(process)
        process.kill()
        process.communicate()
        assert gone(started), "workers outlive their driver"
    process = start(videos, dest, "--workers", workers)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 3, (out, err)


def test_a_driver_that_is_killed(videos, whole, tmp_path):
    kill_and_resume(videos, tmp_path / "latents", kills=1, seed=0, workers=1)
    assert_as_whole(tmp_path / "latents", whole)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 4))
def test_a_driver_that_is_killed_again_and_again(videos, whole, tmp_path, seed):
    kill_and_resume(videos, tmp_path / "latents", kills=7, seed=seed)
    assert_as_whole(tmp_path / "latents", whole)


def kill_workers(videos: Path, dest: Path, kills: int, seed: int) -> None:
    chance = random.Random(seed)
    process = start(videos, dest, "--workers", 2)
    killed = 0
    while killed < kills and process.poll() is None:
        before = shards(dest)
        wait_for(lambda before=before: shards(dest) > before and workers_of(process), process)
        time.sleep(chance.random() * 0.2)
        with suppress(psutil.NoSuchProcess, IndexError):
            chance.choice(workers_of(process)).kill()
            killed += 1
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 3, (out, err)
    assert killed


@pytest.mark.slow
def test_workers_that_are_killed_are_replaced(videos, whole, tmp_path):
    kill_workers(videos, tmp_path / "latents", kills=1, seed=0)
    assert_as_whole(tmp_path / "latents", whole)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 4))
def test_workers_that_are_killed_again_and_again(videos, whole, tmp_path, seed):
    kill_workers(videos, tmp_path / "latents", kills=8, seed=seed)
    assert_as_whole(tmp_path / "latents", whole)


@pytest.mark.slow
def test_a_driver_that_is_killed_while_it_plans(videos, whole, tmp_path):
    dest = tmp_path / "latents"
    for pause in (0, 0.1, 0.5, 1.5):
        process = start(videos, dest, "--workers", 2)
        wait_for(lambda: (dest / "ledger.sqlite").exists(), process)
        time.sleep(pause)
        process.kill()
        process.communicate()
    kill_and_resume(videos, dest, kills=0, seed=0)
    assert_as_whole(dest, whole)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupt_ends_all_and_can_be_resumed(videos, whole, tmp_path, number):
    dest = tmp_path / "latents"
    process = start(videos, dest, "--workers", 1)
    wait_for(lambda: shards(dest) >= 2, process)
    workers = workers_of(process)
    assert workers
    process.send_signal(number)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 128 + number
    assert err.decode().split("\n")[-2:] == [
        "temporal-vae: interrupted; nothing unfinished is left behind",
        "",
    ]
    assert gone(workers)
    assert not half_written(dest)
    if number == signal.SIGTERM:
        kill_and_resume(videos, dest, kills=0, seed=0)
        assert_as_whole(dest, whole)


@pytest.mark.slow
def test_ranks_that_are_killed(videos, whole, tmp_path):
    dest, chance = tmp_path / "latents", random.Random(0)
    for _ in range(3):
        ranks = [start(videos, dest, "--rank", rank, "--world-size", 2) for rank in range(2)]
        before = shards(dest)
        wait_for(lambda before=before: shards(dest) > before + 3, ranks[0])
        for rank in ranks:
            time.sleep(chance.random() * 0.2)
            rank.kill()
        for rank in ranks:
            rank.communicate()
    ranks = [start(videos, dest, "--rank", rank, "--world-size", 2) for rank in range(2)]
    assert [rank.communicate(timeout=PATIENCE) and rank.returncode for rank in ranks] == [3, 3]
    assert_as_whole(dest, whole)


@pytest.mark.parametrize("end", [None, KeyboardInterrupt])
def test_what_a_worker_that_died_was_writing_is_removed_at_the_end(videos, tmp_path, end):
    dest = tmp_path / "latents"
    left: list[str] = []
    write = (
        "import sys; from pathlib import Path; from temporal_vae.outputs import temporary_name;"
        "path = temporary_name(Path(sys.argv[1])); path.parent.mkdir(exist_ok=True); path.touch(); print(path)"
    )

    def leave(now: Progress) -> None:
        if now.phase == "encode" and not left:
            words = (sys.executable, "-c", write, str(dest / "shards" / "some.tar"))
            left.append(subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip())
            assert half_written(dest) == [Path(left[0])]
            if end is not None:
                raise end

    alone = RankExecutor(rank=0, world_size=1)
    with pytest.raises(end) if end else nullcontext():
        encode_dataset(
            videos, dest, settings=Settings(clip_frames=CLIP), executor=alone, device="cpu", progress=leave
        )
    assert left
    assert not half_written(dest)
