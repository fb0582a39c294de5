"""What a run learns from: the files behind folders, globs and manifests, and rendered scenes.

Source (configuration) -> list of Item -> frames of a stretch of one, at one size
"""

from __future__ import annotations

import csv
import glob
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from temporal_vae.errors import ConfigError
from temporal_vae.training.config import Source
from temporal_vae.video.images import IMAGE_SUFFIXES

VIDEO_SUFFIXES = {
    *(
        ".3gp",
        ".avi",
        ".flv",
        ".gif",
        ".m4v",
        ".mkv",
        ".mov",
        ".mp4",
        ".mpeg",
        ".mpg",
        ".mts",
        ".mxf",
        ".ogv",
    ),
    *(".ts", ".webm", ".wmv", ".y4m"),
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
    """All that a source of the configuration stands for, in a fixed order.

    Raises:
        ConfigError: nothing there, a manifest that cannot be read, or a variable that is not set.
    """
    if source.path is None:
        return [Item(name=f"scene {number}", scene=number) for number in range(source.scenes)]
    items = [item for item in _found(_expand(source.path), source.path) if not _excluded(item, source)]
    if not items:
        raise ConfigError(
            f"{source.path}: holds no video or image; name a file, a folder, a pattern or a manifest"
        )
    return items


def _found(path: str, written: str) -> Iterator[Item]:
    if path.startswith(PACKAGE):
        path = _in_package(path.removeprefix(PACKAGE))
    if Path(path).suffix.lower() in MANIFEST_SUFFIXES:
        yield from _manifest(Path(path))
    elif Path(path).is_dir():
        suffixes = VIDEO_SUFFIXES | IMAGE_SUFFIXES
        inside = (Path(folder) / name for folder, _, names in os.walk(path) for name in names)
        yield from _files(file for file in inside if file.suffix.lower() in suffixes)
    elif Path(path).is_file():
        yield from _files([Path(path)])
    elif glob.has_magic(path):
        yield from _files(Path(match) for match in glob.glob(path, recursive=True) if Path(match).is_file())
    else:
        raise ConfigError(f"{written}: no such file or folder; check data.sources")


def _files(paths: Any) -> Iterator[Item]:
    for path in sorted(paths):
        if not path.name.startswith("."):
            yield Item(name=str(path), path=path)


def _excluded(item: Item, source: Source) -> bool:
    assert item.path is not None
    return any(
        fnmatch(item.path.name, pattern) or fnmatch(str(item.path), pattern) for pattern in source.exclude
    )


def _expand(path: str) -> str:
    expanded = os.path.expanduser(os.path.expandvars(path))
    missing = re.search(r"\$\{?(\w+)", expanded)
    if missing:
        raise ConfigError(f"{path}: the variable {missing[1]} is not set; export it, or write the path out")
    return expanded


def _in_package(name: str) -> str:
    package, _, inside = name.partition("/")
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(f"{PACKAGE}{name}: {package} is not installed; pip install 'temporal-vae[recipe]'")
    return str(Path(spec.submodule_search_locations[0]) / inside)


def _manifest(file: Path) -> Iterator[Item]:
    """Rows with `path` (relative to the manifest), and `start`, `end` (seconds) and `weight` where they are needed."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: cannot be read as a manifest; name a CSV or JSONL file") from error
    rows = _csv_rows(text) if file.suffix.lower() == ".csv" else _json_rows(file, text)
    for number, row in rows:
        yield _item_of_row(file, number, row)


def _csv_rows(text: str) -> Iterator[tuple[int, Any]]:
    reader = csv.DictReader(text.splitlines())
    for row in reader:
        yield reader.line_num, {key: value for key, value in row.items() if value not in (None, "")}


def _json_rows(file: Path, text: str) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(text.splitlines(), start=1):
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
    try:
        start = float(row.get("start", 0))
        end = None if row.get("end") is None else float(row["end"])
        weight = float(row.get("weight", 1))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{place}: start, end and weight are numbers; it has {row}") from error
    if start < 0 or weight <= 0 or (end is not None and end <= start):
        raise ConfigError(
            f"{place}: start={start}, end={end}, weight={weight}; end is after start, weight above 0"
        )
    path = Path(os.path.expanduser(row["path"]))
    path = path if path.is_absolute() else file.parent / path
    return Item(name=str(path), path=path, start=start, end=end, weight=weight)
