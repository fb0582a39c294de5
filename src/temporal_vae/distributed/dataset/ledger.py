"""What is done, in SQLite beside the shards: a clip is in the ledger only once its shard is on the disk.

Each rank of several writes a ledger of its own, and reads all. A ledger that is lost is made again from the shards.
"""

from __future__ import annotations

import errno
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import fields
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

from temporal_vae.distributed.dataset.encode_job import Failure
from temporal_vae.distributed.dataset.places import Place
from temporal_vae.distributed.dataset.probing import Found, Probe, Unreadable
from temporal_vae.distributed.dataset.settings import digest
from temporal_vae.distributed.dataset.shards import Format, ShardInfo
from temporal_vae.distributed.dataset.share import Share
from temporal_vae.engine.resources import cache_folder
from temporal_vae.errors import MediaError, file_name
from temporal_vae.outputs import durable, failed_to_write, refusal

_VERSION = 1
_WAIT = 60  # seconds for another process that writes
_NAMES = "ledger*.sqlite"
_PUBLISHED, _FETCHED = (
    "ledgers",
    "others",
)  # folders of copies: beside the shards, and here those of other machines
_TABLES = """
CREATE TABLE shards (number INTEGER PRIMARY KEY, name TEXT, format TEXT, nbytes INTEGER, UNIQUE (name, format));
CREATE TABLE clips (
    identity TEXT, format TEXT, shard INTEGER, first INTEGER, length INTEGER, PRIMARY KEY (identity, format)
) WITHOUT ROWID;
CREATE TABLE probes (
    path BLOB, reading TEXT, stamp TEXT, probe TEXT, packed BLOB, PRIMARY KEY (path, reading)
) WITHOUT ROWID;
CREATE TABLE failures (identity TEXT PRIMARY KEY, path BLOB, reason TEXT, passing INTEGER) WITHOUT ROWID;
"""
_FRACTIONS = ("pixel_aspect", "rate", "tick", "shown")


def ledger_path(place: Place, share: Share) -> Path:
    """The ledger of a rank: beside the shards, or in the cache of this user where those are on no local folder."""
    name = "ledger.sqlite" if share.ranks == 1 else f"ledger-{share.rank}-of-{share.ranks}.sqlite"
    if place.local is not None:
        return place.local / name
    return cache_folder() / "temporal-vae" / "ledgers" / digest(place.url.rstrip("/"))[:16] / name


def fetch(place: Place, path: Path) -> None:
    """Get what ledgers of other machines held when they were published, and this one's own where there is none here."""
    if _is_beside(place, path):
        return
    for name in place.list(_PUBLISHED):
        own = name.rpartition("/")[2] == path.name
        target = path if own else path.parent / _FETCHED / name.rpartition("/")[2]
        if not (own and path.exists()):
            with durable(target) as file:
                file.write(place.read(name))


def publish(place: Place, path: Path) -> None:
    """Put a copy of a ledger beside the shards, for other machines, where it is not there itself."""
    if not _is_beside(place, path):
        place.write(f"{_PUBLISHED}/{path.name}", path.read_bytes())


def _is_beside(place: Place, path: Path) -> bool:
    return place.local is not None and path.parent.resolve() == place.local.resolve()


class Where(NamedTuple):
    """Where a clip lies, as `shards.read_record` takes it."""

    shard: str
    at: tuple[int, int]


class Ledger:
    """One ledger, and those of others to look into. A context manager.

    Args:
        path: the file; made where there is none. Ledgers of other ranks in its folder are read too.

    Raises:
        MediaError: a file that is no ledger, or can't be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._said():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._base = sqlite3.connect(path, timeout=_WAIT)
            try:
                self._prepare()
            except BaseException:
                self._base.close()
                raise

    def _prepare(self) -> None:
        """Make the tables where there are none."""
        (version,) = self._base.execute("PRAGMA user_version").fetchone()
        if version == 0:
            self._base.executescript(f"BEGIN; {_TABLES} PRAGMA user_version = {_VERSION}; COMMIT;")
        elif version != _VERSION:
            raise MediaError(
                f"{file_name(self._path)}: is of version {version}; this release writes {_VERSION}"
            )
        self._base.execute("PRAGMA synchronous = FULL")

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *exception: object) -> None:
        self._base.close()

    def committed(self, format: Format) -> dict[str, Where]:
        """All clips that are done in a format, by identity, here and in the ledgers of others."""
        query = "SELECT identity, name, first, length FROM clips JOIN shards ON number = shard WHERE clips.format = ?"
        found: dict[str, Where] = {}
        for identity, name, first, length in self._rows(query, format):
            found.setdefault(identity, Where(name, (first, length)))
        return found

    def shards(self, format: Format) -> set[str]:
        """Names of all shards of a format that hold clips which are done."""
        query = "SELECT name FROM shards WHERE format = ?"
        return {name for (name,) in self._rows(query, format)}

    def nbytes(self, format: Format) -> int:
        """Bytes of all shards of a format."""
        return sum(nbytes for (nbytes,) in self._rows("SELECT nbytes FROM shards WHERE format = ?", format))

    def commit(self, shard: ShardInfo | None, failed: Iterable[Failure]) -> int:
        """Enter a shard that is on the disk, and clips that failed; how many clips are done that were not."""
        with self._said(), self._base as base:
            base.executemany(
                "INSERT OR REPLACE INTO failures VALUES (?, ?, ?, ?)",
                [(each.identity, os.fsencode(each.path), each.reason, each.passing) for each in failed],
            )
            return 0 if shard is None else self._enter(base, shard)

    def _enter(self, base: sqlite3.Connection, shard: ShardInfo) -> int:
        (number,) = base.execute(
            "INSERT INTO shards (name, format, nbytes) VALUES (?, ?, ?) ON CONFLICT (name, format) "
            "DO UPDATE SET nbytes = excluded.nbytes + iif(format = 'files', nbytes, 0) RETURNING number",
            (shard.name, shard.format, shard.nbytes),
        ).fetchone()
        before = base.total_changes
        rows = [(each, shard.format, number, *at) for each, at in shard.places.items()]
        base.executemany("INSERT OR IGNORE INTO clips VALUES (?, ?, ?, ?, ?)", rows)
        done = base.total_changes - before
        base.executemany("DELETE FROM failures WHERE identity = ?", [(each,) for each in shard.places])
        return done

    def forget_shards(self, names: Iterable[str], format: Format, *, everywhere: bool) -> None:
        """Let clips be done again whose shards are no more; `everywhere`: of the ledgers of others too."""
        at = "shard IN (SELECT number FROM shards WHERE name = ? AND format = ?)"
        rows = [(name, format) for name in names]
        for base in self._to_change(everywhere if rows else False):
            base.executemany(f"DELETE FROM clips WHERE {at}", rows)
            base.executemany("DELETE FROM shards WHERE name = ? AND format = ?", rows)

    def forget_clips(self, identities: Iterable[str], format: Format, *, everywhere: bool) -> None:
        """Let clips be done again whose files are no more; `everywhere`: of the ledgers of others too."""
        rows = [(identity, format) for identity in identities]
        for base in self._to_change(everywhere if rows else False):
            base.executemany("DELETE FROM clips WHERE identity = ? AND format = ?", rows)

    def _to_change(self, everywhere: bool) -> Iterator[sqlite3.Connection]:
        """This ledger and perhaps those of others, each within a transaction."""
        with self._said(), self._base as base:
            yield base
        for path in self._others() if everywhere else ():
            with self._said(path), closing(sqlite3.connect(path, timeout=_WAIT)) as base, base:
                yield base

    def failures(self) -> dict[str, str]:
        """Reasons of clips that could not be encoded, by identity."""
        query = "SELECT identity, reason FROM failures"
        return dict(self._rows(query))

    def forget_failures(self, *, lasting: bool) -> None:
        """Let clips be tried again that failed for a passing reason; with `lasting` all, and unreadable files."""
        with self._said(), self._base as base:
            base.execute("DELETE FROM failures" if lasting else "DELETE FROM failures WHERE passing")
            if lasting:
                base.execute("DELETE FROM probes WHERE packed IS NULL")

    def probes(self, reading: Mapping[str, str]) -> dict[str, Found]:
        """What was found of files, by path, read with these options."""
        query = "SELECT path, stamp, probe, packed FROM probes WHERE reading = ?"
        found: dict[str, Found] = {}
        for path, stamp, text, packed in self._rows(query, digest(dict(reading))):
            found.setdefault(os.fsdecode(path), _probe(stamp, json.loads(text), packed))
        return found

    def keep_probes(self, reading: Mapping[str, str], found: Mapping[str, Found]) -> None:
        """Enter what was found of files."""
        key = digest(dict(reading))
        rows = [
            (os.fsencode(path), key, each.stamp, json.dumps(_plain(each)), getattr(each, "packed", None))
            for path, each in found.items()
        ]
        with self._said(), self._base as base:
            base.executemany("INSERT OR REPLACE INTO probes VALUES (?, ?, ?, ?, ?)", rows)

    def _rows(self, query: str, *values: str) -> Iterator[tuple[Any, ...]]:
        """What a query finds in this ledger, then in those of others."""
        with self._said():
            yield from self._base.execute(query, values)
        for path in self._others():
            with self._said(path), closing(sqlite3.connect(path, timeout=_WAIT)) as base:
                (version,) = base.execute("PRAGMA user_version").fetchone()
                if version == _VERSION:  # 0 where it is just being made
                    yield from base.execute(query, values)

    def _others(self) -> list[Path]:
        """Ledgers of other ranks: those beside this one go before copies of the same name."""
        folders = self._path.parent / _FETCHED, self._path.parent
        others = {path.name: path for folder in folders for path in sorted(folder.glob(_NAMES))}
        return [path for name, path in others.items() if name != self._path.name]

    @contextmanager
    def _said(self, path: Path | None = None) -> Iterator[None]:
        path = path or self._path
        try:
            yield
        except OSError as error:
            raise failed_to_write(path, error) from error
        except sqlite3.Error as error:
            refused = _refused(path.parent, error)
            if refused is not None:
                raise failed_to_write(path, refused) from error
            raise MediaError(
                f"{file_name(path)}: the ledger can't be read or written ({error}); check the disk and "
                "its free space, or remove a damaged ledger: it is made again from the shards"
            ) from error


def _refused(folder: Path, error: sqlite3.Error) -> OSError | None:
    """What the system said where it did not take what SQLite wrote; None where the ledger is to blame.

    SQLite tells a full disk, but not that a disk takes no more files: it then can't open its journal.
    """
    if "disk is full" in str(error):
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return refusal(folder) if isinstance(error, sqlite3.OperationalError) else None


def _plain(found: Found) -> dict[str, Any]:
    """The fields of a probe for JSON, without those that have a column."""
    names = [each.name for each in fields(found) if each.name not in ("stamp", "packed")]
    values = {name: getattr(found, name) for name in names}
    return {name: str(value) if isinstance(value, Fraction) else value for name, value in values.items()}


def _probe(stamp: str, values: dict[str, Any], packed: bytes | None) -> Found:
    if packed is None:
        return Unreadable(stamp=stamp, **values)
    exact: dict[str, Any] = {name: Fraction(values[name]) for name in _FRACTIONS}
    return Probe(stamp=stamp, packed=packed, **values | exact | {"remarks": tuple(values["remarks"])})
