"""What SOURCE stands for: a row for each video, or stretch of one, with whatever else a manifest says of it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from temporal_vae.distributed.dataset.shards.parquet import need_pyarrow
from temporal_vae.errors import InputError, MediaError, file_name
from temporal_vae.media.frames import exact
from temporal_vae.media.listing import (
    MANIFEST_SUFFIXES,
    VIDEO_SUFFIXES,
    files_at,
    inside,
    manifest_rows,
    number_in,
)

PARQUET = ".parquet"
SPAN = ("path", "start", "end")
"""Columns of a manifest that say what is read; the others are carried along."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A video, or a stretch of one.

    Attributes:
        path: the file, absolute.
        source: the file as it is listed, for people and for the index: valid Unicode, from the folder or manifest on.
        start: seconds at which the stretch begins; None is the beginning of the video.
        end: seconds at which it ends; None is the end of the video.
        columns: the other columns of the manifest.
    """

    path: str
    source: str
    start: Fraction | None = None
    end: Fraction | None = None
    columns: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Listing:
    """All rows of a source, in a fixed order, and how many files of a folder are no videos by their names."""

    rows: list[Row]
    passed_over: int


def rows_of(source: str | Path, *, without: Path | None = None) -> Listing:
    """All that a source stands for. Nothing is opened but manifests.

    Args:
        source: a folder, which is searched for videos; a file; a pattern such as `"videos/**/*.mp4"`; or a manifest
            (CSV, JSONL or Parquet) with `path`, from the manifest's folder on, and perhaps `start` and `end` in seconds
            and any further columns.
        without: a folder to pass over where it lies in the source.

    Raises:
        MediaError: nothing there, or a manifest that cannot be read.
        InputError: a row of a manifest that says nothing that can be done.
    """
    written = str(source)
    path = os.path.abspath(os.path.expanduser(written))
    if os.path.isdir(path):
        return _folder(path, written, without)
    rows: list[Row] = []
    for file in files_at(path, (), written):
        if Path(file).suffix.lower() in {*MANIFEST_SUFFIXES, PARQUET}:
            rows += _manifest(Path(file))
        else:
            shown = file if os.path.isabs(os.path.expanduser(written)) else os.path.relpath(file)
            rows.append(Row(path=file, source=printable(shown)))
    if not rows:
        raise MediaError(f"{file_name(written)}: names no video; write a pattern or a manifest that does")
    return Listing(rows=rows, passed_over=0)


def printable(path: str) -> str:
    """A path as valid Unicode; bytes of a file name that are none become escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _folder(path: str, written: str, without: Path | None) -> Listing:
    left_out = os.path.join(os.path.realpath(without), "") if without is not None else None
    if left_out == os.path.join(os.path.realpath(path), ""):
        raise InputError(
            f"{file_name(written)}: is both SOURCE and DEST; name another folder for the latents"
        )

    def is_listed(file: str) -> bool:
        return left_out is None or not os.path.realpath(file).startswith(left_out)

    files = [file for file in files_at(path, VIDEO_SUFFIXES) if is_listed(file)]
    if not files:
        kinds = " ".join(sorted(VIDEO_SUFFIXES))
        raise MediaError(f"{file_name(written)}: holds no video ({kinds}); name others with a pattern")
    passed_over = sum(is_listed(file) for file in inside(path)) - len(files)
    rows = [Row(path=file, source=printable(os.path.relpath(file, path))) for file in files]
    return Listing(rows=rows, passed_over=passed_over)


def _manifest(file: Path) -> Iterator[Row]:
    folder = os.path.abspath(file.parent)
    rows: Iterable[tuple[int, Any]]
    if file.suffix.lower() == PARQUET:
        rows, word = _parquet_rows(file), "row"
    else:
        rows, word = manifest_rows(file), "line"
    for number, row in rows:
        yield _row(row, folder, f"{file}: {word} {number}")


def _parquet_rows(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    need_pyarrow(str(file))
    from pyarrow import ArrowException, parquet

    try:
        with parquet.ParquetFile(file) as table:
            batches = table.iter_batches()
            yield from enumerate((row for batch in batches for row in batch.to_pylist()), start=1)
    except (ArrowException, OSError) as error:
        raise MediaError(f"{file}: cannot be read as Parquet ({' '.join(str(error).split())})") from error


def _row(row: Any, folder: str, place: str) -> Row:
    if not isinstance(row, dict) or not isinstance(row.get("path"), str) or not row["path"].strip():
        raise InputError(f"{place} has no path; each row has path, and may have start, end and other columns")
    start, end = _seconds(row, "start", place), _seconds(row, "end", place)
    if end is not None and end <= (start or 0):
        raise InputError(f"{place}: start={row.get('start')}, end={row['end']}; let end be after start")
    return Row(
        path=os.path.abspath(os.path.join(folder, os.path.expanduser(row["path"]))),
        source=printable(row["path"]),
        start=start,
        end=end,
        columns={_unicode(str(name)): _unicode(value) for name, value in row.items() if name not in SPAN},
    )


def _unicode(value: Any) -> Any:
    """Halves of surrogate pairs, which JSON may hold and files may not, as escapes."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


def plain(columns: dict[str, Any]) -> dict[str, Any]:
    """Columns as JSON has them: what it does not have, such as dates, as text, and numbers that are none as null."""
    return json.loads(json.dumps(columns, default=str), parse_constant=lambda name: None)


def _seconds(row: dict[str, Any], name: str, place: str) -> Fraction | None:
    return None if number_in(row, name, place) is None else exact(row[name], f"{place}: {name}")
