"""What a run learns from: the files behind folders, globs and manifests, and rendered scenes.

Source (configuration) -> list of Item -> frames of a stretch of one, at one size
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from temporal_vae.errors import ConfigError, MediaError, file_name
from temporal_vae.media.images import IMAGE_SUFFIXES
from temporal_vae.media.listing import (
    MANIFEST_SUFFIXES,
    VIDEO_SUFFIXES,
    files_at,
    manifest_rows,
    number_in,
)
from temporal_vae.training.config.fields import Source

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
    try:
        found = list(_found(_expand(source.path), source.path))
    except MediaError as error:
        raise ConfigError(str(error)) from error
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
    for file in files_at(path, VIDEO_SUFFIXES | IMAGE_SUFFIXES, written):
        if Path(file).suffix.lower() in MANIFEST_SUFFIXES:
            yield from _manifest(Path(file))
        else:
            yield Item(name=file_name(file), path=Path(file))


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
    for number, row in manifest_rows(file):
        yield _item_of_row(file, number, row)


def _item_of_row(file: Path, number: int, row: Any) -> Item:
    place = f"{file}: line {number}"
    if not isinstance(row, dict) or not isinstance(row.get("path"), str):
        raise ConfigError(f"{place} has no path; each row has path, and may have start, end and weight")
    start, weight = number_in(row, "start", place) or 0.0, number_in(row, "weight", place)
    end = number_in(row, "end", place)
    if weight == 0 or (end is not None and end <= start):
        raise ConfigError(
            f"{place}: start={start:g}, end={end}, weight={weight}; let end be after start, and weight above 0"
        )
    path = file.parent / os.path.expanduser(row["path"])
    return Item(
        name=file_name(path), path=path, start=start, end=end, weight=1.0 if weight is None else weight
    )
