"""Encoded clips in tar, Parquet and files: what is written is read, by itself and in any order."""

import gc
import hashlib
import json
import tarfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
import webdataset
from fsspec.implementations.memory import MemoryFileSystem
from safetensors.torch import load, load_file

from temporal_vae.distributed.dataset.places import Place, open_place
from temporal_vae.distributed.dataset.shards import (
    FORMATS,
    Format,
    Record,
    ShardInfo,
    inspect_shard,
    list_shards,
    read_record,
    read_shard,
    write_shard,
)
from temporal_vae.errors import LatentFileError, MediaError

every_format = pytest.mark.parametrize("format", FORMATS)


def records(count: int = 5, dtype: torch.dtype = torch.float32, seed: int = 0) -> list[Record]:
    """Clips of several lengths; some hold a sample."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for number in range(count):
        identity = hashlib.sha256(f"{seed} {number}".encode()).hexdigest()[:32]
        names = ("sample",) if number % 3 == 2 else ("mean", "logvar")
        tensors = {
            name: torch.randn(number + 1, 4, 2, 3, generator=generator).to(dtype).permute(0, 1, 3, 2)
            for name in names
        }
        meta = {"source": f"föö {number}.mp4", "fps": "30000/1001", "columns": {"caption": 'a "cat"\n, 猫'}}
        made.append(Record(identity=identity, tensors=tensors, meta=meta))
    return made


def assert_same(found: Record, expected: Record) -> None:
    assert found.identity == expected.identity
    assert found.meta == expected.meta | {"identity": expected.identity}
    assert set(found.tensors) == set(expected.tensors)
    for name, tensor in expected.tensors.items():
        assert found.tensors[name].dtype == tensor.dtype
        assert torch.equal(found.tensors[name], tensor)


@pytest.fixture(params=["path", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    MemoryFileSystem.store.clear()
    return open_place(tmp_path if request.param == "path" else "memory://bucket/dest")


def files_of(place: Place) -> dict[str, bytes]:
    return {name: place.read(name) for name in place.list()}


@every_format
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_clips_come_back_in_order_and_by_place(place: Place, format: Format, dtype: torch.dtype) -> None:
    made = sorted(records(dtype=dtype), key=lambda record: record.identity)
    info = write_shard(place, format, reversed(made))
    assert (info.format, list(info.places)) == (format, [record.identity for record in made])
    assert info.nbytes == sum(place.size(name) for name in place.list())
    for found, expected in zip(read_shard(place, info, format), made, strict=True):
        assert_same(found, expected)
    for record in made:
        assert_same(
            read_record(place, info.name, format, record.identity, info.places[record.identity]), record
        )


@every_format
def test_a_place_is_where_the_safetensors_of_a_clip_lie(place: Place, format: Format) -> None:
    made = records(3)
    info = write_shard(place, format, made)
    for record in made:
        name = (
            f"clips/{record.identity[:2]}/{record.identity}.safetensors" if format == "files" else info.name
        )
        tensors = load(place.read(name, *info.places[record.identity]))
        assert all(torch.equal(tensors[name], tensor) for name, tensor in record.tensors.items())


@every_format
def test_the_same_clips_are_the_same_bytes(tmp_path: Path, format: Format) -> None:
    first, second = open_place(tmp_path / "1"), open_place(tmp_path / "2")
    write_shard(first, format, records())
    write_shard(second, format, records()[::-1])
    assert files_of(first) == files_of(second)
    write_shard(second, format, records())
    assert files_of(first) == files_of(second)


@every_format
def test_shards_tell_what_they_hold(place: Place, format: Format) -> None:
    infos = [write_shard(place, format, records(3, seed=seed)) for seed in (1, 2)]
    place.write("index.parquet", b"")
    names = list_shards(place, format)
    assert len(names) == (6 if format == "files" else 2)
    seen = [inspect_shard(place, name, format) for name in names]
    expected = {identity: at for info in infos for identity, at in info.places.items()}
    assert {identity: at for info, _ in seen for identity, at in info.places.items()} == expected
    assert {name for _, meta in seen for name in meta} == set(expected)
    if format != "files":
        assert {info.name: info for info, _ in seen} == {info.name: info for info in infos}
    assert sum(len(list(read_shard(place, name, format))) for name in names) == 6


@every_format
@pytest.mark.parametrize("kept", [0, 5, 900, -1000])
def test_a_shard_that_was_cut_short_is_damaged(tmp_path: Path, format: Format, kept: int) -> None:
    place = open_place(tmp_path)
    info = write_shard(place, format, records(3))
    name = list_shards(place, format)[-1]
    data = place.read(name)
    place.write(name, data[: min(kept, len(data) // 2)] if kept >= 0 else data[: len(data) // 2])
    with pytest.raises(LatentFileError, match="encode its clips again"):
        inspect_shard(place, name, format)
    identity = list(info.places)[-1]
    with pytest.raises(LatentFileError, match=f"damaged .clip {identity}"):
        read_record(place, info.name, format, identity, info.places[identity])


def test_a_tar_shard_that_lost_its_last_clip_is_damaged(tmp_path: Path) -> None:
    place = open_place(tmp_path)
    info = write_shard(place, "tar", records(3))
    with tarfile.open(tmp_path / info.name) as archive:
        last = archive.getmembers()[-2]
    place.write(info.name, place.read(info.name)[: last.offset] + bytes(1024))
    with pytest.raises(LatentFileError, match="holds 2 clips, and not those of its name"):
        inspect_shard(place, info.name, "tar")


@every_format
def test_another_clip_than_was_asked_for_is_noticed(place: Place, format: Format) -> None:
    info = write_shard(place, format, records(2))
    first, second = info.places
    if format == "files":
        names = list_shards(place, format)
        place.write(names[0], place.read(names[1]))
    with pytest.raises(LatentFileError, match=f"clip {first}: holds clip {second} instead"):
        read_record(place, info.name, format, first, info.places[second])


@every_format
def test_a_missing_shard_is_one_line(place: Place, format: Format) -> None:
    with pytest.raises(MediaError, match="no such file"):
        read_record(place, "shards/none", format, "0" * 32, (0, 10))
    assert list_shards(place, format) == []


def test_members_of_tar_shards_are_fixed(tmp_path: Path) -> None:
    made = sorted(records(), key=lambda record: record.identity)
    info = write_shard(open_place(tmp_path), "tar", made)
    digest = hashlib.sha256("\n".join(record.identity for record in made).encode()).hexdigest()
    assert info.name == f"shards/{digest[:24]}.tar"
    with tarfile.open(tmp_path / info.name) as archive:
        members = archive.getmembers()
        described = json.load(archive.extractfile(members[0]))
    assert [member.name for member in members] == [
        f"{record.identity}.{suffix}" for record in made for suffix in ("json", "safetensors")
    ]
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {(0, 0, 0, "", "", 0o644)}
    assert described == made[0].meta | {"identity": made[0].identity}


def test_parquet_shards_are_tables(tmp_path: Path) -> None:
    made = sorted(records(), key=lambda record: record.identity)
    info = write_shard(open_place(tmp_path), "parquet", made)
    table = pq.read_table(tmp_path / info.name)
    assert table.column_names == ["identity", "meta", "safetensors"]
    assert table["identity"].to_pylist() == [record.identity for record in made]
    assert json.loads(table["meta"][0].as_py())["columns"] == made[0].meta["columns"]
    tensors = load(table["safetensors"][0].as_py())
    assert all(torch.equal(tensors[name], tensor) for name, tensor in made[0].tensors.items())


def test_files_are_safetensors_of_their_own(tmp_path: Path) -> None:
    (record,) = records(1)
    write_shard(open_place(tmp_path), "files", [record])
    tensors = load_file(tmp_path / "clips" / record.identity[:2] / f"{record.identity}.safetensors")
    assert torch.equal(tensors["mean"], record.tensors["mean"])


def _tensors(key: str, data: bytes) -> dict[str, torch.Tensor] | None:
    return load(data) if key.endswith("safetensors") else None


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # the package leaves shards open
def test_webdataset_reads_tar_shards(tmp_path: Path) -> None:
    place = open_place(tmp_path)
    infos: list[ShardInfo] = [write_shard(place, "tar", records(4, seed=seed)) for seed in (1, 2)]
    expected = {record.identity: record for seed in (1, 2) for record in records(4, seed=seed)}
    urls = [str(tmp_path / info.name) for info in infos]
    dataset = webdataset.WebDataset(urls, shardshuffle=False).decode(_tensors)
    seen = 0
    for sample in dataset:
        record = expected[sample["__key__"]]
        found = Record(identity=sample["__key__"], tensors=sample["safetensors"], meta=sample["json"])
        assert_same(found, record)
        seen += 1
    assert seen == len(expected)
    del dataset
    gc.collect()  # while the warning is expected
