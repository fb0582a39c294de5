"""PQ and HLG pictures, mapped to BT.709 or kept."""

import logging
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.reformatter import VideoReformatter
from video_files import LUMA, picture_of, scene

from temporal_vae.errors import InputError
from temporal_vae.media.color import color_of, to_rgb
from temporal_vae.media.frames import Color
from temporal_vae.media.hdr import WHITE, bend, hlg_to_scene, light_to_pq, peak_of, pq_to_light, tone_map
from temporal_vae.media.reader import VideoReader
from temporal_vae.media.writer import VideoWriter

NUMBERS = {"smpte2084": 16, "arib-std-b67": 18}
TO_BT2020 = [[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]]  # ITU-R BT.2087
BT709 = Color(matrix="bt709", range="limited", primaries="bt709", transfer="bt709")


def graded(frame: np.ndarray, transfer: str) -> np.ndarray:
    """An ordinary picture whose white is 203 cd/m² as signal of PQ or HLG, 0 to 1, by ITU-R BT.2408."""
    light = WHITE * (frame / 255.0) ** 2.4 @ np.array(TO_BT2020).T
    if transfer == "smpte2084":
        return light_to_pq(light)
    scene_light = light / 1000
    luminance = scene_light @ [0.2627, 0.6780, 0.0593]
    scene_light *= luminance[..., None] ** (1 / 1.2 - 1)  # undo the OOTF
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    low = np.sqrt(3 * np.minimum(scene_light, 1 / 12))
    return np.where(scene_light <= 1 / 12, low, a * np.log(12 * np.maximum(scene_light, 1 / 12) - b) + c)


def render_hdr(path: Path, signal: np.ndarray, transfer: str, count: int = 1) -> Path:
    """Frames of BT.2020, 10 bits, without loss."""
    red, blue = LUMA["bt2020nc"]
    y = signal @ [red, 1 - red - blue, blue]
    u, v = (signal[..., 2] - y) / (2 - 2 * blue), (signal[..., 0] - y) / (2 - 2 * red)
    planes = [np.rint(p).astype(np.uint16) for p in (64 + 876 * y, 512 + 896 * u, 512 + 896 * v)]
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=25, options={"qp": "0"})
        stream.height, stream.width = y.shape
        stream.pix_fmt = "yuv444p10le"
        context = stream.codec_context
        context.colorspace, context.color_range, context.color_primaries = 9, 1, 9
        context.color_trc = NUMBERS[transfer]
        for _ in range(count):
            output.mux(stream.encode(picture_of(planes, "yuv444p10le")))
        output.mux(stream.encode(None))
    return path


def read(path: Path, **arguments: str) -> tuple[np.ndarray, VideoReader]:
    with VideoReader(path, **arguments) as reader:
        return np.stack([frame for frame, _ in reader]), reader


def test_known_points_of_the_curves():
    """ITU-R BT.2408, table 1: reference white is 58 % of PQ and 75 % of HLG; ST 2084: 100 cd/m² are 50.8 %."""
    np.testing.assert_allclose(
        light_to_pq(np.array([100, 203, 1000, 10000])), [0.508, 0.581, 0.752, 1], atol=5e-4
    )
    np.testing.assert_allclose(pq_to_light(np.array([0, 0.5, 1])), [0, 92.25, 10000], rtol=1e-3)
    white = hlg_to_scene(np.array([0, 0.5, 0.75, 1]))
    np.testing.assert_allclose(white, [0, 1 / 12, 0.26496, 1], atol=1e-4)
    assert abs(1000 * white[2] ** 1.2 - 203) < 1
    light = np.linspace(0, 1000, 500)
    bent = bend(light, 1000)
    assert (np.diff(bent) > 0).all()
    assert abs(bent[-1] - WHITE) < 1e-6
    np.testing.assert_allclose(bent[light < 80], light[light < 80], atol=1e-6)
    np.testing.assert_allclose(bend(light[:100], WHITE), light[:100], atol=1e-6)


@pytest.mark.parametrize("transfer", sorted(NUMBERS))
def test_an_ordinary_picture_graded_in_hdr_comes_back(tmp_path, transfer):
    picture = np.minimum(scene(1)[0], 175)  # darker than the knee
    path = render_hdr(tmp_path / "a.mp4", graded(picture, transfer), transfer, count=2)
    frames, reader = read(path)
    assert (reader.info.color.transfer, reader.color) == (transfer, BT709)
    difference = frames - picture.astype(int)
    assert np.quantile(np.abs(difference), 0.99) <= 3  # a step of 10 bits is more in a dark channel
    assert np.abs(difference.mean((0, 1, 2))).max() < 0.5


@pytest.mark.parametrize("transfer", sorted(NUMBERS))
def test_highlights_keep_their_order_and_hue(tmp_path, transfer):
    ramp = np.tile(np.linspace(0, 1, 64), (16, 1))
    signal = np.stack([ramp, ramp, ramp], -1)
    signal[8:, :, 2] *= 0.8
    frames, _ = read(render_hdr(tmp_path / "a.mp4", signal, transfer))
    grey = frames[0, 4].astype(int)
    assert np.ptp(grey, axis=-1).max() <= 2
    assert (np.diff(grey[:, 1]) >= 0).all()
    assert grey[0].max() == 0
    assert grey[-1].min() >= 254
    at_white = grey[round(63 * (0.581 if transfer == "smpte2084" else 0.75)), 1]
    assert 205 <= at_white <= 240  # below what is brighter, above skin
    yellow = frames[0, 12].astype(int)
    assert (yellow[20:, 1] > yellow[20:, 2] + 8).all()


def test_agrees_with_the_scaler_of_ffmpeg(tmp_path):
    """FFmpeg 8 bends in another space: colours differ by some levels, brightness does not."""
    if int(av.__version__.split(".")[0]) < 16:
        pytest.skip("FFmpeg's scaler maps tones from version 8 on")
    path = render_hdr(tmp_path / "a.mp4", graded(scene(1)[0], "smpte2084"), "smpte2084")
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
    graph = av.filter.Graph()
    steps = [
        graph.add_buffer(width=64, height=48, format=frame.format, time_base=Fraction(1, 25)),
        graph.add("scale", "out_primaries=bt709:out_transfer=bt709:out_range=pc"),
        graph.add("format", "gbrp"),
        graph.add("buffersink"),
    ]
    for one, next_one in pairwise(steps):
        one.link_to(next_one)
    graph.configure()
    graph.push(frame)
    theirs = graph.pull().to_ndarray().astype(int)
    ours = read(path)[0][0]
    assert np.abs(ours - theirs).mean() < 8
    assert abs((ours - theirs).mean()) < 5


@pytest.mark.parametrize(
    ("pix_fmt", "bits", "full"),
    [
        ("yuv444p10le", 10, True),
        ("yuv444p12le", 12, True),
        ("yuv420p", 8, True),
        ("yuva444p10le", 10, False),
        ("gray10le", 10, False),
        ("gbrp10le", 10, True),
        ("gbrp", 8, True),
    ],
)
def test_every_pixel_format_has_the_same_white(pix_fmt, bits, full):
    picture = av.VideoFrame(64, 32, pix_fmt)
    black, span = (0, 2**bits - 1) if full else (16 << bits - 8, 219 << bits - 8)
    levels = np.rint(black + span * np.linspace(0, 1, 64))
    for index, plane in enumerate(picture.planes):
        rows = np.frombuffer(plane, np.uint8 if bits == 8 else np.uint16).reshape(plane.height, -1)
        chroma = pix_fmt.startswith("yuv") and index in (1, 2)
        rows[:, : plane.width] = 128 << bits - 8 if chroma else 2**bits - 1 if index == 3 else levels
    picture.colorspace, picture.color_range = 0 if pix_fmt.startswith("gbr") else 9, 2 if full else 1
    picture.color_primaries, picture.color_trc = 9, 16
    color = color_of(picture, "a")
    shown = to_rgb(picture, color, VideoReformatter(), (64, 32), np.zeros(3, np.uint8), 1000)
    signal = np.rint((levels - black) / span * 65535).astype(np.uint16)
    expected = tone_map(np.dstack([signal] * 3), color, 1000)[0]
    assert np.abs(shown[16, 2:-2] - expected.astype(int)[2:-2]).max() <= 2


def test_kept_signals_are_those_of_the_file(tmp_path):
    signal = graded(scene(1)[0], "smpte2084")
    frames, reader = read(render_hdr(tmp_path / "a.mp4", signal, "smpte2084"), hdr="keep")
    assert np.abs(frames[0] - signal * 255).max() <= 2
    assert reader.color == reader.info.color
    with pytest.raises(InputError, match="hdr='yes': choose map or keep"):
        VideoReader(tmp_path / "a.mp4", hdr="yes")


@pytest.mark.parametrize("hdr", ["map", "keep"])
def test_what_is_written_is_tagged_as_what_it_is(tmp_path, caplog, hdr):
    path = render_hdr(tmp_path / "a.mp4", graded(scene(1)[0], "arib-std-b67"), "arib-std-b67", count=2)
    with caplog.at_level(logging.WARNING), VideoReader(path, hdr=hdr) as reader:
        (clip,) = reader.clips()
        list(reader)
    lines = [f"{path}: HLG is mapped to BT.709; --hdr keep (hdr='keep') leaves it as it is"]
    assert caplog.messages == (lines if hdr == "map" else [])
    with VideoWriter(tmp_path / "b.mp4", rate=25, color=clip.color) as writer:
        writer.write(clip.frames)
    again = VideoReader(tmp_path / "b.mp4").info.color
    assert again == (BT709 if hdr == "map" else reader.info.color)


def test_the_peak_is_what_the_file_tells():
    class Frame:
        side_data: dict[str, bytes]

    frame = Frame()
    screen = np.zeros(22, np.int32)
    screen[18:22] = 40_000_000, 10_000, 1, 1
    for side_data, peak in [
        ({}, 1000),
        ({"MASTERING_DISPLAY_METADATA": screen.tobytes()}, 4000),
        ({"MASTERING_DISPLAY_METADATA": bytes(88)}, 1000),
        ({"CONTENT_LIGHT_LEVEL": np.array([600, 100], np.uint32).tobytes()}, 600),
        ({"CONTENT_LIGHT_LEVEL": np.array([20, 10], np.uint32).tobytes()}, WHITE),
    ]:
        frame.side_data = side_data
        assert peak_of(frame) == peak
    signal = np.full((2, 2, 3), round(65535 * 0.752), np.uint16)
    color = Color(matrix="bt2020nc", primaries="bt2020", transfer="smpte2084")
    assert tone_map(signal, color, 1000).min() == 255
    assert 230 < tone_map(signal, color, 4000).max() < 254
