"""What is free, where activations are spilled to, and what a plan refuses."""

import os
import tempfile
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from command_line import run
from engines import build, decode_plan
from oracle import noise
from refusals import refused

from temporal_vae.cli import options
from temporal_vae.engine import resources, schedule, spill
from temporal_vae.engine.overheads import MIB
from temporal_vae.engine.resources import free_memory, is_memory
from temporal_vae.engine.spill import SPILL_VARIABLE, spill_file
from temporal_vae.errors import InputError, MemoryLimitError
from temporal_vae.video.coder import Coder

CPU = torch.device("cpu")


@pytest.fixture
def vae():
    return build(block_out_channels=(32, 32))


# What is free


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """Files of control groups, of which there are none at first."""
    monkeypatch.setattr(resources, "_CONTROL_GROUPS", tmp_path)
    monkeypatch.setattr(resources, "_MEMBERSHIP", tmp_path / "membership")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=2**35))

    def write(folder, **files):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (tmp_path / folder / name.replace("__", ".")).write_text(f"{text}\n")

    return write


def test_a_machine_without_control_groups(groups):
    assert free_memory(CPU) == 2**35


@pytest.mark.parametrize(
    ("outer", "inner", "expected"), [(10, "max", 7), (10, 5, 4), (10, 9, 7), ("max", 5, 4)]
)
def test_every_limit_above_a_process_counts(groups, tmp_path, outer, inner, expected):
    """Used: 4 of the outer group and 2 of the inner one, each with 1 of file contents that the system drops."""
    (tmp_path / "membership").write_text("0::/outer/inner\n")
    for folder, most, used in (("outer", outer, 4), ("outer/inner", inner, 2)):
        most = most if most == "max" else most * MIB
        groups(
            folder, memory__max=most, memory__current=used * MIB, memory__stat=f"anon 3\ninactive_file {MIB}"
        )
    assert free_memory(CPU) == expected * MIB


def test_a_container_that_sees_its_own_limit_as_the_root(groups, tmp_path):
    (tmp_path / "membership").write_text("0::/not/mounted/here\n")
    groups(".", memory__max=9 * MIB, memory__current=3 * MIB, memory__stat="inactive_file 0")
    assert free_memory(CPU) == 6 * MIB


def test_control_groups_of_version_1(groups, tmp_path):
    (tmp_path / "membership").write_text("12:cpu,cpuacct:/x\n7:memory:/box\n1:name=systemd:/x\n")
    usage = {"memory__usage_in_bytes": 3 * MIB, "memory__stat": f"total_inactive_file {MIB}"}
    groups("memory", memory__limit_in_bytes=2**63 - 4096, **usage)
    groups("memory/box", memory__limit_in_bytes=10 * MIB, **usage)
    assert free_memory(CPU) == 8 * MIB


def test_what_the_allocator_of_a_gpu_keeps_is_free(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 9000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 700)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 300)
    assert free_memory(torch.device("cuda")) == 1400


# Where activations are spilled to


def as_on_another_system(monkeypatch):
    for name in ("preadv", "pwritev", "posix_fallocate"):
        monkeypatch.delattr(os, name)


@pytest.mark.parametrize("system", ["this", "another"])
def test_many_threads_read_and_write(monkeypatch, system):
    if system == "another":
        as_on_another_system(monkeypatch)
    with spill_file(64 * 4000) as file:

        def work(index):
            value = torch.full((1000,), float(index))
            for _ in range(20):
                file.write(value, 4000 * index)
                found = torch.empty(1000)
                file.read(found, 4000 * index)
                wrong.extend([] if torch.equal(found, value) else [index])

        wrong = []
        threads = [threading.Thread(target=work, args=(index,)) for index in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []


@torch.no_grad()
def test_a_limit_is_kept_where_files_have_no_offsets(vae, monkeypatch):
    z = noise(2, 4, 40, 40)
    expected = vae.decode(z, num_frames=2).sample
    as_on_another_system(monkeypatch)
    vae.enable_tiling(memory_limit=min(rung.peak for rung in plan_of(vae).ladder))
    assert plan_of(vae).spill_bytes
    assert torch.allclose(vae.decode(z, num_frames=2).sample, expected, atol=1e-4)


def plan_of(vae):
    return vae.plan_decode(num_frames=2, height=80, width=80)


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Three folders in the place of the usual ones: memory, full, and good."""
    names = [tmp_path / name for name in ("memory", "full", "good")]
    for name in names:
        name.mkdir()
    monkeypatch.delenv(SPILL_VARIABLE, raising=False)
    monkeypatch.setattr(spill, "_usual_folders", lambda: names)
    monkeypatch.setattr(spill, "is_memory", lambda folder: folder.name == "memory")
    usage = lambda folder: SimpleNamespace(free=0 if folder.name == "full" else 2**40)  # noqa: E731
    monkeypatch.setattr(spill.shutil, "disk_usage", usage)
    used = []
    create = tempfile.TemporaryFile

    def temporary(dir, **options):
        used.append(dir.name)
        return create(dir=dir, **options)

    monkeypatch.setattr(spill.tempfile, "TemporaryFile", temporary)
    return used


def test_the_first_folder_on_a_disk_with_room(folders):
    with spill_file(1000):
        assert folders == ["good"]


def test_the_folder_that_is_named(folders, tmp_path, monkeypatch):
    (tmp_path / "own").mkdir()
    monkeypatch.setenv(SPILL_VARIABLE, str(tmp_path / "own"))
    with spill_file(1000):
        assert folders == ["own"]
    for name, why in (
        ("memory", "is memory, not a disk"),
        ("full", "has 0.00 GiB free"),
        ("none", "can't be written"),
    ):
        monkeypatch.setenv(SPILL_VARIABLE, str(tmp_path / name))
        refused(MemoryLimitError, spill_file(1000).__enter__, name, why, SPILL_VARIABLE)


def test_a_disk_that_refuses_what_it_has(folders, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    refused(MemoryLimitError, spill_file(1000).__enter__, "No space left on device", SPILL_VARIABLE)


def test_folders_that_are_memory(monkeypatch):
    mounts = [("/", "ext4"), ("/tmp", "tmpfs"), ("/tmp/disk", "xfs"), ("/tmp/disk/ram", "ramfs")]
    found = [SimpleNamespace(mountpoint=place, fstype=kind) for place, kind in mounts]
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: found)
    places = ("/var", "/tmp", "/tmp/x", "/tmp/disk/y", "/tmp/disk/ram/z", "/tmpx")
    assert [place for place in places if is_memory(Path(place))] == ["/tmp", "/tmp/x", "/tmp/disk/ram/z"]


# Plans


@pytest.mark.parametrize("count", [2.5, 2.0, True, "2", 0, -1, None])
def test_numbers_that_are_no_counts(vae, count):
    for plan in (vae.plan_decode, vae.plan_encode):
        for name in ("num_frames", "height", "width"):
            numbers = {"num_frames": 2, "height": 32, "width": 32} | {name: count}
            with pytest.raises(InputError, match=f"{name}={count!r}"):
                plan(**numbers)


def test_numbers_of_numpy_are_counts(vae):
    assert vae.plan_decode(num_frames=np.int64(2), height=np.int32(32), width=32).frames == 2


def test_a_plan_names_what_is_spilled(vae):
    plan = decode_plan(vae.network, "spill everything", frames=2, size=(64, 64))
    assert all(level.rung == schedule.EVERYTHING for level in plan.levels)
    assert "spill everything, " in str(plan).partition("chosen")[2]


# Devices


def test_where_the_engine_does_not_run_nothing_is_planned(vae, monkeypatch):
    here = Coder(vae, 30, 40)
    monkeypatch.setattr(type(vae), "device", property(lambda self: torch.device("mps")))
    there = Coder(vae, 30, 40)
    assert there.together >= 1
    assert there.decode_work(5) == here.decode_work(5)
    assert there.encode_work(12) == 3 * there.encode_work(4) > 0


def test_the_device_is_the_gpu_where_there_is_one(monkeypatch):
    assert options.best_device() == ("cuda" if torch.cuda.is_available() else "cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert options.best_device() == "cuda"


def test_plan_for_a_gpu(capsys):
    words = ("plan", "--frames", 25, "--size", "576x1024", "--dtype", "float16", "--memory-limit", "8GiB")
    assert run(*words, "--device", "cuda") == 0
    on_gpu = capsys.readouterr().out
    assert run(*words) == 0
    assert "2 threads" in on_gpu
    assert capsys.readouterr().out != on_gpu
    assert run(*words, "--device", "mps") == 2
