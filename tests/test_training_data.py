"""Batches of clips: what they depend on, how often things are drawn, buckets of whole frames, files that are broken."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from refusals import refused
from video_files import render, scene

from temporal_vae.errors import ConfigError
from temporal_vae.training.config.fields import Augmentation, Batch, Data, Optimizer, Source, TrainConfig
from temporal_vae.training.data import dataloader
from temporal_vae.training.data.dataloader import Clips, Drawn, load, to_device

CPU = torch.device("cpu")
PLAIN = Augmentation(flip=0.0)


def grey(path: Path, level: int, *, height: int = 32, width: int = 32, frames: int = 4) -> Path:
    """A picture or video of one grey level, which tells where a clip comes from."""
    pictures = np.full((frames, height, width, 3), level, np.uint8)
    if path.suffix == ".png":
        Image.fromarray(pictures[0]).save(path)
        return path
    return render(path, pictures)


def levels(drawn: Drawn) -> list[int]:
    """The grey level of each clip, rounded to tens."""
    clips = drawn.frames.reshape(-1, drawn.length, *drawn.frames.shape[1:])
    return [round(float(clip.float().mean()) / 10) * 10 for clip in clips]


def config_of(*sources: Source | Path, **how: object) -> TrainConfig:
    found = tuple(each if isinstance(each, Source) else Source(path=str(each)) for each in sources)
    data = {name: how.pop(name) for name in ("rates", "augmentation", "workers", "cache") if name in how}
    batches = how.pop("batches", (Batch(frames=4, lengths=(1, 2, 4), size=16),))
    return TrainConfig(data=Data(sources=found, **data), batches=batches, **{"steps": 20, **how})


def same(one: Drawn, other: Drawn) -> bool:
    return (one.length, one.faults, one.failure) == (
        other.length,
        other.faults,
        other.failure,
    ) and torch.equal(one.frames, other.frames)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two videos and a still, all of which move or not."""
    folder = tmp_path_factory.mktemp("data")
    render(folder / "a.mp4", scene(12))
    render(folder / "b.mp4", scene(5, height=32, width=48, seed=1))
    Image.fromarray(scene(1, seed=2)[0]).save(folder / "c.png")
    return folder


AUGMENTED = Augmentation(flip=0.5, reverse=0.5, zoom=0.5, pan=0.5, color=0.5)


# What a batch depends on


def test_a_batch(folder):
    drawn = Clips(config_of(folder))[0]
    assert (drawn.frames.dtype, tuple(drawn.frames.shape)) == (torch.uint8, (4, 16, 16, 3))
    assert drawn.length in (1, 2, 4)
    assert (drawn.faults, drawn.failure) == ([], "")
    frames = to_device(drawn, CPU)
    assert frames.shape == (4, 3, 16, 16)
    assert frames.dtype == torch.float32
    assert -1 <= frames.min() < frames.max() <= 1
    assert torch.equal(((frames + 1) * 127.5).round().byte().permute(0, 2, 3, 1), drawn.frames)


def test_a_batch_depends_on_its_number_alone(folder):
    config = config_of(folder, augmentation=AUGMENTED)
    in_order = [Clips(config)[number] for number in range(6)]
    clips = Clips(replace(config, data=replace(config.data, cache="1")))
    for number in (5, 0, 3, 3, 1, 4, 2):
        assert same(clips[number], in_order[number])
    assert len({each.frames.numpy().tobytes() for each in in_order}) == 6
    assert len({each.length for each in in_order}) > 1
    other = Clips(replace(config, seed=1))
    assert not same(other[0], in_order[0])


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_worker_processes_make_no_difference(folder, workers):
    (folder.parent / "broken.mp4").write_text("no video")
    config = config_of(folder, folder.parent / "broken.mp4", augmentation=AUGMENTED, steps=5)
    clips = Clips(config)
    loaded = list(load(clips, first=2, workers=workers, device=CPU))
    assert len(loaded) == 3
    for number, drawn in enumerate(loaded, start=2):
        wanted = Clips(config)[number]
        assert torch.equal(drawn.frames, wanted.frames)
        assert {Path(name).name for name, _ in drawn.faults} <= {"broken.mp4"}


def test_processes_do_equal_work_on_different_clips(folder):
    batches = (Batch(frames=4, lengths=(1, 2, 4), size=16), Batch(frames=2, lengths=(1,), size=(8, 24)))
    config = config_of(folder, batches=batches)
    first, second = Clips(config, rank=0), Clips(config, rank=1)
    shapes = set()
    for number in range(16):
        one, other = first[number], second[number]
        assert (one.frames.shape, one.length) == (other.frames.shape, other.length)
        assert not torch.equal(one.frames, other.frames)
        shapes.add((tuple(one.frames.shape), one.length))
    assert len(shapes) == 4


def test_a_step_of_several_batches(folder):
    config = config_of(folder, steps=4, optimizer=Optimizer(accumulate=3))
    clips = Clips(config)
    assert len(clips) == 12
    for step in range(4):
        parts = [clips[3 * step + part] for part in range(3)]
        assert len({part.length for part in parts}) == 1
        assert len({part.frames.numpy().tobytes() for part in parts}) == 3
    single = Clips(replace(config, optimizer=Optimizer()))
    assert len(single) == 4
    assert same(single[2], clips[6])


def test_batches_of_some_steps(folder):
    early, late = (
        Batch(frames=2, lengths=(1,), size=16, last_step=3),
        Batch(frames=2, lengths=(2,), first_step=3),
    )
    clips = Clips(config_of(folder, batches=(early, replace(late, size=24)), steps=6))
    assert [tuple(clips[step].frames.shape[1:3]) for step in range(6)] == [(16, 16)] * 3 + [(24, 24)] * 3


def test_rates(folder):
    """A still picture of time: the more frames are left out, the larger the steps."""
    config = config_of(
        folder / "a.mp4", augmentation=PLAIN, batches=(Batch(frames=2, lengths=(2,), size=48),)
    )

    def motion(rates):
        clips = Clips(replace(config, data=replace(config.data, rates=rates, augmentation=PLAIN)))
        return np.mean([to_device(clips[n], CPU).diff(dim=0).abs().mean() for n in range(4)])

    assert motion((6.25,)) > 1.5 * motion(())


# Odds


def test_weights_of_sources_and_of_rows(tmp_path):
    for level in (0, 100, 200):
        grey(tmp_path / f"{level}.png", level)
    (tmp_path / "list.csv").write_text("path,weight\n0.png,3\n100.png,1\n")
    config = config_of(
        Source(path=str(tmp_path / "list.csv"), weight=4.0),
        Source(path=str(tmp_path / "200.png"), weight=1.0),
        batches=(Batch(frames=100, lengths=(1,), size=8),),
    )
    clips = Clips(config)
    found = [level for number in range(5) for level in levels(clips[number])]
    shares = [found.count(level) / len(found) for level in (0, 100, 200)]
    assert shares == pytest.approx([0.6, 0.2, 0.2], abs=0.06)


def test_weights_of_batches(tmp_path):
    grey(tmp_path / "a.png", 0)
    often, seldom = Batch(frames=1, lengths=(1,), size=8, weight=9.0), Batch(frames=1, lengths=(1,), size=16)
    clips = Clips(config_of(tmp_path, batches=(often, seldom), steps=200))
    share = sum(clips[number].frames.shape[1] == 8 for number in range(200)) / 200
    assert share == pytest.approx(0.9, abs=0.07)


def test_odds_of_many_items_are_added_up_once(tmp_path, monkeypatch):
    grey(tmp_path / "a.png", 0)
    rows = "".join(f"a.png,{1 + number % 7}\n" for number in range(2000))
    (tmp_path / "list.csv").write_text("path,weight\n" + rows)
    clips = Clips(config_of(tmp_path / "list.csv", batches=(Batch(frames=100, lengths=(1,), size=8),)))
    added: list[int] = []
    odds = dataloader._odds
    monkeypatch.setattr(dataloader, "_odds", lambda weights: added.append(len(weights)) or odds(weights))
    for number in range(3):
        clips[number]
    assert added.count(2000) <= 1 < len(added)


# Whole frames


def whole(area: int, *lengths: int, **how: object) -> tuple[Batch, ...]:
    return (Batch(frames=4, lengths=lengths or (1,), area=area, **how),)


def test_whole_frames_in_buckets(tmp_path):
    grey(tmp_path / "wide.png", 0, height=60, width=120)
    grey(tmp_path / "high.png", 50, height=120, width=60)
    grey(tmp_path / "square.png", 100, height=70, width=70)
    grey(tmp_path / "small.png", 150, height=30, width=30)
    clips = Clips(config_of(tmp_path, batches=whole(2048), augmentation=PLAIN))
    found = {}
    for number in range(20):
        drawn = clips[number]
        assert len(set(levels(drawn))) == 1
        found[levels(drawn)[0]] = tuple(drawn.frames.shape[1:3])
    assert found == {0: (32, 64), 50: (64, 32), 100: (48, 48)}


@pytest.mark.parametrize(
    ("height", "width", "area", "size"),
    [
        (64, 64, 4096, (64, 64)),  # exactly so many pixels
        (63, 64, 4096, None),
        (60, 100, 6000, (48, 96)),  # the nearest multiple would be larger than the picture
        (360, 640, 230_400, (352, 640)),
        (376, 500, 188_000, (368, 496)),
        (15, 1000, 4096, None),
        (1080, 1920, 4096, (48, 80)),
        (16, 640, 256, (16, 96)),  # as near as 16 allows
    ],
)
def test_sizes_of_buckets(tmp_path, height, width, area, size):
    grey(tmp_path / "a.png", 0, height=height, width=width)
    config = config_of(tmp_path, batches=whole(area))
    if size is None:
        refused(ConfigError, lambda: Clips(config), f"area={area}", "nothing in data.sources", "smaller area")
    else:
        assert tuple(Clips(config)[0].frames.shape[1:3]) == size


@pytest.mark.parametrize(("multiple", "size"), [(1, (128, 160)), (32, (128, 160)), (6, (144, 144))])
def test_sizes_of_buckets_fit_the_model(tmp_path, multiple, size):
    grey(tmp_path / "a.png", 0, height=150, width=200)
    clips = Clips(config_of(tmp_path, batches=whole(20_000)), multiple=multiple)
    assert tuple(clips[0].frames.shape[1:3]) == size


def test_every_file_of_a_source_has_the_same_odds_in_buckets(tmp_path):
    for number in range(9):
        grey(tmp_path / f"{number}.png", 0, height=32, width=64)
    grey(tmp_path / "x.png", 200, height=64, width=32)
    clips = Clips(config_of(tmp_path, batches=whole(1024), augmentation=PLAIN, steps=200))
    share = sum(levels(clips[number])[0] == 200 for number in range(200)) / 200
    assert share == pytest.approx(0.1, abs=0.07)


def test_buckets_hold_what_is_long_enough(tmp_path):
    """The only square video is too short: no batch of its shape is ever asked for."""
    grey(tmp_path / "short.mp4", 50, height=32, width=32, frames=3)
    grey(tmp_path / "long.mp4", 150, height=32, width=64, frames=8)
    clips = Clips(config_of(tmp_path, batches=whole(1024, 1, 4), augmentation=PLAIN))
    found = {(drawn.length, levels(drawn)[0]) for drawn in (clips[number] for number in range(20))}
    assert found == {(1, 50), (1, 150), (4, 150)}
    config = config_of(tmp_path, batches=whole(1024, 4), rates=(1.0,))
    refused(ConfigError, lambda: Clips(config), "area=1024", "4 frames", "shorter lengths")


def test_scenes_in_buckets():
    clips = Clips(config_of(Source(scenes=1), batches=whole(1024, 4)))
    assert clips[0].frames.shape == (4, 32, 32, 3)
    refused(ConfigError, lambda: Clips(config_of(Source(scenes=1), batches=whole(10**6))), "area=1000000")


# Files that are broken


@pytest.fixture
def messy(tmp_path) -> Path:
    """A folder with two good files, some that cannot be read, and some that are no videos at all."""
    folder = tmp_path / "messy"
    (folder / "frames.mp4").mkdir(parents=True)
    grey(folder / "frames.mp4" / "1.png", 100)
    grey(folder / "good.MP4", 200)
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("this is no video\n" * 50)
    grey(folder / "cut.mp4", 50, frames=20)
    os.truncate(folder / "cut.mp4", 700)
    (folder / "gone.mp4").symlink_to(folder / "nowhere.mp4")
    render(folder / "sound.mkv", scene(1), audio="pcm_s16le")
    sound_alone(folder / "sound.mkv", folder / "silent film.mkv")
    (folder / "notes.txt").write_text("not looked at")
    return folder


BROKEN = {"empty.mp4", "text.mp4", "cut.mp4", "gone.mp4", "silent film.mkv"}


def sound_alone(source: Path, target: Path) -> None:
    """Keep the sound of a video."""
    import av

    with av.open(str(source)) as film, av.open(str(target), "w") as output:
        track = output.add_stream_from_template(film.streams.audio[0])
        for packet in film.demux(film.streams.audio[0]):
            if packet.dts is not None:
                packet.stream = track
                output.mux(packet)
    source.unlink()


@pytest.mark.parametrize("how", [{}, {"batches": whole(256)}])
def test_broken_files_are_left_out_and_told_of(messy, how):
    config = config_of(messy, augmentation=PLAIN, **how)
    clips = Clips(config)
    drawn = [clips[number] for number in range(20)]
    assert {level for each in drawn for level in levels(each)} == {100, 200}
    assert all(each.failure == "" and len(each.frames) == 4 for each in drawn)
    faults = [fault for each in drawn for fault in each.faults] + clips.faults
    assert {Path(name).name for name, _ in faults} == BROKEN
    assert len(dict(faults)) == len(set(faults))  # one reason for each
    for each in drawn:
        assert len(dict(each.faults)) == len(each.faults)
    for name, reason in faults:
        assert Path(name).name in reason
        assert "\n" not in reason


def test_files_that_a_manifest_names_and_are_not_there(tmp_path):
    grey(tmp_path / "a.png", 100)
    (tmp_path / "list.csv").write_text("path\na.png\nmissing.mp4\n")
    clips = Clips(config_of(tmp_path / "list.csv"))
    faults = dict(fault for number in range(5) for fault in clips[number].faults)
    assert list(faults) == [str(tmp_path / "missing.mp4")]
    assert "no such file" in faults[str(tmp_path / "missing.mp4")]


def test_nothing_can_be_read(tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.mp4").write_text("no video")
    drawn = Clips(config_of(tmp_path))[0]
    assert drawn.frames.shape == (0, 16, 16, 3)
    assert len(drawn.faults) == 3
    assert drawn.failure.startswith("data.sources: ")
    assert "frames of 16x16 pixels that can be read" in drawn.failure
    assert ".mp4: can't be read" in drawn.failure
    assert "\n" not in drawn.failure
    refused(
        ConfigError,
        lambda: Clips(config_of(tmp_path, batches=whole(256))),
        "none of 3 files can be read",
        "0.mp4",
    )


@pytest.mark.parametrize("workers", [0, 1])
def test_nothing_is_large_enough(folder, workers):
    config = config_of(folder, batches=(Batch(frames=2, lengths=(1,), size=100),))
    drawn = next(load(Clips(config), first=0, workers=workers, device=CPU))
    assert "1 frames of 100x100 pixels" in drawn.failure
    assert "smaller windows" in drawn.failure
    assert drawn.faults == []


def test_one_good_file_among_many(tmp_path):
    """That most of a folder is of no use does not end a run."""
    (tmp_path / "videos").mkdir()
    for number in range(150):
        (tmp_path / "videos" / f"{number}.mp4").touch()
    grey(tmp_path / "videos" / "good.png", 100)
    clips = Clips(config_of(tmp_path / "videos"))
    assert all(set(levels(clips[number])) == {100} for number in range(10))


def test_a_bucket_of_nothing_but_damage(tmp_path):
    """Another bucket is drawn where the files of one turn out to be damaged further in."""
    grey(tmp_path / "good.mp4", 100, height=32, width=64)
    render(tmp_path / "bad.mkv", scene(4, height=64, width=32), codec="ffv1", options={"g": "1"})
    damage(tmp_path / "bad.mkv")
    clips = Clips(config_of(tmp_path, batches=whole(2048, 4), augmentation=PLAIN))
    drawn = [clips[number] for number in range(8)]
    assert all(each.failure == "" and each.frames.shape == (4, 32, 64, 3) for each in drawn)
    assert {Path(name).name for each in drawn for name, _ in each.faults} == {"bad.mkv"}


def damage(path: Path) -> None:
    """Overwrite what follows the first frame or two."""
    data = bytearray(path.read_bytes())
    data[len(data) * 3 // 5 : len(data) * 4 // 5] = bytes(len(data) * 4 // 5 - len(data) * 3 // 5)
    path.write_bytes(data)


# Configurations that cannot be


def test_no_sources():
    refused(ConfigError, lambda: Clips(TrainConfig()), "data.sources", "nothing to learn from", "give a path")


def test_sizes_that_the_model_cannot_take(folder):
    batches = (Batch(frames=2, lengths=(1,), size=16), Batch(frames=2, lengths=(1,), size=(16, 20)))
    config = config_of(folder, batches=batches)
    Clips(config, multiple=4)
    refused(ConfigError, lambda: Clips(config, multiple=8), "batches.1.size=(16, 20)", "multiples of 8")
