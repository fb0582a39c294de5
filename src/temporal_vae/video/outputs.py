"""Outputs that appear under their name only when they are complete."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from temporal_vae.errors import MediaError
from temporal_vae.video.frames import file_name


@contextmanager
def complete_or_nothing(target: str | Path) -> Iterator[Path]:
    """Yield a temporary name beside `target`, with its suffix; rename it to `target` if the block ends well.

    The block writes a file or a folder there. If it raises, Ctrl-C included, what it wrote is removed and whatever
    `target` held before stays as it was. A folder takes the place of an earlier folder.

    Raises:
        MediaError: a target that can't be written.
    """
    target = Path(target)
    check_writable(target)
    temporary = target.with_name(f".{target.stem}.{uuid.uuid4().hex[:8]}.part{target.suffix}")
    try:
        yield temporary
        if temporary.is_dir() and target.is_dir():
            _swap(temporary, target)
        else:
            temporary.replace(target)
    finally:
        _remove(temporary)


def check_writable(target: Path, *, overwrite: bool = True) -> None:
    """Raise `MediaError` where `target` could not be written: before any work is done for it."""
    name, folder = file_name(target), target.parent
    if not folder.is_dir():
        raise MediaError(f"{name}: there is no folder {file_name(folder)}; create it first")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise MediaError(f"{name}: the folder {file_name(folder)} can't be written to; choose another one")
    if target.exists() and not overwrite:
        raise MediaError(f"{name}: exists already; choose another name or allow overwriting")


def _swap(temporary: Path, target: Path) -> None:
    """Put a folder in the place of another one, which is not empty and so can't be replaced in one step."""
    old = target.with_name(f"{temporary.name}.old")
    target.rename(old)
    try:
        temporary.rename(target)
    except OSError:
        old.rename(target)
        raise
    shutil.rmtree(old)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
