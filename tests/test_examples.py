"""The examples run."""

import json
import os
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_finetune(footage: Path, tmp_path: Path) -> None:
    """Two steps on a real clip: figures before and after, and a picture."""
    run = [
        sys.executable,
        str(EXAMPLES / "finetune.py"),
        str(footage),
        "--steps",
        "2",
        "--side",
        "64",
        "--frames",
        "3",
    ]
    done = subprocess.run(
        [*run, "--output", str(tmp_path / "out")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "out" / "figures.json").read_text())[0]
    assert figures["video"] == "carphone_pristine.mp4"
    assert figures["before"] != figures["after"]
    assert (tmp_path / "out" / "carphone_pristine.png").is_file()
