"""How much memory a machine has left, and its folders: which are memory, and where caches lie."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch

_CONTROL_GROUPS = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")
_OF_MEMORY = ("tmpfs", "ramfs", "devtmpfs")


def free_memory(device: torch.device) -> int:
    """Bytes that can be taken on a device without swapping.

    Of a GPU, with what torch's allocator holds and nobody uses; else of the machine, or what limits of containers and
    control groups leave of it.
    """
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0] + kept)
    return min([int(psutil.virtual_memory().available), *_left_by_groups()])


def best_device() -> str:
    """The device to compute on where none is named: a CUDA GPU if there is one, or else the CPU.

    Of the processes that a launcher started on this machine, each takes a GPU of its own.
    """
    if not torch.cuda.is_available():
        return "cpu"
    number = int(os.environ.get("LOCAL_RANK") or 0)
    return f"cuda:{number % torch.cuda.device_count()}" if number else "cuda"


def cache_folder() -> Path:
    """Where programs of this user keep what they can make again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def is_memory(folder: Path) -> bool:
    """Whether the files of a folder lie in memory, as those of a `tmpfs` do."""
    folder = folder.resolve()
    mounts = [(Path(mount.mountpoint), mount.fstype) for mount in psutil.disk_partitions(all=True)]
    around = [
        (len(place.parts), kind) for place, kind in mounts if place == folder or place in folder.parents
    ]
    return max(around, default=(0, ""))[1] in _OF_MEMORY


def _left_by_groups() -> Iterator[int]:
    """What each limit of memory that this process is under leaves; version 1 and version 2 of control groups."""
    try:
        lines = [line.split(":", 2) for line in _MEMBERSHIP.read_text().splitlines()]
    except OSError:
        lines = []
    paths = {names: path.strip("/") for _, names, path in (line for line in lines if len(line) == 3)}
    for root, path, files in (
        (_CONTROL_GROUPS, paths.get("", ""), ("memory.max", "memory.current", "inactive_file")),
        (
            _CONTROL_GROUPS / "memory",
            next((path for names, path in paths.items() if "memory" in names.split(",")), ""),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ),
    ):
        group = root / path
        for place in (group, *(parent for parent in group.parents if root in (parent, *parent.parents))):
            left = _left(place, *files)
            if left is not None:
                yield left


def _left(group: Path, limit: str, usage: str, cache: str) -> int | None:
    """What one group leaves; file contents that the system drops first do not count."""
    try:
        most, used = (int((group / name).read_text()) for name in (limit, usage))  # "max" is none
        stat = dict(line.split()[:2] for line in (group / "memory.stat").read_text().splitlines())
        return max(0, most - used + int(stat.get(cache, 0)))
    except (OSError, ValueError):
        return None
