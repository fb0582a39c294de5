"""The examples run."""

import ast
import json
import re
import runpy
from importlib import import_module
from pathlib import Path

import av
import nbformat
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.slow  # the example of training.md runs always
def test_finetune(footage: Path, tmp_path: Path) -> None:
    """Two steps on a real clip: figures before and after, and a picture."""
    main = runpy.run_path(str(EXAMPLES / "finetune.py"))["main"]
    options = {"--steps": 2, "--side": 64, "--frames": 3, "--output": tmp_path / "out"}
    words = [str(footage), *(str(word) for option in options.items() for word in option)]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    figures = json.loads((tmp_path / "out" / "figures.json").read_text())[0]
    assert figures["video"] == "carphone_pristine.mp4"
    assert figures["before"] != figures["after"]
    assert (tmp_path / "out" / "carphone_pristine.png").is_file()


def test_tiles(tmp_path: Path) -> None:
    """A small picture, in tiles of 64 pixels: blended ones are another picture, the engine's are not."""
    y, x = np.mgrid[:120, :160]
    picture = np.stack([x + y, 255 - x, (x // 16 + y // 16) % 2 * 200], axis=2).astype(np.uint8)
    Image.fromarray(picture).save(tmp_path / "in.png")
    main = runpy.run_path(str(EXAMPLES / "tiles.py"))["main"]
    words = ["--picture", str(tmp_path / "in.png"), "--tile", "64", "--output", str(tmp_path / "tiles.jpg")]
    done = CliRunner().invoke(main, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    psnr = [float(value) for value in re.findall(r"([\d.]+) dB", done.output)]
    assert psnr[0] < 60 < 100 < min(psnr[1:])  # tiles; the engine; the model that this one is made of
    assert (tmp_path / "tiles.jpg").is_file()


def test_eight_gigabytes(tmp_path: Path) -> None:
    """The published configuration on a small clip: a plan, a video, and the memory that it took."""
    main = runpy.run_path(str(EXAMPLES / "eight_gigabytes.py"))["main"]
    words = ["--frames", "2", "--size", "32", "48", "--dtype", "float32", "--output"]
    done = CliRunner().invoke(main, [*words, str(tmp_path / "out.mp4")], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "decode 2 frames of 32x48" in done.output
    assert re.search(r"at most [\d.]+ (MiB|GiB)", done.output)
    with av.open(str(tmp_path / "out.mp4")) as video:
        assert [(frame.width, frame.height) for frame in video.decode(video=0)] == [(48, 32)] * 2


NOTEBOOK = EXAMPLES / "tour.ipynb"


def test_the_notebook_is_kept_without_outputs() -> None:
    """What it prints is made by whoever runs it, and no difference shows but that of its text."""
    cells = [cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"]
    assert len(cells) >= 6
    assert all(not cell.outputs and cell.execution_count is None for cell in cells)


@pytest.mark.usefixtures("footage")
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From top to bottom, in a kernel of this environment."""
    nbclient = pytest.importorskip(
        "nbclient", reason="nbclient is not installed; pip install 'temporal-vae[dev]'"
    )
    pytest.importorskip("ipykernel", reason="ipykernel is not installed; pip install 'temporal-vae[dev]'")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = [str(output) for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("image/png" in text for text in printed)
    assert any("psnr_worst" in text for text in printed)


def test_the_notebook_imports_what_is_public() -> None:
    code = "\n".join(
        cell.source for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"
    )
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "temporal_vae":
            assert {alias.name for alias in node.names} <= set(import_module(node.module).__all__)
