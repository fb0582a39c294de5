"""The page computing by itself, in a real browser: its latents, frames and figures beside those of the package."""

import numpy as np
import pytest
from page_steps import choose, download, download_json, frames, latents_of, reconstruct
from PIL import Image

from temporal_vae import decode_video, encode_video
from temporal_vae.metrics import QualityMeter
from temporal_vae.training.data.scenes import render_scene

pytest_plugins = ("page_fixtures",)

ROUNDING = (
    2e-5  # of the largest value: the engine, ONNX Runtime on x86 and in WebAssembly sum in other orders
)


def scene(count, height, width):
    return render_scene(3, frames=count, height=height, width=width)


def assert_same_latents(found, expected):
    for ours, right in zip(found[:2], expected[:2], strict=True):
        assert ours.dtype == np.float32
        assert ours.shape == right.shape
        assert np.abs(ours - right).max() <= ROUNDING * np.abs(right).max()


def assert_same_frames(found, expected):
    """A value that lies between two levels may be rounded to either."""
    difference = np.abs(found.astype(int) - expected)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-3


def measured(source, result):
    meter = QualityMeter()
    meter.update(source, result)
    return meter


def assert_same_figures(said, meter):
    for name, value in meter.summary().items():
        assert said["summary"][name] == pytest.approx(value, rel=2e-4)
    ours = [[row[name] for row in said["per_frame"]] for name in ("psnr", "ssim", "flicker")]
    assert ours[0] == pytest.approx(meter.psnr, rel=1e-6)
    assert ours[1] == pytest.approx(meter.ssim, rel=2e-4)
    assert ours[2] == [None, *map(pytest.approx, meter.flicker)]


def restored(latents, folder, **options):
    """Frames that the package makes of a latent file, `(t, h, w, 3)`."""
    decode_video(latents, folder, **options)
    return np.stack([np.asarray(Image.open(file)) for file in sorted(folder.iterdir())])


def test_a_picture_as_the_package_has_it(site, open_page, tmp_path):
    source = scene(1, 38, 45)  # of a size that the model's factor does not divide
    picture = tmp_path / "scene.png"
    Image.fromarray(source[0]).save(picture)
    page = open_page(site.address)
    choose(page, picture, width="")
    reconstruct(page)
    assert "WebAssembly" in page.text_content("#plan")
    encode_video(picture, tmp_path / "right.safetensors")
    file = download(page, "Latents", tmp_path)
    found, right = latents_of(file), latents_of(tmp_path / "right.safetensors")
    assert_same_latents(found, right)
    assert found[2] == right[2]  # the picture's hash, size, times, and who made them
    result = np.asarray(Image.open(download(page, "Result", tmp_path)))[None]
    assert_same_frames(result, restored(file, tmp_path / "frames/"))
    assert (frames(page, "source-canvas", 1) == source).all()
    assert (frames(page, "result-canvas", 1) == result).all()
    assert_same_figures(download_json(page, "Metrics", tmp_path), measured(source, result))


def test_clips_that_overlap_as_the_package_has_them(site, open_page, tmp_path):
    source = scene(5, 32, 44)
    animation = tmp_path / "scene.png"
    first, *others = map(Image.fromarray, source)
    first.save(animation, save_all=True, append_images=others, duration=[80, 80, 120, 80, 80])
    page = open_page(site.address)
    choose(page, animation, width="", clip=3, overlap=1)
    reconstruct(page)
    encode_video(animation, tmp_path / "right.safetensors")
    file = download(page, "Latents", tmp_path)
    found, right = latents_of(file), latents_of(tmp_path / "right.safetensors")
    assert_same_latents(found, right)
    assert found[2]["timestamps"] == {"tick": "1/1000", "ticks": [0, 80, 160, 280, 360]}
    result = frames(page, "result-canvas", 5)
    assert_same_frames(result, restored(file, tmp_path / "frames/", clip_frames=3, overlap=1))
    assert (frames(page, "source-canvas", 5) == source).all()
    assert_same_figures(download_json(page, "Metrics", tmp_path), measured(source, result))
