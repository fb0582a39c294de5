"""Files that are missing, empty, cut off, corrupt, or not what they say: one clear line, no hang, no partial output."""

import os
import struct
import wave

import numpy as np
import pytest
from PIL import Image
from video_files import numbered, numbers, render, scene

from temporal_vae.errors import MediaError
from temporal_vae.video.cutoff import is_cut_off
from temporal_vae.video.reader import VideoReader
from temporal_vae.video.writer import VideoWriter


def read_until_broken(path, **arguments):
    """The frames that are delivered, and the error after them."""
    frames = []
    with pytest.raises(MediaError) as caught:
        frames.extend(frame for frame, _ in VideoReader(path, **arguments))
    message = str(caught.value)
    assert "\n" not in message
    assert path.name in message
    return frames, message


def cut(path, share):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def test_missing_empty_and_special_files(tmp_path):
    with pytest.raises(MediaError, match=r"none\.mp4: no such file or folder"):
        VideoReader(tmp_path / "none.mp4")
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(MediaError, match=r"empty\.mp4: the file is empty"):
        VideoReader(tmp_path / "empty.mp4")
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(MediaError, match=r"pipe\.mp4: neither a file nor a folder"):
        VideoReader(tmp_path / "pipe.mp4")


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.png", "a.gif", "a.txt", "a.nfo"])
@pytest.mark.parametrize(
    "content", [b"This is no video.\n" * 300, b"\0" * 5000, bytes(range(256)) * 40, b"\xff\xd8\xff\xe0 no"]
)
def test_files_that_are_something_else(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    frames, _ = read_until_broken(tmp_path / name)
    assert not frames


def test_sound_alone_is_no_video(tmp_path):
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((1, 2, 8000, 8000, "NONE", ""))
        file.writeframes(np.zeros(8000, np.int16).tobytes())
    with pytest.raises(
        MediaError, match=r"a\.wav: holds no video, only audio; give a file with a video stream"
    ):
        VideoReader(tmp_path / "a.wav")


def test_an_mp4_without_its_index(tmp_path):
    path = cut(render(tmp_path / "a.mp4", scene(30)), 0.6)
    frames, message = read_until_broken(path)
    assert not frames
    assert "damaged, incomplete or of another kind: copy or export it again" in message


@pytest.mark.parametrize("audio", [None, "aac"])
def test_an_mp4_that_breaks_off(tmp_path, audio):
    path = tmp_path / "a.mp4"
    options = {"movflags": "faststart"}
    render(path, scene(60), options={"g": "10"}, container_options=options, audio=audio)
    frames, message = read_until_broken(cut(path, 0.6))
    assert 0 < len(frames) < 60
    assert f"broken after frame {len(frames)} at " in message


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt"),
    [
        ("a.mkv", "ffv1", "bgr0"),
        ("a.mkv", "libx264", "yuv420p"),
        ("a.webm", "libvpx-vp9", "yuv420p"),
        ("a.avi", "mpeg4", "yuv420p"),
        ("a.ts", "libx264", "yuv420p"),
    ],
)
@pytest.mark.parametrize("share", [0.6, 0.9])
def test_other_containers_that_break_off(tmp_path, name, codec, pix_fmt, share):
    path = render(tmp_path / name, scene(60, 96, 128), codec=codec, pix_fmt=pix_fmt, options={"g": "10"})
    if name == "a.ts":
        share = (int(path.stat().st_size * share) // 188 + 0.5) * 188 / path.stat().st_size
    frames, message = read_until_broken(cut(path, share))
    assert 10 < len(frames) < 60
    assert f"broken after frame {len(frames)} at " in message


def test_a_quicktime_without_its_index(tmp_path):
    path = render(tmp_path / "a.mov", scene(20), codec="qtrle", pix_fmt="rgb24")
    frames, _ = read_until_broken(cut(path, 0.7))
    assert not frames


def test_the_part_before_the_damage_can_be_read(tmp_path):
    options = {"movflags": "faststart"}
    path = render(tmp_path / "a.mp4", numbered(60), options={"g": "10"}, container_options=options)
    intact, _ = read_until_broken(cut(path, 0.7))
    assert len(intact) > 12
    with VideoReader(path, frames=len(intact)) as reader:
        assert numbers(frame for frame, _ in reader) == list(range(len(intact)))
    frames, message = read_until_broken(path, start=0.2)
    assert len(frames) == len(intact) - 5
    assert f"at {(len(intact) - 1) / 25:.3f} s" in message


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.mkv", "ffv1", {"level": "3", "slicecrc": "1"}),
        ("a.mp4", "libx264", {"g": "10", "coder": "0"}),
        ("a.avi", "mpeg4", {"g": "10"}),
        ("a.png", None, {}),
    ],
)
def test_corrupt_data_in_the_middle(tmp_path, name, codec, options):
    path = tmp_path / name
    if codec:
        render(path, scene(60), codec=codec, pix_fmt="yuv420p", options=options)
    else:
        Image.fromarray(scene(1, 200, 200)[0]).save(path)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 300] = np.random.default_rng(0).integers(0, 256, 300, np.uint8).tobytes()
    path.write_bytes(data)
    frames, _ = read_until_broken(path)
    assert len(frames) < 60


def test_no_partial_output_of_a_broken_source(tmp_path):
    source = tmp_path / "a.mp4"
    render(source, scene(60), options={"g": "10"}, container_options={"movflags": "faststart"}, audio="aac")
    cut(source, 0.6)

    def copy() -> None:
        with (
            VideoReader(source) as reader,
            VideoWriter(tmp_path / "out.mp4", rate=25, audio_from=source) as writer,
        ):
            for clip in reader.clips(4):
                writer.write(clip.frames, clip.timestamps)

    with pytest.raises(MediaError, match=r"a\.mp4: broken after frame"):
        copy()
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_a_header_that_declares_a_huge_picture(tmp_path):
    path = render(tmp_path / "a.mov", scene(3, 64, 64), codec="qtrle", pix_fmt="rgb24")
    data = bytearray(path.read_bytes())
    struct.pack_into(
        ">HH", data, data.index(b"rle ") + 28, 60000, 60000
    )  # the sample entry's width and height
    path.write_bytes(data)
    frames, message = read_until_broken(path)
    assert not frames
    assert "its picture size is missing or over the limit of 67108864 pixels" in message
    head = b"YUV4MPEG2 W60000 H60000 F25:1 C420\nFRAME\n" + bytes(1000)
    (tmp_path / "b.y4m").write_bytes(head)
    frames, _ = read_until_broken(tmp_path / "b.y4m")
    assert not frames
    gif = bytearray(b"GIF89a" + struct.pack("<HH", 60000, 60000) + b"\0\0\0;")
    (tmp_path / "c.gif").write_bytes(gif)
    frames, _ = read_until_broken(tmp_path / "c.gif")
    assert not frames


def test_the_limit_of_a_picture_can_be_set(tmp_path):
    path = render(tmp_path / "a.mp4", scene(3, 64, 64))
    with pytest.raises(MediaError, match=r"a\.mp4: a picture of 64x64 is over the limit of 4095 pixels"):
        VideoReader(path, max_pixels=4095)
    with VideoReader(path, max_pixels=4096) as reader:
        assert len(list(reader)) == 3


def test_a_header_that_declares_millions_of_frames(tmp_path):
    path = render(tmp_path / "a.avi", scene(30), codec="mpeg4")
    data = bytearray(path.read_bytes())
    for mark, offset in ((b"avih", 8 + 16), (b"strh", 8 + 32)):
        struct.pack_into("<I", data, data.index(mark) + offset, 50_000_000)
    path.write_bytes(data)
    frames, message = read_until_broken(path)
    assert len(frames) == 30
    assert "broken after frame 30" in message


def test_an_avi_knows_its_length(tmp_path):
    path = render(tmp_path / "a.avi", scene(10), codec="mpeg4")
    assert not is_cut_off(path, path.stat().st_size)
    assert is_cut_off(path, path.stat().st_size - 1)


def test_matroska_files_know_their_length(tmp_path):
    path = render(tmp_path / "a.mkv", scene(10))
    data = path.read_bytes()
    assert not is_cut_off(path, len(data))
    assert is_cut_off(path, len(data) - 1)
    for junk in (b"", b"\x1a\x45\xdf\xa3", b"\x1a\x45\xdf\xa3\x80", bytes(100), data[:50]):
        (tmp_path / "b").write_bytes(junk)
        assert not is_cut_off(tmp_path / "b", len(junk)) or junk == data[:50]


def test_a_recording_that_begins_between_key_frames(tmp_path):
    path = render(tmp_path / "a.ts", numbered(60), options={"g": "15"})
    data = path.read_bytes()
    path.write_bytes(data[188 * (len(data) // 188 // 5) :])
    with VideoReader(path) as reader:
        seen = numbers(frame for frame, _ in reader)
    assert 0 < seen[0] <= 30
    assert seen == list(range(seen[0], 60))
