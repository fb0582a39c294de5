"""Every example of the README and the docs runs, page by page, from top to bottom in a folder of its own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import run
from doc_pages import OWN, PAGES, ROOT, Block, blocks, lines, words_of
from video_files import render, scene

from temporal_vae.checkpoints.loading import EMBEDDED

RUN = {
    page: [block for block in blocks(page) if block.info in ("python", "sh") and not block.reason]
    for page in PAGES
}
OTHERS = {"", "bash", "console", "yaml"}


def test_there_are_examples():
    assert sum(map(len, RUN.values())) >= 25


@pytest.mark.parametrize("page", [page for page in PAGES if RUN[page]], ids=lambda page: page.name)
def test_examples_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    render(tmp_path / "in.mp4", scene(30, 48, 64), audio="aac")
    for block in RUN[page]:
        if block.info == "python":
            exec(compile(block.small, page.name, "exec"), {})
        else:
            run_shell(block)


def run_shell(block: Block) -> None:
    """Run the lines one after the other, ours in this process, which is quicker."""
    for line in lines(block.code):
        words = words_of(line)
        if words is not None:
            assert run(*words) == 0, line
        else:
            programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
            subprocess.run(["bash", "-euc", line], check=True, env={**os.environ, "PATH": programs})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_blocks_say_what_they_are(page):
    """A language, or none for what is no code; a reason for each that does not run."""
    for block in blocks(page):
        assert block.info in {"python", "sh", *OTHERS}, block
        assert not block.mark.startswith("no-run") or len(block.reason) > 5, block
        if block.info == "bash":
            assert (ROOT / "tests" / OWN[page.name]).is_file()
        if not block.info:
            assert not any(
                words_of(line) for line in lines(block.code) if re.match(r"(\$ )?\w+[-=]", line)
            ), block


@pytest.mark.parametrize(
    "block",
    [block for page in PAGES for block in blocks(page) if block.info == "console"],
    ids=lambda block: block.page,
)
def test_what_a_command_prints_is_current(block, capsys):
    command, _, printed = block.code.partition("\n")
    assert run(*words_of(command)) == 0
    assert capsys.readouterr().out.strip() == printed.strip()


def test_a_configuration_of_a_training_can_be_read():
    import yaml

    from temporal_vae.training import make_config

    (block,) = [block for page in PAGES for block in blocks(page) if block.info == "yaml"]
    assert make_config(yaml.safe_load(block.code)).steps == 500


@pytest.mark.parametrize(
    "page",
    [*PAGES, *(ROOT / "docs" / "api").glob("*.md"), ROOT / "CONTRIBUTING.md"],
    ids=lambda page: page.name,
)
def test_links_lead_somewhere(page):
    """In the repository; `test_docs_site.py` follows them, with their anchors, on the site."""
    for link in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
        if not link.startswith("http"):
            assert (page.parent / link).exists(), link


def test_the_embedded_model_ships():
    assert (EMBEDDED / "config.json").is_file()
    assert sum(file.stat().st_size for file in EMBEDDED.glob("*.safetensors")) <= 12e6
