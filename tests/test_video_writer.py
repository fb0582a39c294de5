"""Writing videos: what comes back, the sound, and that nothing incomplete is left behind."""

import os
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition
from video_files import numbered, numbers, render, scene

from temporal_vae.errors import InputError, MediaError
from temporal_vae.media import audio as sound
from temporal_vae.media.frames import Color
from temporal_vae.media.reader import VideoReader
from temporal_vae.media.writer import VideoWriter, codec_for
from temporal_vae.outputs import complete_or_nothing


def read(path, **arguments):
    with VideoReader(path, **arguments) as reader:
        frames, stamps = zip(*reader, strict=True)
    return np.stack(frames), list(stamps)


def write(path, frames, stamps=None, *, rate=25, **arguments) -> None:
    with VideoWriter(path, rate=rate, **arguments) as writer:
        writer.write(frames, stamps)


def write_and_fail(path, frames, failure) -> None:
    with VideoWriter(path, rate=25) as writer:
        writer.write(frames)
        raise failure


def stream_of(path):
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return stream.codec_context.name, stream.codec_context.pix_fmt, stream.average_rate


@pytest.mark.parametrize("suffix", ["mp4", "mov", "m4v", "mkv"])
@pytest.mark.parametrize("rate", [25, Fraction(30000, 1001), 12.5])
def test_h264_keeps_size_rate_and_stamps(tmp_path, suffix, rate):
    path, frames = tmp_path / f"a.{suffix}", numbered(30)
    write(path, frames, rate=rate, codec="h264")
    with VideoReader(path) as reader:
        info = reader.info
        assert (info.codec, info.width, info.height) == ("h264", 48, 32)
        (clip,) = reader.clips()
    rate = Fraction(rate)
    assert numbers(clip.frames) == list(range(30))
    tolerance = Fraction(1, 1000) if suffix == "mkv" else 0
    assert max(abs(stamp - n / rate) for n, stamp in enumerate(clip.timestamps)) <= tolerance
    assert abs(info.rate - rate) < Fraction(1, 100)
    assert abs(info.duration - 30 / rate) <= Fraction(2, 1000)


@pytest.mark.parametrize(
    ("height", "width"), [(48, 64), (47, 64), (48, 63), (47, 63), (5, 7), (2, 2), (1, 1)]
)
def test_h264_keeps_odd_sizes(tmp_path, height, width):
    frames = scene(3, height, width)
    write(tmp_path / "a.mp4", frames, crf=4)
    assert read(tmp_path / "a.mp4")[0].shape == frames.shape
    assert stream_of(tmp_path / "a.mp4")[1] == ("yuv444p" if height % 2 or width % 2 else "yuv420p")


@pytest.mark.parametrize("size", [(48, 64), (47, 63)])
def test_ffv1_is_without_loss(tmp_path, size):
    frames = np.random.default_rng(0).integers(0, 256, (5, *size, 3), np.uint8)
    write(tmp_path / "a.mkv", frames)
    back, stamps = read(tmp_path / "a.mkv")
    np.testing.assert_array_equal(back, frames)
    assert stamps == [Fraction(n, 25) for n in range(5)]


@pytest.mark.parametrize("name", ["frames/", "frames", "frames.d"])
def test_png_folders_are_without_loss(tmp_path, name):
    frames = np.random.default_rng(0).integers(0, 256, (12, 20, 30, 3), np.uint8)
    write(f"{tmp_path}/{name}", frames, codec="png" if name == "frames.d" else None)
    folder = tmp_path / name
    assert sorted(path.name for path in folder.iterdir()) == [f"{n:06}.png" for n in range(12)]
    np.testing.assert_array_equal(read(folder)[0], frames)
    write(f"{tmp_path}/{name}", frames[:3], codec="png")  # takes the place of the earlier frames
    assert len(list(folder.iterdir())) == 3
    (folder / "keep.txt").write_text("mine")
    with pytest.raises(MediaError, match="the folder holds other files than frames"):
        write(f"{tmp_path}/{name}", frames, codec="png")
    assert (folder / "keep.txt").exists()


def test_gif_keeps_hundredths_and_colours(tmp_path):
    frames, stamps = scene(6, 40, 40), [Fraction(n) for n in ("0", "0.04", "0.1", "0.33", "0.345", "0.8")]
    write(tmp_path / "a.gif", frames, stamps)
    back, seen = read(tmp_path / "a.gif")
    assert seen == [Fraction(n, 100) for n in (0, 4, 10, 33, 80)]  # the fifth came within 2 hundredths
    difference = back.astype(float) - frames[[0, 1, 2, 3, 5]]
    assert np.abs(difference).mean() < 12
    assert np.abs(difference.mean((1, 2))).max() < 3
    with VideoReader(tmp_path / "a.gif") as reader:
        assert reader.info.frames == 5


def test_a_variable_rate_is_written_to_the_tick(tmp_path):
    source = render(
        tmp_path / "source.mp4",
        numbered(8),
        rate=30,
        pts=[0, 3003, 6006, 9100, 9101, 20000, 90000, 90001],
        time_base=Fraction(1, 90000),
    )
    with VideoReader(source) as reader:
        (clip,) = reader.clips()
        write(
            tmp_path / "a.mp4",
            clip.frames,
            clip.timestamps,
            rate=reader.rate,
            time_base=reader.info.time_base,
        )
    frames, stamps = read(tmp_path / "a.mp4")
    assert tuple(stamps) == clip.timestamps
    assert numbers(frames) == list(range(8))


def test_the_first_frame_is_at_zero_wherever_the_clip_was_cut(tmp_path):
    stamps = [Fraction(100) + Fraction(n, 25) for n in range(4)]
    write(tmp_path / "a.mp4", numbered(4), stamps)
    assert read(tmp_path / "a.mp4")[1] == [Fraction(n, 25) for n in range(4)]


def test_frames_written_piece_by_piece(tmp_path):
    frames = numbered(10)
    with VideoWriter(tmp_path / "a.mkv", rate=10) as writer:
        writer.write(frames[:0], [])
        writer.write(frames[:3])
        writer.write(frames[3:4], [Fraction(1)])
        writer.write(frames[4:])
    back, stamps = read(tmp_path / "a.mkv")
    np.testing.assert_array_equal(back, frames)
    assert stamps == [Fraction(n, 10) for n in (0, 1, 2, 10, 11, 12, 13, 14, 15, 16)]


def test_tags_and_aspect_are_declared(tmp_path):
    color = Color(matrix="bt2020nc", range="limited", primaries="bt2020", transfer="arib-std-b67")
    write(tmp_path / "a.mp4", scene(2), color=color, pixel_aspect=Fraction(4, 3))
    info = VideoReader(tmp_path / "a.mp4").info
    assert (info.color, info.pixel_aspect) == (color, Fraction(4, 3))


def test_the_index_of_an_mp4_comes_first(tmp_path):
    write(tmp_path / "a.mp4", scene(5))
    data, place, kinds = (tmp_path / "a.mp4").read_bytes(), 0, []
    while place < len(data):
        size, kind = struct.unpack(">I4s", data[place : place + 8])
        kinds.append(kind)
        place += size
    assert kinds.index(b"moov") < kinds.index(b"mdat")


# Sound


def sound_of(path) -> list[tuple[Fraction, bytes]]:
    with av.open(str(path)) as container:
        return [
            (packet.pts * packet.time_base, bytes(packet))
            for packet in container.demux(container.streams.audio[0])
            if packet.size
        ]


@pytest.mark.parametrize(
    ("audio", "suffix"), [("aac", "mp4"), ("aac", "mkv"), ("libopus", "mkv"), ("ac3", "mov")]
)
def test_sound_is_copied_bit_by_bit(tmp_path, audio, suffix):
    source = render(tmp_path / f"source.{suffix}", scene(50), audio=audio)
    write(tmp_path / f"a.{suffix}", scene(50), audio_from=source, codec="h264")
    before, after = sound_of(source), sound_of(tmp_path / f"a.{suffix}")
    assert [data for _, data in after] == [data for _, data in before][: len(after)]
    assert len(before) - len(after) <= 2  # what reaches over the end of the last frame
    copy, original = VideoReader(tmp_path / f"a.{suffix}").info, VideoReader(source).info
    assert copy.has_audio
    for (stamp, _), (source_stamp, _) in zip(after, before, strict=False):  # in step with the pictures
        assert abs((stamp - copy.first_time) - (source_stamp - original.first_time)) <= Fraction(2, 1000)


@pytest.mark.parametrize(
    ("name", "audio"), [("a.ts", "aac"), ("a.avi", "libmp3lame"), ("a.flv", "aac"), ("a.mkv", "flac")]
)
def test_sound_of_other_containers_plays_in_an_mp4(tmp_path, name, audio):
    source = render(tmp_path / name, scene(50), audio=audio)
    write(tmp_path / "out.mp4", scene(50), audio_from=source)
    with av.open(str(tmp_path / "out.mp4")) as container:
        samples = sum(frame.samples for frame in container.decode(audio=0))
    assert abs(samples - 96000) <= 2 * 1152


def test_sound_is_cut_to_what_is_shown(tmp_path):
    source = render(tmp_path / "source.mkv", numbered(50), audio="aac", options={"g": "10"})
    with VideoReader(source, start=0.8, frames=20) as reader:
        (clip,) = reader.clips()
    write(tmp_path / "a.mp4", clip.frames, clip.timestamps, audio_from=source)
    before, after = dict(map(reversed, sound_of(source))), sound_of(tmp_path / "a.mp4")
    packet = Fraction(1024, 48000)
    assert abs(len(after) * packet - Fraction(4, 5)) <= packet
    for stamp, data in after:  # in step with the pictures
        assert abs(before[data] - clip.timestamps[0] - stamp) < Fraction(2, 1000)


def test_pictures_come_first_and_all_tracks_are_copied(tmp_path):
    source = render(tmp_path / "one.mkv", scene(20), audio="aac")
    two = tmp_path / "two.mkv"
    with av.open(str(source)) as container, av.open(str(two), "w") as output:
        streams = [*container.streams.video, *container.streams.audio]
        copies = {s.index: [output.add_stream_from_template(s, opaque=True)] for s in streams}
        copies[1].append(output.add_stream_from_template(streams[1]))
        copies[1][1].metadata["language"] = "fra"
        for packet in [p for p in container.demux(*streams) if p.size]:
            for copy in copies[packet.stream.index]:
                packet.stream = copy
                output.mux(packet)
    write(tmp_path / "a.mkv", scene(20), audio_from=two)
    with av.open(str(tmp_path / "a.mkv")) as container:
        assert [stream.type for stream in container.streams] == ["video", "audio", "audio"]
        assert container.streams[2].language == "fra"


def with_sound(path, codec, frames=50):
    """A video with a tone of 500 Hz that begins with it."""
    with av.open(str(path), "w") as output:
        video = output.add_stream("mpeg4", rate=25)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        experimental = {"strict": "experimental"} if codec == "vorbis" else {}
        track = output.add_stream(codec, rate=48000, layout="stereo", options=experimental)
        track.bit_rate = 128_000
        context = track.codec_context
        context.open()
        for frame in scene(frames):
            output.mux(video.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        output.mux(video.encode(None))
        size = context.frame_size or 1024
        resampler = av.AudioResampler(context.format.name, context.layout.name, context.rate, frame_size=size)
        tone = np.sin(np.arange(frames * context.rate // 25) * 2 * np.pi * 500 / context.rate).astype(
            np.float32
        )
        whole = av.AudioFrame.from_ndarray(tone[None] / 2, format="fltp", layout="mono")
        whole.rate, whole.pts, whole.time_base = context.rate, 0, Fraction(1, context.rate)
        for part in [*resampler.resample(whole), *resampler.resample(None)]:
            output.mux(track.encode(part))
        output.mux(track.encode(None))
    return path


ANEW = [
    ("a.avi", "pcm_s16le", "mp4", "aac"),
    ("a.avi", "pcm_u8", "mp4", "aac"),
    ("a.avi", "adpcm_ms", "mp4", "aac"),
    ("a.mkv", "flac", "mov", "aac"),
    ("a.mkv", "libopus", "mov", "aac"),
    ("a.mkv", "vorbis", "mp4", "aac"),
    ("a.mkv", "wavpack", "mp4", "aac"),
    ("a.asf", "wmav2", "mp4", "aac"),
    ("a.asf", "wmav2", "mkv", "flac"),
]


@pytest.mark.parametrize(("name", "codec", "suffix", "new"), ANEW)
def test_sound_that_does_not_fit_is_coded_anew(tmp_path, caplog, name, codec, suffix, new):
    """Said in one line; as long as before, in step, and the same tone."""
    source = with_sound(tmp_path / name, codec)
    write(tmp_path / f"out.{suffix}", scene(50), audio_from=source, codec="h264")
    (record,) = caplog.records
    assert f"{name}: its sound (" in record.getMessage()
    assert f"is coded anew as {new.upper()} for .{suffix}" in record.getMessage()
    with av.open(str(tmp_path / f"out.{suffix}")) as container:
        track = container.streams.audio[0]
        assert track.codec_context.name == new
        mono = av.AudioResampler("fltp", "mono", 48000)
        frames = [part for frame in container.decode(track) for part in mono.resample(frame)]
    samples = np.concatenate([frame.to_ndarray()[0] for frame in frames])
    assert abs(len(samples) - 96000) < 4096
    spectrum = np.abs(np.fft.rfft(samples[8000:-8000]))
    assert abs(np.argmax(spectrum) * 48000 / (len(samples) - 16000) - 500) < 2


def test_sound_is_decided_before_anything_is_written(tmp_path):
    source = with_sound(tmp_path / "a.asf", "wmav2", frames=5)
    refusal = (
        r"a\.asf: \.mp4 does not hold its sound \(wmav2\); write \.mkv, .*without --audio copy.*--no-audio"
    )
    with pytest.raises(MediaError, match=refusal):
        VideoWriter(tmp_path / "a.mp4", rate=25, audio_from=source, audio="copy")
    with pytest.raises(InputError, match="audio='loud'"):
        VideoWriter(tmp_path / "a.mp4", rate=25, audio_from=source, audio="loud")
    assert list(tmp_path.iterdir()) == [source]
    write(tmp_path / "a.mp4", scene(5), audio_from=source, audio=False)
    assert not VideoReader(tmp_path / "a.mp4").info.has_audio
    write(tmp_path / "a.gif", scene(5), audio_from=source)  # has no sound anyway


def test_an_mp3_is_copied_whatever_decodes_it(tmp_path, caplog):
    source = with_sound(tmp_path / "a.mkv", "libmp3lame")
    write(tmp_path / "a.mp4", scene(50), audio_from=source, audio="copy")
    assert not caplog.records
    assert [data for _, data in sound_of(tmp_path / "a.mp4")][:9] == [data for _, data in sound_of(source)][
        :9
    ]


def test_the_default_track_stays_the_default_one(tmp_path):
    source = with_sound(tmp_path / "a.mkv", "flac", frames=5)
    changed = tmp_path / "b.mkv"
    with av.open(str(source)) as container, av.open(str(changed), "w") as output:
        streams = [*container.streams.video, *container.streams.audio]
        tracks = {stream.index: output.add_stream_from_template(stream, opaque=True) for stream in streams}
        tracks[1].disposition = Disposition.dub | Disposition.default
        for packet in [packet for packet in container.demux(*streams) if packet.size]:
            packet.stream = tracks[packet.stream.index]
            output.mux(packet)
    for name in ("c.mkv", "c.mp4"):
        write(tmp_path / name, scene(5), audio_from=changed)
        with av.open(str(tmp_path / name)) as container:
            assert container.streams.audio[0].disposition & Disposition.default


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_sound_that_begins_before_the_video(tmp_path, suffix):
    """Nothing of it is lost, and the video comes as much later as before."""
    source = with_sound(tmp_path / "a.mkv", "aac")
    late = tmp_path / "late.mkv"
    with av.open(str(source)) as container, av.open(str(late), "w") as output:
        streams = [*container.streams.video, *container.streams.audio]
        tracks = {stream.index: output.add_stream_from_template(stream, opaque=True) for stream in streams}
        for packet in [packet for packet in container.demux(*streams) if packet.size]:
            if packet.stream.type == "video":
                packet.pts, packet.dts = packet.pts + 400, packet.dts + 400
            packet.stream = tracks[packet.stream.index]
            output.mux(packet)
    write(tmp_path / f"out.{suffix}", scene(50), audio_from=late)
    begins = []
    for path in (late, tmp_path / f"out.{suffix}"):
        sound, info = sound_of(path), VideoReader(path).info
        begins.append((info.first_time - sound[0][0], [data for _, data in sound[:9]]))
    assert abs(begins[0][0] - begins[1][0]) < Fraction(3, 100)  # some decoders are warmed up before 0
    assert begins[0][1] == begins[1][1]


# How long frames are shown


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv"])
@pytest.mark.parametrize("codec", ["h264", None])
def test_the_last_frame_is_shown_as_long_as_in_the_source(tmp_path, suffix, codec):
    if codec is None and suffix != "mkv":
        codec = "h264"
    held = tmp_path / f"held.{suffix}"
    with VideoWriter(held, rate=25, codec=codec) as writer:
        writer.write(scene(9))
        writer.finish(Fraction(4))
    with VideoReader(held) as reader:
        stamps = [stamp for _, stamp in reader]
        assert stamps == [Fraction(n, 25) for n in range(9)]
        assert abs(reader.last_duration - 4) < Fraction(2, 1000)
    with av.open(str(held)) as container:
        assert abs(container.duration / 1e6 - 4.32) < 0.01


def test_a_plain_video_is_no_longer_than_its_frames(tmp_path):
    for name in ("a.mp4", "a.mkv"):
        write(tmp_path / name, scene(9))
        with av.open(str(tmp_path / name)) as container:
            assert abs(container.duration / 1e6 - 0.36) < 0.002


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_labels(tmp_path, suffix):
    color = Color(matrix="bt2020nc", range="limited", primaries="bt2020", transfer="smpte2084")
    with VideoWriter(
        tmp_path / f"a.{suffix}", rate=25, codec="h264", color=color, pixel_aspect=Fraction(16, 11)
    ) as w:
        w.write(scene(3))
    info = VideoReader(tmp_path / f"a.{suffix}", hdr="keep").info
    assert (info.color, info.pixel_aspect) == (color, Fraction(16, 11))


@pytest.mark.parametrize("aspect", [Fraction(16, 11), Fraction(10, 11), Fraction(4, 3)])
def test_the_pixel_aspect_of_ffv1(tmp_path, aspect):
    """In the description of the track, where FFmpeg and players look; the rest of the file stays as it was."""
    source = with_sound(tmp_path / "source.mkv", "flac", frames=9)
    for name, pixel_aspect in (("a.mkv", aspect), ("b.mkv", Fraction(1))):
        write(tmp_path / name, scene(9), audio_from=source, pixel_aspect=pixel_aspect)
    assert VideoReader(tmp_path / "a.mkv").info.pixel_aspect == aspect
    assert (tmp_path / "a.mkv").stat().st_size == (tmp_path / "b.mkv").stat().st_size
    for one, other in zip(
        stream_packets(tmp_path / "a.mkv"), stream_packets(tmp_path / "b.mkv"), strict=True
    ):
        assert one == other
    with VideoReader(tmp_path / "a.mkv", start=0.2) as reader:  # places of the index are right
        assert np.array_equal(next(iter(reader))[0], scene(9)[5])


def stream_packets(path):
    with av.open(str(path)) as container:
        return [
            (packet.stream.index, packet.pts, bytes(packet)) for packet in container.demux() if packet.size
        ]


@pytest.mark.parametrize("size", [(1, 1), (1, 8), (8, 1), (2, 1), (1, 2), (3, 5)])
def test_the_smallest_sizes_are_lossless(tmp_path, size):
    frames = np.random.default_rng(0).integers(0, 256, (3, *size, 3)).astype(np.uint8)
    write(tmp_path / "a.mkv", frames)
    assert np.array_equal(read(tmp_path / "a.mkv")[0], frames)


def test_a_source_without_sound_is_no_error(tmp_path):
    source = render(tmp_path / "source.mp4", scene(5))
    write(tmp_path / "a.mp4", scene(5), audio_from=source)
    assert not VideoReader(tmp_path / "a.mp4").info.has_audio


# Complete or nothing


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.gif", "frames/"])
@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_nothing_is_left_of_a_video_that_was_not_finished(tmp_path, name, failure):
    with pytest.raises(failure):
        write_and_fail(f"{tmp_path}/{name}", scene(30), failure)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a.mp4", "frames/"])
def test_what_was_there_stays_until_the_new_one_is_complete(tmp_path, name):
    target = f"{tmp_path}/{name}"
    write(target, numbered(3))
    with pytest.raises(RuntimeError):
        write_and_fail(target, numbered(9), RuntimeError)
    assert len(read(target)[0]) == 3
    with pytest.raises(MediaError, match="exists already"):
        VideoWriter(target, rate=25, overwrite=False)
    write(target, numbered(5))
    assert len(read(target)[0]) == 5
    assert len(list(tmp_path.iterdir())) == 1


def test_a_video_without_frames_is_an_error(tmp_path):
    for name in ("a.mp4", "frames/"):
        with (
            pytest.raises(MediaError, match="there are no frames to write"),
            VideoWriter(f"{tmp_path}/{name}", rate=25),
        ):
            pass
    assert list(tmp_path.iterdir()) == []


def test_damaged_sound_leaves_nothing_behind(tmp_path, monkeypatch):
    source = render(tmp_path / "source.mp4", scene(50), audio="aac")

    def broken(self, packet):
        raise MediaError("source.mp4: its sound is broken")

    monkeypatch.setattr(sound._Copied, "write", broken)
    with pytest.raises(MediaError, match="its sound is broken"):
        write(tmp_path / "a.mp4", scene(50), audio_from=source)
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("a.webm", {}, r"a\.webm: unknown suffix; write \.gif, .*\.mp4"),
        ("no/such/a.mp4", {}, r"a\.mp4: there is no folder .*such; create it first"),
        ("a.gif", {"codec": "h264"}, r"a\.gif: h264 is written to \.mp4"),
        ("a.mp4", {"codec": "ffv1"}, "ffv1 is written to"),
        ("a.mp4", {"audio_from": "missing.mp4"}, r"missing\.mp4: no such file"),
        ("taken.mp4", {}, "there is a folder of that name"),
        ("file", {}, "there is a file of that name"),
    ],
)
def test_targets_that_can_not_be_written(tmp_path, name, arguments, message):
    (tmp_path / "taken.mp4").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(MediaError, match=message):
        VideoWriter(tmp_path / name, rate=25, **arguments)


def test_a_source_is_never_written_over(tmp_path):
    source = render(tmp_path / "a.mp4", scene(5))
    with pytest.raises(MediaError, match=r"a\.mp4: is the source itself"):
        VideoWriter(tmp_path / ".." / tmp_path.name / "a.mp4", rate=25, audio_from=source)
    write(f"{tmp_path}/frames/", scene(2))
    for images, what in (
        (tmp_path / "frames", "is the source itself"),
        (tmp_path / "frames/*.png", "holds the source"),
    ):
        with pytest.raises(MediaError, match=rf"frames: {what}"):
            VideoWriter(tmp_path / "frames", rate=25, audio_from=images)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_can_not_be_written_to(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(MediaError, match="can't be written to"):
        VideoWriter(tmp_path / "a.mp4", rate=25)
    tmp_path.chmod(0o700)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"rate": 0}, "rate=0"), ({"crf": 60}, "crf=60"), ({"codec": "divx"}, "codec='divx': choose h264")],
)
def test_arguments_out_of_range(tmp_path, arguments, message):
    with pytest.raises(InputError, match=message):
        VideoWriter(tmp_path / "a.mp4", **({"rate": 25} | arguments))


@pytest.mark.parametrize(
    ("frames", "stamps", "message"),
    [
        (scene(2, 20, 20), None, "frames of 20x20 in a video of 48x32"),
        (numbered(2), [Fraction(0), Fraction(1)], "time stamps must increase"),
        (numbered(2), [Fraction(5)], "1 time stamps for 2 frames"),
        (numbered(2).astype(np.float32), None, "float32"),
    ],
)
def test_frames_that_do_not_follow(tmp_path, frames, stamps, message):
    def append() -> None:
        with VideoWriter(tmp_path / "a.mp4", rate=25) as writer:
            writer.write(numbered(3))
            writer.write(frames, stamps)

    with pytest.raises(InputError, match=message):
        append()
    assert list(tmp_path.iterdir()) == []


def test_codecs_follow_the_suffix():
    names = {
        "a.mp4": "h264",
        "A.MOV": "h264",
        "a.mkv": "ffv1",
        "a.gif": "gif",
        "a/": "png",
        "a": "png",
        "b.c/": "png",
    }
    assert {name: codec_for(name) for name in names} == names


def test_complete_or_nothing_for_files_and_folders(tmp_path):
    target = tmp_path / "a.json"
    with complete_or_nothing(target) as temporary:
        temporary.write_text("{}")
        assert not target.exists()
        assert temporary.suffix == ".json"
    assert target.read_text() == "{}"
    with pytest.raises(IsADirectoryError), complete_or_nothing(target) as temporary:
        (temporary.mkdir(), temporary.write_text("half"))
    assert target.read_text() == "{}"
    assert [path.name for path in Path(tmp_path).iterdir()] == ["a.json"]
