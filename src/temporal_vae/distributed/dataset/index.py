"""The index of a dataset: a Parquet table with a row for each row of the plan, which says where its clip lies.

`index.parquet` is that of the present plan; `index-<settings>.parquet` keeps those of all settings that were used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from temporal_vae.distributed.dataset.places import Place
from temporal_vae.distributed.dataset.shards.parquet import need_pyarrow
from temporal_vae.errors import LatentFileError, one_line

INDEX = "index.parquet"
COLUMNS = {
    "identity": "string",
    "shard": "string",
    "format": "string",
    "offset": "int64",
    "length": "int64",
    "path": "string",
    "start": "float64",
    "end": "float64",
    "frames": "int64",
    "width": "int64",
    "height": "int64",
    "shape": "string",
    "bucket": "string",
    "fps": "string",
    "settings": "string",
}
"""What every index has, and as what; the columns of the manifest follow. `shape` is that of the latents, `25x4x40x64`:
frames, channels, rows, columns. `width` and `height` are those of the video, `bucket` is the size of the clip,
`512x320`. `fps` is a fraction, `30000/1001`."""


def index_name(settings: str | None = None) -> str:
    """The file of an index: of the present plan, or of settings given by (the beginning of) their hash."""
    return INDEX if settings is None else f"index-{settings[:8]}.parquet"


def write_index(
    place: Place, settings: str | None, fixed: Mapping[str, Sequence[Any]], more: Mapping[str, Sequence[Any]]
) -> None:
    """Write an index.

    Args:
        place: folder of the dataset.
        settings: see `index_name`.
        fixed: all of `COLUMNS`.
        more: columns of the manifest: texts, numbers, truth values, lists; None where there is none.

    Raises:
        InputError: pyarrow is missing.
        MediaError: the index can't be written.
    """
    need_pyarrow("the index of a dataset")
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {name: pa.array(fixed[name], pa.type_for_alias(kind)) for name, kind in COLUMNS.items()}
    columns |= {name: _array(values) for name, values in more.items()}
    with place.writing(index_name(settings)) as file:
        pq.write_table(pa.table(columns), file)


def read_index(place: Place, settings: str | None = None) -> Any:
    """The index as a table of pyarrow.

    Raises:
        InputError: pyarrow is missing.
        LatentFileError: there is no such index, or it is damaged.
    """
    name = index_name(settings)
    need_pyarrow(place.shown(name))
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not place.exists(name):
        what = (
            "no dataset of latents that is finished"
            if settings is None
            else "not encoded with these settings"
        )
        raise LatentFileError(f"{place.shown(name)}: no such file: {what}; run encode-dataset, to its end")
    with place.open(name) as file:
        try:
            table = pq.read_table(file)
        except (pa.ArrowException, OSError) as error:
            raise LatentFileError(
                f"{place.shown(name)}: damaged ({one_line(error)}); run encode-dataset again, which writes it anew"
            ) from error
    if missing := [column for column in COLUMNS if column not in table.column_names]:
        raise LatentFileError(f"{place.shown(name)}: is no index of a dataset ({', '.join(missing)} missing)")
    return table


def _array(values: Sequence[Any]) -> Any:
    """Values as a column; as texts where they are of several kinds."""
    import pyarrow as pa

    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return pa.array([None if value is None else str(value) for value in values])
