"""Decode one clip under a memory limit, watched from outside: time, resident memory, and the result's checksum.

python -m benchmarks.headline --limit 2GiB --limit 8.5GiB [--frames 25 --size 576x1024 --dtype float32]

The published configuration with seeded random weights. Each limit runs in a process of its own; with two or more, the
largest difference between their frames is printed too.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.process import CHILD, command_line, watch_once
from benchmarks.results import circumstances
from benchmarks.trials import PUBLISHED, Case, Trial
from temporal_vae.amounts import parse_memory
from temporal_vae.engine import readable


def child() -> None:
    """Load, wait, decode, save."""
    from time import perf_counter

    import numpy as np
    import torch

    from benchmarks.models import load_model, make_input
    from temporal_vae import AutoencoderKLTemporalDecoder
    from temporal_vae.engine.storage import release_free_memory

    request = json.loads(sys.argv[2])
    trial = Trial.from_dict(request["trial"])
    torch.set_num_threads(trial.threads)
    model = load_model(AutoencoderKLTemporalDecoder, trial, trial.dtype)
    latents = make_input(trial, model.config, trial.dtype)
    if trial.memory_limit is not None:
        model.enable_tiling(memory_limit=trial.memory_limit)
    plan = model.plan_decode(num_frames=trial.case.frames, height=trial.case.height, width=trial.case.width)
    release_free_memory()
    print(json.dumps({"planned": plan.peak, "rung": plan.rung, "spilled": plan.spill_bytes}), flush=True)
    sys.stdin.readline()
    began = perf_counter()
    with torch.no_grad():
        frames = model.decode(latents, num_frames=trial.case.frames).sample
    print(json.dumps({"seconds": perf_counter() - began}), flush=True)
    sys.stdin.readline()
    np.save(request["path"], frames.float().numpy())


def run(trial: Trial, path: Path) -> dict[str, Any]:
    """One decode in a process of its own."""
    request = {"trial": trial.to_dict(), "path": str(path)}
    return {"memory_limit": trial.memory_limit, **watch_once("benchmarks.headline", request)}


def main() -> None:
    """Run the limits one after the other."""
    import numpy as np

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--limit", action="append", required=True, help="amount of memory, or none")
    parser.add_argument("--frames", type=int, default=25)
    parser.add_argument("--size", default="576x1024", help="height x width")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    case = Case.parse(f"{options.frames}x{options.size}")
    runs, first = [], None
    with tempfile.TemporaryDirectory() as folder:
        for limit in options.limit:
            path = Path(folder) / "frames.npy"
            nbytes = None if limit == "none" else parse_memory(limit)
            trial = Trial(
                job="decode",
                case=case,
                dtype=options.dtype,
                model=PUBLISHED,
                threads=options.threads,
                memory_limit=nbytes,
            )
            runs.append(run(trial, path))
            frames = np.load(path)
            if first is None:
                first = frames
            else:
                runs[-1]["difference"] = float(abs(frames - first).max() / abs(first).max())
            print(
                f"{case} {options.dtype} limit {limit}: {runs[-1]['rung']}, {runs[-1]['seconds']:.1f} s, peak "
                f"{readable(runs[-1]['peak'])} of {readable(runs[-1]['planned'])} planned, spilled "
                f"{readable(runs[-1]['spilled'])}, difference {runs[-1].get('difference', 0.0):.1e}",
                flush=True,
            )
            if options.output:
                record = {
                    **circumstances(1),
                    "command": command_line("benchmarks.headline"),
                    "case": str(case),
                    "dtype": options.dtype,
                }
                options.output.write_text(json.dumps(record | {"runs": runs}, indent=2) + "\n")


if __name__ == "__main__":
    child() if sys.argv[1:2] == [CHILD] else main()
