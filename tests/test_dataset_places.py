"""Folders that a dataset lies in: local ones, and those that fsspec reaches."""

import errno
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from temporal_vae import outputs
from temporal_vae.distributed.dataset.places import LocalPlace, Place, RemotePlace, open_place
from temporal_vae.errors import InputError, MediaError


class Server(MemoryFileSystem):
    """A server where what is being put can be seen, a rename is one step, and an empty file has no range of bytes."""

    protocol = "server"
    store: dict = {}  # noqa: RUF012  # as in the base class
    pseudo_dirs = [""]  # noqa: RUF012

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.replace("server://", "memory://"))

    def cat_file(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
        if (start, end) != (None, None) and not self.info(path)["size"]:
            raise OSError("the requested range is not satisfiable")
        return super().cat_file(path, start, end)


fsspec.register_implementation("server", Server, clobber=True)


@pytest.fixture(params=["path", "file", "memory", "server"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    urls = {"path": tmp_path / "my data", "file": f"file://{tmp_path}/my data"}
    place = open_place(urls.get(request.param, f"{request.param}://bucket/my data"))
    yield place
    for store in (MemoryFileSystem, Server):
        store.store.clear()


def test_what_is_written_can_be_read_anywhere_in_it(place: Place) -> None:
    place.write("shards/a b.tar", b"0123456789")
    assert place.read("shards/a b.tar") == b"0123456789"
    assert place.read("shards/a b.tar", 3, 4) == b"3456"
    assert place.read("shards/a b.tar", 8, 4) == b"89"
    assert place.size("shards/a b.tar") == 10
    place.write("quarantine.jsonl", b"")
    assert place.read("quarantine.jsonl") == b""
    with place.open("shards/a b.tar") as file:
        file.seek(6)
        assert file.read() == b"6789"


def test_files_are_listed_below_a_folder_and_removed(place: Place) -> None:
    assert place.list() == place.list("nowhere") == []
    for name in ("shards/b", "shards/a", "clips/ab/c", "dataset.json"):
        place.write(name, b"x")
    assert place.list() == ["clips/ab/c", "dataset.json", "shards/a", "shards/b"]
    assert place.list("clips") == ["clips/ab/c"]
    place.remove("shards/a")
    place.remove("shards/a")
    assert not place.exists("shards/a")
    assert place.exists("shards/b")
    assert not place.exists("shards")


def test_half_a_file_never_has_the_name(place: Place) -> None:
    place.write("a", b"whole")

    def write_half() -> None:
        with place.writing("a") as file:
            file.write(b"ha")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_half()
    assert place.read("a") == b"whole"
    assert place.list() == ["a"]


def test_what_is_missing_is_one_line(place: Place) -> None:
    for ask in (place.read, place.open, place.size):
        with pytest.raises(MediaError, match="my data/none: no such file; check the path"):
            ask("none")


def test_places_travel_to_other_processes(place: Place) -> None:
    place.write("a", b"1")
    assert pickle.loads(pickle.dumps(place)).read("a") == b"1"


def test_only_what_is_not_local_is_remote(tmp_path: Path) -> None:
    assert open_place(tmp_path).local == tmp_path
    assert open_place(f"file://{tmp_path}").local == tmp_path
    assert isinstance(open_place("a:b"), LocalPlace)
    assert isinstance(open_place("memory://x"), RemotePlace)
    assert open_place("memory://x").local is None
    with pytest.raises(InputError, match="nowhere://x: can't be reached"):
        open_place("nowhere://x")
    with pytest.raises(InputError, match="no name"):
        open_place("")


def test_a_name_comes_after_its_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of a local write: bytes to the disk, the name, the folder to the disk."""
    place, done = open_place(tmp_path / "new" / "folder"), []
    sync, rename = os.fsync, Path.replace

    def synced(number: int) -> None:
        done.append("sync " + Path(os.readlink(f"/proc/self/fd/{number}")).name)
        sync(number)

    def renamed(path: Path, target: Path) -> Path:
        done.append("rename")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", renamed)
    place.write("shards/a.tar", b"1")
    assert done[-3].startswith("sync .a.")
    assert done[-2:] == ["rename", "sync shards"]
    assert done[:3] == [f"sync {tmp_path.name}", "sync new", "sync folder"]  # of the folders that were made


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(number: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    place = open_place(tmp_path)
    place.write("a", b"before")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(MediaError, match=r"a: can.t be written .no space left") as error:
            place.write("a", b"after")
    assert isinstance(error.value.__cause__, OSError)
    assert os.listdir(tmp_path) == ["a"]
    assert place.read("a") == b"before"


@pytest.mark.parametrize("kind", ["path", "server"])
def test_what_the_dead_left_is_removed(tmp_path: Path, kind: str) -> None:
    place = open_place(tmp_path if kind == "path" else "server://bucket")
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    name = outputs.temporary_name(Path("shards/a.tar")).name
    for process in (dead.pid, os.getppid()):
        place.write("shards/" + name.replace(f"-{os.getpid()}-", f"-{process}-"), b"")
    place.write("shards/a.tar", b"")
    place.clean("shards")
    folder = place.local if place.local else None
    left = os.listdir(folder / "shards") if folder else [path[15:] for path in Server.store]
    assert len(left) == 2
    assert place.list() == ["shards/a.tar"]
    place.clean("nowhere")
    Server.store.clear()


def test_servers_without_atomic_puts_rename(monkeypatch: pytest.MonkeyPatch) -> None:
    put: list[str] = []
    original = Server.put_file

    def watched(self: Server, local: str, target: str, **options: object) -> None:
        put.append(target.rpartition("/")[2])
        original(self, local, target, **options)

    monkeypatch.setattr(Server, "put_file", watched)
    monkeypatch.setattr(MemoryFileSystem, "put_file", watched)
    for url in ("memory://bucket", "server://bucket"):
        open_place(url).write("a.tar", b"1")
    assert put[0] == "a.tar"
    assert put[1].startswith(".a.")
    assert list(Server.store) == ["/bucket/a.tar"]
    Server.store.clear()
    MemoryFileSystem.store.clear()
