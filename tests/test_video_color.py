"""Colour in and out, against the formulas of the standards."""

from pathlib import Path

import av
import numpy as np
import pytest
from video_files import LUMA, render_planes, scene, yuv_to_rgb

from temporal_vae.errors import InputError, MediaError
from temporal_vae.media.color import color_of, output_color, parse_background, rgb_to_yuv444
from temporal_vae.media.frames import Color
from temporal_vae.media.reader import VideoReader
from temporal_vae.media.writer import VideoWriter

BLOCK = 16  # pixels of one colour; their middle is untouched by chroma interpolation


def flat_blocks(bits: int, rows: int = 6, columns: int = 8) -> list[np.ndarray]:
    """Three planes of random values, one for each block of pixels."""
    rng = np.random.default_rng(1)
    scale, dtype = 2 ** (bits - 8), np.uint8 if bits == 8 else np.uint16
    return [rng.integers(16 * scale, 235 * scale, (rows, columns)).astype(dtype) for _ in range(3)]


def enlarge(values: np.ndarray, rows: int, columns: int) -> np.ndarray:
    return values.repeat(rows, 0).repeat(columns, 1)


def read_blocks(path: Path) -> tuple[np.ndarray, Color]:
    with VideoReader(path) as reader:
        ((frame, _),) = reader
        return frame[BLOCK // 2 :: BLOCK, BLOCK // 2 :: BLOCK].astype(float), reader.info.color


@pytest.mark.parametrize("matrix", sorted(LUMA))
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize(
    ("pix_fmt", "bits", "across", "down"),
    [
        ("yuv420p", 8, 2, 2),
        ("yuv422p", 8, 2, 1),
        ("yuv444p", 8, 1, 1),
        ("yuv420p10le", 10, 2, 2),
        ("yuv444p12le", 12, 1, 1),
    ],
)
def test_yuv_is_read_by_its_matrix_range_and_depth(tmp_path, matrix, full, pix_fmt, bits, across, down):
    y, u, v = flat_blocks(bits)
    planes = [enlarge(y, BLOCK, BLOCK)] + [enlarge(p, BLOCK // down, BLOCK // across) for p in (u, v)]
    path = render_planes(tmp_path / "a.mkv", planes, pix_fmt, matrix=matrix, full=full)
    seen, color = read_blocks(path)
    expected = yuv_to_rgb(y.astype(float), u.astype(float), v.astype(float), matrix, full, bits)
    assert (color.matrix, color.range) == (matrix, "full" if full else "limited")
    assert np.abs(seen - expected).max() <= 1.5
    assert abs((seen - expected).mean()) < (0.5 if full and bits > 8 else 0.1)


@pytest.mark.parametrize(
    ("width", "height", "matrix"), [(64, 96, "smpte170m"), (1280, 32, "bt709"), (32, 720, "bt709")]
)
def test_an_open_matrix_goes_by_size_and_an_open_range_is_limited(tmp_path, width, height, matrix):
    planes = [np.full((height, width), value, np.uint8) for value in (120, 90, 170)]
    path = render_planes(tmp_path / "a.mkv", planes, "yuv444p", matrix=None, full=None)
    with VideoReader(path) as reader:
        ((frame, _),) = reader
    assert reader.info.color == Color(matrix=matrix, range="limited")
    expected = yuv_to_rgb(*(plane[0, 0].astype(float) for plane in planes), matrix, False)
    np.testing.assert_allclose(frame[height // 2, width // 2], expected, atol=1)


@pytest.mark.parametrize("full", [False, True])
def test_grey_video_keeps_its_range(tmp_path, full):
    levels = np.tile(np.linspace(16, 235, 64).astype(np.uint8), (32, 1))
    path = render_planes(tmp_path / "a.mkv", [levels], "gray", matrix=None, full=full)
    with VideoReader(path) as reader:
        ((frame, _),) = reader
    expected = levels if full else np.clip((levels - 16.0) / 219 * 255, 0, 255)
    assert np.abs(frame - expected[..., None]).max() <= 1


@pytest.mark.parametrize("matrix", sorted(LUMA))
@pytest.mark.parametrize("range_", ["limited", "full"])
@pytest.mark.parametrize("size", [(48, 64), (47, 63)])
def test_writing_and_reading_shifts_no_colour(tmp_path, matrix, range_, size):
    frames = scene(3, *size)
    color = Color(matrix=matrix, range=range_, primaries="bt709", transfer="bt709")
    path = tmp_path / "a.mp4"
    with VideoWriter(path, rate=25, color=color, crf=1) as writer:
        writer.write(frames)
    with VideoReader(path) as reader:
        back = np.stack([frame for frame, _ in reader])
    assert reader.info.color == color
    difference = back.astype(float) - frames
    assert np.abs(difference.mean((0, 1, 2))).max() < 0.4  # each channel
    assert np.abs(difference).mean() < 1.5


@pytest.mark.parametrize("range_", ["limited", "full"])
def test_planes_follow_the_formula(range_):
    frame = scene(1, 16, 24)[0]
    frame[0, :4] = [(0, 0, 0), (255, 255, 255), (255, 0, 0), (0, 0, 255)]
    for matrix in LUMA:
        y, u, v = rgb_to_yuv444(frame, Color(matrix=matrix, range=range_)).astype(float)
        assert np.abs(yuv_to_rgb(y, u, v, matrix, range_ == "full") - frame).max() <= 1.8
        assert (y[0, 0], y[0, 1]) == ((16, 235) if range_ == "limited" else (0, 255))


def test_output_color_keeps_what_players_agree_on():
    kept = Color(matrix="bt2020nc", range="limited", primaries="bt2020", transfer="smpte2084")
    assert output_color(kept) == kept
    assert output_color(Color(matrix="rgb", primaries="bt2020", transfer="smpte2084")).transfer == "smpte2084"
    plain = Color(matrix="bt709", range="limited", primaries="bt709", transfer="bt709")
    assert output_color(None) == plain
    assert output_color(Color(matrix="rgb", range="full")) == plain
    assert output_color(Color(matrix="smpte240m")) == plain


@pytest.mark.parametrize(("matrix", "read_as"), [("ycgco", "smpte170m"), ("bt2020c", "bt2020nc")])
def test_matrices_that_are_read_as_ffmpeg_reads_them(tmp_path, caplog, matrix, read_as):
    planes = [enlarge(plane, BLOCK, BLOCK) for plane in flat_blocks(8)]
    path = render_planes(tmp_path / "a.mkv", planes, "yuv444p", matrix=matrix, full=False)
    seen, color = read_blocks(path)
    assert color.matrix == matrix
    assert ["YCgCo is read as BT.601" in line for line in caplog.messages] == [True] * (matrix == "ycgco")
    expected = yuv_to_rgb(*(plane[::BLOCK, ::BLOCK].astype(float) for plane in planes), read_as, False)
    assert np.abs(seen - expected).max() <= 1.5


@pytest.mark.parametrize(("matrix", "red", "blue"), [("smpte240m", 0.212, 0.087), ("fcc", 0.3, 0.11)])
def test_old_matrices_have_the_weights_of_h273(tmp_path, monkeypatch, matrix, red, blue):
    monkeypatch.setitem(LUMA, matrix, (red, blue))
    planes = [enlarge(plane, BLOCK, BLOCK) for plane in flat_blocks(8)]
    path = render_planes(tmp_path / "a.mkv", planes, "yuv444p", matrix=matrix, full=False)
    seen, _ = read_blocks(path)
    expected = yuv_to_rgb(*(plane[::BLOCK, ::BLOCK].astype(float) for plane in planes), matrix, False)
    assert np.abs(seen - expected).max() <= 1.5


def test_colours_that_change_half_way_are_read_by_each_frames_own(tmp_path):
    planes = [np.full((32, 32), value, np.uint8) for value in (120, 90, 170)]
    parts = [
        render_planes(tmp_path / f"{n}.h264", planes, "yuv444p", matrix=matrix, full=full, codec="libx264")
        for n, (matrix, full) in enumerate([("smpte170m", False), ("bt709", False), ("bt709", True)])
    ]
    (tmp_path / "a.h264").write_bytes(b"".join(part.read_bytes() for part in parts))
    with VideoReader(tmp_path / "a.h264") as reader:
        seen = [frame[16, 16] for frame, _ in reader]
    for level, (matrix, full) in zip(
        seen, [("smpte170m", False), ("bt709", False), ("bt709", True)], strict=True
    ):
        expected = yuv_to_rgb(*(np.array(float(plane[0, 0])) for plane in planes), matrix, full)
        np.testing.assert_allclose(level, expected, atol=1.5)


def test_an_open_matrix_of_bt2020_primaries_is_bt2020():
    frame = av.VideoFrame(64, 32, "yuv420p10le")
    frame.color_primaries = 9
    assert color_of(frame, "a").matrix == "bt2020nc"


def test_matrices_that_can_not_be_converted_are_refused(tmp_path, monkeypatch):
    planes = [np.full((32, 32), 120, np.uint8)] * 3
    path = render_planes(tmp_path / "a.mkv", planes, "yuv444p", matrix=None, full=None)
    monkeypatch.setitem(__import__("temporal_vae.media.color", fromlist=["x"])._UNSUPPORTED, 2, "ICtCp")
    with pytest.raises(MediaError, match=r"a\.mkv: colour matrix ICtCp is not supported .* convert"):
        VideoReader(path)


def test_backgrounds():
    assert parse_background("white").tolist() == [255, 255, 255]
    assert parse_background("#ff8800").tolist() == [255, 136, 0]
    assert parse_background((1, 2, 3)).tolist() == [1, 2, 3]
    for bad in ("nocolour", (1, 2), (1, 2, 300), "#ff880080"):
        with pytest.raises(InputError, match="is no colour"):
            parse_background(bad)
