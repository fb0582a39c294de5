"""Reading containers: what is shown, upright, when, and in how much memory."""

import struct
import tracemalloc
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from video_files import numbered, numbers, render, scene

from temporal_vae.errors import InputError, MediaError
from temporal_vae.media.frames import clip_starts
from temporal_vae.media.reader import VideoReader
from temporal_vae.media.writer import VideoWriter

LOSSLESS = {"crf": "0", "preset": "ultrafast"}


def read(path, **arguments):
    """All frames, stacked, and their time stamps."""
    with VideoReader(path, **arguments) as reader:
        frames, stamps = zip(*reader, strict=True)
    return np.stack(frames), list(stamps)


def corners(frame: np.ndarray) -> list[list[int]]:
    """Which of red, green, blue is above the middle in each quarter, as a number of three bits."""
    height, width = frame.shape[:2]
    return [[int((frame[height * y // 4, width * x // 4] > 128) @ [4, 2, 1]) for x in (1, 3)] for y in (1, 3)]


def test_frames_and_stamps_of_a_plain_video(tmp_path):
    frames = scene(30)
    path = render(tmp_path / "a.mkv", frames, codec="ffv1", pix_fmt="bgr0")
    with VideoReader(path) as reader:
        info = reader.info
        assert (info.width, info.height, info.rate, info.frames, info.codec) == (64, 48, 25, 30, "ffv1")
        assert (info.duration, info.has_audio, info.rotation, info.pixel_aspect) == (
            Fraction(6, 5),
            False,
            0,
            1,
        )
        assert reader.expected_frames == 30
        (clip,) = reader.clips()
        again = list(reader)
    np.testing.assert_array_equal(clip.frames, frames)
    assert clip.timestamps == tuple(Fraction(n, 25) for n in range(30))
    assert (clip.rate, clip.color.matrix) == (25, "rgb")
    assert len(again) == 30  # each iteration starts over


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("degrees", [0, 90, 180, 270])  # counter-clockwise
def test_frames_come_upright(tmp_path, degrees, mirrored):
    stored = np.zeros((3, 48, 64, 3), np.uint8)
    stored[:, :24, :32], stored[:, :24, 32:], stored[:, 24:, :32] = (250, 0, 0), (0, 250, 0), (0, 0, 250)
    path = render(tmp_path / "a.mp4", stored, options=LOSSLESS, rotation=(degrees, mirrored))
    upright = np.rot90(stored[0], degrees // 90)
    if mirrored:
        upright = upright[:, ::-1]
    with VideoReader(path) as reader:
        (frame, _), *_ = reader
        assert (reader.info.height, reader.info.width) == upright.shape[:2] == frame.shape[:2]
        assert (reader.info.rotation, reader.info.mirrored) == (-degrees % 360, mirrored)
    assert corners(frame) == corners(upright)


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt", "tick"),
    [
        ("a.mp4", "libx264", "yuv420p", 0),
        ("a.mkv", "libx264", "yuv420p", Fraction(1, 1000)),
        ("a.ts", "libx264", "yuv420p", Fraction(1, 90000)),
        ("a.mov", "prores_ks", "yuv422p10le", 0),
        ("a.mov", "qtrle", "rgb24", 0),
        ("a.webm", "libvpx-vp9", "yuv420p", Fraction(1, 1000)),
        ("a.avi", "ffv1", "yuv422p10le", 0),
        ("a.nut", "ffv1", "gbrp10le", 0),
        ("a.mpg", "mpeg2video", "yuv420p", Fraction(1, 90000)),
        ("a.h264", "libx264", "yuv420p", 0),
        ("a.mjpeg", "mjpeg", "yuvj420p", 0),
    ],
)
def test_every_frame_of_every_container_in_order(tmp_path, name, codec, pix_fmt, tick):
    rate = 25 if codec == "mjpeg" else 30  # a bare stream of JPEG images carries no rate
    path = render(tmp_path / name, numbered(40), codec=codec, pix_fmt=pix_fmt, rate=rate, options={"g": "12"})
    frames, stamps = read(path)
    assert numbers(frames) == list(range(40))
    assert max(abs(stamp - Fraction(n, rate)) for n, stamp in enumerate(stamps)) <= tick
    later, late_stamps = read(path, start=Fraction(27, rate), frames=5)
    assert numbers(later) == [27, 28, 29, 30, 31]
    assert late_stamps == stamps[27:32]


def test_a_variable_rate_is_kept(tmp_path):
    pts = [0, 100, 133, 700, 701, 2000, 2500, 2501, 2502, 9000]
    path = render(
        tmp_path / "a.mp4", numbered(10), rate=30, pts=pts, time_base=Fraction(1, 1000), options={"bf": "2"}
    )
    frames, stamps = read(path)
    assert numbers(frames) == list(range(10))
    assert stamps == [Fraction(tick, 1000) for tick in pts]
    frames, stamps = read(path, fps=2)
    assert numbers(frames) == [0, 3, 4, 5, 5, 6] + [8] * 6 + [9] * 7
    assert stamps == [Fraction(n, 2) for n in range(19)]


def test_a_video_that_begins_late_begins_at_zero(tmp_path):
    pts = [5000 + 40 * n for n in range(10)]
    path = render(tmp_path / "a.mkv", numbered(10), pts=pts, time_base=Fraction(1, 1000))
    with VideoReader(path) as reader:
        assert reader.info.first_time == 5
        assert [stamp for _, stamp in reader] == [Fraction(n, 25) for n in range(10)]
    assert numbers(read(path, start=0.2)[0]) == [5, 6, 7, 8, 9]


def test_stamps_that_repeat_or_run_backwards_are_repaired(tmp_path):
    path = tmp_path / "a.mov"
    with av.open(str(path), "w") as output:
        stream = output.add_stream("mjpeg", rate=25, time_base=Fraction(1, 25))
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuvj420p"
        packets = []
        for frame in numbered(7):
            picture = av.VideoFrame.from_ndarray(frame).reformat(format="yuvj420p")
            packets += stream.encode(picture)
        packets += stream.encode(None)
        for index, (packet, pts) in enumerate(zip(packets, [0, 1, 1, 3, 2, 9, 10], strict=True)):
            packet.pts, packet.dts = pts, index - 10
            output.mux(packet)
    frames, stamps = read(path)
    assert numbers(frames) == list(range(7))
    assert stamps == [Fraction(n, 25) for n in (0, 1, 2, 3, 4, 9, 10)]


@pytest.mark.parametrize("name", ["a.mkv", "a.flv"])
@pytest.mark.parametrize("rate", [30, Fraction(30000, 1001)])
def test_a_rate_that_is_the_clock_of_the_file_is_counted(tmp_path, name, rate):
    source, path = (
        render(tmp_path / "source.mp4", numbered(60), rate=rate, options={"bf": "0"}),
        tmp_path / name,
    )
    with av.open(str(source)) as container, av.open(str(path), "w") as output:
        stream = output.add_stream_from_template(container.streams.video[0])
        stream.time_base = Fraction(1, 1000)
        for packet in container.demux(video=0):
            if packet.size:
                packet.duration = 0
                packet.stream = stream
                output.mux(packet)
    with VideoReader(path) as reader:
        assert abs(reader.rate / rate - 1) < 1e-4
        assert abs(reader.expected_frames - 60) <= 1
        assert len(list(reader)) == 60


def test_frames_of_an_avi_that_are_reordered_come_at_their_rate(tmp_path):
    path = render(tmp_path / "a.avi", numbered(30), options={"bf": "3", "g": "15"})
    frames, stamps = read(path)
    assert stamps == [Fraction(n, 25) for n in range(30)]
    assert numbers(frames) == list(range(30))


def test_the_last_frame_is_repeated_as_long_as_it_is_shown(tmp_path):
    with VideoWriter(tmp_path / "a.mp4", rate=25) as writer:
        writer.write(numbered(10))
        writer.finish(Fraction(2))
    assert numbers(read(tmp_path / "a.mp4", fps=5)[0]) == [0, 5] + [9] * 10
    with VideoReader(tmp_path / "a.mp4", frames=4) as reader:
        assert len(list(reader)) == 4
        assert reader.last_duration == Fraction(1, 25)


def test_edit_lists_hide_what_they_hide(tmp_path):
    path = render(tmp_path / "a.mp4", numbered(40), options={"g": "10", "bf": "2"})
    data = bytearray(path.read_bytes())
    place = data.index(b"elst") + 12
    _, begin = struct.unpack_from(">Ii", data, place)
    struct.pack_into(">Ii", data, place, 800, begin + 13 * 512)  # 800 ms from the 13th frame on
    path.write_bytes(data)
    frames, stamps = read(path)
    assert numbers(frames) == list(range(13, 33))
    assert stamps == [Fraction(n, 25) for n in range(20)]
    assert numbers(read(path, start=0.4)[0]) == list(range(23, 33))


def test_fragments_are_one_video(tmp_path):
    options = {"movflags": "frag_keyframe+empty_moov"}
    path = render(tmp_path / "a.mp4", numbered(40), options={"g": "10"}, container_options=options)
    assert numbers(read(path)[0]) == list(range(40))
    assert numbers(read(path, start=1.2)[0]) == list(range(30, 40))


def test_tags_need_not_be_utf_8(tmp_path):
    path = render(tmp_path / "a.mp4", numbered(3), tags={"handler_name": "Caf__ noir"})
    data = path.read_bytes()
    assert b"Caf__ noir" in data
    path.write_bytes(data.replace(b"Caf__ noir", b"Caf\xe9\xff noir"))
    assert numbers(read(path)[0]) == [0, 1, 2]


@pytest.mark.parametrize(
    "name", ["a:b.mp4", "a%03d.mp4", "film été 日本.mp4", "-a.mp4", "file:a.mp4", "A.MP4"]
)
def test_file_names_are_only_names(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with VideoWriter(name, rate=25) as writer:
        writer.write(numbered(3))
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert numbers(read(name)[0]) == [0, 1, 2]


def test_delayed_frames_are_not_lost(tmp_path):
    path = render(tmp_path / "a.mp4", numbered(33), options={"bf": "8", "b-adapt": "0", "g": "33"})
    assert numbers(read(path)[0]) == list(range(33))


@pytest.mark.parametrize("size", [(47, 64), (48, 63), (47, 63), (9, 11)])
def test_odd_sizes(tmp_path, size):
    frames = scene(3, *size)
    path = render(tmp_path / "a.mkv", frames, codec="ffv1", pix_fmt="bgr0")
    np.testing.assert_array_equal(read(path)[0], frames)
    path = render(tmp_path / "b.mkv", frames, codec="ffv1", pix_fmt="yuv420p")
    assert read(path)[0].shape == frames.shape


def test_ten_bits_are_rounded(tmp_path):
    frames = scene(2, 64, 64)
    path = render(tmp_path / "a.mp4", frames, codec="libx264", pix_fmt="yuv444p10le", options={"crf": "0"})
    difference = read(path)[0].astype(float) - frames
    assert np.abs(difference).mean() <= 1
    assert abs(difference.mean()) < 0.2


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt"),
    [
        ("a.mkv", "ffv1", "bgra"),
        ("a.mov", "qtrle", "argb"),
        ("a.mov", "prores_ks", "yuva444p10le"),
        ("a.webm", "libvpx-vp9", "yuva420p"),
        ("a.apng", "apng", "rgba"),
    ],
)
def test_alpha_is_composited_on_the_background(tmp_path, name, codec, pix_fmt):
    frames = np.full((4, 64, 64, 4), 200, np.uint8)
    frames[:, :, :32, 3] = 0
    frames[:, :, 32:, 3] = 255
    frames[:, 32:, 32:, 3] = 128
    tags = {"alpha_mode": "1"} if codec == "libvpx-vp9" else {}
    path = render(tmp_path / name, frames, codec=codec, pix_fmt=pix_fmt, tags=tags)
    for background, level in (("black", 0), ((255, 255, 255), 255)):
        frame = read(path, background=background)[0][1].astype(int)
        assert abs(frame[16, 8] - level).max() <= 3
        assert abs(frame[16, 56] - 200).max() <= 3
        assert abs(frame[48, 56] - (200 * 128 + level * 127) / 255).max() <= 3


def test_size_keeps_the_aspect_and_is_filtered(tmp_path):
    frames = scene(2, 120, 160)
    frames[:, ::2] = 255 - frames[:, ::2]  # fine stripes average out to grey, they do not alias
    path = render(tmp_path / "a.mkv", frames, codec="ffv1", pix_fmt="bgr0")
    with VideoReader(path, size=40) as reader:
        assert (reader.width, reader.height, reader.info.width) == (40, 30, 160)
        (clip,) = reader.clips()
    assert clip.frames.shape == (2, 30, 40, 3)
    assert np.abs(clip.frames.astype(float) - 127.5).max() < 12
    assert read(path, size=(50, 20))[0].shape == (2, 20, 50, 3)
    assert read(path, size=(80, None))[0].shape == (2, 60, 80, 3)


def test_start_frames_and_fps_go_together(tmp_path):
    path = render(tmp_path / "a.mp4", numbered(50), options={"g": "10"})
    with VideoReader(path, start=0.5, frames=4, fps=12.5) as reader:
        assert (reader.rate, reader.expected_frames) == (Fraction(25, 2), 4)
        (clip,) = reader.clips()
    assert numbers(clip.frames) == [13, 15, 17, 19]
    assert clip.timestamps[0] == Fraction(13, 25)
    assert clip.rate == Fraction(25, 2)
    assert len(read(path, fps=50)[0]) == 100


def test_resampling_to_the_rate_it_has_changes_no_frame(tmp_path):
    path = render(tmp_path / "a.mkv", numbered(30), rate=30)  # its stamps are rounded to milliseconds
    frames, stamps = read(path, fps=30)
    assert numbers(frames) == list(range(30))
    assert stamps == [Fraction(n, 30) for n in range(30)]


@pytest.mark.parametrize(("clip_frames", "overlap"), [(7, 0), (7, 3), (20, 19), (25, 5), (1, 0), (None, 0)])
def test_clips_are_cut_as_clip_starts_says(tmp_path, clip_frames, overlap):
    path = render(tmp_path / "a.mkv", numbered(20), codec="ffv1", pix_fmt="bgr0")
    with VideoReader(path) as reader:
        clips = list(reader.clips(clip_frames, overlap))
    cuts = list(clip_starts(20, clip_frames, overlap))
    assert [numbers(clip.frames) for clip in clips] == [list(range(*cut)) for cut in cuts]
    assert [clip.timestamps[0] for clip in clips] == [Fraction(start, 25) for start, _ in cuts]


def test_memory_does_not_grow_with_the_video(tmp_path):
    path = render(
        tmp_path / "a.mp4", scene(600, 24, 32).repeat(10, 1).repeat(10, 2), options={"preset": "ultrafast"}
    )
    frame_bytes = 240 * 320 * 3
    with VideoReader(path) as reader:
        frames = iter(reader)
        for _ in range(50):
            next(frames)
        resident = _resident_bytes()
        tracemalloc.start()
        count = sum(1 for _ in frames)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert count == 550
    assert peak < 12 * frame_bytes
    assert _resident_bytes() - resident < 100 * frame_bytes  # all frames would be 550


def _resident_bytes() -> int:
    statm = Path("/proc/self/statm")
    if not statm.exists():
        pytest.skip("resident memory is read from /proc")
    return int(statm.read_text().split()[1]) * 4096


def test_the_pixel_aspect_is_told_and_turned(tmp_path):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)
        stream.set_display_rotation(90)
        output.mux(stream.encode(av.VideoFrame.from_ndarray(scene(1)[0])))
        output.mux(stream.encode(None))
    assert VideoReader(path).info.pixel_aspect == Fraction(3, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"start": -1}, "start=-1"),
        ({"frames": 0}, "frames=0"),
        ({"fps": 0}, "fps=0"),
        ({"fps": "quick"}, "fps='quick'"),
        ({"size": 0}, "size=0"),
        ({"background": "nocolour"}, "background='nocolour'"),
    ],
)
def test_arguments_out_of_range(tmp_path, arguments, message):
    path = render(tmp_path / "a.mp4", numbered(2))
    with pytest.raises(InputError, match=message):
        VideoReader(path, **arguments)


def test_a_start_after_the_end(tmp_path):
    path = render(tmp_path / "a.mp4", numbered(10))
    with pytest.raises(MediaError, match=r"a\.mp4: no frame at or after 7\.5 s; choose an earlier start"):
        read(path, start=7.5)


def test_files_are_closed_when_the_reader_is(tmp_path):
    path = render(tmp_path / "a.mp4", numbered(10))
    with VideoReader(path) as reader:
        frames = iter(reader)
        next(frames)
    assert next(frames, None) is None
