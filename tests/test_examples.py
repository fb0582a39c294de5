"""The examples run."""

import json
import runpy
from pathlib import Path

import pytest
from click.testing import CliRunner

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
