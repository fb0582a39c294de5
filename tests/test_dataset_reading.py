"""Frames of clips that are sought are those of a video that is read from its beginning."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from video_files import render, scene
from video_folders import cropped, read_straight

from temporal_vae.distributed.dataset import reading
from temporal_vae.distributed.dataset.clips import cut
from temporal_vae.distributed.dataset.encode_job import ClipTask
from temporal_vae.distributed.dataset.planning import ModelFacts, plan_of
from temporal_vae.distributed.dataset.probing import Probe, Unreadable, probe, probe_all
from temporal_vae.distributed.dataset.reading import ClipReader
from temporal_vae.distributed.dataset.settings import Settings
from temporal_vae.distributed.dataset.sources import rows_of
from temporal_vae.errors import MediaError
from temporal_vae.media.reader import VideoReader

MEDIA = Path(__file__).parents[2] / "shared" / "media"
MODEL = ModelFacts(digest="", factor=4, channels=4)


def tasks_of(path: Path, settings: Settings) -> list[ClipTask]:
    listing = rows_of(path)
    plan = plan_of(
        listing, {row.path: probe(row.path, settings.reading) for row in listing.rows}, settings, MODEL
    )
    assert not plan.left_out
    return list(plan.clips.values())


def interlaced(path: Path, frames: np.ndarray) -> Path:
    """MPEG-2 of two fields a frame."""
    with av.open(str(path), "w") as output:
        options = {"g": "6", "bf": "2", "flags": "+ildct+ilme", "top": "1"}
        stream = output.add_stream("mpeg2video", rate=25, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            output.mux(
                stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format="yuv420p"))
            )
        output.mux(stream.encode(None))
    with VideoReader(path) as reader:
        assert reader.info.interlaced
    return path


def of_kind(kind: str, folder: Path) -> Path:
    frames = scene(60, 48, 64)
    match kind:
        case "b-frames":
            return render(folder / "b.mp4", frames, options={"g": "20", "bf": "3"})
        case "open groups":
            options = {"x264-params": "open-gop=1:keyint=15:bframes=3:scenecut=0"}
            return render(folder / "open.mkv", frames, options=options)
        case "one key frame":
            return render(folder / "one.mp4", frames, options={"g": "1000"})
        case "variable rate":
            pts = list(np.cumsum(np.random.default_rng(0).integers(10, 90, len(frames))))
            return render(folder / "v.mkv", frames, pts=[int(p) for p in pts], time_base=Fraction(1, 1000))
        case "avi":
            return render(folder / "a.avi", frames, codec="mpeg4", options={"bf": "2"})
        case "vp9":
            return render(
                folder / "v.webm", frames[:30], codec="libvpx-vp9", options={"deadline": "realtime", "g": "8"}
            )
        case "hevc":
            return render(
                folder / "h.mp4",
                frames[:30],
                codec="libx265",
                options={"x265-params": "keyint=8:log-level=none"},
            )
        case "gif":
            return render(folder / "g.gif", frames[:20], codec="gif", pix_fmt="rgb8", rate=10)
        case "bare":
            return render(folder / "bare.h264", frames, container="h264", options={"g": "10"})
        case "fields":
            return interlaced(folder / "i.mkv", frames)
    raise AssertionError(kind)


KINDS = (
    "b-frames",
    "open groups",
    "one key frame",
    "variable rate",
    "avi",
    "vp9",
    "hevc",
    "gif",
    "bare",
    "fields",
)


@pytest.mark.parametrize("kind", KINDS)
def test_each_clip_by_itself_is_as_read_straight_through(kind, tmp_path):
    path = of_kind(kind, tmp_path)
    for fps in (None, Fraction(24000, 1001), Fraction(7)):
        times, frames = read_straight(path, fps=fps)
        tasks = tasks_of(path, Settings(clip_frames=5, stride=4, fps=fps))
        assert len(tasks) == (len(times) - 5) // 4 + 1
        for number, task in reversed(list(enumerate(tasks))):
            reader = ClipReader({})
            got, stamps = reader.read(task)
            reader.close()
            assert list(stamps) == times[number * 4 : number * 4 + 5]
            assert np.array_equal(got, cropped(frames[number * 4 : number * 4 + 5])), (kind, fps, number)


@pytest.mark.parametrize("kind", ["b-frames", "variable rate", "fields"])
@pytest.mark.parametrize("stride", [2, 5, 11])
def test_clips_in_one_go_are_as_read_straight_through(kind, stride, tmp_path):
    path = of_kind(kind, tmp_path)
    for fps in (None, Fraction(30)):
        times, frames = read_straight(path, fps=fps)
        reader = ClipReader({})
        for number, task in enumerate(tasks_of(path, Settings(clip_frames=5, stride=stride, fps=fps))):
            got, stamps = reader.read(task)
            assert list(stamps) == times[number * stride : number * stride + 5]
            assert np.array_equal(got, cropped(frames[number * stride : number * stride + 5]))
        reader.close()


@pytest.mark.skipif(not MEDIA.is_dir(), reason="no footage")
@pytest.mark.parametrize("name", ["again.mkv", "test_video.mp4"])
def test_footage_that_is_sought_is_as_read_straight_through(name):
    path = MEDIA / "clips" / name
    for fps in (None, Fraction(12)):
        times, frames = read_straight(path, fps=fps)
        settings = Settings(clip_frames=4, pick="uniform", clips=4, fps=fps)
        for task in tasks_of(path, settings):
            first = times.index(task.start)
            reader = ClipReader({})
            assert np.array_equal(reader.read(task)[0], cropped(frames[first : first + 4]))
            reader.close()


def test_a_clip_that_is_far_off_is_sought(tmp_path, monkeypatch):
    """Not all that lies before it is decoded."""
    path = render(tmp_path / "a.mp4", scene(300, 16, 16), options={"g": "20"})
    decoded = []
    take = reading._Track.take

    def counted(self, task):
        stream = self._stream
        self._stream = (decoded.append(1) or each for each in stream)
        return take(self, task)

    monkeypatch.setattr(reading._Track, "take", counted)
    ClipReader({}).read(tasks_of(path, Settings(clip_frames=5))[-1])
    assert len(decoded) < 10


def test_what_is_kept_of_a_damaged_file_is_read_as_it_was_planned(tmp_path):
    path = render(tmp_path / "a.mkv", scene(60, 48, 64), options={"g": "10"})
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 300] = bytes(300)
    path.write_bytes(data)
    assert isinstance(probe(str(path), Settings().reading), Unreadable)
    settings = Settings(clip_frames=5, damaged="keep")
    found = probe(str(path), settings.reading)
    assert isinstance(found, Probe)
    assert found.remarks
    times, frames = read_straight(path, damaged="keep")
    assert len(found.timeline) == len(times)
    for number, task in reversed(list(enumerate(tasks_of(path, settings)))):
        reader = ClipReader(settings.reading)
        assert np.array_equal(reader.read(task)[0], frames[number * 5 : number * 5 + 5])
        reader.close()


def test_frames_that_are_not_those_of_the_plan_are_refused(tmp_path):
    path = render(tmp_path / "a.mp4", scene(20, 16, 16))
    from dataclasses import replace

    (task, *_) = tasks_of(path, Settings(clip_frames=5))
    for wrong in ({"last": task.last + 1}, {"start": task.start + Fraction(1, 100)}, {"frames": 50}):
        with pytest.raises(MediaError, match="not those that were planned"):
            ClipReader({}).read(replace(task, **wrong))
    with pytest.raises(MediaError, match="changed since it was planned"):
        ClipReader({}).read(replace(task, stamp="another"))


def test_videos_are_read_through_in_other_processes(tmp_path):
    whole = render(tmp_path / "a.mp4", scene(20, 16, 16))
    broken = tmp_path / "b.mp4"
    broken.write_bytes(whole.read_bytes()[:1000])
    missing = str(tmp_path / "c.mp4")
    found = dict(probe_all([str(whole), str(broken), missing], Settings().reading, workers=2))
    assert found[str(whole)] == probe(str(whole), Settings().reading)
    assert len(found[str(whole)].timeline) == 20
    for path in (str(broken), missing):
        assert isinstance(found[path], Unreadable)
        assert path in found[path].reason
    assert len(cut(found[str(whole)], Settings(clip_frames=5), None, None).spans) == 4
