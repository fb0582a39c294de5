"""Small file systems that are really full, and what a command may leave on one."""

from __future__ import annotations

import errno
import hashlib
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import command_line
import pytest
import torch
from video_folders import half_written, index, records

from temporal_vae import outputs
from temporal_vae.distributed.dataset.shards import Format, Record
from temporal_vae.media.reader import VideoReader

PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
"""Bytes that a file takes at a time."""

_WHOLE = 2**23  # bytes: room enough
_FILLER = "filler"


@dataclass(frozen=True)
class Disk:
    """A file system in memory, of a size that can be changed while it is in use."""

    path: Path

    def take(self, *, pages: int) -> None:
        """Be as large as so many pages."""
        self._remount(f"size={pages * PAGE}")

    def take_files(self, count: int) -> None:
        """Have room for so many files and folders, the root included."""
        self._remount(f"size={_WHOLE},nr_inodes={count}")

    def make_room(self) -> None:
        """Be large again."""
        (self.path / _FILLER).unlink(missing_ok=True)
        self._remount(f"size={_WHOLE},nr_inodes=10000")

    def fill(self, leave: int = 0) -> None:
        """Leave no more than so many pages free."""
        (self.path / _FILLER).unlink(missing_ok=True)
        now = os.statvfs(self.path)
        (self.path / _FILLER).write_bytes(bytes((now.f_bavail - leave) * now.f_frsize))
        assert os.statvfs(self.path).f_bavail == leave

    def _remount(self, options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", self.path], check=True)


@contextmanager
def mounted(folder: Path) -> Iterator[Disk | None]:
    """A disk in a folder that is made; None where this user may mount none."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={_WHOLE}", "tmpfs", folder]
    try:
        done = subprocess.run(command, capture_output=True).returncode == 0
    except OSError:  # there is no such command
        done = False
    try:
        yield Disk(folder) if done else None
    finally:
        if done:
            subprocess.run(["umount", "-l", folder], check=True)


def can_have_namespace() -> bool:
    """Whether this user may mount disks in a namespace of their own."""
    command = ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/tmp"]
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        return False


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    err: str


def in_process(*words: object) -> Ended:
    """Run a command line in a process of its own."""
    command = [sys.executable, "-m", "temporal_vae", *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    return Ended(done.returncode, done.stderr)


def here(capsys: pytest.CaptureFixture[str]):
    """What runs a command line in this process, which is quicker."""

    def run(*words: object) -> Ended:
        capsys.readouterr()
        code = command_line.run(*words)
        return Ended(code, capsys.readouterr().err)

    return run


def assert_stopped(ended: Ended, folder: Path, *names: str) -> None:
    """One line that names one of the files, says that the disk is full, and what to do; nothing half-written."""
    assert ended.code == 1, ended
    assert ended.err.count("\n") == 1, ended.err
    assert ended.err.startswith("temporal-vae: ")
    assert os.strerror(errno.ENOSPC).lower() in ended.err
    assert "check the disk and its free space" in ended.err
    assert any(name in ended.err for name in names), ended.err
    assert not half_written(folder)


def assert_kept(before: dict[str, Record], dest: Path, format: Format) -> dict[str, Record]:
    """Every clip that was there is there, every shard is whole; all that are there now."""
    now = records(dest, format)
    assert before.keys() <= now.keys()
    return now


def assert_exactly(dest: Path, whole: Path, format: Format = "tar") -> None:
    """Each clip of the whole once, number by number."""
    found, right = records(dest, format), records(whole)
    assert found.keys() == right.keys()
    for identity, record in found.items():
        assert record.meta == right[identity].meta
        for name, values in record.tensors.items():
            assert torch.equal(values, right[identity].tensors[name])
    assert [row["identity"] for row in index(dest)] == [row["identity"] for row in index(whole)]
    assert not half_written(dest)


def assert_once_stopped(ended: Ended, dest: Path) -> None:
    """As `assert_stopped`; what a worker was writing when another one found the disk full may be left half-written."""
    for path in half_written(dest):
        assert outputs.is_left_over(path.name)
        path.unlink()
    assert_stopped(ended, dest, "shards/", "clips/", "ledger.sqlite")


def in_ledger(path: Path) -> int:
    base = sqlite3.connect(path)
    try:
        return base.execute("SELECT count(*) FROM clips").fetchone()[0]
    except sqlite3.OperationalError:  # not even tables had room
        return 0
    finally:
        base.close()


def decoded(dest: Path, frames: int) -> dict[str, str]:
    """A hash of the frames of each video that is there; one that is not whole can't be read."""
    found = {}
    for path in dest.glob("videos/*/*.mp4"):
        with VideoReader(path) as reader:
            shown = [frame for frame, _ in reader]
        assert len(shown) == frames
        found[path.name] = hashlib.sha256(b"".join(frame.tobytes() for frame in shown)).hexdigest()
    return found
