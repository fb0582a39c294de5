"""Reading images, animations, folders and patterns."""

import io
import zlib
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image, ImageCms
from video_files import numbered, numbers, scene

from temporal_vae.errors import MediaError
from temporal_vae.media.frames import Color
from temporal_vae.media.hdr import tone_map
from temporal_vae.media.reader import VideoReader

Image.init()
AVIF = "AVIF" in Image.SAVE  # a plugin of its own before Pillow 11.3
needs_avif = pytest.mark.skipif(not AVIF, reason="this Pillow has no AVIF")


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


def lying(orientation: int) -> tuple[np.ndarray, Image.Image]:
    """A picture, and how it is stored with this orientation."""
    upright = np.zeros((30, 40, 3), np.uint8)
    upright[:15, :20], upright[:15, 20:], upright[15:, :20] = (250, 0, 0), (0, 250, 0), (0, 0, 250)
    undo = {1: [], 2: [0], 3: [3], 4: [1], 5: [5], 6: [2], 7: [6], 8: [4]}[orientation]  # Image.Transpose
    image = Image.fromarray(upright)
    for step in undo:
        image = image.transpose(Image.Transpose(step))
    return upright, image


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured(tmp_path, orientation):
    upright, image = lying(orientation)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "a.png", exif=exif)
    with VideoReader(tmp_path / "a.png") as reader:
        assert (reader.info.width, reader.info.height) == (40, 30)
        ((frame, _),) = reader
    np.testing.assert_array_equal(frame, upright)


@needs_avif
@pytest.mark.parametrize("orientation", range(1, 9))
def test_avif_is_turned_by_its_boxes_alone(tmp_path, orientation):
    """Pillow writes EXIF's orientation as `irot` and `imir`; another tag, renamed in the file, is EXIF left inside."""
    upright, image = lying(orientation)
    exif, told = Image.Exif(), Image.Exif()
    exif[0x0112] = orientation
    exif[0x0113] = told[0x0113] = orientation
    image.save(tmp_path / "both.avif", exif=exif, quality=100, subsampling="4:4:4")
    Image.fromarray(upright).save(tmp_path / "exif.avif", exif=told, quality=100, subsampling="4:4:4")
    for name in ("both.avif", "exif.avif"):
        data = (tmp_path / name).read_bytes()
        for wrong, right in ((b"\x13\x01\x03\0", b"\x12\x01\x03\0"), (b"\x01\x13\0\x03", b"\x01\x12\0\x03")):
            data = data.replace(wrong, right)
        (tmp_path / name).write_bytes(data)
    xmp = f'<x:xmpmeta><rdf:Description tiff:Orientation="{orientation}"/></x:xmpmeta>'.encode()
    Image.fromarray(upright).save(tmp_path / "xmp.avif", xmp=xmp, quality=100, subsampling="4:4:4")
    for name in ("both.avif", "exif.avif", "xmp.avif"):
        with VideoReader(tmp_path / name) as reader:
            assert (reader.info.width, reader.info.height) == (40, 30), name
            ((frame, _),) = reader
        assert np.abs(frame - upright.astype(int)).max() <= 8, name


@needs_avif
@pytest.mark.parametrize("range_", ["full", "limited"])
def test_monochrome_avif(tmp_path, range_):
    ramp = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (32, 1))
    Image.fromarray(ramp).save(tmp_path / "a.avif", quality=100, range=range_)
    assert np.abs(read(tmp_path / "a.avif")[0][0] - ramp[..., None].astype(int)).max() <= 2
    clear = Image.merge("LA", [Image.fromarray(ramp), Image.fromarray(ramp[:, ::-1])])
    clear.save(tmp_path / "b.avif", quality=100)
    expected = ramp * (ramp[:, ::-1] / 255.0)
    assert np.abs(read(tmp_path / "b.avif")[0][0] - expected[..., None]).max() <= 3


def test_what_pillow_can_not_open_is_said_with_its_version(tmp_path):
    (tmp_path / "a.avif").write_bytes(b"\0\0\0\x1cftypheic" + bytes(40))
    with pytest.raises(
        MediaError, match=r"a\.avif: not a readable image \(Pillow .* opens AVIF from 11\.3 on"
    ):
        VideoReader(tmp_path / "a.avif")


def profile(space: str) -> bytes:
    """An ICC profile of grey or RGB with a gamma of 1.8 and, for RGB, the primaries of DCI-P3."""

    def s15(*values: float) -> bytes:
        return b"".join(round(value * 65536).to_bytes(4, "big", signed=True) for value in values)

    curve = b"curv\0\0\0\0" + (1).to_bytes(4, "big") + round(1.8 * 256).to_bytes(2, "big") + b"\0\0"
    tags = {b"wtpt": b"XYZ \0\0\0\0" + s15(0.9642, 1, 0.8249)}
    if space == "GRAY":
        tags[b"kTRC"] = curve
    else:
        columns = {
            b"r": (0.5151, 0.2412, -0.0011),
            b"g": (0.292, 0.6922, 0.0419),
            b"b": (0.1571, 0.0666, 0.7841),
        }
        for channel, column in columns.items():
            tags[channel + b"XYZ"], tags[channel + b"TRC"] = b"XYZ \0\0\0\0" + s15(*column), curve
    table, body = len(tags).to_bytes(4, "big"), b""
    for name, data in tags.items():
        at = 132 + 12 * len(tags) + len(body)
        table, body = table + name + at.to_bytes(4, "big") + len(data).to_bytes(4, "big"), body + data
    head = bytearray(128)
    head[0:4] = (128 + len(table) + len(body)).to_bytes(4, "big")
    head[8:12], head[12:24] = bytes([2, 0x40, 0, 0]), b"mntr" + space.ljust(4).encode() + b"XYZ "
    head[36:40], head[68:80] = b"acsp", s15(0.9642, 1, 0.8249)
    return bytes(head) + table + body


@pytest.mark.parametrize(
    ("mode", "space", "suffix"),
    [
        ("RGB", "RGB", "png"),
        ("RGB", "RGB", "jpg"),
        ("RGB", "RGB", "tiff"),
        ("RGB", "RGB", "webp"),
        ("RGBA", "RGB", "png"),
        ("P", "RGB", "png"),
        ("L", "RGB", "png"),
        ("L", "GRAY", "png"),
        ("LA", "GRAY", "png"),
        ("I;16", "GRAY", "png"),
    ],
)
def test_colour_profiles_are_converted_to_srgb(tmp_path, mode, space, suffix):
    icc, path = profile(space), tmp_path / f"a.{suffix}"
    image = Image.fromarray(scene(1)[0])
    if mode == "I;16":
        grey = np.asarray(image.convert("L"))
        image, stored = image.convert("L"), Image.fromarray(grey.astype(np.uint16) * 257)
    else:
        image = stored = image.convert(mode)
    stored.save(path, icc_profile=icc, **({"quality": 100} if suffix in ("jpg", "webp") else {}))
    with Image.open(path) as opened:
        plain = opened.convert("RGB") if mode != "I;16" else image.convert("RGB")
    source = ImageCms.ImageCmsProfile(io.BytesIO(icc))
    if space == "GRAY":
        plain = plain.convert("L")
    expected = ImageCms.profileToProfile(plain, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    frame = read(path)[0][0].astype(int)
    assert np.abs(frame - np.asarray(expected)).max() <= 1
    assert np.abs(frame - np.asarray(plain.convert("RGB"))).mean() > 5


def test_srgb_and_unreadable_profiles_change_nothing(tmp_path, caplog):
    pixels = scene(1)[0]
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for name, icc in (("srgb", srgb), ("broken", b"no profile"), ("grey", profile("GRAY"))):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png", icc_profile=icc)
        np.testing.assert_array_equal(read(tmp_path / f"{name}.png")[0][0], pixels)
    name = tmp_path / "broken.png"
    assert caplog.messages == [f"{name}: its colour profile can't be used; its colours are taken to be sRGB"]


@pytest.mark.parametrize("transfer", [16, 18])
def test_images_of_high_dynamic_range_are_mapped(tmp_path, transfer):
    pixels = scene(1)[0]
    Image.fromarray(pixels).save(tmp_path / "a.png")
    data, chunk = (tmp_path / "a.png").read_bytes(), b"cICP" + bytes([9, transfer, 0, 1])
    chunk = (4).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
    (tmp_path / "a.png").write_bytes(data[:33] + chunk + data[33:])  # behind the header
    name = {16: "smpte2084", 18: "arib-std-b67"}[transfer]
    color = Color(matrix="rgb", range="full", primaries="bt2020", transfer=name)
    with VideoReader(tmp_path / "a.png") as reader:
        assert (reader.info.color, reader.color.transfer) == (color, "bt709")
    expected = tone_map(pixels * np.uint16(257), color, 1000)
    np.testing.assert_array_equal(read(tmp_path / "a.png")[0][0], expected)
    np.testing.assert_array_equal(read(tmp_path)[0][0], expected)
    np.testing.assert_array_equal(read(tmp_path / "a.png", hdr="keep")[0][0], pixels)


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
    if suffix == "avif" and not AVIF:
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
        MediaError, match=r"a\.png: an image of 9000x9000 is over the limit of 67108864 pixels"
    ):
        VideoReader(tmp_path / "a.png")
    Image.new("1", (20000, 20000)).save(tmp_path / "b.png")
    with pytest.raises(MediaError, match=r"b\.png: the image is larger than Pillow opens"):
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
