"""Stretches of videos and stills, read with and without a cache, and what is cut out of them."""

import os
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from video_files import numbered, numbers, render, scene

from temporal_vae.errors import MediaError
from temporal_vae.media.writer import VideoWriter
from temporal_vae.training.config.fields import Augmentation
from temporal_vae.training.data.augment import cover, vary, window
from temporal_vae.training.data.footage import SCENE_FRAMES, SCENE_SIDE, Library, Unfit
from temporal_vae.training.data.scenes import render_scene
from temporal_vae.training.data.sources import Item

FRAMES = 30  # of the video, at 25 per second
LARGE, NONE = 2**30, 1  # bytes to keep


def item(path: Path, **where: float) -> Item:
    return Item(name=str(path), path=path, **where)


def broken_off(path: Path) -> Path:
    """A video that ends in the middle of its data, of which the headers tell nothing."""
    render(path, scene(FRAMES), options={"g": "1"}, container_options={"movflags": "faststart"})
    os.truncate(path, path.stat().st_size * 2 // 3)
    return path


def outcome(library: Library, path: Path, **how: object) -> np.ndarray | str:
    """Frames of a stretch, or why there are none."""
    try:
        return library.stretch(item(path), frames=3, **how)
    except (MediaError, Unfit) as error:
        return f"{type(error).__name__} {error}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("footage")
    with VideoWriter(folder / "video.mkv", rate=25) as writer:
        writer.write(numbered(FRAMES), [t / 25 for t in range(FRAMES)])
    render(folder / "coded.mp4", scene(FRAMES), options={"g": "12"})
    stamps = [40 * t + (t % 3) * 10 for t in range(FRAMES)]
    render(folder / "uneven.mkv", numbered(FRAMES), pts=stamps, time_base=Fraction(1, 1000))
    pictures = [Image.fromarray(frame) for frame in scene(8, height=20, width=30)]
    pictures[0].save(folder / "animation.gif", save_all=True, append_images=pictures[1:], duration=50)
    Image.fromarray(scene(1)[0]).save(folder / "still.png")
    return folder


# Stretches


@pytest.mark.parametrize("name", ["video.mkv", "coded.mp4", "uneven.mkv", "animation.gif", "still.png"])
def test_the_cache_makes_no_difference(folder, name):
    kept, read = Library(LARGE), Library(NONE)
    for at in (0.0, 0.31, 0.999, 1.0, 0.31):
        for how in ({}, {"rate": 10.0}, {"rate": 29.97, "side": 16}, {"side": 11}):
            one, other = (outcome(library, folder / name, at=at, **how) for library in (kept, read))
            assert np.array_equal(one, other), (at, how)
            assert name == "uneven.mkv" or one.dtype == np.uint8


@pytest.mark.parametrize("capacity", [LARGE, NONE])
def test_where_a_stretch_lies(folder, capacity):
    library, video = Library(capacity), folder / "video.mkv"

    def taken(frames, at, rate=None, **where):
        return numbers(library.stretch(item(video, **where), frames=frames, at=at, rate=rate))

    assert taken(FRAMES, 0.5) == list(range(FRAMES))
    assert taken(4, 0.0) == [0, 1, 2, 3]
    assert taken(4, 1.0) == [26, 27, 28, 29]
    assert taken(4, 0.0, rate=12.5) == [0, 2, 4, 6]
    assert taken(4, 1.0, rate=12.5) == [22, 24, 26, 28]
    assert taken(4, 0.0, rate=50) == [0, 0, 1, 1]
    assert taken(4, 0.0, start=0.4) == [10, 11, 12, 13]
    assert taken(4, 1.0, start=0.4) == [26, 27, 28, 29]
    assert taken(4, 1.0, start=0.4, end=0.6) == [11, 12, 13, 14]
    assert taken(5, 0.7, start=0.4, end=0.6) == [10, 11, 12, 13, 14]
    assert taken(4, 1.0, end=100.0) == [26, 27, 28, 29]  # an end after that of the file


@pytest.mark.parametrize("capacity", [LARGE, NONE])
@pytest.mark.parametrize(
    ("frames", "how", "where"),
    [
        (FRAMES + 1, {}, {}),
        (16, {"rate": 10.0}, {}),
        (6, {}, {"start": 0.4, "end": 0.6}),
        (1, {}, {"start": 5.0}),
        (1, {"least": (33, 1)}, {}),
        (1, {"least": (1, 49)}, {}),
        (1, {"least": (32, 32), "side": 31}, {}),
    ],
)
def test_too_short_or_too_small(folder, capacity, frames, how, where):
    video = item(folder / "video.mkv", **where)
    with pytest.raises(Unfit):
        Library(capacity).stretch(video, frames=frames, at=0.5, **how)


def test_history_makes_no_difference(folder):
    """Nor does it where only one of the videos can be kept."""
    names = ["video.mkv", "coded.mp4", "still.png", "animation.gif"]
    library = Library(FRAMES * 48 * 64 * 3)
    random = np.random.default_rng(0)
    for _ in range(20):
        name, at = names[random.integers(4)], float(random.random())
        again = library.stretch(item(folder / name), frames=2, at=at)
        assert np.array_equal(again, Library(NONE).stretch(item(folder / name), frames=2, at=at))


def test_stills_repeat(folder):
    still = Library(LARGE).stretch(item(folder / "still.png", start=3.0), frames=5, at=0.5, rate=7.0)
    assert still.shape == (5, 48, 64, 3)
    assert (still == still[0]).all()


def test_sides(folder):
    library = Library(LARGE)
    for side, size in ((16, (16, 24)), (32, (32, 48)), (100, (32, 48)), (None, (32, 48))):
        assert library.stretch(item(folder / "video.mkv"), frames=1, at=0, side=side).shape[1:3] == size


def test_portrait_videos(folder):
    path = render(folder / "portrait.mp4", scene(4, height=32, width=48), rotation=(90, False))
    for capacity in (LARGE, NONE):
        library = Library(capacity)
        assert library.stretch(item(path), frames=4, at=0).shape == (4, 48, 32, 3)
        assert library.stretch(item(path), frames=4, at=0, side=16).shape == (4, 24, 16, 3)


def test_scenes():
    library = Library(LARGE)
    drawn = render_scene(3, frames=SCENE_FRAMES, height=24, width=24)
    number = Item(name="scene 3", scene=3)
    assert np.array_equal(library.stretch(number, frames=4, at=0.0, side=24), drawn[:4])
    assert np.array_equal(library.stretch(number, frames=4, at=1.0, side=24), drawn[-4:])
    whole = library.stretch(number, frames=SCENE_FRAMES, at=0.5)
    assert whole.shape == (SCENE_FRAMES, SCENE_SIDE, SCENE_SIDE, 3)
    for how in ({"frames": SCENE_FRAMES + 1}, {"frames": 1, "least": (16, 200)}):
        with pytest.raises(Unfit):
            library.stretch(number, at=0.0, **how)


def test_what_headers_promise(folder):
    library = Library(LARGE)
    video, still = item(folder / "video.mkv"), item(folder / "still.png")
    assert library.promises(video, FRAMES, ())
    assert not library.promises(video, FRAMES + 1, ())
    assert library.promises(video, FRAMES + 1, (5.0, 50.0))
    assert not library.promises(video, FRAMES, (5.0,))
    assert not library.promises(item(folder / "video.mkv", start=0.4, end=0.6), 6, ())
    assert library.promises(still, 1000, ())
    assert library.promises(Item(name="scene"), SCENE_FRAMES, ())
    assert not library.promises(Item(name="scene"), SCENE_FRAMES + 1, ())


# The cache


def test_videos_that_fit_are_decoded_once(folder, monkeypatch):
    library, video = Library(LARGE), folder / "coded.mp4"
    library.stretch(item(video), frames=2, at=0.1)
    monkeypatch.setattr("temporal_vae.training.data.footage.VideoReader", None)
    library.stretch(item(video), frames=2, at=0.9)
    library.stretch(item(video, start=0.2, end=0.8), frames=2, at=0.5)  # another stretch of the same file


def test_what_was_not_used_for_longest_goes_first(tmp_path):
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for path in paths:
        Image.fromarray(scene(1, height=16, width=16)[0]).save(path)
    library = Library(2 * 16 * 16 * 3)
    for path in (paths[0], paths[1], paths[0], paths[2]):
        library.stretch(item(path), frames=1, at=0)
    assert [path.name for path, _ in library._held] == ["0.png", "2.png"]
    assert library._nbytes == sum(held.frames.nbytes for held in library._held.values())


# Damage


def test_files_that_cannot_be_opened(tmp_path):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("no video" * 100)
    library = Library(LARGE)
    for name in ("empty.mp4", "text.mp4", "missing.mp4"):
        for _ in range(2):
            with pytest.raises(MediaError, match=name):
                library.stretch(item(tmp_path / name), frames=1, at=0)


def test_a_file_that_cannot_be_opened_is_tried_once(tmp_path, monkeypatch):
    (tmp_path / "empty.mp4").touch()
    library = Library(LARGE)
    with pytest.raises(MediaError, match=r"empty\.mp4"):
        library.info(tmp_path / "empty.mp4")
    monkeypatch.setattr("temporal_vae.training.data.footage.VideoReader", None)
    with pytest.raises(MediaError, match=r"empty\.mp4"):
        library.info(tmp_path / "empty.mp4")


def test_what_is_intact_of_a_damaged_video_is_of_use(tmp_path):
    path = broken_off(tmp_path / "a.mp4")
    kept, read = Library(LARGE), Library(NONE)
    for at in (0.0, 0.2, 1.0, 0.2):
        assert np.array_equal(outcome(kept, path, at=at), outcome(read, path, at=at))
    assert np.abs(outcome(kept, path, at=0.0).astype(int) - scene(3)).mean() < 12
    assert "a.mp4: broken" in outcome(kept, path, at=1.0)


def test_a_damaged_still(tmp_path):
    Image.fromarray(scene(1, height=200, width=200)[0]).save(tmp_path / "a.png")
    os.truncate(tmp_path / "a.png", (tmp_path / "a.png").stat().st_size // 2)
    for _ in range(2):
        with pytest.raises(MediaError, match=r"a\.png"):
            Library(LARGE).stretch(item(tmp_path / "a.png"), frames=2, at=0)


def test_a_video_longer_than_its_headers_say(folder, monkeypatch):
    """Only a little more is read of it than may be kept."""
    library, video = Library(10 * 32 * 48 * 3), folder / "video.mkv"
    info = library.info(video)
    library._infos[video] = type(info)(**{**vars(info), "frames": 8})
    assert numbers(library.stretch(item(video), frames=4, at=1.0)) == [26, 27, 28, 29]
    assert not library._held


# Windows


def windows(frames, size, seeds=40, **how):
    augmentation = Augmentation(**{"flip": 0.0, **how})
    return [window(frames, np.random.default_rng(seed), size, augmentation) for seed in range(seeds)]


def corners(clip):
    """Of windows of `ramp`: where each frame was cut out."""
    return clip[:, 0, 0, :2].astype(int)


@pytest.fixture
def ramp():
    """Frames that hold their own coordinates, row and column, and the time."""
    t, y, x = np.meshgrid(np.arange(6), np.arange(60), np.arange(80), indexing="ij")
    return np.stack([y, x, t], -1).astype(np.uint8)


def test_windows_without_motion_stay_in_place(ramp):
    for clip in windows(ramp, (16, 24)):
        assert clip.shape == (6, 16, 24, 3)
        assert (corners(clip) == corners(clip)[0]).all()
        y, x = corners(clip)[0]
        assert np.array_equal(clip, ramp[:, y : y + 16, x : x + 24])


def test_windows_reach_every_place(ramp):
    starts = np.array([corners(clip)[0] for clip in windows(ramp, (58, 78), seeds=80)])
    assert starts.min(axis=0).tolist() == [0, 0]
    assert starts.max(axis=0).tolist() == [2, 2]


def test_windows_that_pan(ramp):
    clips = windows(ramp, (16, 24), pan=1.0)
    assert any(np.ptp(corners(clip), axis=0).max() > 3 for clip in clips)
    for clip in clips:
        assert (clip[:, 1, 0, 0].astype(int) == corners(clip)[:, 0] + 1).all()  # cut, not scaled


def test_stills_always_pan(ramp):
    still = np.broadcast_to(ramp[0], (6, 60, 80, 3))
    assert sum(bool(np.ptp(corners(clip), axis=0).any()) for clip in windows(still, (16, 24))) > 30


def test_windows_that_zoom(ramp):
    spans = [clip[0, -1, 0, 0] - int(clip[0, 0, 0, 0]) for clip in windows(ramp, (16, 24), zoom=1.0)]
    assert min(spans) >= 14
    assert 20 < max(spans) <= 16 * 1.6
    for clip in windows(ramp, (56, 70), zoom=1.0, pan=1.0):  # hardly any room
        assert clip.shape == (6, 56, 70, 3)


def test_windows_as_large_as_the_frames(ramp):
    for clip in windows(ramp, (60, 80), seeds=5, zoom=1.0, pan=1.0):
        assert np.array_equal(clip, ramp)


def test_frames_smaller_than_a_window(ramp):
    for size in ((61, 8), (8, 81)):
        with pytest.raises(Unfit):
            windows(ramp, size)
        with pytest.raises(Unfit):
            cover(ramp, size)


def test_whole_frames_keep_their_middle(ramp):
    assert np.array_equal(cover(ramp, (60, 80)), ramp)
    assert np.array_equal(cover(ramp, (60, 48)), ramp[:, :, 16:64])
    halved = cover(ramp, (30, 40))
    assert halved.shape == (6, 30, 40, 3)
    assert abs(halved[0, ..., 0].mean() - ramp[0, ..., 0].mean()) < 1
    assert cover(ramp, (17, 31)).shape == (6, 17, 31, 3)


def test_variations(ramp):
    def varied(seed, **how):
        augmentation = Augmentation(**{"flip": 0.0, **how})
        return vary(ramp, np.random.default_rng(seed), augmentation)

    assert np.array_equal(varied(0), ramp)
    assert np.array_equal(varied(0, flip=1.0), ramp[:, :, ::-1])
    assert np.array_equal(varied(0, reverse=1.0), ramp[::-1])
    for seed in range(20):
        clip = varied(seed, flip=0.5, reverse=0.5, color=1.0)
        assert (clip.dtype, clip.shape) == (np.uint8, ramp.shape)
    assert len({varied(seed, color=1.0).tobytes() for seed in range(8)}) > 5
    white = np.full((1, 2, 2, 3), 255, np.uint8)
    brightest = [vary(white, np.random.default_rng(seed), Augmentation(color=1.0)) for seed in range(20)]
    assert any((clip == 255).all() for clip in brightest)  # nothing wraps around to black
