"""What races found: a table for people, a record for machines."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.contestants import CONTESTANTS, OURS
from benchmarks.protocol import Race, Row
from temporal_vae.engine import processor

_PACKAGES = ("torch", "diffusers", "openvino", "onnxruntime", "onnx", "onnxscript", "numpy")
_TUNING = ("OMP_", "KMP_", "GOMP_", "MKL_", "DNNL_", "ONEDNN_", "MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")
_COLUMNS = (
    "contestant",
    "median s",
    "spread",
    "ours is",
    "frames/s",
    "GFLOP/s",
    "of conv",
    "peak MiB",
    "error",
    "first s",
)
_WIDTH = 114  # where the table goes to a file


def describe(race: Race) -> dict[str, Any]:
    """Return a race as values that JSON has, with everything that the table shows."""
    ours = next((row.seconds for row in race.rows if row.contestant == OURS and not row.reason), None)
    return {
        "job": race.trial.job,
        "case": str(race.trial.case),
        "dtype": race.trial.dtype,
        "model": race.trial.model,
        "threads": race.trial.threads,
        "kernels": _kernels(),
        "memory_limit": race.trial.memory_limit,
        "error_limit": race.error_limit,
        "nominal_gflop": None if race.operations is None else race.operations / 1e9,
        "ceiling_gflop_per_second": race.ceiling,
        "contestants": [_describe_row(row, race, ours) for row in race.rows],
    }


def _describe_row(row: Row, race: Race, ours: list[float] | None) -> dict[str, Any]:
    fields: dict[str, Any] = {"name": row.contestant, "about": CONTESTANTS[row.contestant].about}
    if row.reason:
        return {**fields, "reason": row.reason, "error": row.error}
    middle = median(row.seconds)
    rate = None if race.operations is None else race.operations / middle / 1e9
    ratios = [theirs / mine for theirs, mine in zip(row.seconds, ours, strict=True)] if ours else []
    return {
        **fields,
        "error": row.error,
        "seconds": row.seconds,
        "median_seconds": middle,
        "spread": (max(row.seconds) - min(row.seconds)) / middle,
        "ours_is_faster_by": {"median": median(ratios), "least": min(ratios), "most": max(ratios)}
        if ratios
        else None,
        "frames_per_second": race.trial.case.frames / middle,
        "gflop_per_second": rate,
        "share_of_ceiling": None
        if rate is None
        else {kind: rate / top for kind, top in race.ceiling.items()},
        "peak_mib": row.peak_bytes / 2**20,
        "first_peak_mib": row.first_peak_bytes / 2**20,
        "resting_mib": row.resting_bytes / 2**20,
        "prepare_seconds": row.prepare_seconds,
        "first_seconds": row.first_seconds,
    }


def print_race(race: dict[str, Any]) -> None:
    """Print the table of a described race to standard output."""
    ceiling = race["ceiling_gflop_per_second"]
    title = (
        f"{race['job']} {race['case']} {race['dtype']}, threads: {race['threads']}, kernels: {race['kernels']}; "
        f"ceiling: convolutions {ceiling['conv']:.0f}, products {ceiling['gemm']:.0f} GFLOP/s"
    )
    table = Table(title=title, title_justify="left")
    for index, column in enumerate(_COLUMNS):
        table.add_column(column, justify="right" if index else "left", no_wrap=True)
    for row in race["contestants"]:
        table.add_row(row["name"], *_cells(row))
    console = Console()
    console.width = max(console.width, _WIDTH)
    console.print(table)
    for row in race["contestants"]:
        if "reason" in row:
            console.print(f"{row['name']}: {row['reason']}", markup=False, highlight=False, soft_wrap=True)


def _cells(row: dict[str, Any]) -> list[str]:
    if "reason" in row:
        return ["-"] * (len(_COLUMNS) - 1)
    faster, rate, share = row["ours_is_faster_by"], row["gflop_per_second"], row["share_of_ceiling"]
    return [
        f"{row['median_seconds']:.3f}",
        f"{row['spread']:.0%}",
        f"{faster['median']:.2f}x" if faster and row["name"] != OURS else "",
        f"{row['frames_per_second']:.2f}",
        "" if rate is None else f"{rate:.0f}",
        "" if share is None else f"{share['conv']:.0%}",
        f"{row['peak_mib']:.0f}",
        f"{row['error']:.1e}",
        f"{row['prepare_seconds'] + row['first_seconds']:.1f}",
    ]


def circumstances(rounds: int) -> dict[str, Any]:
    """Return when, where and with what: date, command, commit, machine, versions."""
    return {
        "date": str(date.today()),
        "command": " ".join(["python -m benchmarks", *sys.argv[1:]]),
        "commit": _commit(),
        "rounds": rounds,
        "machine": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
            "system": f"{platform.system()} {platform.release()}",
        },
        "versions": {"python": platform.python_version(), **_versions(_PACKAGES)},
        "environment": {name: value for name, value in os.environ.items() if name.startswith(_TUNING)},
    }


def _versions(packages: Sequence[str]) -> dict[str, str]:
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _commit() -> str:
    """Short hash of the checkout this package runs from, `-dirty` if files were changed; else its version."""
    source = Path(__file__).parents[1]
    try:
        if (source / ".git").exists():
            described = subprocess.run(
                ["git", "-C", source, "describe", "--always", "--dirty", "--exclude=*"],
                capture_output=True,
                text=True,
            )
            return described.stdout.strip() or "unknown"
    except OSError:
        return "unknown"
    return f"release {version('temporal-vae')}"


def _kernels() -> str:
    """The set of kernels that ours computes with."""
    machine = processor.host()
    return "none" if machine is None else machine.kernels


def _processor() -> str:
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
