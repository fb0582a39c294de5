"""Many files at once: those in a folder, of a pattern, or in the rows of a manifest. None of them is opened here."""

from __future__ import annotations

import csv
import glob
import io
import json
import os
from collections.abc import Collection, Iterable, Iterator
from math import inf, nan
from pathlib import Path
from typing import Any

from temporal_vae.errors import MediaError, file_name

VIDEO_SUFFIXES = {
    *(".3gp", ".avi", ".flv", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".mxf"),
    *(".ogv", ".ts", ".webm", ".wmv", ".y4m"),
}
"""What a folder is searched for; a pattern or a manifest may name anything."""

MANIFEST_SUFFIXES = {".csv", ".jsonl"}


def inside(path: str) -> Iterator[str]:
    """Files in a folder and in those below it, none that is hidden; links are followed, every folder once."""
    seen = {os.path.realpath(path)}
    for folder, inner, names in os.walk(path, followlinks=True):
        yield from (os.path.join(folder, name) for name in names if not name.startswith("."))
        shown = {name: os.path.realpath(os.path.join(folder, name)) for name in inner if name[0] != "."}
        once = {place: name for name, place in shown.items() if place not in seen}
        inner[:] = once.values()
        seen.update(once)


def files_at(path: str, suffixes: Collection[str], written: str | None = None) -> list[str]:
    """Files of a folder, of a pattern, or the one file, sorted by their folders, then by name.

    Args:
        path: a folder, a file or a pattern.
        suffixes: in lower case, of the files that a folder is searched for.
        written: the path as the user wrote it, for the message.

    Raises:
        MediaError: nothing there.
    """
    if os.path.isdir(path):
        return _in_order(file for file in inside(path) if file.lower().endswith(tuple(suffixes)))
    if os.path.isfile(path):
        return [path]
    if glob.has_magic(path):
        return _in_order(file for file in glob.glob(path, recursive=True) if os.path.isfile(file))
    raise MediaError(f"{file_name(written or path)}: no such file or folder; check the sources")


def _in_order(files: Iterable[str]) -> list[str]:
    return sorted(files, key=lambda file: file.split(os.sep))


def manifest_rows(file: Path) -> Iterator[tuple[int, Any]]:
    """Rows of a manifest in CSV or JSONL, with the numbers of their lines.

    Fields of a CSV that are empty are left out. A line of JSONL that is a text is a path. What else a line holds is
    for the caller to check.

    Raises:
        MediaError: a manifest that cannot be read.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise MediaError(f"{file}: cannot be read as a manifest; write CSV or JSONL in UTF-8") from error
    return _csv_rows(file, text) if file.suffix.lower() == ".csv" else _json_rows(file, text)


def _csv_rows(file: Path, text: str) -> Iterator[tuple[int, Any]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True)
    try:
        for row in reader:
            if None in row:
                raise MediaError(
                    f"{file}: line {reader.line_num} has more entries than the first line has names; "
                    "put a path with commas in quotes"
                )
            yield reader.line_num, {key: value for key, value in row.items() if value not in (None, "")}
    except csv.Error as error:
        raise MediaError(f"{file}: is no CSV after line {reader.line_num} ({error}); mend it") from error


def _json_rows(file: Path, text: str) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise MediaError(
                    f"{file}: line {number} is no JSON ({error.msg}); write one object per line"
                ) from error
            yield number, {"path": row} if isinstance(row, str) else row


def number_in(row: dict[str, Any], name: str, place: str) -> float | None:
    """A number of a row, 0 or more; None where there is none.

    Raises:
        MediaError: something else; `place` says where.
    """
    value = row.get(name)
    try:
        number = None if value is None else float(value)
    except (TypeError, ValueError):
        number = nan
    if number is None or 0 <= number < inf:
        return number
    raise MediaError(f"{place}: {name}={value!r} is no number of 0 or more")
