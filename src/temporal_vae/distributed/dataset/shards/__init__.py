"""Encoded clips in files: tar shards for WebDataset, Parquet, or one safetensors file for each clip.

Whatever the format, the tensors of a clip are one run of bytes in safetensors, which holds the description of the clip
too; so a clip that is taken out of its shard still says what it is. The same clips give the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from temporal_vae.distributed.dataset.places import Place

Format = Literal["tar", "parquet", "files"]
FORMATS: tuple[Format, ...] = ("tar", "parquet", "files")


@dataclass(frozen=True, kw_only=True, eq=False)
class Record:
    """One clip.

    Attributes:
        identity: 32 hexadecimal digits; what its members or its file are called.
        tensors: `mean` and `logvar`, or `sample`: `(t, z, h, w)` each, unscaled.
        meta: what JSON holds about the clip: source, span, sizes, model, columns of the manifest.
    """

    identity: str
    tensors: dict[str, Tensor]
    meta: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class ShardInfo:
    """Where the clips of one shard lie.

    Attributes:
        name: the file, from the folder of the dataset; of the format `files`, the folder of all clips.
        format: `tar`, `parquet` or `files`.
        nbytes: what the shard takes on disk.
        places: of each identity, what `read_record` needs to find it: first byte and length in a tar shard, row group
            and 0 in Parquet, 0 and the length of the file of a clip.
    """

    name: str
    format: Format
    nbytes: int
    places: dict[str, tuple[int, int]]


def write_shard(place: Place, format: Format, records: Iterable[Record]) -> ShardInfo:
    """Write clips as one shard, whose name follows from their identities; it is on the disk when this returns.

    Args:
        place: folder of the dataset.
        format: `tar`, `parquet` or `files`.
        records: at least one, in any order, each identity once. All of them are held until they are written.

    Raises:
        MediaError: the place takes no more; nothing under the shard's name is touched then.
    """
    raise NotImplementedError


def read_shard(place: Place, shard: ShardInfo | str, format: Format) -> Iterator[Record]:
    """All clips of a shard, given by what `write_shard` returned or one of the names of `list_shards`.

    Raises:
        LatentFileError: a shard that is damaged.
        MediaError: a shard that is not there or can't be read.
    """
    raise NotImplementedError


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
    raise NotImplementedError


def list_shards(place: Place, format: Format) -> list[str]:
    """Names of all complete shards of a format, sorted; of the format `files`, the files of all clips."""
    raise NotImplementedError


def inspect_shard(place: Place, name: str, format: Format) -> tuple[ShardInfo, dict[str, dict[str, Any]]]:
    """Read a shard that `list_shards` named to its end: where its clips lie, and their `meta` by identity.

    Raises:
        LatentFileError: a shard that is damaged.
        MediaError: a shard that is not there or can't be read.
    """
    raise NotImplementedError
