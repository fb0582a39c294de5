"""Files that are missing, empty, cut off, corrupt, or not what they say: one clear line, no hang, no partial output."""

import os
import struct
import wave
from fractions import Fraction

import av
import av.filter
import numpy as np
import pytest
from PIL import Image
from refusals import refused
from video_files import numbered, numbers, render, scene

from temporal_vae.errors import InputError, MediaError
from temporal_vae.media.cutoff import is_cut_off
from temporal_vae.media.reader import VideoReader
from temporal_vae.media.writer import VideoWriter


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
    if name == "a.ts":  # it tells no length; a packet of the video that is not whole does
        data = path.read_bytes()
        packets = [
            n for n in range(len(data) // 188) if data[188 * n + 1] & 0x1F == 1 and data[188 * n + 2] == 0
        ]
        share = (packets[int(len(packets) * share)] + 0.5) * 188 / len(data)
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
    assert "its image size is missing or over the limit of 67108864 pixels" in message
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
    with pytest.raises(MediaError, match=r"a\.mp4: an image of 64x64 is over the limit of 4095 pixels"):
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


# Nothing lost is no error; something lost is one, or is counted


def remux(source, target, change=lambda packet: packet, **options):
    """Copy the video packets of a file, each as `change` makes it; None leaves one out."""
    with av.open(str(source)) as container, av.open(str(target), "w", **options) as output:
        stream = output.add_stream_from_template(container.streams.video[0])
        for packet in container.demux(video=0):
            if packet.size and (packet := change(packet)) is not None:
                packet.stream = stream
                output.mux(packet)
    return target


def test_joined_transport_streams(tmp_path):
    """As `cat a.ts b.ts` makes them: time goes on at the joint."""
    part = render(tmp_path / "a.ts", numbered(30), options={"g": "10", "bf": "2"})
    (tmp_path / "joined.ts").write_bytes(part.read_bytes() * 2)
    with VideoReader(tmp_path / "joined.ts") as reader:
        frames, stamps = zip(*reader, strict=True)
    assert numbers(frames) == [*range(30), *range(30)]
    assert [float(stamp) for stamp in stamps] == pytest.approx([n / 25 for n in range(60)])


def test_junk_before_a_transport_stream(tmp_path):
    path = render(tmp_path / "a.ts", numbered(30), options={"g": "10"})
    path.write_bytes(b"<html>" * 11 + path.read_bytes())
    with VideoReader(path) as reader:
        assert numbers(frame for frame, _ in reader) == list(range(30))


def test_an_incomplete_packet_of_sound_at_the_end(tmp_path):
    path = render(tmp_path / "a.ts", numbered(30), options={"g": "10"}, audio="aac")
    data = path.read_bytes()
    of_video = [
        n for n in range(len(data) // 188) if data[188 * n + 1] & 0x1F == 1 and data[188 * n + 2] == 0
    ]
    of_sound = [
        n for n in range(len(data) // 188) if data[188 * n + 1] & 0x1F == 1 and data[188 * n + 2] == 1
    ]
    last = of_sound[-1]
    assert last > of_video[-1]
    path.write_bytes(data[: 188 * last + 90])
    with VideoReader(path) as reader:
        assert len(list(reader)) == 30


def test_a_matroska_header_that_outlasts_the_last_frame(tmp_path):
    """Some other track may be that long, or the last frame is shown for so long."""
    path = render(tmp_path / "a.mkv", numbered(30), codec="mpeg4")
    data = bytearray(path.read_bytes())
    place = data.index(b"DURATION") if b"DURATION" in data else data.index(b"00:00:01.2")
    clock = data.index(b"00:00:01", place)
    data[clock : clock + 8] = b"00:00:09"
    path.write_bytes(data)
    with VideoReader(path) as reader:
        assert len(list(reader)) == 30


def test_tiff_in_quicktime(tmp_path):
    path = render(tmp_path / "a.mov", scene(4), codec="tiff", pix_fmt="rgb24")
    with VideoReader(path) as reader:
        frames, _ = zip(*reader, strict=True)
    assert np.array_equal(np.stack(frames), scene(4))


@pytest.mark.parametrize("share", [0.9, 0.95, 0.99])
def test_padding_that_is_cut_off_is_no_loss(tmp_path, share):
    """FFmpeg does not tell how long an ASF file should be that is cut off; its header does."""
    path = render(tmp_path / "a.wmv", scene(40, 96, 128), codec="wmv2", options={"g": "5"}, container="asf")
    with VideoReader(cut(path, share)) as reader:
        assert len(list(reader)) == 40


CUT_SHORT = [
    ("a.flv", "flv1", {}),
    ("a.wmv", "wmv2", {"format": "asf"}),
    ("a.mp4", "libx264", {"container_options": {"movflags": "frag_keyframe+empty_moov"}}),
    ("a.mkv", "mpeg4", {}),
    ("a.avi", "mpeg4", {}),
    ("a.mov", "mpeg4", {"container_options": {"movflags": "faststart"}}),
]


@pytest.mark.parametrize(
    ("name", "codec", "more", "share"),
    [
        (*file, share)
        for file in CUT_SHORT
        for share in (0.7, 0.95)
        if file[0] != "a.wmv" or share < 0.9  # what it loses later is padding
    ],
)
def test_what_is_cut_off_is_missed(tmp_path, name, codec, more, share, caplog):
    """By default an error after the frames before it; `keep` delivers them and a line counts what is lost."""
    container = more.get("format")
    options = {"container_options": more["container_options"]} if "container_options" in more else {}
    path = render(
        tmp_path / name, scene(40, 96, 128), codec=codec, options={"g": "5"}, container=container, **options
    )
    with VideoReader(path) as reader:
        assert len(list(reader)) == 40
    frames, message = read_until_broken(cut(path, share))
    assert 0 < len(frames) < 40
    assert message.endswith("(--damaged keep)")
    with VideoReader(path, damaged="keep") as reader:
        kept = len(list(reader))
    assert len(frames) <= kept < 40
    (record,) = caplog.records
    assert f"{name}: damaged (" in record.getMessage()
    assert f"{kept} frames are kept" in record.getMessage()


def test_corrupt_data_in_the_middle_is_passed_over(tmp_path, caplog):
    options = {"options": {"g": "10", "coder": "0"}, "container_options": {"movflags": "faststart"}}
    path = render(tmp_path / "a.mp4", scene(60), **options)
    whole = [frame for frame, _ in VideoReader(path)]
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 300] = np.random.default_rng(0).integers(0, 256, 300, np.uint8).tobytes()
    path.write_bytes(data)
    intact, _ = read_until_broken(path)
    with VideoReader(path, damaged="keep") as reader:
        frames = [frame for frame, _ in reader]
    assert all(np.array_equal(*pair) for pair in zip(frames[: len(intact)], whole, strict=False))
    assert all(np.array_equal(*pair) for pair in zip(frames[-5:], whole[-5:], strict=True))
    assert len(caplog.records) == 1


def test_an_animation_that_breaks_off(tmp_path, caplog):
    frames = np.random.default_rng(0).integers(0, 256, (6, 40, 40, 3)).astype(np.uint8)
    with VideoWriter(tmp_path / "a.gif", rate=10) as writer:
        writer.write(frames)
    cut(tmp_path / "a.gif", 0.6)
    intact, _ = read_until_broken(tmp_path / "a.gif")
    assert len(intact) == 3
    with VideoReader(tmp_path / "a.gif", frames=3) as reader:
        assert len(list(reader)) == 3
    with VideoReader(tmp_path / "a.gif", damaged="keep") as reader:
        assert len(list(reader)) == 3
    (record,) = caplog.records
    assert "3 frames are kept, 1 of 4 are lost" in record.getMessage()


def test_nothing_can_be_kept(tmp_path):
    path = cut(render(tmp_path / "a.mp4", scene(30)), 0.6)
    refused(
        MediaError,
        lambda: VideoReader(path, damaged="keep"),
        "a.mp4",
        "damaged, incomplete or of another kind",
    )
    refused(InputError, lambda: VideoReader(path, damaged="yes"), "damaged='yes'", "error or keep")


# Seeks


@pytest.mark.parametrize("start", [0.5, 1.1])
def test_a_seek_ends_at_a_whole_frame(tmp_path, start):
    """Where all packets are flagged as key frames, the flags tell nothing: what comes must not depend on them."""

    def flag(packet):
        packet.is_keyframe = True
        return packet

    source = render(tmp_path / "a.avi", numbered(40), codec="mpeg4", options={"g": "15"})
    path = remux(source, tmp_path / "b.mkv", flag)
    with VideoReader(path) as reader:
        through = [(frame.tobytes(), stamp) for frame, stamp in reader if stamp >= start]
    with VideoReader(path, start=start) as reader:
        assert [(frame.tobytes(), stamp) for frame, stamp in reader] == through


# Fields


def fields(frames):
    """A video of twice as many fields as frames, the upper field first; each frame holds two moments."""
    woven = frames[0::2].copy()
    woven[:, 1::2] = frames[1::2, 1::2]
    return woven


@pytest.mark.parametrize("suffix", ["mpg", "mp4"])
def test_fields_become_frames(tmp_path, suffix):
    moving = np.zeros((40, 64, 64, 3), np.uint8)
    for t in range(40):
        moving[t, :, t : t + 16] = 200
    codec = {"mpg": "mpeg2video", "mp4": "libx264"}[suffix]
    flags = {"flags": "+ildct+ilme", "g": "5"} if suffix == "mpg" else {"x264-params": "tff=1"}
    path = tmp_path / f"a.{suffix}"
    with av.open(str(path), "w") as output:
        stream = output.add_stream(
            codec, rate=25, options={**flags, **({"b:v": "8M"} if suffix == "mpg" else {})}
        )
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        graph = av.filter.Graph()
        source = graph.add_buffer(width=64, height=64, format="yuv420p", time_base=Fraction(1, 25))
        graph.link_nodes(source, graph.add("setfield", "tff"), graph.add("buffersink")).configure()
        for index, frame in enumerate(fields(moving)):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format="yuv420p")
            picture.pts, picture.time_base = index, Fraction(1, 25)
            graph.push(picture)
            output.mux(stream.encode(graph.pull()))
        output.mux(stream.encode(None))
    found = {}
    for how in ("auto", "never"):
        with VideoReader(path, deinterlace=how) as reader:
            assert reader.info.interlaced
            frames, stamps = zip(*reader, strict=True)
        assert list(stamps) == [Fraction(n, 25) for n in range(20)]
        rows = np.stack(frames)[2:-2, 8:-8].astype(int)
        found[how] = np.abs(np.diff(rows, axis=1)).mean()  # combs: every row differs from the next
    assert found["auto"] < found["never"] / 3


def test_progressive_frames_are_not_touched(tmp_path):
    path = render(tmp_path / "a.mp4", scene(5))
    auto, never = ([frame for frame, _ in VideoReader(path, deinterlace=how)] for how in ("auto", "never"))
    assert all(np.array_equal(a, b) for a, b in zip(auto, never, strict=True))
    refused(
        InputError, lambda: VideoReader(path, deinterlace="always"), "deinterlace='always'", "auto or never"
    )
