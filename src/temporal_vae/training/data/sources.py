"""What a run learns from: the files behind folders, globs and manifests, and rendered scenes.

Source (configuration) -> list of Item -> frames of a stretch of one, at one size
"""

from __future__ import annotations

import csv
import glob
import io
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from importlib.util import find_spec
from math import inf, nan
from pathlib import Path
from typing import Any

from temporal_vae.errors import ConfigError, file_name
from temporal_vae.media.images import IMAGE_SUFFIXES
from temporal_vae.training.config.fields import Source

VIDEO_SUFFIXES = {
    *(".3gp", ".avi", ".flv", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".mxf"),
    *(".ogv", ".ts", ".webm", ".wmv", ".y4m"),
}
"""What a folder is searched for, beside images; a glob or a manifest may name anything."""

MANIFEST_SUFFIXES = {".csv", ".jsonl"}
PACKAGE = "package:"


@dataclass(frozen=True, kw_only=True)
class Item:
    """A file, or a stretch of one, or a rendered scene.

    Attributes:
        name: for messages.
        path: the file; None for a scene.
        scene: number of the scene.
        start: seconds at which the stretch begins.
        end: seconds at which it ends; None is the end of the file.
        weight: odds within its source.
    """

    name: str
    path: Path | None = None
    scene: int = 0
    start: float = 0.0
    end: float | None = None
    weight: float = 1.0


def items_of(source: Source) -> list[Item]:
    """All that a source of the configuration stands for, in a fixed order. Nothing is opened but manifests.

    Raises:
        ConfigError: nothing there, a manifest that cannot be read, or a variable that is not set.
    """
    if source.path is None:
        return [Item(name=f"scene {number}", scene=number) for number in range(source.scenes)]
    found = list(_found(_expand(source.path), source.path))
    items = [item for item in found if not _excluded(item, source)]
    if not items:
        what = "all of it is excluded" if found else "holds no video or image"
        raise ConfigError(
            f"{file_name(source.path)}: {what}; name a file, a folder, a pattern or a manifest with some"
        )
    return items


def _found(path: str, written: str) -> Iterator[Item]:
    if path.startswith(PACKAGE):
        path = _in_package(path.removeprefix(PACKAGE))
    if os.path.isdir(path):
        suffixes = tuple(VIDEO_SUFFIXES | IMAGE_SUFFIXES)
        files = [file for file in _inside(path) if file.lower().endswith(suffixes)]
    elif os.path.isfile(path):
        files = [path]
    elif glob.has_magic(path):
        files = [file for file in glob.glob(path, recursive=True) if os.path.isfile(file)]
    else:
        raise ConfigError(f"{file_name(written)}: no such file or folder; check the sources")
    for file in sorted(files, key=lambda file: file.split(os.sep)):
        if Path(file).suffix.lower() in MANIFEST_SUFFIXES:
            yield from _manifest(Path(file))
        else:
            yield Item(name=file_name(file), path=Path(file))


def _inside(path: str) -> Iterator[str]:
    """Files in a folder and in those below it, none that is hidden; links are followed, every folder once."""
    seen = {os.path.realpath(path)}
    for folder, inner, names in os.walk(path, followlinks=True):
        yield from (os.path.join(folder, name) for name in names if not name.startswith("."))
        shown = {name: os.path.realpath(os.path.join(folder, name)) for name in inner if name[0] != "."}
        once = {place: name for name, place in shown.items() if place not in seen}
        inner[:] = once.values()
        seen.update(once)


def _excluded(item: Item, source: Source) -> bool:
    assert item.path is not None
    return any(
        fnmatch(item.path.name, pattern) or fnmatch(str(item.path), pattern) for pattern in source.exclude
    )


def _expand(path: str) -> str:
    expanded = os.path.expanduser(os.path.expandvars(path))
    missing = re.search(r"\$\{?(\w+)", expanded)
    if missing:
        raise ConfigError(
            f"{file_name(path)}: the variable {missing[1]} is not set; export it, or write the path out"
        )
    return expanded


def _in_package(name: str) -> str:
    package, _, inside = name.partition("/")
    try:
        spec = find_spec(package)
    except (ImportError, ValueError):  # no parent package, or no name at all
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            f"{PACKAGE}{name}: no package {package!r} is installed; pip install it, "
            "or temporal-vae[recipe] for those of recipes"
        )
    return str(Path(next(iter(spec.submodule_search_locations))) / inside)


def _manifest(file: Path) -> Iterator[Item]:
    """Rows with `path` (relative to the manifest), and `start`, `end` (seconds) and `weight` where they are needed."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: cannot be read as a manifest; write CSV or JSONL in UTF-8") from error
    rows = _csv_rows(file, text) if file.suffix.lower() == ".csv" else _json_rows(file, text)
    for number, row in rows:
        yield _item_of_row(file, number, row)


def _csv_rows(file: Path, text: str) -> Iterator[tuple[int, Any]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True)
    try:
        for row in reader:
            if None in row:
                raise ConfigError(
                    f"{file}: line {reader.line_num} has more entries than the first line has names; "
                    "put a path with commas in quotes"
                )
            yield reader.line_num, {key: value for key, value in row.items() if value not in (None, "")}
    except csv.Error as error:
        raise ConfigError(f"{file}: is no CSV after line {reader.line_num} ({error}); mend it") from error


def _json_rows(file: Path, text: str) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ConfigError(
                    f"{file}: line {number} is no JSON ({error.msg}); write one object per line"
                ) from error
            yield number, {"path": row} if isinstance(row, str) else row


def _item_of_row(file: Path, number: int, row: Any) -> Item:
    place = f"{file}: line {number}"
    if not isinstance(row, dict) or not isinstance(row.get("path"), str):
        raise ConfigError(f"{place} has no path; each row has path, and may have start, end and weight")
    start, weight = _number(row, "start", place) or 0.0, _number(row, "weight", place)
    end = _number(row, "end", place)
    if weight == 0 or (end is not None and end <= start):
        raise ConfigError(
            f"{place}: start={start:g}, end={end}, weight={weight}; let end be after start, and weight above 0"
        )
    path = file.parent / os.path.expanduser(row["path"])
    return Item(
        name=file_name(path), path=path, start=start, end=end, weight=1.0 if weight is None else weight
    )


def _number(row: dict[str, Any], name: str, place: str) -> float | None:
    """A number of a row, None where there is none."""
    value = row.get(name)
    try:
        number = None if value is None else float(value)
    except (TypeError, ValueError):
        number = nan
    if number is None or 0 <= number < inf:
        return number
    raise ConfigError(f"{place}: {name}={value!r} is no number of 0 or more")
