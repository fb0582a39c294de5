"""Time per frame of decode for clips of several lengths, interleaved: is it constant?

python -m benchmarks.lengths [--size 128x128 --dtype float32]
"""

import argparse
from statistics import median
from time import perf_counter

import torch

from benchmarks.models import load_model, make_input
from benchmarks.trials import PUBLISHED, Case, Trial
from temporal_vae import AutoencoderKLTemporalDecoder

LENGTHS = (8, 9, 14, 25, 64)


def main() -> None:
    """Print seconds and planned bytes per frame."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="128x128", help="height x width")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    cases = {length: Case.parse(f"{length}x{options.size}") for length in LENGTHS}
    trials = {
        length: Trial(job="decode", case=case, dtype=options.dtype, model=PUBLISHED, threads=2)
        for length, case in cases.items()
    }
    model = load_model(AutoencoderKLTemporalDecoder, trials[8], options.dtype)
    seconds: dict[int, list[float]] = {length: [] for length in LENGTHS}
    with torch.no_grad():
        for _ in range(1 + options.rounds):
            for length, trial in trials.items():
                latents = make_input(trial, model.config, options.dtype)
                began = perf_counter()
                model.decode(latents, num_frames=length)
                seconds[length].append(perf_counter() - began)
    for length, times in seconds.items():
        case = cases[length]
        plan = model.plan_decode(num_frames=length, height=case.height, width=case.width)
        print(
            f"{length:3} frames: {median(times[1:]) / length:.3f} s a frame, planned peak {plan.peak / 2**20:.0f} MiB"
        )


if __name__ == "__main__":
    main()
