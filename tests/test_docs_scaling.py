"""Every command of docs/scaling.md runs, on a small video."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from tests.command_line import run
from tests.video_files import render, scene

PAGE = Path(__file__).parents[1] / "docs" / "scaling.md"
BLOCKS = re.findall(r"^```bash\n(.*?)^```", PAGE.read_text(), re.M | re.S)
COMMANDS = [line for block in BLOCKS for line in block.splitlines()]


def test_every_command_is_run_here():
    assert len(COMMANDS) == 4
    assert all(command.startswith(("temporal-vae plan ", "torchrun ")) for command in COMMANDS)


def test_plans_are_printed(capsys):
    for command in COMMANDS:
        if command.startswith("temporal-vae "):
            assert run(*shlex.split(command)[1:]) == 0
            assert "decode on 4 ranks" in capsys.readouterr().out


@pytest.mark.slow
def test_torchrun_shares_the_work(tmp_path):
    render(tmp_path / "in.mp4", scene(30, 48, 64))
    assert run("encode", tmp_path / "in.mp4", tmp_path / "latents.safetensors") == 0
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for command in COMMANDS:
        if command.startswith("torchrun "):
            words = shlex.split(command)
            done = subprocess.run(
                words, cwd=tmp_path, env={**os.environ, "PATH": programs}, capture_output=True, text=True
            )
            assert done.returncode == 0, done.stderr
            assert (tmp_path / words[words.index("temporal_vae") + 3]).stat().st_size > 0
    assert (tmp_path / "out.mp4.metrics.json").is_file()
