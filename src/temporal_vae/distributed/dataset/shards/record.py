"""A clip as it is stored: its tensors and what it is, as one run of bytes in safetensors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from temporal_vae.distributed.dataset.places import Place
from temporal_vae.errors import LatentFileError, one_line

Format = Literal["tar", "parquet", "files"]
METADATA_KEY = "temporal_vae_clip"
"""Under which a clip describes itself, a JSON text."""


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
        nbytes: what the shard takes.
        places: of each identity, the first byte and the length of its safetensors in the file that holds it.
    """

    name: str
    format: Format
    nbytes: int
    places: dict[str, tuple[int, int]]


def shard_name(identities: Iterable[str], suffix: str) -> str:
    """What a shard of these clips is called, wherever and in whatever order they were encoded."""
    digest = hashlib.sha256("\n".join(sorted(identities)).encode()).hexdigest()
    return f"shards/{digest[:24]}{suffix}"


def to_json(meta: dict[str, Any]) -> str:
    """The description of a clip, the same text for the same values."""
    return json.dumps(meta, sort_keys=True, ensure_ascii=False)


def to_bytes(record: Record) -> bytes:
    """A clip as safetensors, the same bytes for the same clip."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in record.tensors.items()}
    return save(tensors, {METADATA_KEY: to_json(record.meta | {"identity": record.identity})})


def from_bytes(place: Place, name: str, data: bytes, identity: str) -> Record:
    """Read what `to_bytes` made of the clip `identity`; `name` is the file for messages.

    Raises:
        LatentFileError: anything else.
    """
    try:
        length = int.from_bytes(data[:8], "little")
        meta = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][METADATA_KEY])
        if meta["identity"] != identity:
            raise ValueError(f"holds clip {meta['identity']} instead")
        return Record(identity=identity, tensors=load(data), meta=meta)
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise damaged(place, name, f"clip {identity}: {one_line(error)}") from error


def damaged(place: Place, name: str, reason: str) -> LatentFileError:
    """The error for a shard that can't be what was written."""
    return LatentFileError(f"{place.shown(name)}: damaged ({reason}); encode its clips again")
