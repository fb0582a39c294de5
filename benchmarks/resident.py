"""What encode and decode take of resident memory beside what was planned: of clips, of pictures, and of ranks.

Each case runs in a fresh process on a machine that has compiled no kernel yet: the first call takes most.

python -m benchmarks.resident              # all cases of one process, as a table
python -m benchmarks.resident pictures     # those of image autoencoders; or `clips`
python -m benchmarks.resident ranks        # those of ranks that share clips (`resident_ranks.py`)
"""

import gc
import json
import os
import subprocess
import sys
import tempfile
from typing import Any

SVD, SMALL, EMBEDDED = ([128, 256, 512, 512], 2), ([64, 128], 1), ([96, 96, 96], 1)


def case(job: str, network: tuple[list[int], int], frames: int, size: tuple[int, int], dtype: str, share: float,
         threads: int = 2, pictures: bool = False) -> dict[str, Any]:  # fmt: skip
    """`share` is where the limit lies between the least that any rung takes (0) and all that is wanted (1)."""
    names = ("job", "network", "frames", "size", "dtype", "share", "threads", "pictures")
    return dict(zip(names, (job, network, frames, size, dtype, share, threads, pictures), strict=True))


CLIPS = [
    case(*what, dtype, share)
    for dtype in ("float32", "bfloat16", "float16")
    for share in (0.0, 0.5, 1.0)
    for what in (
        ("decode", SVD, 4, (128, 128)),
        ("decode", SVD, 3, (200, 264)),
        ("decode", EMBEDDED, 25, (128, 192)),
        ("decode", EMBEDDED, 8, (320, 512)),
        ("decode", SMALL, 60, (128, 128)),
        ("encode", SVD, 4, (256, 256)),
        ("encode", EMBEDDED, 2, (1080, 1920)),
    )
] + [
    case("decode", EMBEDDED, 4, (720, 1280), "float16", 0.3),
    case("decode", SVD, 1, (512, 512), "float16", 1.0),
    case("encode", EMBEDDED, 25, (128, 192), "float16", 1.0),
    case("decode", SMALL, 5, (256, 256), "float32", 0.2, threads=4),
    case("decode", EMBEDDED, 14, (576, 1024), "bfloat16", 0.1),
    case("decode", EMBEDDED, 25, (320, 512), "float32", 0.1, threads=1),
]
PICTURES = [
    case(*what, dtype, share, pictures=True)
    for dtype in ("float32", "bfloat16", "float16")
    for what, shares in (
        (("decode", SVD, 1, (256, 256)), (0.0, 1.0)),
        (("decode", SVD, 5, (256, 256)), (1.0,)),
        (("decode", SVD, 1, (512, 776)), (0.0, 0.5)),
        (("decode", SVD, 1, (1024, 1024)), (0.0, 0.5, 1.0)),
        (("decode", SVD, 1, (3000, 2000)), (0.0, 0.15)),
        (("decode", SMALL, 3, (514, 386)), (0.0, 1.0)),
        (("encode", SVD, 1, (777, 1001)), (0.0, 1.0)),
        (("encode", SVD, 1, (3000, 2000)), (0.0,)),
        (("encode", SMALL, 4, (333, 257)), (1.0,)),
    )
    for share in shares
]


def measure(case: dict[str, Any]) -> dict[str, Any]:
    """The limit, the peak that was planned and the one that was found, in bytes, in a process of its own."""
    with tempfile.TemporaryDirectory() as cache:
        found = subprocess.run(
            [sys.executable, "-m", "benchmarks.resident", json.dumps(case)],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "XDG_CACHE_HOME": cache},
        )
    return json.loads(found.stdout)


def build(network: tuple[list[int], int], dtype: str, *, pictures: bool = False) -> Any:
    """A model of random weights."""
    import torch

    import temporal_vae

    widths, layers = network
    levels: dict[str, Any] = {"down_block_types": ("DownEncoderBlock2D",) * len(widths)}
    if pictures:
        levels["up_block_types"] = ("UpDecoderBlock2D",) * len(widths)
    kind = temporal_vae.AutoencoderKL if pictures else temporal_vae.AutoencoderKLTemporalDecoder
    model = kind(block_out_channels=tuple(widths), layers_per_block=layers, **levels)
    return model.to(getattr(torch, dtype)).eval()


def named_network(network: tuple[list[int], int]) -> str:
    """Its widths and layers."""
    widths, layers = network
    return f"{'-'.join(map(str, widths))}/{layers}"


def _measure_here(job: str, network: tuple[list[int], int], frames: int, size: tuple[int, int], dtype: str,
                  share: float, threads: int, pictures: bool) -> dict[str, Any]:  # fmt: skip
    import torch

    from benchmarks.memory import resident_bytes, watch_peak
    from temporal_vae.engine.storage import release_free_memory

    torch.set_num_threads(threads)
    model = build(network, dtype, pictures=pictures)
    planner = model.plan_decode if job == "decode" else model.plan_encode
    request = {"num_frames": frames, "height": size[0], "width": size[1]}
    peaks = [rung.peak for rung in planner(**request).ladder]
    limit = int(min(peaks) + share * (max(peaks) - min(peaks)))
    plan = planner(**request, memory_limit=limit)
    factor = model.spatial_factor
    shape = (4, size[0] // factor, size[1] // factor) if job == "decode" else (3, *size)
    x = torch.randn(frames, *shape).to(getattr(torch, dtype))
    model.enable_tiling(memory_limit=limit)
    gc.collect()
    release_free_memory()
    before = resident_bytes(os.getpid())
    with watch_peak(os.getpid()) as peak, torch.no_grad():
        length = {} if pictures or job == "encode" else {"num_frames": frames}
        result = getattr(model, job)(x, **length)
    del result
    return {"limit": limit, "planned": plan.peak, "found": peak[0] - before, "rung": plan.rung}


def main() -> None:
    """One case, named by JSON; or all of a kind, or all."""
    asked = sys.argv[1] if len(sys.argv) > 1 else "all"
    if asked == "ranks":
        from benchmarks.resident_ranks import show  # which needs what is above

        show()
        return
    cases = {"clips": CLIPS, "pictures": PICTURES, "all": CLIPS + PICTURES}
    if asked not in cases:
        print(json.dumps(_measure_here(**json.loads(asked))))
        return
    print(f"{'case':78} {'planned':>8} {'found':>8} {'share':>6}  rung")
    for case in cases[asked]:
        found, (height, width) = measure(case), case["size"]
        named = f"{case['job']} {named_network(case['network'])} {case['frames']}x{height}x{width}"
        named += " pictures" if case["pictures"] else ""
        named += f" {case['dtype']}, {case['threads']} threads, {case['share']}"
        planned, taken = (found[key] / 2**20 for key in ("planned", "found"))
        print(f"{named:78} {planned:7.0f}M {taken:7.0f}M {taken / planned:6.2f}  {found['rung']}", flush=True)


if __name__ == "__main__":
    main()
