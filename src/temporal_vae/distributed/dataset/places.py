"""A folder that is written to and read from: on this machine, or anywhere that fsspec reaches.

What is written appears under its name only when it is complete and on the disk. Of a local folder that takes a
temporary name, fsync, a rename and fsync of the folder. Object stores do it by themselves: what is put there is there
whole or not at all. On other servers (SFTP, HDFS, SMB) a file is put under a temporary name and renamed.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from temporal_vae.errors import InputError, MediaError, file_name, one_line
from temporal_vae.outputs import durable, is_left_over, publish, remove_leftovers, temporary_name, writing

_ATOMIC = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oci", "oss", "r2", "tos", "hf", "memory"}
"""Protocols of stores where a put is atomic, and a rename a copy."""


class Place(ABC):
    """A folder. Files in it are named from there, with `/`: `shards/0a1b.tar`. It can be sent to other processes.

    Attributes:
        url: the folder as it was given.
        local: the folder on this machine; None elsewhere.
    """

    url: str
    local: Path | None

    @abstractmethod
    def writing(self, name: str) -> Any:
        """A context manager that yields a file to write; when its block ends well, the file is there for good.

        Raises:
            MediaError: it can't be written; what had the name before is as it was.
        """

    @abstractmethod
    def take(self, local: Path, name: str) -> None:
        """Take in a complete file, which is gone then from where it was: `scratch` of this place.

        Raises:
            MediaError: it can't be written; what had the name before is as it was.
        """

    @abstractmethod
    def scratch(self, folder: str) -> Any:
        """A context manager: a local folder for files that `take` moves to a folder of this place."""

    @abstractmethod
    def open(self, name: str) -> IO[bytes]:
        """Open a file to read it, at any position. Raises `MediaError` where that fails."""

    @abstractmethod
    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """Bytes of a file, from `offset` on; fewer where it ends. Raises `MediaError` where that fails."""

    @abstractmethod
    def list(self, folder: str = "") -> list[str]:
        """Names of all complete files below a folder, sorted. There are none where there is no folder."""

    @abstractmethod
    def exists(self, name: str) -> bool:
        """Whether there is such a file."""

    @abstractmethod
    def size(self, name: str) -> int:
        """Bytes of a file. Raises `MediaError` where there is none."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a file; it is no error if there is none."""

    @abstractmethod
    def clean(self, folder: str = "") -> None:
        """Remove what processes of this machine that are no more left half-written in a folder."""

    def write(self, name: str, data: bytes) -> None:
        """Write a file at once, as `writing` does."""
        with self.writing(name) as file:
            file.write(data)

    def shown(self, name: str) -> str:
        """A file as messages name it."""
        return file_name(f"{self.url.rstrip('/')}/{name}")

    @contextmanager
    def _reading(self, name: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise MediaError(f"{self.shown(name)}: no such file; check the path") from error
        except Exception as error:  # stores raise what their libraries do
            reason = getattr(error, "strerror", None) or one_line(error)
            raise MediaError(f"{self.shown(name)}: can't be read ({reason.lower()})") from error


def open_place(location: str | Path) -> Place:
    """The folder of a path or URL; it is made when something is written there.

    Raises:
        InputError: a URL that no library on this machine understands.
    """
    text = str(location)
    if not text.strip():
        raise InputError("the folder has no name; give a path or a URL such as s3://bucket/folder")
    if not re.match(r"[A-Za-z][A-Za-z0-9+.-]*(::|://)", text):
        return LocalPlace(text)
    from fsspec.implementations.local import LocalFileSystem

    system, path = _system(text)
    return LocalPlace(path) if isinstance(system, LocalFileSystem) else RemotePlace(text)


class LocalPlace(Place):
    """A folder on this machine."""

    def __init__(self, path: str | Path) -> None:
        self.url = str(path)
        self.local: Path = Path(path)

    @contextmanager
    def writing(self, name: str) -> Iterator[IO[bytes]]:
        """See `Place.writing`."""
        with durable(self.local / name) as file:
            yield file

    def take(self, local: Path, name: str) -> None:
        """See `Place.take`."""
        publish(local, self.local / name)

    @contextmanager
    def scratch(self, folder: str) -> Iterator[Path]:
        """See `Place.scratch`."""
        path = temporary_name(self.local / folder / "scratch")
        with writing(path):
            path.mkdir(parents=True)
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)

    def open(self, name: str) -> IO[bytes]:
        """See `Place.open`."""
        with self._reading(name):
            return (self.local / name).open("rb")

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """See `Place.read`."""
        with self._reading(name), (self.local / name).open("rb") as file:
            file.seek(offset)
            return file.read(-1 if length is None else length)

    def list(self, folder: str = "") -> list[str]:
        """See `Place.list`."""
        names: list[str] = []
        for parent, folders, files in os.walk(self.local / folder):
            folders[:] = [name for name in folders if not name.startswith(".")]
            inside = Path(parent).relative_to(self.local)
            names += [(inside / name).as_posix() for name in files if not name.startswith(".")]
        return sorted(names)

    def exists(self, name: str) -> bool:
        """See `Place.exists`."""
        return (self.local / name).is_file()

    def size(self, name: str) -> int:
        """See `Place.size`."""
        with self._reading(name):
            return (self.local / name).stat().st_size

    def remove(self, name: str) -> None:
        """See `Place.remove`."""
        (self.local / name).unlink(missing_ok=True)

    def clean(self, folder: str = "") -> None:
        """See `Place.clean`."""
        remove_leftovers(self.local / folder)


class RemotePlace(Place):
    """A folder that fsspec reaches.

    The connection belongs to a process: fsspec keeps it, and a forked or unpickled place asks for its own.
    """

    local = None

    def __init__(self, url: str) -> None:
        self.url = url

    @contextmanager
    def writing(self, name: str) -> Iterator[IO[bytes]]:
        """See `Place.writing`. What is written is held in a local temporary file until it is complete."""
        with _temporary_folder(self.shown(name)) as folder:
            local = folder / "part"
            with local.open("wb") as file:
                yield file
            self.take(local, name)

    def take(self, local: Path, name: str) -> None:
        """See `Place.take`."""
        try:
            self._put(local, name)
        except Exception as error:  # stores raise what their libraries do
            reason = getattr(error, "strerror", None) or one_line(error)
            raise MediaError(f"{self.shown(name)}: can't be written ({reason.lower()})") from error
        local.unlink()

    @contextmanager
    def scratch(self, folder: str) -> Iterator[Path]:
        """See `Place.scratch`."""
        with tempfile.TemporaryDirectory() as path:
            yield Path(path)

    def _put(self, local: Path, name: str) -> None:
        system, target = self._at(name)
        atomic = not _ATOMIC.isdisjoint(_protocols(system))
        put = target if atomic else str(temporary_name(Path(target)))
        system.makedirs(target.rpartition("/")[0], exist_ok=True)
        system.put_file(str(local), put)
        if not atomic:
            system.mv(put, target)
        system.invalidate_cache()

    def open(self, name: str) -> IO[bytes]:
        """See `Place.open`."""
        system, path = self._at(name)
        with self._reading(name):
            return system.open(path, "rb")

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """See `Place.read`."""
        system, path = self._at(name)
        with self._reading(name):
            end = None if length is None else offset + length
            start = offset or None  # stores know no range of an empty file
            return system.cat_file(path, start=start, end=end)

    def list(self, folder: str = "") -> list[str]:
        """See `Place.list`."""
        system, root = self._at("")
        system.invalidate_cache()
        with self._reading(folder):
            try:
                found = system.find(f"{root}/{folder}".rstrip("/"))
            except FileNotFoundError:
                return []
        names = (path[len(root) :].lstrip("/") for path in found)
        return sorted(name for name in names if not name.rpartition("/")[2].startswith("."))

    def exists(self, name: str) -> bool:
        """See `Place.exists`."""
        system, path = self._at(name)
        with self._reading(name):
            return bool(system.isfile(path))

    def size(self, name: str) -> int:
        """See `Place.size`."""
        system, path = self._at(name)
        with self._reading(name):
            return int(system.size(path))

    def remove(self, name: str) -> None:
        """See `Place.remove`."""
        system, path = self._at(name)
        if system.isfile(path):
            system.rm_file(path)
            system.invalidate_cache()

    def clean(self, folder: str = "") -> None:
        """See `Place.clean`."""
        system, root = self._at(folder)
        if not _ATOMIC.isdisjoint(_protocols(system)) or not system.isdir(root):
            return
        for path in system.ls(root, detail=False):
            if is_left_over(path.rpartition("/")[2]):
                system.rm_file(path)

    def _at(self, name: str) -> tuple[Any, str]:
        system, root = _system(self.url)
        return system, f"{root.rstrip('/')}/{name}".rstrip("/")


@contextmanager
def _temporary_folder(shown: str) -> Iterator[Path]:
    """A local folder for what is on its way to a file of another place, that messages name."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        where = f"temporary folder {file_name(tempfile.tempdir or '')}".rstrip()
        raise MediaError(
            f"{shown}: can't be written ({where}: {reason}); check the disk and its free space, or set TMPDIR to "
            "a folder with room"
        ) from error


def _system(url: str) -> tuple[Any, str]:
    """Fsspec's file system of a URL, and the path in it."""
    from fsspec import url_to_fs

    try:
        return url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise InputError(f"{file_name(url)}: can't be reached ({one_line(error)})") from error


def _protocols(system: Any) -> tuple[str, ...]:
    protocol = system.protocol
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)
