"""What later processes need not make again, kept in a folder of the user: machine code, and what self-checks found.

An entry is a file that begins with a digest of the rest. It appears when it is complete, so processes may write the
same one at the same time; one that was damaged, or lies where another user could have put it, counts as none.
"""

from __future__ import annotations

import hashlib
import os
import stat
from contextlib import suppress
from pathlib import Path

from temporal_vae.engine.resources import cache_folder
from temporal_vae.engine.threads import once
from temporal_vae.errors import MediaError
from temporal_vae.outputs import complete_or_nothing

LARGEST = 64 * 2**20
"""Bytes that entries take together; those that were not used for longest go first."""


def read(*key: object) -> bytes | None:
    """What was kept under a key; None if nothing was, or nothing that can be trusted."""
    file = _file(key)
    try:
        if os.name == "posix" and not _is_mine(file):
            return None
        content = file.read_bytes()
    except OSError:
        return None
    digest, data = content[:32], content[32:]
    if hashlib.sha256(data).digest() != digest:
        return None
    with suppress(OSError):
        os.utime(file)
    return data


def keep(data: bytes, *key: object) -> None:
    """Keep it where that is possible."""
    file = _file(key)
    with suppress(OSError, MediaError):
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with complete_or_nothing(file) as part:
            part.touch(mode=0o600)
            part.write_bytes(hashlib.sha256(data).digest() + data)
        _make_room(file.parent)


@once
def sources() -> str:
    """A digest of the engine's own code."""
    files = sorted(Path(__file__).parent.rglob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _file(key: tuple[object, ...]) -> Path:
    name = hashlib.sha256(repr((sources(), *key)).encode()).hexdigest()[:32]
    return cache_folder() / "temporal-vae" / "engine" / name


def _is_mine(file: Path) -> bool:
    """Whether nobody else can have written there: what lies there is executed."""
    states = [place.stat() for place in (file, file.parent)]
    others = stat.S_IWGRP | stat.S_IWOTH
    return all(state.st_uid == os.getuid() and not state.st_mode & others for state in states)


def _make_room(folder: Path) -> None:
    states = sorted(((file.stat(), file) for file in folder.iterdir()), key=lambda one: one[0].st_mtime_ns)
    total = sum(state.st_size for state, _ in states)
    for state, file in states:
        if total <= LARGEST:
            break
        file.unlink(missing_ok=True)
        total -= state.st_size
