"""Encoded clips in files: tar shards for WebDataset, Parquet, or one safetensors file for each clip.

Whatever the format, the tensors of a clip are one run of bytes in safetensors, which holds the description of the clip
too: a clip that is taken out of its shard still says what it is, and reading one takes its place in the file and no
more. The same clips give the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, get_args

from temporal_vae.distributed.dataset.places import Place
from temporal_vae.distributed.dataset.shards import files, parquet, tar
from temporal_vae.distributed.dataset.shards.record import (
    Format,
    Record,
    ShardInfo,
    damaged,
    from_bytes,
    shard_name,
)

__all__ = [
    "FORMATS",
    "Format",
    "Record",
    "ShardInfo",
    "inspect_shard",
    "list_shards",
    "read_record",
    "read_shard",
    "write_shard",
]

FORMATS: tuple[Format, ...] = get_args(Format)

_KINDS: dict[str, Any] = {"tar": tar, "parquet": parquet, "files": files}


def write_shard(place: Place, format: Format, records: Iterable[Record]) -> ShardInfo:
    """Write clips as one shard, whose name follows from their identities; it is on the disk when this returns.

    Args:
        place: folder of the dataset.
        format: `tar`, `parquet` or `files`.
        records: at least one, in any order, each identity once. All of them are held until they are written.

    Raises:
        MediaError: the place takes no more. A shard of this name that was there is as it was; of the format `files`,
            some of the clips may be there, whole.
    """
    ordered = sorted(records, key=lambda record: record.identity)
    info: ShardInfo = _KINDS[format].write(place, ordered)
    return info


def read_shard(place: Place, shard: ShardInfo | str, format: Format) -> Iterator[Record]:
    """All clips of a shard, given by what `write_shard` returned or one of the names of `list_shards`.

    Raises:
        LatentFileError: a shard that is damaged.
        MediaError: a shard that is not there or can't be read.
    """
    name = shard if isinstance(shard, str) else shard.name
    if format == "files" and not isinstance(shard, str):
        for identity, at in shard.places.items():
            yield read_record(place, name, format, identity, at)
    else:
        for record, _ in _KINDS[format].scan(place, name):
            yield record


def read_record(place: Place, name: str, format: Format, identity: str, at: tuple[int, int]) -> Record:
    """One clip out of a shard, without what lies before it.

    Args:
        place: folder of the dataset.
        name: `ShardInfo.name`.
        format: `ShardInfo.format`.
        identity: of the clip.
        at: `ShardInfo.places[identity]`.

    Raises:
        LatentFileError: a shard that is damaged, or holds another clip there.
        MediaError: a shard that is not there or can't be read.
    """
    path = files.path_of(identity) if format == "files" else name
    return from_bytes(place, path, place.read(path, *at), identity)


def list_shards(place: Place, format: Format) -> list[str]:
    """Names of all shards of a format, sorted; of the format `files`, the files of all clips."""
    folder = files.FOLDER if format == "files" else "shards"
    return [name for name in place.list(folder) if name.endswith(_KINDS[format].SUFFIX)]


def inspect_shard(place: Place, name: str, format: Format) -> tuple[ShardInfo, dict[str, dict[str, Any]]]:
    """Read a shard that `list_shards` named to its end: where its clips lie, and their `meta` by identity.

    Raises:
        LatentFileError: a shard that is damaged, or does not hold the clips that its name stands for.
        MediaError: a shard that is not there or can't be read.
    """
    places, meta = {}, {}
    for record, at in _KINDS[format].scan(place, name):
        places[record.identity], meta[record.identity] = at, record.meta
    if format != "files" and shard_name(places, _KINDS[format].SUFFIX) != name:
        raise damaged(place, name, f"holds {len(places)} clips, and not those of its name")
    nbytes = sum(length for _, length in places.values()) if format == "files" else place.size(name)
    name = files.FOLDER if format == "files" else name
    return ShardInfo(name=name, format=format, nbytes=nbytes, places=places), meta
