"""Every Python example of the README and the docs runs, in a folder of its own."""

import re
from pathlib import Path

import pytest

from temporal_vae.checkpoints.loading import EMBEDDED

ROOT = Path(__file__).parents[1]
LONG = {"README.md-1"}  # as a page of memory.md, for longer
EXAMPLES = [
    pytest.param(code, id=name, marks=[pytest.mark.slow] if name in LONG else [])
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    for number, code in enumerate(re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S))
    for name in [f"{page.name}-{number}"]
]


def test_there_are_examples():
    assert len(EXAMPLES) >= 3


@pytest.mark.parametrize("code", EXAMPLES)
def test_example_runs(code, tmp_path, monkeypatch, footage):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.mp4").write_bytes(footage.read_bytes())
    exec(compile(code, "example", "exec"), {})


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *(ROOT / "docs").glob("*.md")], ids=lambda page: page.name
)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)#]+)", page.read_text()):
        if not link.startswith("http"):
            assert (page.parent / link).exists(), link


def test_the_embedded_model_ships():
    assert (EMBEDDED / "config.json").is_file()
    assert sum(file.stat().st_size for file in EMBEDDED.glob("*.safetensors")) <= 12e6
