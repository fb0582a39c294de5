"""The client of diffusers against a running server, in every combination that it allows."""

import itertools
import json
from dataclasses import dataclass
from fractions import Fraction
from io import BytesIO
from typing import Any

import av
import numpy as np
import pytest
import requests
import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils.remote_utils import remote_decode, remote_encode
from diffusers.video_processor import VideoProcessor
from PIL import Image

from temporal_vae import AutoencoderKLTemporalDecoder
from temporal_vae.checkpoints.loading import EMBEDDED
from temporal_vae.media.writer import VideoWriter

pytestmark = pytest.mark.filterwarnings("ignore:`do_scaling` is deprecated:FutureWarning")

ROUNDING = (
    2e-5  # the engine and the modules, which the server takes for so few pixels, add up in another order
)
JPEG, H264 = 3, 12  # levels that they may take off such small pictures
FACTOR, SHIFT = 0.7, 0.1
DTYPES = ("float32", "float16", "bfloat16")
PROCESSORS = {"none": None, "image": VaeImageProcessor(), "video": VideoProcessor()}
SCALINGS = {
    "nothing": {"do_scaling": False},
    "factor": {"scaling_factor": FACTOR},
    "factor and shift": {"scaling_factor": FACTOR, "shift_factor": SHIFT},
    "of the configuration": {"do_scaling": True},
    "of the configuration, shifted": {"do_scaling": True, "shift_factor": SHIFT},
}
LAYOUTS = {
    "clip of clips": (1, 8, 3, 3, 4),
    "clips": (2, 8, 2, 3, 4),
    "clip": (3, 8, 3, 4),
    "picture": (1, 8, 3, 4),
    "picture of clips": (1, 8, 1, 3, 4),
}


@dataclass(frozen=True)
class Combination:
    """What the client is told, and which layouts make sense with it."""

    options: dict[str, Any]
    processor: str = "none"
    layouts: tuple[str, ...] = tuple(LAYOUTS)


def _combinations() -> dict[str, Combination]:
    pictures, one = ("picture", "picture of clips"), tuple(LAYOUTS)
    by_clips = tuple(name for name, shape in LAYOUTS.items() if len(shape) == 5)
    by_frames = tuple(name for name, shape in LAYOUTS.items() if len(shape) == 4)
    found = {}

    def add(layouts: tuple[str, ...], processor: str, **options: Any) -> None:
        name = " ".join([*(f"{key}={value}" for key, value in options.items()), processor])
        found[name] = Combination(options, processor, layouts)

    for processor, partial in itertools.product(PROCESSORS, (False, True)):
        add(one, processor, output_type="pt", return_type="pt", partial_postprocess=partial)
    for processor in PROCESSORS:
        add(one, processor, output_type="pt", return_type="pil", partial_postprocess=True)
    add(by_frames, "image", output_type="pt", return_type="pil")
    add(by_clips, "video", output_type="pt", return_type="pil")
    for image_format in ("jpg", "png"):
        add(pictures, "none", output_type="pil", return_type="pil", image_format=image_format)
        for processor, returned in itertools.product(("image", "video"), ("pil", "pt")):
            add(one, processor, output_type="pil", return_type=returned, image_format=image_format)
    single = tuple(name for name, shape in LAYOUTS.items() if len(shape) == 4 or shape[0] == 1)
    for processor in PROCESSORS:
        add(single, processor, output_type="mp4", return_type="mp4")
    return found


COMBINATIONS = _combinations()
EVERYTHING = [
    pytest.param(name, layout, dtype, scaling, id=f"{name}, {layout}, {dtype}, {scaling}")
    for name, combination in COMBINATIONS.items()
    for layout, dtype, scaling in itertools.product(combination.layouts, DTYPES, SCALINGS)
]
# Each combination in one layout, dtype and scaling of its own; each of these comes, too.
SOME = [
    (
        name,
        combination.layouts[number % len(combination.layouts)],
        DTYPES[number % len(DTYPES)],
        tuple(SCALINGS)[number % len(SCALINGS)],
    )
    for number, (name, combination) in enumerate(COMBINATIONS.items())
]


@pytest.fixture(scope="module")
def model():
    return AutoencoderKLTemporalDecoder.from_pretrained(EMBEDDED).eval()


def latents(layout, dtype):
    """Of smooth pictures, each with colours of its own, so that JPEG and H.264 keep them."""
    *rest, height, width = LAYOUTS[layout]
    random = torch.Generator().manual_seed(len(layout))
    colour, right, down = torch.randn(3, *rest, 1, 1, generator=random)
    z = colour + 0.3 * right * torch.arange(width) + 0.3 * down * torch.arange(height)[:, None]
    return z.to(getattr(torch, dtype))


def unscaled(z, model, *, do_scaling=True, scaling_factor=None, shift_factor=None):
    """As pipelines of diffusers do it with the numbers that the client sends."""
    if not do_scaling:
        return z.float()
    factor = model.config["scaling_factor"] if scaling_factor is None else scaling_factor
    return z.float() / factor + (shift_factor or 0)


@torch.no_grad()
def decoded(model, z):
    """What the package makes of latents, in the layout that they came in, and as frames."""
    if z.ndim == 4:
        frames = model.decode(z, num_frames=len(z)).sample
        return frames, frames
    clips, _, length = z.shape[:3]
    frames = model.decode(z.transpose(1, 2).flatten(0, 1), num_frames=length).sample
    return frames.unflatten(0, (clips, length)).transpose(1, 2), frames


def levels(frames):
    """Frames as the processors of diffusers make images of them."""
    return VaeImageProcessor().postprocess(frames, output_type="pil")


def same_images(found, expected):
    found = found if isinstance(found, list) else [found]
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.mode == "RGB"
        near(np.asarray(one).astype(int), np.asarray(other).astype(int))


def near(found, expected):
    """Levels that differ by one where a value lies between two, which is seldom."""
    assert found.shape == expected.shape
    difference = np.abs(found - expected)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.01


def check(server, model, tmp_path, name, layout, dtype, scaling, path="/decode"):
    combination = COMBINATIONS[name]
    z, how = latents(layout, dtype), SCALINGS[scaling]
    processor = PROCESSORS[combination.processor]
    found = remote_decode(f"{server.url}{path}", z, processor, **how, **combination.options)
    expected, frames = decoded(model, unscaled(z, model, **how))
    output, returned = combination.options["output_type"], combination.options["return_type"]
    if output == "mp4":
        check_video(found, frames, tmp_path)
    elif returned == "pt" and combination.options.get("partial_postprocess"):
        assert found.dtype is torch.uint8
        near(found.numpy().astype(int), np.stack([np.asarray(image) for image in levels(frames)]).astype(int))
    elif returned == "pt":
        expected = (frames / 2 + 0.5).clamp(0, 1) if output == "pil" else expected
        torch.testing.assert_close(found, expected, atol=ROUNDING, rtol=ROUNDING)
    elif (
        output == "pt"
        and combination.processor == "image"
        and "partial_postprocess" not in combination.options
    ):
        same_images(found, levels(frames)[:1])  # the client takes the first
    elif output == "pt" and "partial_postprocess" not in combination.options:
        same_images(found, VideoProcessor().postprocess_video(expected, output_type="pil")[0])
    elif combination.processor == "none" and output == "pil":
        check_image(found, levels(frames)[0], combination.options["image_format"])
    else:
        same_images(found, levels(frames))


def check_image(found, expected, image_format):
    assert found.format == {"jpg": "jpeg", "png": "png"}[image_format]
    if image_format == "png":
        same_images(found, [expected])
    else:
        alike(found, expected, JPEG)


def alike(found, expected, levels):
    """As far as what lossy codecs leave; levels is the mean difference."""
    found, expected = np.asarray(found).astype(int), np.asarray(expected).astype(int)
    assert found.shape == expected.shape
    assert np.abs(found - expected).mean() < levels


def check_video(content, frames, tmp_path, rate=Fraction(24)):
    """Against what the package writes of the same frames."""
    with VideoWriter(tmp_path / "expected.mp4", rate=rate) as writer:
        writer.write(np.stack(levels(frames)), [number / rate for number in range(len(frames))])
    found, expected = shown(BytesIO(content), rate), shown(tmp_path / "expected.mp4", rate)
    assert len(found) == len(frames)
    for one, other, original in zip(found, expected, levels(frames), strict=True):
        alike(one, other, 1)
        alike(one, original, H264)


def shown(video, rate):
    """The frames that a player shows."""
    with av.open(video) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.average_rate == rate
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]


@pytest.mark.parametrize(("name", "layout", "dtype", "scaling"), SOME)
def test_every_combination_of_the_client(server, model, tmp_path, name, layout, dtype, scaling):
    check(server, model, tmp_path, name, layout, dtype, scaling)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "layout", "dtype", "scaling"), EVERYTHING)
def test_every_combination_in_every_layout_type_and_scaling(
    server, model, tmp_path, name, layout, dtype, scaling
):
    check(server, model, tmp_path, name, layout, dtype, scaling)


@pytest.mark.parametrize("name", [name for name in COMBINATIONS if name.endswith("none")])
def test_the_address_itself_decodes_too(server, model, tmp_path, name):
    check(server, model, tmp_path, name, "picture", "float32", "factor and shift", path="/")


def test_the_engine_gives_the_same_values_here_and_there(server, model):
    z = torch.randn(3, 8, 16, 16, generator=torch.Generator().manual_seed(0))  # enough pixels for the engine
    found = remote_decode(f"{server.url}/decode", z, do_scaling=False, output_type="pt", return_type="pt")
    assert torch.equal(found, decoded(model, z)[1])


def test_a_video_at_another_rate(server, model, tmp_path):
    z = latents("clip", "float32")
    params = {"shape": list(z.shape), "dtype": "float32", "output_type": "mp4", "fps": 30000 / 1001}
    response = server.post("/decode", params=params, data=z.numpy().tobytes())
    assert response.headers["content-type"] == "video/mp4"
    check_video(response.content, decoded(model, z)[1], tmp_path, Fraction(30000, 1001))


def test_the_size_of_the_pictures_may_be_told(server, model):
    z = latents("picture", "float32")
    size = {"height": 12, "width": 16}
    found = remote_decode(
        f"{server.url}/decode", z, do_scaling=False, output_type="pt", return_type="pt", **size
    )
    torch.testing.assert_close(found, decoded(model, z)[1], atol=ROUNDING, rtol=ROUNDING)


def test_who_only_accepts_anything_gets_an_image(server, model):
    z = latents("picture", "float32")
    params = {"shape": list(z.shape), "dtype": "float32"}
    response = server.post("/decode", params=params, data=z.numpy().tobytes())
    assert response.headers["content-type"] == "image/jpeg"
    with Image.open(BytesIO(response.content)) as found:
        alike(found, levels(decoded(model, z)[1])[0], JPEG)


ENCODE_SCALINGS = {
    "nothing": {},
    "factor": {"scaling_factor": FACTOR},
    "factor and shift": {"scaling_factor": FACTOR, "shift_factor": SHIFT},
    "shift": {"shift_factor": SHIFT},
}


@torch.no_grad()
def encoded(model, x, *, scaling_factor=1.0, shift_factor=0.0):
    """Frames `(n, 3, h, w)` as scaled latents."""
    return (model.encode(x.float()).latent_dist.mode() - shift_factor) * scaling_factor


@pytest.mark.parametrize("how", ENCODE_SCALINGS.values(), ids=ENCODE_SCALINGS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 3, 12, 16), (2, 3, 12, 16), (2, 3, 2, 12, 16)], ids=str)
def test_tensors_are_encoded(server, model, shape, dtype, how):
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0)).mul(2).sub(1).to(getattr(torch, dtype))
    found = remote_encode(f"{server.url}/encode", x, **how)
    frames = x.transpose(1, 2).flatten(0, 1) if x.ndim == 5 else x
    expected = encoded(model, frames, **how)
    if x.ndim == 5:
        expected = expected.unflatten(0, shape[:1] + shape[2:3]).transpose(1, 2)
    torch.testing.assert_close(found, expected, atol=ROUNDING, rtol=ROUNDING)


def picture(width=24, height=16):
    """An image without a symmetry."""
    across, down = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([across, down, (across + 2 * down) / 3], -1).astype(np.uint8))


def prepared(image):
    """An image as a pipeline of diffusers gives it to a model whose latents are of 4x4 pixels."""
    return VaeImageProcessor(vae_scale_factor=4).preprocess(image)


@pytest.mark.parametrize("how", ENCODE_SCALINGS.values(), ids=ENCODE_SCALINGS)
def test_an_image_is_encoded_as_the_client_sends_it(server, model, how):
    found = remote_encode(f"{server.url}/encode", picture(), **how)
    torch.testing.assert_close(
        found, encoded(model, prepared(picture()), **how), atol=ROUNDING, rtol=ROUNDING
    )


@pytest.mark.parametrize("size", [(25, 17), (4, 4), (7, 30)], ids=str)
def test_images_are_scaled_to_whole_latents_as_diffusers_does(server, model, size):
    found = remote_encode(f"{server.url}/encode", picture(*size))
    torch.testing.assert_close(found, encoded(model, prepared(picture(*size))), atol=ROUNDING, rtol=ROUNDING)


def file(image, **options):
    buffer = BytesIO()
    image.save(buffer, **options)
    return buffer.getvalue()


def turned():
    """A photograph of a camera that was held upright: a quarter turn to the right to see it."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return file(picture().transpose(Image.Transpose.ROTATE_90), format="PNG", exif=exif), picture()


def behind(content):
    """The same PNG with its EXIF behind the pixels, where it may be."""
    start = content.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(content[start : start + 4], "big")
    last = content.index(b"IEND") - 4
    return content[:start] + content[end:last] + content[start:end] + content[last:]


def translucent(mode):
    image = picture().convert(mode)
    image.putalpha(Image.fromarray(np.full((16, 24), 51, np.uint8)))  # a fifth
    rgb = np.asarray(picture().convert(mode.rstrip("A")).convert("RGB"))
    return file(image, format="PNG"), Image.fromarray(((rgb.astype(int) * 51 + 127) // 255).astype(np.uint8))


def deep_grey():
    levels = np.linspace(0, 65535, 24 * 16).reshape(16, 24).astype(np.uint16)
    return file(Image.fromarray(levels), format="PNG"), Image.fromarray((levels >> 8).astype(np.uint8))


def reopened(image=None, **options):
    content = file(image or picture(), **options)
    with Image.open(BytesIO(content)) as opened:
        return content, opened.convert("RGB")


IMAGES = {
    "JPEG": lambda: reopened(format="JPEG", quality=90),
    "WEBP": lambda: reopened(format="WEBP", quality=90),
    "GIF": lambda: reopened(format="GIF"),
    "BMP": lambda: reopened(format="BMP"),
    "TIFF": lambda: reopened(format="TIFF"),
    "CMYK": lambda: reopened(picture().convert("CMYK"), format="JPEG"),
    "palette": lambda: reopened(picture().quantize(64), format="PNG"),
    "grey": lambda: (file(picture().convert("L"), format="PNG"), picture().convert("L").convert("RGB")),
    "16-bit grey": deep_grey,
    "alpha": lambda: translucent("RGBA"),
    "grey and alpha": lambda: translucent("LA"),
    "turned": turned,
    "turned by what comes behind the pixels": lambda: (behind(turned()[0]), turned()[1]),
}


@pytest.mark.parametrize("make", IMAGES.values(), ids=IMAGES)
def test_images_of_all_kinds_are_seen_as_people_see_them(server, model, make):
    content, shown = make()
    response = server.post("/encode", data=content)
    assert response.status_code == 200, response.text
    found = torch.frombuffer(bytearray(response.content), dtype=torch.float32)
    expected = encoded(model, prepared(shown.convert("RGB")))
    assert json.loads(response.headers["shape"]) == list(expected.shape)
    torch.testing.assert_close(found.reshape(expected.shape), expected, atol=5e-3, rtol=1e-3)


def test_a_connection_is_kept(server):
    z = latents("picture", "float32")
    params = {"shape": list(z.shape), "dtype": "float32", "output_type": "pt"}
    with requests.Session() as session:
        answers = [
            session.post(f"{server.url}/decode", params=params, data=z.numpy().tobytes(), timeout=60)
            for _ in range(3)
        ]
    assert len({answer.content for answer in answers}) == 1
