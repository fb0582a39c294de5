"""Build the page: `make page`. Needs Node 20.19 or newer, and `temporal-vae[export]`.

One folder comes out, which works behind `temporal-vae serve` and as a static site: what Vite made of `src/`, the graphs
of the embedded model, what the page has to know of them, what browsers load of ONNX Runtime, and a sample clip.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from temporal_vae import AutoencoderKLTemporalDecoder, __version__
from temporal_vae.checkpoints.export import export_onnx
from temporal_vae.checkpoints.loading import EMBEDDED
from temporal_vae.media import VideoWriter
from temporal_vae.outputs import complete_or_nothing
from temporal_vae.training.data.scenes import render_scene
from temporal_vae.video.latents import ModelIdentity

PAGE = Path(__file__).resolve().parent
STATIC = PAGE.parent / "src/temporal_vae/serve/static"
STAMP = "built-from.txt"
RUNTIMES = ("ort-wasm-simd-threaded", "ort-wasm-simd-threaded.asyncify")  # WebAssembly alone, and with WebGPU
SAMPLE = {"seed": 18, "frames": 24, "height": 128, "width": 192}
SAMPLE_RATE = 12
_NOT_SOURCES = {"node_modules", "__pycache__", "build.py", "screenshots.py"}


def build(target: Path = STATIC) -> Path:
    """Build into a folder that appears under its name when it is complete, in place of what was there."""
    npm("ci", "--no-audit", "--no-fund", "--ignore-scripts")
    npm("run", "check")
    with complete_or_nothing(target) as folder:
        npm("run", "build", "--", "--outDir", str(folder), "--logLevel", "warn")
        _copy_runtimes(folder / "ort")
        _write_model(folder)
        _write_sample(folder / "sample.mp4")
        (folder / STAMP).write_text(f"{stamp()}\n")
    return target


def npm(*arguments: str) -> None:
    """Run npm in `page/`; what it says is shown where it fails."""
    program = shutil.which("npm")
    if program is None:
        raise SystemExit("npm is not installed; install Node 20.19 or newer, then run `make page` again")
    done = subprocess.run([program, *arguments], cwd=PAGE, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(
            f"npm {' '.join(arguments)} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
        )


def stamp() -> str:
    """Hash of all that the folder is made of in this repository."""
    digest = hashlib.sha256(__version__.encode())
    for file in sorted(_sources(PAGE)):
        digest.update(file.relative_to(PAGE).as_posix().encode() + b"\0" + file.read_bytes())
    digest.update(json.dumps([RUNTIMES, SAMPLE, SAMPLE_RATE]).encode())
    for file in sorted(EMBEDDED.iterdir()):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _sources(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.name in _NOT_SOURCES or path.name.startswith("."):
            continue
        if path.is_dir():
            yield from _sources(path)
        else:
            yield path


def is_current(folder: Path = STATIC) -> bool:
    """Whether a folder was built from what lies here now."""
    file = folder / STAMP
    return file.is_file() and file.read_text().strip() == stamp()


def _copy_runtimes(folder: Path) -> None:
    folder.mkdir()
    package = PAGE / "node_modules/onnxruntime-web"
    for name in RUNTIMES:
        for suffix in (".mjs", ".wasm"):
            shutil.copy(package / f"dist/{name}{suffix}", folder)


def _write_model(folder: Path) -> None:
    """The graphs, and `model.json`: `Model` in `src/model.ts`."""
    vae = AutoencoderKLTemporalDecoder.from_embedded()
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        for graph in export_onnx(vae, Path(temporary) / "graphs"):
            graph.file.rename(folder / graph.file.name)
    identity = ModelIdentity.of(vae)
    pixels = SAMPLE["height"] * SAMPLE["width"]
    size = {"num_frames": 1, "height": SAMPLE["height"], "width": SAMPLE["width"]}
    about = {
        "version": __version__,
        "parameters": sum(parameter.numel() for parameter in vae.parameters()),
        "latent_channels": vae.config.latent_channels,
        "spatial_factor": vae.spatial_factor,
        "scaling_factor": vae.config.scaling_factor,
        "work": {
            "encode": vae.plan_encode(**size).work / pixels,
            "decode": vae.plan_decode(**size).work / pixels,
        },
        "identity": asdict(identity),
        "config_sha256": identity.config_sha256,
    }
    (folder / "model.json").write_text(json.dumps(about) + "\n")


def _write_sample(file: Path) -> None:
    with VideoWriter(file, rate=SAMPLE_RATE) as writer:
        writer.write(render_scene(**SAMPLE))


def sizes(folder: Path) -> Iterator[tuple[int, str]]:
    """Bytes and name of every file of a folder, the largest first."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    yield from sorted(
        ((path.stat().st_size, path.relative_to(folder).as_posix()) for path in files), reverse=True
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=STATIC, help="the folder; by default the one the server serves"
    )
    target = build(parser.parse_args(arguments).out)
    for size, name in sizes(target):
        print(f"{size / 2**20:8.2f} MiB  {name}")
    print(f"{sum(size for size, _ in sizes(target)) / 2**20:8.2f} MiB  {target}")


if __name__ == "__main__":
    sys.exit(main())
