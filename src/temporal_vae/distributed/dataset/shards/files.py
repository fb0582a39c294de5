"""One safetensors file for each clip: `clips/<two digits>/<identity>.safetensors`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from temporal_vae.distributed.dataset.places import Place
from temporal_vae.distributed.dataset.shards.record import Record, ShardInfo, from_bytes, to_bytes

FOLDER = "clips"
SUFFIX = ".safetensors"


def path_of(identity: str) -> str:
    """The file of a clip."""
    return f"{FOLDER}/{identity[:2]}/{identity}{SUFFIX}"


def write(place: Place, records: Sequence[Record]) -> ShardInfo:
    """Write clips, a file each."""
    places = {}
    for record in records:
        payload = to_bytes(record)
        place.write(path_of(record.identity), payload)
        places[record.identity] = 0, len(payload)
    nbytes = sum(length for _, length in places.values())
    return ShardInfo(name=FOLDER, format="files", nbytes=nbytes, places=places)


def scan(place: Place, name: str) -> Iterator[tuple[Record, tuple[int, int]]]:
    """The clip of one file, or those of the folder of all."""
    for path in place.list(FOLDER) if name == FOLDER else [name]:
        data = place.read(path)
        identity = path.rpartition("/")[2].removesuffix(SUFFIX)
        yield from_bytes(place, path, data, identity), (0, len(data))
