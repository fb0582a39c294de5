"""The figures, against scikit-image and against sums by hand."""

import math

import numpy as np
import pytest

from temporal_vae import metrics
from temporal_vae.errors import InputError

structural_similarity = pytest.importorskip("skimage.metrics").structural_similarity
peak_signal_noise_ratio = pytest.importorskip("skimage.metrics").peak_signal_noise_ratio


@pytest.fixture
def videos() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    source = np.kron(random.integers(0, 256, (3, 6, 8, 3)), np.ones((1, 6, 5, 1))).astype(np.uint8)
    noise = random.normal(0, 12, source.shape)
    return source, (source + noise).clip(0, 255).astype(np.uint8)


def test_psnr_is_that_of_scikit_image(videos):
    source, result = videos
    expected = [peak_signal_noise_ratio(*pair) for pair in zip(source, result, strict=True)]
    assert [metrics.psnr(error) for error in metrics.mse(source, result)] == pytest.approx(expected, rel=1e-6)


def test_ssim_is_that_of_scikit_image(videos):
    source, result = videos
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    expected = [
        structural_similarity(*pair, data_range=255, channel_axis=2, **settings)
        for pair in zip(source, result, strict=True)
    ]
    assert metrics.ssim(source, result) == pytest.approx(expected, abs=1e-5)


def test_equal_videos_are_perfect(videos):
    meter = metrics.QualityMeter()
    meter.update(videos[0], videos[0])
    summary = meter.summary()
    assert summary["psnr"] == math.inf
    assert summary["ssim"] == pytest.approx(1)
    assert summary["flicker"] == 0


def test_flicker_is_the_error_of_frame_differences():
    source = np.full((3, 16, 16, 3), 100, np.uint8)
    steady, flickering = source + 10, source.copy()
    flickering[1] += 10
    figures = []
    for result in (steady, flickering):
        meter = metrics.QualityMeter()
        meter.update(source, result)
        figures.append(meter.flicker)
    assert figures == [[0, 0], [10, 10]]


def test_pieces_add_up_to_the_whole(videos):
    whole, pieces = metrics.QualityMeter(), metrics.QualityMeter()
    whole.update(*videos)
    for start in range(3):
        pieces.update(*(video[start : start + 1] for video in videos))
    assert pieces.summary() == pytest.approx(whole.summary())
    assert len(pieces.flicker) == 2


def test_frames_smaller_than_the_window_have_no_ssim():
    frame = np.zeros((1, 10, 40, 3), np.uint8)
    assert np.isnan(metrics.ssim(frame, frame)).all()


def test_videos_of_other_sizes_are_refused(videos):
    with pytest.raises(InputError, match="differ"):
        metrics.QualityMeter().update(videos[0], videos[1][:, :-1])
