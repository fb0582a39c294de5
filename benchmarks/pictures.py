"""Decode one large picture with the configuration of SDXL, several ways: time, resident memory, what tiling changes.

python -m benchmarks.pictures --size 2048x2048 --way ours:1.5GiB --way ours --way diffusers --way diffusers-tiled

Seeded random weights. A way is `ours`, `ours:LIMIT`, `diffusers` (whole) or `diffusers-tiled` (its own tiles, blended);
each runs in a process of its own, watched from outside. All are compared with the first one; `--picture` writes where
the last one differs.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.process import CHILD, WorkerFailed, command_line, watch_once
from benchmarks.results import circumstances
from temporal_vae.amounts import parse_memory
from temporal_vae.engine import SD, readable

SAMPLE_SIZE = 1024  # of SDXL's configuration; diffusers cuts tiles of it


def child() -> None:
    """Load, wait, decode, save."""
    from time import perf_counter

    import diffusers
    import numpy as np
    import torch

    import temporal_vae
    from benchmarks.models import randomise

    request = json.loads(sys.argv[2])
    way, _, limit = request["way"].partition(":")
    torch.set_num_threads(request["threads"])
    levels = len(SD.widths)
    library = temporal_vae if way == "ours" else diffusers
    model = library.AutoencoderKL(
        block_out_channels=SD.widths,
        layers_per_block=SD.layers,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        sample_size=SAMPLE_SIZE,
    )
    randomise(model)
    dtype = getattr(torch, request["dtype"])
    model.to(dtype).eval()
    if limit:
        model.enable_tiling(memory_limit=limit)
    elif way == "diffusers-tiled":
        model.enable_tiling()
    height, width = request["size"]
    noise = torch.randn(1, 4, height // 8, width // 8, generator=torch.Generator().manual_seed(1))
    latents = noise.to(dtype)
    plan = model.plan_decode(height=height, width=width) if way == "ours" else None
    print(json.dumps({} if plan is None else {"planned": plan.peak, "spilled": plan.spill_bytes}), flush=True)
    attending = time_attention() if way == "ours" else None
    sys.stdin.readline()
    began = perf_counter()
    with torch.no_grad():
        picture = model.decode(latents).sample
    seconds = {"seconds": perf_counter() - began}
    if attending is not None:
        seconds["attention"] = sum(attending)
    print(json.dumps(seconds), flush=True)
    sys.stdin.readline()
    np.save(request["path"], picture[0].float().numpy())


def time_attention() -> list[float]:
    """The seconds of each pass of attention of the engine, from now on."""
    from time import perf_counter

    from temporal_vae.engine import attention

    attend, found = attention.attend, list[float]()

    def timed(*given: Any, **options: Any) -> Any:
        began = perf_counter()
        moments = attend(*given, **options)
        found.append(perf_counter() - began)
        return moments

    attention.attend = timed
    return found


def run(way: str, options: argparse.Namespace, path: Path) -> dict[str, Any]:
    """One decode in a process of its own."""
    size = [int(length) for length in options.size.split("x")]
    request = {
        "way": way,
        "size": size,
        "dtype": options.dtype,
        "threads": options.threads,
        "path": str(path),
    }
    try:
        return {"way": way, **watch_once("benchmarks.pictures", request)}
    except WorkerFailed as failure:
        return {"way": way, "failed": str(failure)}


def compare(picture: Any, first: Any) -> dict[str, float | None]:
    """How far a picture is from another, over its range: the largest error, and PSNR in dB if there is an error."""
    import numpy as np

    span = float(first.max() - first.min())
    error = (picture - first).astype(np.float64) / span
    mean = float(np.square(error).mean())
    return {
        "largest": float(np.abs(error).max()),
        "psnr": float(-10 * np.log10(mean)) if mean else None,
    }


def draw(picture: Any, first: Any, path: Path) -> None:
    """Where two pictures differ, the largest difference white, at most 1024 pixels wide."""
    import numpy as np
    from PIL import Image

    error = np.abs(picture - first).max(0)
    step = max(1, error.shape[1] // 1024)
    height, width = (length // step * step for length in error.shape)
    shown = error[:height, :width].reshape(height // step, step, width // step, step).max((1, 3))
    Image.fromarray((255 * shown / max(shown.max(), 1e-12)).astype(np.uint8)).save(path)


def main() -> None:
    """Run the ways one after the other."""
    import numpy as np

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--way", action="append", required=True)
    parser.add_argument("--size", default="2048x2048", help="height x width")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    runs: list[dict[str, Any]] = []
    first = None
    with tempfile.TemporaryDirectory() as folder:
        for way in options.way:
            if ":" in way:
                parse_memory(way.partition(":")[2])  # refused before anything is run
            path = Path(folder) / "picture.npy"
            found = run(way, options, path)
            runs.append(found)
            if "failed" not in found:
                picture = np.load(path)
                first = picture if first is None else first
                found |= compare(picture, first)
                if options.picture:
                    draw(picture, first, options.picture)
            print(describe(found), flush=True)
            if options.output:
                record = {
                    **circumstances(1),
                    "command": command_line("benchmarks.pictures"),
                    "size": options.size,
                }
                options.output.write_text(
                    json.dumps(record | {"dtype": options.dtype, "runs": runs}, indent=2) + "\n"
                )


def describe(found: dict[str, Any]) -> str:
    """One line."""
    if "failed" in found:
        return f"{found['way']}: {found['failed']}"
    planned = f" of {readable(found['planned'])} planned" if "planned" in found else ""
    attention = f" ({found['attention']:.1f} s in attention)" if "attention" in found else ""
    psnr = "the same bits" if found["psnr"] is None else f"PSNR {found['psnr']:.1f} dB"
    return (
        f"{found['way']}: {found['seconds']:.1f} s{attention}, peak {readable(found['peak'])}{planned}, largest error "
        f"{found['largest']:.1e} of the range, {psnr}"
    )


if __name__ == "__main__":
    child() if sys.argv[1:2] == [CHILD] else main()
