"""What later processes need not make again, and what must never be taken from there."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from temporal_vae.engine import cache, processor

needs_kernels = pytest.mark.skipif(processor.host() is None, reason="no kernels for this processor")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "temporal-vae" / "engine"


def test_what_is_kept_is_read(folder):
    assert cache.read("kernel", 1) is None
    cache.keep(b"code", "kernel", 1)
    assert cache.read("kernel", 1) == b"code"
    assert cache.read("kernel", "1") is None
    (file,) = folder.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("damage", [b"", b"short", b"x" * 36], ids=len)
def test_damaged_entries_are_none(folder, damage):
    cache.keep(b"code", "kernel")
    (file,) = folder.iterdir()
    file.write_bytes(damage)
    assert cache.read("kernel") is None
    cache.keep(b"code", "kernel")
    assert cache.read("kernel") == b"code"


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
@pytest.mark.parametrize("place", ["folder", "file"])
def test_what_others_could_have_written_is_not_executed(folder, place):
    cache.keep(b"code", "kernel")
    (file,) = folder.iterdir()
    (folder if place == "folder" else file).chmod(0o777)
    assert cache.read("kernel") is None


def test_other_sources_are_another_key(monkeypatch):
    cache.keep(b"code", "kernel")
    monkeypatch.setattr(cache, "sources", lambda: "changed")
    assert cache.read("kernel") is None


def test_the_folder_stays_small(folder, monkeypatch):
    monkeypatch.setattr(cache, "LARGEST", 400)
    for index in range(8):
        cache.keep(bytes(68), index)
        for file in folder.iterdir():
            os.utime(file, ns=(0, file.stat().st_mtime_ns - 10**9))
        cache.read(0)  # used, so it stays
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 400
    assert [index for index in range(8) if cache.read(index) is not None] == [0, 5, 6, 7]


def test_many_write_at_once(folder):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda index: cache.keep(bytes([index % 2]) * 10**5, index % 2), range(64)))
    assert cache.read(0) == bytes(10**5)
    assert cache.read(1) == b"\1" * 10**5
    assert len(list(folder.iterdir())) == 2


def test_nowhere_to_write(folder):
    folder.parent.write_text("in the way")
    cache.keep(b"code", "kernel")
    assert cache.read("kernel") is None


PROGRAM = """
from temporal_vae.engine.kernels import compiler, native_code
import numpy, sys
compile_, count = compiler.compiled, [0]
def counted(*arguments):
    count[0] += 1
    return compile_(*arguments)
compiler.compiled = counted
native_code.temporal("float32", False, True, 0)
print(count[0])
"""


@needs_kernels
def test_another_process_does_not_compile(folder):
    def process():
        return subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True)

    first = [process() for _ in range(2)]
    assert {one.communicate()[0].strip() for one in first} <= {"0", "1"}
    later = process()
    assert later.communicate()[0].strip() == "0"
    (file,) = folder.iterdir()
    file.write_bytes(file.read_bytes()[:-8])
    damaged = process()
    assert damaged.communicate()[0].strip() == "1"
