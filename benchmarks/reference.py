"""Ours and diffusers' class, in turn: encode, decode and a training step of the published configuration.

    python benchmarks/reference.py [--frames 2] [--size 128] [--dtype float32] [--rounds 3] [--output FILE]

Each contestant lives in a process of its own, holds the same weights and waits while the other computes. Results are
compared before any time is printed. Peak memory is the resident memory of the process above that of the loaded model.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import resource
import statistics
import subprocess
from datetime import date
from multiprocessing.connection import Connection
from pathlib import Path
from time import perf_counter
from typing import Any

import click
import psutil

PUBLISHED = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "layers_per_block": 2,
}
CONTESTANTS = ("temporal-vae", "diffusers")
JOBS = ("encode", "decode", "training step", "training step, checkpointed")


def contestant(name: str, frames: int, size: int, dtype: str, connection: Connection) -> None:
    """Build a model, then run one job after another as the parent asks."""
    import torch

    if name == "diffusers":
        from diffusers import AutoencoderKLTemporalDecoder
    else:
        from temporal_vae import AutoencoderKLTemporalDecoder
    with torch.no_grad():
        model = AutoencoderKLTemporalDecoder(**PUBLISHED)
        generator = torch.Generator().manual_seed(0)
        for _, parameter in sorted(model.named_parameters()):
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 100
            parameter.normal_(0, fan_in**-0.5, generator=generator)
    model = model.to(getattr(torch, dtype)).eval()
    pictures = torch.rand(frames, 3, size, size, generator=generator).to(model.dtype) * 2 - 1
    latents = torch.randn(frames, 4, size // 8, size // 8, generator=generator).to(model.dtype)
    resting = psutil.Process().memory_info().rss
    while job := connection.recv():
        connection.send(measure(model, job, pictures, latents, resting))


def measure(model: Any, job: str, pictures: Any, latents: Any, resting: int) -> dict[str, Any]:
    """Run one job once: seconds, peak memory above the loaded model so far, and the result for comparison."""
    import torch

    frames = len(pictures)
    if "training" in job:
        model.enable_gradient_checkpointing() if "checkpointed" in job else model.disable_gradient_checkpointing()
    began = perf_counter()
    with torch.set_grad_enabled("training" in job):
        if job == "encode":
            result = model.encode(pictures).latent_dist.mean
        elif job == "decode":
            result = model.decode(latents, num_frames=frames).sample
        else:
            result = model(pictures, num_frames=frames).sample
            (result - pictures).square().mean().backward()
            model.zero_grad(set_to_none=True)
    seconds = perf_counter() - began
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - resting) / 2**20
    return {"seconds": seconds, "peak_mib": peak, "result": result.detach().float().numpy()}


def commit() -> str:
    """Short hash of the checked-out commit, or `unknown`."""
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def machine() -> str:
    """Processor and cores, as far as the system tells."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    name = next(
        (line.partition(":")[2].strip() for line in lines if "model name" in line), platform.machine()
    )
    return f"{name}, {os.cpu_count()} cores"


@click.command()
@click.option("--frames", default=2, show_default=True)
@click.option("--size", default=128, show_default=True, help="Height and width of a frame.")
@click.option("--dtype", default="float32", show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--output", type=click.Path(path_type=Path), help="Write the figures here as JSON.")
def main(frames: int, size: int, dtype: str, rounds: int, output: Path | None) -> None:
    """Run the comparison and print a table."""
    context = multiprocessing.get_context("spawn")
    table: dict[str, dict[str, Any]] = {}
    for job in JOBS:  # a fresh pair of processes per job, so that each has a peak of its own
        ends = {}
        for name in CONTESTANTS:
            ends[name], child = context.Pipe()
            context.Process(target=contestant, args=(name, frames, size, dtype, child), daemon=True).start()
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in CONTESTANTS}
        for _ in range(rounds + 1):
            for name, end in ends.items():
                end.send(job)
                runs[name].append(end.recv())
        for end in ends.values():
            end.send(None)
        ours, theirs = (runs[name][0]["result"] for name in CONTESTANTS)
        error = float(abs(ours - theirs).max() / abs(theirs).max())
        if error > (5e-5 if dtype == "float32" else 5e-2):
            raise SystemExit(
                f"{job}: results differ by {error:.1e} of their scale; no times for wrong numbers"
            )
        seconds = {name: [run["seconds"] for run in runs[name][1:]] for name in CONTESTANTS}
        ratios = [b / a for a, b in zip(*seconds.values(), strict=True)]
        table[job] = {
            "seconds": {name: statistics.median(values) for name, values in seconds.items()},
            "speed_ratio": statistics.median(ratios),
            "peak_mib": {name: runs[name][-1]["peak_mib"] for name in CONTESTANTS},
            "relative_error": error,
        }
        row = table[job]
        print(
            f"{job:28}"
            + "".join(f"  {n} {row['seconds'][n]:6.2f} s {row['peak_mib'][n]:7.0f} MiB" for n in CONTESTANTS)
            + f"  {row['speed_ratio']:.2f}x  error {error:.1e}",
            flush=True,
        )
    if output:
        facts = {
            "date": str(date.today()),
            "commit": commit(),
            "machine": machine(),
        }
        settings = {"frames": frames, "size": size, "dtype": dtype, "rounds": rounds}
        output.write_text(json.dumps(facts | settings | {"jobs": table}, indent=2) + "\n")


if __name__ == "__main__":
    main()
