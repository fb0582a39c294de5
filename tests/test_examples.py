"""The examples run."""

import json
import re
import runpy
from pathlib import Path

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
