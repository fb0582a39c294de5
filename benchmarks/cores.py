"""How decode scales: one worker against two, what only one thread does, and how long the interpreter's lock is held.

python -m benchmarks.cores [--case 8x192x192 --dtype float32]

What one thread does, the others wait for: its share of the time of one worker bounds the speed of many (Amdahl's law).
It is measured as all that lies outside of sweeps and passes by tiles, with attention, which torch computes on all its
threads, counted as if it were one's. The speeds for more cores are computed from it, not measured: they assume that
caches and memory grow with the cores.

The lock is watched from outside by py-spy, which this needs (`pip install 'temporal-vae[bench]'`).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from shutil import which
from statistics import median
from time import perf_counter
from typing import Any

import torch

from benchmarks.models import load_model, make_input
from benchmarks.trials import PUBLISHED, Case, Trial
from temporal_vae import AutoencoderKLTemporalDecoder
from temporal_vae.engine import cores
from temporal_vae.engine.kernels.crew import Crew
from temporal_vae.engine.workers import Workers

CORES = (4, 8, 16, 32, 64)
RATE = 250  # samples a second


def main() -> None:
    """Print what was measured, and what is computed from it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", default="8x192x192")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=20, help="that the lock is watched")
    options = parser.parse_args()
    case = Case.parse(options.case)
    trial = Trial(job="decode", case=case, dtype=options.dtype, model=PUBLISHED, threads=cores())
    model = load_model(AutoencoderKLTemporalDecoder, trial, options.dtype)
    latents = make_input(trial, model.config, options.dtype)

    @torch.no_grad()
    def decode() -> None:
        model.decode(latents, num_frames=case.frames)

    decode()
    counts = sorted({1, 2, cores()})
    seconds: dict[int, list[float]] = {count: [] for count in counts}
    alone: list[float] = []
    for _ in range(options.rounds):
        for count in counts:
            torch.set_num_threads(count)
            time, together = timed(decode)
            seconds[count].append(time)
            if count == counts[-1]:
                alone.append(time - together)
    one = median(seconds[1])
    print(f"decode {case} {options.dtype}, medians of {options.rounds}")
    for count in counts:
        rounds = [first / other for first, other in zip(seconds[1], seconds[count], strict=True)]
        print(f"  {count:2} workers: {median(seconds[count]):7.3f} s, {median(rounds):.2f}x of one")
    share = median(alone) / one
    print(f"  by one thread only: {median(alone) * 1e3:.0f} ms, {share:.1%} of the time of one worker")
    held = lock_held(decode, options.seconds)
    print(
        f"  interpreter's lock held: {'py-spy is not installed' if held is None else f'{held:.1%} of the time'}"
    )
    computed = ", ".join(f"{count}: {1 / (share + (1 - share) / count):.1f}x" for count in CORES)
    print(f"  computed from the share of one thread, of one worker's speed: {computed}")


def timed(run: Callable[[], None]) -> tuple[float, float]:
    """Seconds of a call, and those of them in which all workers had something to do."""
    together = 0.0
    kept = [(kind, name, getattr(kind, name)) for kind, name in ((Crew, "sweep"), (Workers, "each"))]

    def watched(call: Callable[..., Any]) -> Callable[..., Any]:
        def called(*given: Any, **named: Any) -> Any:
            nonlocal together
            began = perf_counter()
            try:
                return call(*given, **named)
            finally:
                together += perf_counter() - began

        return called

    for kind, name, call in kept:
        setattr(kind, name, watched(call))
    try:
        began = perf_counter()
        run()
        return perf_counter() - began, together
    finally:
        for kind, name, call in kept:
            setattr(kind, name, call)


def lock_held(run: Callable[[], None], seconds: int) -> float | None:
    """Share of the time in which any thread of this process holds the interpreter's lock; None without py-spy."""
    program = which("py-spy") or which(str(Path(sys.executable).parent / "py-spy"))
    if program is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        samples = Path(folder) / "samples"
        command = [
            program,
            "record",
            "--gil",
            "--nonblocking",
            "--rate",
            str(RATE),
            "--duration",
            str(seconds),
        ]
        command += ["--format", "raw", "--output", str(samples), "--pid", str(os.getpid())]
        watching = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while watching.poll() is None:
            run()
        lines = samples.read_text().splitlines() if samples.exists() else []
        return sum(int(line.rpartition(" ")[2]) for line in lines) / (RATE * seconds) if lines else None


if __name__ == "__main__":
    main()
