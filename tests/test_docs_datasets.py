"""Every command of docs/datasets.md runs, on small videos and in small sizes."""

import contextlib
import os
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from command_line import run
from processes import free_port
from video_files import render, scene
from video_folders import index, quarantine, records, summary

from temporal_vae.distributed import LatentDataset

PAGE = Path(__file__).parents[1] / "docs" / "datasets.md"
BLOCKS = re.findall(r"^```bash\n(.*?)^```", PAGE.read_text(), re.M | re.S)
SMALLER = {"--clip-frames 25": "--clip-frames 4", "--area 512x320": "--area 64x64"}
BENCHMARK = {
    "--rows 100000": "--rows 1000",
    "--clips 32": "--clips 4",
    "--rounds 3": "--rounds 1",
    "128x128": "64x64",
}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The folder to run commands in, with two videos, and a broken one apart."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "videos").mkdir()
    (tmp_path / "broken").mkdir()
    render(tmp_path / "videos" / "harbour.mp4", scene(32, 48, 64, 1))
    render(tmp_path / "videos" / "street.mp4", scene(15, 64, 48, 2))
    render(tmp_path / "broken" / "whole.mp4", scene(8, 48, 64, 3))
    (tmp_path / "broken" / "cut.mp4").write_bytes(b"no video")
    return tmp_path


def block(words: str) -> str:
    """The block that has these words, in small sizes."""
    (found,) = [each for each in BLOCKS if words in each]
    for long, short in SMALLER.items():
        found = found.replace(long, short)
    return found


def shell(folder: Path, commands: str, **variables: str) -> str:
    """Run commands one after the other, all of which must succeed; what they print."""
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands],
        cwd=folder,
        env={**os.environ, "PATH": programs, "RAY_USAGE_STATS_ENABLED": "0", **variables},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def here(commands: str) -> None:
    """Run commands in this folder, those of ours in this process, which is quicker."""
    for each in re.split(r"^(temporal-vae .*\n)", commands, flags=re.M):
        if not each.startswith("temporal-vae "):
            shell(Path.cwd(), each)
            continue
        command, _, exit_code = each.partition("|| test $? -eq ")
        words = shlex.split(command, comments=True)[1:]
        assert run(*words, "--workers", "0") == int(exit_code or 0)


def test_every_block_is_run_here():
    shown = ("--dry-run", "clips.csv", "quarantine.jsonl", "finds all done", "torchrun", "SBATCH", "ray start",
           "--format parquet", "benchmarks.datasets")  # fmt: skip
    assert len({block(words) for words in shown}) == len(BLOCKS)


def test_from_a_folder_to_training(folder, capsys):
    here(block("--dry-run"))
    assert re.search(r"clips +11 of up to 4 frames", capsys.readouterr().out)
    assert summary(folder / "latents")["encoded"] == 11
    assert {row["bucket"] for row in index(folder / "latents")} == {"72x56", "56x72"}
    assert len(list((folder / "seen").rglob("*.mp4"))) == 11


def test_a_manifest(folder):
    here(block("clips.csv"))
    rows = index(folder / "captioned")
    assert [row["caption"] for row in rows].count("trams, from above") == 2
    assert {row["fps"] for row in rows} == {"12"}
    assert LatentDataset(folder / "captioned")[0]["caption"] == "a boat leaves"


def test_what_is_left_out(folder):
    here(block("quarantine.jsonl"))
    assert len(records(folder / "latents")) == 2
    assert [line["kind"] for line in quarantine(folder / "latents")] == ["unreadable"]


def test_resuming(folder, capsys):
    here(block("finds all done"))
    assert "0 clips encoded, 11 were there" in capsys.readouterr().out


@pytest.mark.slow
def test_ranks(folder):
    shell(folder, block("torchrun"))
    assert len(index(folder / "latents")) == 11
    assert len(list((folder / "seen").rglob("*.mp4"))) == 11


@pytest.mark.slow
def test_an_array_of_slurm(folder):
    for rank in range(3):
        shell(folder, block("SBATCH"), SLURM_ARRAY_TASK_ID=str(rank), SLURM_ARRAY_TASK_COUNT="3")
    assert len(index(folder / "latents")) == 11
    assert len(records(folder / "latents")) == 11


@pytest.mark.slow
@pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed; pip install 'temporal-vae[ray]'")
def test_a_cluster(folder, monkeypatch):
    port = free_port()
    commands = block("ray start").replace("6379", str(port)).replace("head:", "127.0.0.1:")
    mode, token, head, other, encode, decode = (line.partition(" #")[0] for line in commands.splitlines())
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv(*mode.removeprefix("export ").strip().split("="))
    shell(folder, token)
    small = "--block --num-cpus 1 --object-store-memory 80000000"
    with started(f"{head} {small} --include-dashboard=false", port), started(f"{other} {small}", port):
        shell(folder, encode)
        shell(folder, decode)
    assert len(index(folder / "latents")) == 11
    assert len(list((folder / "seen").rglob("*.mp4"))) == 11


@contextlib.contextmanager
def started(command: str, port: int) -> Iterator[None]:
    """A machine of a cluster, as long as the block lasts."""
    program, *words = command.split()
    with subprocess.Popen(
        [str(Path(sys.executable).parent / program), *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"},
    ) as process:
        try:
            for _ in range(120):
                with socket.socket() as there:
                    if not there.connect_ex(("127.0.0.1", port)):
                        break
                time.sleep(0.5)
            yield
        finally:
            process.terminate()


@pytest.mark.slow
def test_where_it_is_written(folder):
    commands = block("--format parquet").replace("s3://bucket", f"file://{folder}/bucket")
    shell(folder, commands)
    assert len(records(folder / "parquet", "parquet")) == 11
    assert len(records(folder / "bucket" / "latents")) == 11
    assert (folder / "latents.sqlite").is_file()


@pytest.mark.slow
@pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed; pip install 'temporal-vae[ray]'")
def test_the_benchmark(folder):
    commands = block("benchmarks.datasets")
    for long, short in BENCHMARK.items():
        commands = commands.replace(long, short)
    shown = shell(folder, commands, PYTHONPATH=str(PAGE.parents[1]))
    assert "of the loop" in shown
    assert "resume, all done" in shown
