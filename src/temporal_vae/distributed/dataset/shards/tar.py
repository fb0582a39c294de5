"""Tar shards as WebDataset reads them: `<identity>.json` and `<identity>.safetensors` of each clip.

Members are in the order of their identities, with time, owner and mode fixed.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator, Sequence
from typing import IO

from temporal_vae.distributed.dataset.places import Place
from temporal_vae.distributed.dataset.shards.record import (
    Record,
    ShardInfo,
    damaged,
    from_bytes,
    shard_name,
    to_bytes,
    to_json,
)
from temporal_vae.errors import one_line

SUFFIX = ".tar"


def write(place: Place, records: Sequence[Record]) -> ShardInfo:
    """Write clips, which are in order."""
    name = shard_name((record.identity for record in records), SUFFIX)
    places = {}
    with place.writing(name) as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
            for record in records:
                meta = to_json(record.meta | {"identity": record.identity})
                _add(archive, f"{record.identity}.json", meta.encode())
                payload = to_bytes(record)
                start = _add(archive, f"{record.identity}.safetensors", payload)
                places[record.identity] = start, len(payload)
        nbytes = file.tell()
    return ShardInfo(name=name, format="tar", nbytes=nbytes, places=places)


def scan(place: Place, name: str) -> Iterator[tuple[Record, tuple[int, int]]]:
    """Clips of a shard and where they lie."""
    try:
        with place.open(name) as file, tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                identity, _, suffix = member.name.rpartition(".")
                if suffix == "safetensors":
                    data = _content(archive, member)
                    yield from_bytes(place, name, data, identity), (member.offset_data, member.size)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise damaged(place, name, one_line(error)) from error


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> int:
    """Append a file; returns where its bytes begin."""
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(data), 0o644
    archive.addfile(member, io.BytesIO(data))
    return archive.offset - -(-len(data) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file: IO[bytes] | None = archive.extractfile(member)
    if file is None:
        raise tarfile.ReadError(f"{member.name} is no file")
    return file.read()
