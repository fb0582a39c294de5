"""LatentDataset: every clip once, in an order that all agree on, from all formats, in any number of processes."""

import json
import math
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from latent_folders import SETTINGS, clip, write_dataset
from torch.utils.data import DataLoader

from temporal_vae.distributed import LatentDataset
from temporal_vae.distributed.dataset.places import open_place
from temporal_vae.distributed.dataset.shards import FORMATS, Format
from temporal_vae.errors import InputError, LatentFileError, MediaError

CLIPS = [clip(number) for number in range(23)]
BY_IDENTITY = {record.identity: record for record in CLIPS}
CAPTIONS = [f"caption {number}" for number in range(23)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("latents")
    write_dataset(folder, CLIPS, more={"caption": CAPTIONS})
    return folder


def captions(items: Any) -> list[str]:
    return [item["caption"] for item in items]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("kind", ["path", "memory"])
def test_all_clips_are_read_from_every_format(tmp_path: Path, format: Format, kind: str) -> None:
    MemoryFileSystem.store.clear()
    location = tmp_path if kind == "path" else "memory://bucket/latents"
    write_dataset(location, CLIPS, format=format, more={"caption": CAPTIONS})
    dataset = LatentDataset(location)
    assert len(dataset) == 23
    for number, item in enumerate(dataset):
        assert set(item) == {"latents", "identity", "fps", "size", "caption"}
        assert torch.equal(item["latents"], CLIPS[number].tensors["mean"])
        assert item["identity"] == CLIPS[number].identity
        assert item["fps"] == 30000 / 1001
        assert item["size"] == (8 * item["latents"].shape[3], 8 * item["latents"].shape[2])
        assert item["caption"] == f"caption {number}"


def test_seeds_shuffle_and_epochs_shuffle_anew(folder: Path) -> None:
    first, second, other = (LatentDataset(folder, shuffle=True, seed=seed) for seed in (7, 7, 8))
    orders = []
    for epoch in range(3):
        for dataset in (first, second, other):
            dataset.set_epoch(epoch)
        orders += [captions(first), captions(other)]
        assert captions(second) == orders[-2]
    assert len(set(map(tuple, orders))) == 6
    assert all(sorted(order) == sorted(CAPTIONS) for order in orders)
    first.set_epoch(0)
    assert captions(first) == orders[0]


@pytest.mark.parametrize(("workers", "persistent"), [(0, False), (2, False), (2, True)])
def test_workers_change_nothing(folder: Path, workers: int, persistent: bool) -> None:
    alone = LatentDataset(folder, shuffle=True, seed=1, sample=True)
    dataset = LatentDataset(folder, shuffle=True, seed=1, sample=True)
    loader = DataLoader(dataset, batch_size=None, num_workers=workers, persistent_workers=persistent)
    for epoch in range(3):
        for each in (alone, dataset):
            each.set_epoch(epoch)
        assert len(loader) == 23
        for item, expected in zip(loader, alone, strict=True):
            assert item["identity"] == expected["identity"]
            assert torch.equal(item["latents"], expected["latents"])


def test_workers_that_are_spawned_read_too(folder: Path) -> None:
    dataset = LatentDataset(folder, shuffle=True, batch_size=4)
    loader = DataLoader(
        dataset, batch_size=None, num_workers=1, multiprocessing_context="spawn", persistent_workers=True
    )
    for epoch in range(2):
        dataset.set_epoch(epoch)
        found = [caption for batch in loader for caption in batch["caption"]]
        assert found == [caption for batch in dataset for caption in batch["caption"]]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 30])
@pytest.mark.parametrize("shuffle", [False, True])
def test_ranks_share_the_clips(folder: Path, world_size: int, shuffle: bool) -> None:
    for remainder in ("keep", "pad", "drop"):
        ranks = [
            LatentDataset(folder, shuffle=shuffle, rank=rank, world_size=world_size, remainder=remainder)
            for rank in range(world_size)
        ]
        lengths = {len(dataset) for dataset in ranks}
        counts = Counter(caption for dataset in ranks for caption in captions(dataset))
        if remainder == "keep":
            assert counts == Counter(CAPTIONS)
            assert max(lengths) - min(lengths) <= 1
        else:
            assert len(lengths) == 1
            total = {"pad": math.ceil(23 / world_size), "drop": 23 // world_size}[remainder] * world_size
            assert sum(counts.values()) == total
            assert max(counts.values(), default=0) <= max(1, math.ceil(total / 23))
            assert len(counts) == min(23, total)


def test_ranks_are_those_of_the_launcher(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert captions(LatentDataset(folder)) == CAPTIONS[1::2]
    assert captions(LatentDataset(folder, rank=0, world_size=1)) == CAPTIONS
    with monkeypatch.context() as patch:
        patch.setattr(torch.distributed, "is_initialized", lambda: True)
        patch.setattr(torch.distributed, "get_rank", lambda: 2)
        patch.setattr(torch.distributed, "get_world_size", lambda: 3)
        assert captions(LatentDataset(folder)) == CAPTIONS[2::3]
    monkeypatch.setenv("RANK", "one")
    with pytest.raises(InputError, match="RANK='one'"):
        LatentDataset(folder)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_state_goes_on_exactly_behind_what_was_consumed(folder: Path, workers: int) -> None:
    whole = LatentDataset(folder, shuffle=True, seed=3)
    whole.set_epoch(2)
    expected = captions(whole)
    loader = DataLoader(whole, batch_size=None, num_workers=workers)
    for consumed, item in enumerate(loader, 1):
        assert item["caption"] == expected[consumed - 1]
        if consumed == 9:
            state = json.loads(json.dumps(whole.state_dict(consumed)))
            break
    resumed = LatentDataset(folder, shuffle=True, seed=3)
    loader = DataLoader(resumed, batch_size=None, num_workers=workers, persistent_workers=workers > 0)
    resumed.load_state_dict(state)
    resumed.set_epoch(2)
    assert len(resumed) == 14
    assert captions(loader) == expected[9:]
    again = resumed.state_dict(5)
    resumed.set_epoch(3)
    assert sorted(captions(loader)) == sorted(CAPTIONS)
    resumed.load_state_dict(again)
    assert captions(loader) == expected[14:]


@pytest.mark.parametrize("batch_size", [None, 2])
def test_a_state_goes_on_with_another_number_of_ranks(folder: Path, batch_size: int | None) -> None:
    def ranks(count: int) -> list[LatentDataset]:
        options: dict[str, Any] = {"shuffle": True, "seed": 5, "batch_size": batch_size}
        return [LatentDataset(folder, rank=rank, world_size=count, **options) for rank in range(count)]

    def identities(item: dict[str, Any]) -> list[str]:
        return [item["identity"]] if batch_size is None else item["identity"]

    before = ranks(2)
    seen = [name for dataset in before for number in range(3) for name in identities(dataset[number])]
    states = [dataset.state_dict(3) for dataset in before]
    assert states[0] == states[1]
    after = ranks(3)
    for dataset in after:
        dataset.load_state_dict(states[0])
    seen += [name for dataset in after for item in dataset for name in identities(item)]
    assert Counter(seen) == Counter(BY_IDENTITY.keys())


def test_states_of_others_are_refused(folder: Path, tmp_path: Path) -> None:
    state = LatentDataset(folder, shuffle=True).state_dict(3)
    for other in ({"shuffle": False}, {"shuffle": True, "seed": 1}, {"shuffle": True, "batch_size": 2}):
        with pytest.raises(InputError, match="the state is that of other rows, or of another seed"):
            LatentDataset(folder, **other).load_state_dict(state)
    write_dataset(tmp_path, CLIPS[:20])
    with pytest.raises(InputError, match="the state is that of other rows"):
        LatentDataset(tmp_path, shuffle=True).load_state_dict(state)
    with pytest.raises(InputError, match="this is none"):
        LatentDataset(folder).load_state_dict({"epoch": 1})
    with pytest.raises(InputError, match="consumed=24: this rank has 0 to 23 items left in epoch 0"):
        LatentDataset(folder).state_dict(24)


@pytest.mark.parametrize("remainder", ["keep", "pad", "drop"])
@pytest.mark.parametrize("world_size", [1, 2])
def test_batches_hold_clips_of_one_shape(folder: Path, remainder: str, world_size: int) -> None:
    sizes, seen, lengths = set(), Counter(), set()
    for rank in range(world_size):
        dataset = LatentDataset(
            folder,
            shuffle=True,
            batch_size=3,
            remainder=remainder,  # type: ignore[arg-type]
            rank=rank,
            world_size=world_size,
        )
        lengths.add(len(dataset))
        for item in DataLoader(dataset, batch_size=None):
            sizes.add(len(item["latents"]))
            seen.update(item["identity"])
            assert item["fps"].shape == (len(item["latents"]),)
            assert item["size"].shape == (len(item["latents"]), 2)
            for latents, identity in zip(item["latents"], item["identity"], strict=True):
                assert torch.equal(latents, BY_IDENTITY[identity].tensors["mean"])
    if remainder == "keep":
        assert seen == Counter(BY_IDENTITY.keys())
    else:
        assert (sizes, len(lengths)) == ({3}, 1)
    if remainder == "pad":
        assert set(seen) == set(BY_IDENTITY)


def test_without_shuffling_batches_are_in_the_order_of_the_index(folder: Path) -> None:
    batches = [item["caption"] for item in LatentDataset(folder, batch_size=4)]
    assert all(batch == sorted(batch, key=CAPTIONS.index) for batch in batches)
    assert sorted(caption for batch in batches for caption in batch) == sorted(CAPTIONS)


def test_samples_follow_from_seed_epoch_and_clip(folder: Path) -> None:
    def draws(epoch: int, **options: Any) -> dict[str, torch.Tensor]:
        dataset = LatentDataset(folder, sample=True, **options)
        dataset.set_epoch(epoch)
        return {item["identity"]: item["latents"] for item in dataset}

    first = draws(0)
    for other, alike in ((draws(0, shuffle=True), True), (draws(1), False), (draws(0, seed=1), False)):
        assert all(torch.equal(first[name], other[name]) == alike for name in first)
    noise = torch.cat(
        [
            ((first[name] - record.tensors["mean"]) / torch.exp(record.tensors["logvar"] / 2)).flatten()
            for name, record in BY_IDENTITY.items()
        ]
    )
    assert abs(float(noise.mean())) < 0.1
    assert abs(float(noise.std()) - 1) < 0.1
    assert noise.unique().numel() > 0.99 * noise.numel()


def test_latents_are_scaled_as_diffusion_models_take_them(tmp_path: Path, folder: Path) -> None:
    for item in LatentDataset(folder, scaled=True):
        assert torch.equal(item["latents"], BY_IDENTITY[item["identity"]].tensors["mean"] * 0.5)
    shifted = clip(0)
    shifted.meta["shift_factor"] = 0.25
    write_dataset(tmp_path, [shifted])
    (item,) = LatentDataset(tmp_path, scaled=True)
    assert torch.equal(item["latents"], (shifted.tensors["mean"] - 0.25) * 0.5)
    shifted.meta["scaling_factor"] = None
    write_dataset(tmp_path, [shifted])
    with pytest.raises(InputError, match="do not scale by a factor"):
        LatentDataset(tmp_path, scaled=True)[0]


def test_stored_samples_and_dtypes_are_kept(tmp_path: Path) -> None:
    stored = [clip(number, sampled=True, dtype=torch.bfloat16) for number in range(3)]
    write_dataset(tmp_path, stored)
    for item, record in zip(LatentDataset(tmp_path), stored, strict=True):
        assert item["latents"].dtype == torch.bfloat16
        assert torch.equal(item["latents"], record.tensors["sample"])
    with pytest.raises(InputError, match="holds samples already"):
        LatentDataset(tmp_path, sample=True)[0]


def test_a_clip_that_is_listed_twice_is_two_rows(tmp_path: Path) -> None:
    write_dataset(tmp_path, CLIPS[:2], listed=[0, 1, 0], more={"caption": ["a", "b", "c"]})
    items = list(LatentDataset(tmp_path))
    assert captions(items) == ["a", "b", "c"]
    assert items[0]["identity"] == items[2]["identity"]


def test_columns_are_chosen_and_missing_values_stand_in(tmp_path: Path, folder: Path) -> None:
    more = {"caption": ["a", None], "score": [None, 3], "mixed": [1, "x"], "nothing": [None, None]}
    write_dataset(tmp_path, CLIPS[:2], more=more)
    first, second = LatentDataset(tmp_path)
    assert (first["caption"], second["caption"], second["score"]) == ("a", "", 3)
    assert math.isnan(first["score"])
    assert (first["mixed"], second["mixed"], first["nothing"]) == ("1", "x", "")
    item = LatentDataset(tmp_path, columns=("path", "score"))[1]
    assert set(item) == {"latents", "identity", "fps", "size", "path", "score"}
    assert item["path"] == "videos/1.mp4"
    with pytest.raises(InputError, match="has no column prompt; there are caption"):
        LatentDataset(folder, columns=["prompt"])
    write_dataset(tmp_path, CLIPS[:2], more={"latents": [1, 2]})
    with pytest.raises(InputError, match="column latents has a name of an item"):
        LatentDataset(tmp_path)
    assert len(LatentDataset(tmp_path, columns=())) == 2


def test_settings_choose_among_several(tmp_path: Path) -> None:
    write_dataset(tmp_path, CLIPS[:3], index_of=SETTINGS)
    write_dataset(tmp_path, CLIPS[3:8], settings="f" * 64)
    write_dataset(tmp_path, CLIPS[3:8], settings="f" * 64, index_of="f" * 64)
    assert len(LatentDataset(tmp_path)) == 5
    assert len(LatentDataset(tmp_path, settings=SETTINGS)) == 3
    assert len(LatentDataset(tmp_path, settings="ffffffff")) == 5
    with pytest.raises(
        LatentFileError, match=r"index-12345678\.parquet: no such file: not encoded with these"
    ):
        LatentDataset(tmp_path, settings="12345678")


def test_what_is_no_dataset_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        LatentFileError, match=r"index\.parquet: no such file: no dataset of latents that is finished"
    ):
        LatentDataset(tmp_path)
    (tmp_path / "index.parquet").write_bytes(b"PAR1 and more")
    with pytest.raises(LatentFileError, match=r"index\.parquet: damaged"):
        LatentDataset(tmp_path)
    write_dataset(tmp_path, CLIPS[:2])
    for bad in ({"rank": 2, "world_size": 2}, {"rank": 0}, {"batch_size": 0}, {"remainder": "lose"}):
        with pytest.raises(InputError, match=f"{next(iter(bad))}="):
            LatentDataset(tmp_path, **bad)
    with pytest.raises(InputError, match="epoch=-1"):
        LatentDataset(tmp_path).set_epoch(-1)
    with pytest.raises(IndexError):
        LatentDataset(tmp_path)[2]


def test_a_damaged_shard_names_the_clip(tmp_path: Path) -> None:
    write_dataset(tmp_path, CLIPS[:3])
    dataset = LatentDataset(tmp_path)
    (name,) = open_place(tmp_path).list("shards")
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(LatentFileError, match=r"damaged .clip [0-9a-f]{32}: .*; encode"):
        list(dataset)
    (tmp_path / name).unlink()
    with pytest.raises(MediaError, match="no such file"):
        dataset[0]


def test_it_travels_by_pickle(folder: Path) -> None:
    dataset = LatentDataset(folder, shuffle=True)
    dataset.set_epoch(4)
    copy = pickle.loads(pickle.dumps(dataset))
    assert captions(copy) == captions(dataset)
