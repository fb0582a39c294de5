"""Commands that torchrun starts several times: one video, and an error that names the rank that is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from tests.processes import Processes, free_port
from tests.video_files import render, scene

from temporal_vae.distributed.clip.ranks import together
from temporal_vae.errors import RankError

TIMEOUT = 10  # seconds that a rank may stand still
PATIENCE = 300  # seconds that processes may take for anything on a machine busy with other things


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A latent file of 30 frames of 96x64."""
    folder = tmp_path_factory.mktemp("latents")
    render(folder / "in.mp4", scene(30, 64, 96))
    from tests.command_line import run

    assert run("encode", folder / "in.mp4", folder / "in.safetensors") == 0
    return folder / "in.safetensors"


def start(ranks: int, *words: object) -> list[subprocess.Popen[str]]:
    """The command in several processes, as a launcher starts it."""
    port = str(free_port())
    around = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "WORLD_SIZE": str(ranks),
        "OMP_NUM_THREADS": "1",
    }
    return [
        subprocess.Popen(
            [sys.executable, "-m", "temporal_vae", *map(str, words)],
            env={**os.environ, **around, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(ranks)
    ]  # fmt: skip


def frames(video: Path) -> list[np.ndarray]:
    with av.open(str(video)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def off(first: Path, second: Path) -> int:
    """The largest difference of two videos, in levels."""
    pairs = zip(frames(first), frames(second), strict=True)
    return max(int(np.abs(one.astype(int) - other).max()) for one, other in pairs)


def test_torchrun_shares_the_work_and_one_process_writes(latents, tmp_path):
    from tests.command_line import run

    alone, shared, again = (tmp_path / name for name in ("alone.mkv", "shared.mkv", "again.safetensors"))
    assert run("decode", latents, alone, "--clip-frames", 11, "--overlap", 2) == 0
    for words in (
        ("decode", latents, shared, "--clip-frames", "11", "--overlap", "2"),
        ("encode", alone, again),
    ):
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--nproc-per-node",
            "2",
            "-m",
            "temporal_vae",
        ]
        done = subprocess.run([*command, *map(str, words)], capture_output=True, text=True, timeout=PATIENCE)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("30 frames") == 1
    assert off(alone, shared) <= 1
    assert run("decode", again, tmp_path / "again.mkv", "--clip-frames", 11) == 0
    direct = tmp_path / "direct.safetensors"
    assert run("encode", alone, direct) == 0
    assert run("decode", direct, tmp_path / "direct.mkv", "--clip-frames", 11) == 0
    assert off(tmp_path / "again.mkv", tmp_path / "direct.mkv") <= 1


def test_no_shard_lets_the_first_process_work_alone(latents, tmp_path):
    target = tmp_path / "out.mkv"
    processes = start(2, "decode", latents, target, "--no-shard")
    outputs = [process.communicate(timeout=PATIENCE) for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert "30 frames" in outputs[0][0]
    assert outputs[1] == ("", "")
    assert len(frames(target)) == 30


def test_an_error_is_said_once(tmp_path):
    processes = start(2, "decode", tmp_path / "none.safetensors", tmp_path / "out.mkv")
    outputs = [process.communicate(timeout=PATIENCE) for process in processes]
    assert [process.returncode for process in processes] == [1, 1]
    assert outputs[0][1].count("\n") == 1
    assert "none.safetensors: no such file" in outputs[0][1]
    assert outputs[1] == ("", "")


def test_a_rank_that_ended_before_it_met_the_others(latents, tmp_path):
    first, second = start(2, "decode", latents, tmp_path / "out.mkv", "--timeout", 5)
    second.kill()
    second.communicate()
    _, error = first.communicate(timeout=PATIENCE)
    assert first.returncode == 1
    assert "the ranks did not all meet" in error
    assert error.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_rank_that_is_gone_ends_the_others_and_leaves_no_file(tmp_path, how, rank):
    source, target = tmp_path / "latents.npy", tmp_path / "out.mkv"
    np.save(source, np.random.default_rng(0).standard_normal((300, 8, 16, 24), dtype=np.float32))
    processes = start(3, "decode", source, target, "--clip-frames", "4", "--timeout", TIMEOUT)
    try:
        wait_for_a_beginning(tmp_path, processes)
        processes[rank].send_signal(how)
        others = [process for number, process in enumerate(processes) if number != rank]
        errors = [process.communicate(timeout=PATIENCE)[1] for process in others]
        assert [process.returncode for process in others] == [1, 1]
        if rank != 0:  # the first speaks for all
            assert f"rank {rank}" in errors[0]
            assert errors[0].count("\n") == 1
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert not target.exists()


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_stands_still_for_a_while_is_waited_for(tmp_path, rank):
    source, target = tmp_path / "latents.npy", tmp_path / "out.mkv"
    np.save(source, np.random.default_rng(0).standard_normal((60, 8, 16, 24), dtype=np.float32))
    processes = start(3, "decode", source, target, "--clip-frames", "4", "--timeout", PATIENCE)
    try:
        wait_for_a_beginning(tmp_path, processes)
        for _ in range(2):
            processes[rank].send_signal(signal.SIGSTOP)
            time.sleep(
                5
            )  # longer than a store may take to answer, and than a rank whose connection broke has
            processes[rank].send_signal(signal.SIGCONT)
            time.sleep(1)
        errors = [process.communicate(timeout=PATIENCE)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert [process.returncode for process in processes] == [0, 0, 0], errors
    assert len(frames(target)) == 60


def send_to_one_that_is_dead(group: Any) -> None:
    with together(group, timeout=60) as ranks:
        ranks.everyone(torch.zeros(1))
        if ranks.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(2)  # until the connection is broken
        ranks.exchange([(1, torch.zeros(1))], [])()


def test_what_is_sent_to_a_rank_that_is_gone_already():
    with Processes(2) as some:
        some.ask(2, send_to_one_that_is_dead)
        error = some.answer(0)
    assert isinstance(error, RankError), error
    assert error.rank == 1
    assert "is gone: it was ended" in str(error)


def wait_for_a_beginning(folder: Path, processes: list[subprocess.Popen[str]]) -> None:
    """Wait until the output is being written."""
    deadline = time.monotonic() + PATIENCE
    while not any(folder.glob(".out*")):
        assert time.monotonic() < deadline
        assert all(process.poll() is None for process in processes)
        time.sleep(0.02)
