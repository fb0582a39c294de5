"""Parquet shards: a row for each clip, with columns `identity`, `meta` (JSON) and `safetensors` (bytes).

A clip is a row group, uncompressed and in plain encoding. So its safetensors are one run of bytes at the end of the
group's column, and are read as such: without the footer, and without what lies beside them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import Any

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
from temporal_vae.errors import InputError, one_line

SUFFIX = ".parquet"
_PAYLOAD = 2  # number of the column


def need_pyarrow(what: str) -> None:
    """Raise `InputError` where pyarrow is missing, which `what` takes."""
    if find_spec("pyarrow") is None:
        raise InputError(f"{what}: pyarrow is not installed; pip install 'temporal-vae[dataset]'")


def write(place: Place, records: Sequence[Record]) -> ShardInfo:
    """Write clips, which are in order."""
    need_pyarrow("Parquet")
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema(
        {"identity": pa.string(), "meta": pa.string(), "safetensors": pa.large_binary()}.items()
    )
    name = shard_name((record.identity for record in records), SUFFIX)
    lengths: dict[str, int] = {}
    footers: list[Any] = []
    with place.writing(name) as file:
        with pq.ParquetWriter(
            file,
            schema,
            compression="NONE",
            use_dictionary=False,
            write_statistics=False,
            data_page_version="1.0",
            store_schema=False,
            metadata_collector=footers,
        ) as writer:
            for record in records:
                payload = to_bytes(record)
                lengths[record.identity] = len(payload)
                meta = to_json(record.meta | {"identity": record.identity})
                writer.write_table(pa.table([[record.identity], [meta], [payload]], schema=schema))
        nbytes = file.tell()
    groups = enumerate(lengths.items())
    places = {identity: (_start(footers[0], number, length), length) for number, (identity, length) in groups}
    return ShardInfo(name=name, format="parquet", nbytes=nbytes, places=places)


def scan(place: Place, name: str) -> Iterator[tuple[Record, tuple[int, int]]]:
    """Clips of a shard and where they lie."""
    need_pyarrow(place.shown(name))
    import pyarrow as pa
    import pyarrow.parquet as pq

    with place.open(name) as file:
        try:
            shard = pq.ParquetFile(file)
            for number in range(shard.num_row_groups):
                row = shard.read_row_group(number, columns=["identity", "safetensors"]).to_pylist()[0]
                identity, payload = row["identity"], row["safetensors"]
                at = _start(shard.metadata, number, len(payload)), len(payload)
                yield from_bytes(place, name, payload, identity), at
        except (pa.ArrowException, OSError, KeyError, IndexError, TypeError) as error:
            raise damaged(place, name, one_line(error)) from error


def _start(footer: Any, group: int, length: int) -> int:
    """First byte of the payload of a row group: a page of one value ends with it."""
    column = footer.row_group(group).column(_PAYLOAD)
    return int(column.data_page_offset + column.total_compressed_size - length)
