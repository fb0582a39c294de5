"""Datasets of latents that tests write without a model."""

import hashlib
from pathlib import Path

import torch

from temporal_vae.distributed.dataset.index import COLUMNS, write_index
from temporal_vae.distributed.dataset.places import open_place
from temporal_vae.distributed.dataset.shards import Format, Record, write_shard

SETTINGS = "a1b2c3d4" + "0" * 56
SHAPES = ((5, 4, 2, 3), (5, 4, 3, 2), (2, 4, 2, 3))


def clip(number: int, *, sampled: bool = False, dtype: torch.dtype = torch.float32) -> Record:
    """A clip whose numbers tell which one it is."""
    identity = hashlib.sha256(f"{number}".encode()).hexdigest()[:32]
    generator = torch.Generator().manual_seed(number)
    names = ("sample",) if sampled else ("mean", "logvar")
    shape = SHAPES[number % 7 % 3]
    tensors = {name: torch.randn(shape, generator=generator).to(dtype) for name in names}
    meta = {"scaling_factor": 0.5, "shift_factor": None, "settings": SETTINGS}
    return Record(identity=identity, tensors=tensors, meta=meta)


def write_dataset(
    location: str | Path,
    clips: list[Record],
    *,
    format: Format = "tar",
    per_shard: int = 4,
    settings: str = SETTINGS,
    index_of: str | None = None,
    listed: list[int] | None = None,
    more: dict[str, list] | None = None,
) -> None:
    """Shards of some clips, and an index of those that are `listed`, some of them perhaps twice."""
    place, lies = open_place(location), {}
    for first in range(0, len(clips), per_shard):
        info = write_shard(place, format, clips[first : first + per_shard])
        lies |= {identity: (info.name, *at) for identity, at in info.places.items()}
    rows: dict[str, list] = {name: [] for name in COLUMNS}
    for number in range(len(clips)) if listed is None else listed:
        record = clips[number]
        shape = next(iter(record.tensors.values())).shape
        shard, offset, length = lies[record.identity]
        width, height = record.meta.get("size") or (8 * shape[3], 8 * shape[2])
        row = {
            "identity": record.identity,
            "shard": shard,
            "format": format,
            "offset": offset,
            "length": length,
            "path": f"videos/{number}.mp4",
            "start": 0.0,
            "end": 0.2,
            "frames": shape[0],
            "width": 1920,
            "height": 1080,
            "shape": "x".join(map(str, shape)),
            "bucket": f"{width}x{height}",
            "fps": "30000/1001",
            "settings": settings,
        }
        for name, value in row.items():
            rows[name].append(value)
    write_index(place, index_of, rows, more or {})
