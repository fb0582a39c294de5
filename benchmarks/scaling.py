"""One clip on many ranks: what was measured on processes of this machine, and what is expected of many GPUs.

python -m benchmarks.scaling measure [--case 12x192x256 --dtype float32 --rounds 3]
python -m benchmarks.scaling expect [--case 25x576x1024 --dtype bfloat16 --rate 100]

`measure` decodes a clip of the published configuration, random weights, by one process with one thread, by ranks with
a thread each and gloo between them, and by one process with as many threads, in turn, and compares the bytes that the
ranks sent with those of their plans.

`expect` computes. The time of a rank is its multiply-adds by a rate, which is stated and not measured, and for every
exchange the bytes that it sends or receives, counted from the plan, by the rate of a link and a latency, also stated.
Nothing is taken to overlap, so it is an upper bound as far as the links keep their rates. Reading, writing and the way
of the frames to one rank are left out.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from benchmarks.trials import PUBLISHED, Case, Trial
from temporal_vae import engine
from temporal_vae.distributed.clip.plans import RankPlan, plan_ranks

RANKS = (1, 2, 4, 8, 13, 16, 25, 32, 64)


@dataclass(frozen=True, kw_only=True)
class Link:
    """What joins ranks; stated by its makers for one direction, as reached by large messages at best."""

    name: str
    rate: float  # bytes a second
    latency: float  # seconds


LINKS = (
    Link(name="NVLink 4, 450 GB/s", rate=450e9, latency=10e-6),
    Link(name="PCIe 4 x16, 25 GB/s", rate=25e9, latency=20e-6),
    Link(name="100 Gbit/s, 12.5 GB/s", rate=12.5e9, latency=30e-6),
    Link(name="10 Gbit/s, 1.25 GB/s", rate=1.25e9, latency=60e-6),
)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    jobs = parser.add_subparsers(dest="job", required=True)
    for name, case, dtype in (("measure", "12x192x256", "float32"), ("expect", "25x576x1024", "bfloat16")):
        job = jobs.add_parser(name)
        job.add_argument("--case", type=Case.parse, default=Case.parse(case))
        job.add_argument("--dtype", default=dtype)
    jobs.choices["measure"].add_argument("--rounds", type=int, default=3)
    jobs.choices["measure"].add_argument("--ranks", type=int, nargs="+", default=[2])
    jobs.choices["expect"].add_argument(
        "--rate", type=float, default=100, help="10^12 multiply-adds a second"
    )
    jobs.choices["expect"].add_argument("--clips", type=int, default=1)
    options = parser.parse_args()
    if "RANK" in os.environ:
        decode(options)
    elif options.job == "measure":
        measure(options)
    else:
        expect(options)


# Measured


def measure(options: argparse.Namespace) -> None:
    """Decode in turn by one process and by several."""
    ways = [(1, 1)]
    for count in options.ranks:
        ways += [(count, 1), (1, count)]
    seconds: dict[tuple[int, int], list[float]] = {way: [] for way in ways}
    said = ""
    for _ in range(options.rounds):
        for ranks, threads in ways:
            took, said_now = run_ranks(options, ranks, threads)
            seconds[ranks, threads].append(took)
            said = said_now or said
    print(f"decode {options.case} {options.dtype}, medians of {options.rounds} rounds")
    one = seconds[1, 1]
    for (ranks, threads), some in seconds.items():
        times = [first / other for first, other in zip(one, some, strict=True)]
        print(
            f"  {ranks} ranks of {threads} threads: {median(some):6.2f} s, {median(times):.2f}x of one thread"
        )
    print(said)


def run_ranks(options: argparse.Namespace, ranks: int, threads: int) -> tuple[float, str]:
    """Seconds of a decode, and what the first rank said of bytes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "-m"]
    command += ["benchmarks.scaling", "measure", "--case", str(options.case), "--dtype", options.dtype]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, check=True, cwd=Path(__file__).parents[1]
    )
    time, _, said = done.stdout.strip().splitlines()[-1].partition(" ")
    return float(time), said


def decode(options: argparse.Namespace) -> None:
    """In a rank: decode twice and tell how long the second took."""
    import torch
    import torch.distributed as dist

    from benchmarks.models import load_model, make_input
    from temporal_vae import AutoencoderKLTemporalDecoder
    from temporal_vae.distributed import decode_sharded, plan_sharded
    from temporal_vae.distributed.clip import sharded
    from temporal_vae.distributed.clip.ranks import Ranks

    dist.init_process_group("gloo")
    case, threads = options.case, torch.get_num_threads()
    trial = Trial(job="decode", case=case, dtype=options.dtype, model=PUBLISHED, threads=threads)
    vae = load_model(AutoencoderKLTemporalDecoder, trial, options.dtype)
    z = make_input(trial, vae.config, options.dtype)
    counted: dict[str, int] = {}
    share = sharded.decode_share

    def watched(*given: Any) -> Any:
        ranks: Ranks = given[4]
        before = ranks.sent
        result = share(*given)
        counted["sent"] = ranks.sent - before
        return result

    sharded.decode_share = watched  # type: ignore[assignment]
    for _ in range(2):
        dist.barrier()
        began = perf_counter()
        decode_sharded(vae, z, num_frames=case.frames, gather=False)
        dist.barrier()
        took = perf_counter() - began
    if dist.get_rank() == 0:
        size = {"num_frames": case.frames, "height": case.height, "width": case.width}
        plan = plan_sharded(vae, ranks=dist.get_world_size(), **size)
        said = f"  bytes that rank 0 sent: {counted['sent']:,}, planned {plan.ranks[0].sent:,}"
        print(took, said if dist.get_world_size() > 1 else "", flush=True)


# Expected


def expect(options: argparse.Namespace) -> None:
    """Print a table in Markdown: milliseconds, and how many times the speed of one rank."""
    case, rate = options.case, options.rate * 1e12
    print(f"| ranks | GB sent by one | {' | '.join(link.name for link in LINKS)} |")
    print(f"| ---: | ---: |{' ---: |' * len(LINKS)}")
    alone: list[float] = []
    for ranks in RANKS:
        plan = plan_ranks(
            "decode", engine.SVD, ranks=ranks, num_frames=case.frames, height=case.height, width=case.width,
            clips=options.clips, dtype=options.dtype, device="cuda",
        )  # fmt: skip
        times = [max(seconds_of(rank, link, rate) for rank in plan.ranks) for link in LINKS]
        alone = alone or times
        cells = [f"{time * 1e3:.0f} ms, {one / time:.1f}x" for time, one in zip(times, alone, strict=True)]
        busy = sum(bool(rank.frames) for rank in plan.ranks)
        label = f"{ranks}" if busy == ranks else f"{ranks} ({busy} at work)"
        sent = max(rank.sent for rank in plan.ranks) / 1e9
        print(f"| {label} | {sent:.2f} | {' | '.join(cells)} |")


def seconds_of(rank: RankPlan, link: Link, rate: float) -> float:
    """What a rank takes: its arithmetic, and every exchange one after the other."""
    exchanges = 0
    for plan in rank.plans:
        if plan.part is not None and plan.part.ranks > 1:
            steps = [step for level in plan.levels for step in level.steps if step.reach]
            exchanges += sum(2 * sum(one.kind == "temporal" for one in step.passes) or 1 for step in steps)
    return rank.work / rate + max(rank.sent, rank.received) / link.rate + exchanges * link.latency


if __name__ == "__main__":
    main()
