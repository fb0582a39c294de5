"""Reading images, animations, folders and patterns."""

from fractions import Fraction

import numpy as np
import pytest
from PIL import Image, features
from video_files import numbered, numbers, scene

from temporal_vae.errors import MediaError
from temporal_vae.video.reader import VideoReader


def read(path, **arguments):
    with VideoReader(path, **arguments) as reader:
        frames, stamps = zip(*reader, strict=True)
    return np.stack(frames), list(stamps)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "webp", "jpg", "jpeg"])
def test_one_image_is_a_video_of_one_frame(tmp_path, suffix):
    frame, path = scene(1)[0], tmp_path / f"a.{suffix}"
    Image.fromarray(frame).save(path, **({"lossless": True} if suffix == "webp" else {}))
    with VideoReader(path) as reader:
        assert (reader.info.frames, reader.info.rate, reader.info.color.matrix) == (1, 24, "rgb")
        ((seen, stamp),) = reader
    assert stamp == 0
    assert np.abs(seen.astype(int) - frame).mean() <= (5 if suffix.startswith("j") else 0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured(tmp_path, orientation):
    upright = np.zeros((30, 40, 3), np.uint8)
    upright[:15, :20], upright[:15, 20:], upright[15:, :20] = (250, 0, 0), (0, 250, 0), (0, 0, 250)
    undo = {1: [], 2: [0], 3: [3], 4: [1], 5: [5], 6: [2], 7: [6], 8: [4]}[orientation]  # Image.Transpose
    image = Image.fromarray(upright)
    for step in undo:
        image = image.transpose(Image.Transpose(step))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "a.png", exif=exif)
    with VideoReader(tmp_path / "a.png") as reader:
        assert (reader.info.width, reader.info.height) == (40, 30)
        ((frame, _),) = reader
    np.testing.assert_array_equal(frame, upright)


def test_deep_and_odd_modes(tmp_path):
    ramp = np.tile(np.arange(256, dtype=np.uint16) * 257, (8, 1))
    Image.fromarray(ramp).save(tmp_path / "grey16.png")
    np.testing.assert_array_equal(read(tmp_path / "grey16.png")[0][0, 0, :, 1], np.arange(256))
    Image.fromarray((ramp >> 8).astype(np.uint8)).convert("P").save(tmp_path / "palette.png")
    assert read(tmp_path / "palette.png")[0].shape == (1, 8, 256, 3)
    Image.fromarray(scene(1)[0]).convert("CMYK").save(tmp_path / "cmyk.jpg")
    assert np.abs(read(tmp_path / "cmyk.jpg")[0][0].astype(int) - scene(1)[0]).mean() < 6
    Image.fromarray(ramp.astype(np.int32) * 4096).save(tmp_path / "grey32.tiff")
    Image.fromarray(ramp.astype(np.float32)).save(tmp_path / "float.tiff")
    for name in ("grey32.tiff", "float.tiff"):
        with pytest.raises(MediaError, match=rf"{name}: .* convert it to 8 or 16 bits"):
            read(tmp_path / name)


@pytest.mark.parametrize(("suffix", "options"), [("png", {}), ("webp", {"lossless": True, "exact": True})])
def test_transparent_images_show_the_background(tmp_path, suffix, options):
    pixels = np.full((20, 20, 4), 200, np.uint8)
    pixels[:10, :, 3], pixels[10:, :, 3] = 0, 128
    Image.fromarray(pixels).save(tmp_path / f"a.{suffix}", **options)
    for background, level in (("black", 0), ("#ff0000", (255, 0, 0))):
        frame = read(tmp_path / f"a.{suffix}", background=background)[0][0].astype(int)
        np.testing.assert_array_equal(frame[5, 5], np.broadcast_to(level, 3))
        assert np.abs(frame[15, 5] - (np.array(200) * 128 + np.multiply(level, 127)) / 255).max() <= 1


@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        ("gif", {"disposal": 2}),
        ("gif", {}),
        ("webp", {"lossless": True}),
        ("png", {}),
        ("avif", {"quality": 100}),
    ],
)
def test_animations_keep_their_delays(tmp_path, suffix, options):
    frames, delays = numbered(6), [40, 100, 250, 70, 60, 300]
    if suffix == "avif" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    images = [Image.fromarray(frame) for frame in frames]
    path = tmp_path / f"a.{suffix}"
    images[0].save(path, save_all=True, append_images=images[1:], duration=delays, loop=0, **options)
    seen, stamps = read(path)
    assert numbers(seen) == list(range(6))
    assert stamps == [Fraction(sum(delays[:n]), 1000) for n in range(6)]
    with VideoReader(path) as reader:
        assert (reader.info.frames, reader.rate) == (6, Fraction(6 * 1000, sum(delays)))
    assert numbers(read(path, start=0.14, frames=2)[0]) == [2, 3]


def test_a_gif_with_holes_shows_the_background(tmp_path):
    images = []
    for level in (60, 120):
        image = Image.new("RGBA", (32, 32), (0, 0, 0, 0))
        image.paste((level, level, level, 255), (0, 0, 16, 32))
        images.append(image)
    images[0].save(tmp_path / "a.gif", save_all=True, append_images=images[1:], duration=50, disposal=2)
    seen, _ = read(tmp_path / "a.gif", background=(9, 99, 199))
    assert seen[:, 5, 5].tolist() == [[60] * 3, [120] * 3]
    assert seen[:, 5, 25].tolist() == [[9, 99, 199]] * 2


def test_delays_that_browsers_do_not_believe(tmp_path):
    images = [Image.fromarray(frame) for frame in numbered(3)]
    images[0].save(tmp_path / "a.gif", save_all=True, append_images=images[1:], duration=0)
    assert read(tmp_path / "a.gif")[1] == [0, Fraction(1, 10), Fraction(2, 10)]


def test_the_default_image_of_a_png_is_no_frame(tmp_path):
    images = [Image.fromarray(frame) for frame in numbered(4)]
    images[3].save(
        tmp_path / "a.png", save_all=True, append_images=images[:3], duration=50, default_image=True
    )
    seen, stamps = read(tmp_path / "a.png")
    assert numbers(seen) == [0, 1, 2]
    assert stamps == [0, Fraction(1, 20), Fraction(1, 10)]


@pytest.fixture
def folder(tmp_path):
    """frame1.png ... frame12.png among other files."""
    place = tmp_path / "frames"
    place.mkdir()
    for number, frame in enumerate(numbered(12), start=1):
        Image.fromarray(frame).save(place / f"frame{number}.png")
    (place / "notes.txt").write_text("not a frame")
    (place / ".DS_Store").write_bytes(b"\0")
    return place


def test_a_folder_in_natural_order(folder):
    with VideoReader(folder) as reader:
        info = reader.info
        assert (info.frames, info.rate, info.width, info.height) == (12, 24, 48, 32)
        (clip,) = reader.clips()
    assert numbers(clip.frames) == list(range(12))
    assert clip.timestamps == tuple(Fraction(n, 24) for n in range(12))


def test_a_pattern_a_rate_and_a_part(folder):
    frames, stamps = read(str(folder / "frame1*.png"), fps=10)
    assert numbers(frames) == [0, 9, 10, 11]
    assert stamps == [Fraction(n, 10) for n in range(4)]
    frames, stamps = read(folder, fps="30000/1001", start=0.2, frames=2)
    assert numbers(frames) == [6, 7]
    assert stamps == [Fraction(6 * 1001, 30000), Fraction(7 * 1001, 30000)]


def test_a_file_whose_name_looks_like_a_pattern(tmp_path):
    Image.fromarray(scene(1)[0]).save(tmp_path / "take[1].png")
    assert len(read(tmp_path / "take[1].png")[0]) == 1


def test_sizes_that_differ_are_refused_naming_both(folder):
    Image.fromarray(scene(1, 20, 20)[0]).save(folder / "frame5.png")
    with pytest.raises(
        MediaError, match=r"frame1\.png is 48x32 and .*frame5\.png is 20x20; .* resize or remove"
    ):
        VideoReader(folder)


def test_a_folder_without_images(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    for source in (tmp_path, tmp_path / "*.png"):
        with pytest.raises(MediaError, match=r"no images there"):
            VideoReader(source)


def test_a_damaged_image_is_named(folder):
    data = (folder / "frame7.png").read_bytes()
    (folder / "frame7.png").write_bytes(data[: len(data) // 2])
    with VideoReader(folder) as reader, pytest.raises(MediaError, match=r"frame7\.png: not a readable image"):
        list(reader)


def test_an_image_over_the_limit_is_not_decoded(tmp_path):
    Image.new("1", (9000, 9000)).save(tmp_path / "a.png")
    with pytest.raises(
        MediaError, match=r"a\.png: a picture of 9000x9000 is over the limit of 67108864 pixels"
    ):
        VideoReader(tmp_path / "a.png")
    Image.new("1", (20000, 20000)).save(tmp_path / "b.png")
    with pytest.raises(MediaError, match=r"b\.png: the picture is larger than Pillow opens"):
        VideoReader(tmp_path / "b.png")
    Image.new("1", (20, 20)).save(tmp_path / "c.png")
    with pytest.raises(MediaError, match="over the limit of 100 pixels"):
        VideoReader(tmp_path / "c.png", max_pixels=100)


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "jpg"])
def test_truncated_images_and_animations(tmp_path, suffix):
    images = [Image.fromarray(np.roll(scene(1, 100, 100)[0], n, 0)) for n in range(8)]
    path = tmp_path / f"a.{suffix}"
    images[0].save(
        path, **({} if suffix == "jpg" else {"save_all": True, "append_images": images[1:], "duration": 50})
    )
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 6 // 10])
    with pytest.raises(MediaError, match=rf"a\.{suffix}: not a readable image"):
        read(path)
