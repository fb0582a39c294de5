"""What each rank takes of resident memory beside what was planned for it: `python -m benchmarks.resident ranks`.

The ranks of a case are fresh processes of this machine with gloo between them, each of which compiles its own kernels.
Where results are gathered, those of all ranks are added to what was planned.
"""

from __future__ import annotations

import gc
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.resident import EMBEDDED, SVD, build, named_network

THIN = ([32] * 4, 1)  # little work for many pixels: results weigh as much as activations
TIMEOUT = 1800  # seconds of a case


def case(
    ranks: int, network: tuple[list[int], int], clips: int, frames: int, size: tuple[int, int], dtype: str,
    share: float | None, gather: bool = False, job: str = "decode", threads: int = 1,
) -> dict[str, Any]:  # fmt: skip
    """`share` is where the limit lies between the least that a rank takes (0) and all that is wanted (1).

    None is no limit.
    """
    names = ("ranks", "network", "clips", "frames", "size", "dtype", "share", "gather", "job", "threads")
    values = (ranks, network, clips, frames, size, dtype, share, gather, job, threads)
    return dict(zip(names, values, strict=True))


RANKS = [
    case(2, SVD, 1, 3, (128, 128), "float32", 0.0),
    case(2, SVD, 1, 5, (128, 128), "float16", 1.0),
    case(2, SVD, 1, 3, (200, 264), "bfloat16", None),
    case(2, EMBEDDED, 1, 25, (128, 192), "float32", 0.0),
    case(2, EMBEDDED, 1, 25, (128, 192), "bfloat16", 1.0),
    case(2, EMBEDDED, 1, 7, (320, 512), "float16", 0.5, threads=2),
    case(2, THIN, 5, 6, (512, 512), "float32", 0.0),
    case(2, THIN, 5, 6, (512, 512), "float32", 0.0, gather=True),
    case(2, THIN, 3, 9, (384, 512), "bfloat16", 1.0),
    case(2, THIN, 1, 9, (1080, 1920), "float32", 0.0, job="encode"),
    case(2, EMBEDDED, 1, 7, (270, 483), "float16", 1.0, gather=True, job="encode"),
    case(3, SVD, 1, 7, (128, 192), "float32", 1.0),
    case(3, SVD, 1, 5, (128, 128), "bfloat16", 0.0),
    case(3, SVD, 1, 4, (136, 200), "float16", 0.5),
    case(3, EMBEDDED, 1, 10, (264, 344), "float32", 0.5),
    case(3, EMBEDDED, 1, 3, (256, 384), "float16", 0.0),
    case(3, THIN, 7, 4, (256, 256), "float16", 0.0),
    case(3, SVD, 1, 4, (136, 200), "bfloat16", None, job="encode"),
    case(4, SVD, 1, 9, (128, 128), "float32", 1.0, gather=True),
    case(4, SVD, 1, 4, (136, 200), "bfloat16", 0.0),
]


def show() -> None:
    """All cases as a table."""
    print(f"{'ranks and case':86} {'planned':>8} {'found':>8} {'share':>6} {'rank':>5} {'least':>6}  rungs")
    for case in RANKS:
        print(row(case), flush=True)


def row(case: dict[str, Any]) -> str:
    """The rank that takes the largest share of its plan, and the least share that another takes."""
    found = [one for one in measure(case) if one["planned"]]
    most = max(found, key=share_of)
    planned, taken = (most[key] / 2**20 for key in ("planned", "found"))
    numbers = f"{planned:7.0f}M {taken:7.0f}M {share_of(most):6.2f} {most['rank']:5} {min(map(share_of, found)):6.2f}"
    return f"{named(case):86} {numbers}  {', '.join(most['rungs'])}"


def named(case: dict[str, Any]) -> str:
    """A case in words."""
    (height, width), share = case["size"], case["share"]
    clips = f"{case['clips']} of " if case["clips"] > 1 else ""
    clip = f"{clips}{case['frames']}x{height}x{width}{' gathered' if case['gather'] else ''}"
    of_rank = f"{case['threads']} threads, {'no limit' if share is None else share}"
    return f"{case['ranks']} {case['job']} {named_network(case['network'])} {clip} {case['dtype']}, {of_rank}"


def share_of(found: dict[str, Any]) -> float:
    """What a rank took, of what was planned."""
    return float(found["found"] / found["planned"])


def measure(case: dict[str, Any]) -> list[dict[str, Any]]:
    """Of each rank, the peak that was planned and the one that was found, in bytes."""
    with socket.socket() as free, tempfile.TemporaryDirectory() as folder:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
        free.close()
        started = [_start(case, rank, port, Path(folder)) for rank in range(case["ranks"])]
        try:
            answers = [process.communicate(timeout=TIMEOUT)[0] for process in started]
        finally:
            for process in started:
                process.kill()
    return [json.loads(answer.splitlines()[-1]) for answer in answers]


def _start(case: dict[str, Any], rank: int, port: str, folder: Path) -> subprocess.Popen[str]:
    place = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "RANK": str(rank),
        "WORLD_SIZE": str(case["ranks"]),
    }
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.resident_ranks", json.dumps(case)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **place, "XDG_CACHE_HOME": str(folder / str(rank))},
    )


def main() -> None:
    """In a rank: the case that is named by JSON."""
    print(json.dumps(_measure_here(**json.loads(sys.argv[1]))))


def _measure_here(ranks: int, network: tuple[list[int], int], clips: int, frames: int, size: tuple[int, int],
                  dtype: str, share: float | None, gather: bool, job: str, threads: int) -> dict[str, Any]:  # fmt: skip
    import torch
    import torch.distributed as dist

    from benchmarks.memory import resident_bytes, watch_peak
    from temporal_vae.distributed import decode_sharded, encode_sharded, plan_sharded
    from temporal_vae.engine.storage import release_free_memory

    torch.set_num_threads(threads)
    dist.init_process_group("gloo")
    torch.manual_seed(0)  # the same model and batch on all ranks
    rank, model = dist.get_rank(), build(network, dtype)
    size_of: dict[str, Any] = {
        "num_frames": frames,
        "clips": clips,
        "height": size[0],
        "width": size[1],
        "task": job,
    }
    limit, plans = None, plan_sharded(model, ranks=ranks, **size_of).ranks
    if share is not None:
        least, most = (max(getattr(one, name) for one in plans) for name in ("least", "peak"))
        limit = int(least + share * (most - least))
        plans = plan_sharded(model, ranks=ranks, memory_limit=limit, **size_of).ranks
    factor = model.spatial_factor
    shape = (4, size[0] // factor, size[1] // factor) if job == "decode" else (3, *size)
    x = torch.randn(clips * frames, *shape).to(getattr(torch, dtype))
    gc.collect()
    release_free_memory()
    dist.barrier()
    before = resident_bytes(os.getpid())
    with watch_peak(os.getpid()) as peak:
        if job == "decode":
            decode_sharded(model, x, num_frames=frames, gather=gather, memory_limit=limit)
        else:
            encode_sharded(model, x, gather=gather, memory_limit=limit)
    dist.barrier()
    dist.destroy_process_group()
    gathered = sum(one.gathered for one in plans) // (ranks - 1) if gather else 0
    return {
        "rank": rank,
        "planned": plans[rank].peak + gathered,
        "found": peak[0] - before,
        "rungs": [plan.rung for plan in plans[rank].plans],
    }


if __name__ == "__main__":
    main()
