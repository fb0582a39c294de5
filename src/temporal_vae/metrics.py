"""How close one video is to another: PSNR, SSIM and flicker, frame by frame, as a stream.

All three compare uint8 RGB frames `(t, h, w, 3)` of the same size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from temporal_vae.errors import InputError

PEAK = 255.0
SSIM_WINDOW = 11
SSIM_SIGMA = 1.5


def mse(source: NDArray[np.uint8], result: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Mean squared error of each frame, in squared 8-bit levels. `(t,)`."""
    errors = (x.astype(np.float32) - y for x, y in zip(source, result, strict=True))
    return np.array([np.square(error).mean(dtype=np.float64) for error in errors])


def psnr(mse: float) -> float:
    """Peak signal-to-noise ratio in dB of a mean squared error in 8-bit levels; infinite for an error of zero."""
    return math.inf if mse == 0 else 10 * math.log10(PEAK**2 / mse)


def ssim(source: NDArray[np.uint8], result: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Structural similarity of each frame, in [-1, 1], the mean over pixels and colours. `(t,)`.

    Wang, Bovik, Sheikh and Simoncelli, "Image quality assessment: from error visibility to structural
    similarity", 2004: Gaussian window of 11 pixels and sigma 1.5, K1 = 0.01, K2 = 0.03, windows wholly inside the
    picture. Not a number for frames that are smaller than a window.
    """
    if min(source.shape[1:3]) < SSIM_WINDOW:
        return np.full(len(source), np.nan)
    return np.array([_ssim_of_frame(*pair) for pair in zip(source, result, strict=True)])


def _ssim_of_frame(source: NDArray[np.uint8], result: NDArray[np.uint8]) -> float:
    colours = zip(source.transpose(2, 0, 1), result.transpose(2, 0, 1), strict=True)
    return float(np.mean([_ssim_of_colour(*pair) for pair in colours]))


def _ssim_of_colour(source: NDArray[np.uint8], result: NDArray[np.uint8]) -> float:
    x, y = (torch.from_numpy(plane.astype(np.float32)) for plane in (source, result))
    mean_x, mean_y, xx, yy, xy = _blur(torch.stack([x, y, x * x, y * y, x * y]))
    variance_x, variance_y, covariance = xx - mean_x**2, yy - mean_y**2, xy - mean_x * mean_y
    c1, c2 = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (variance_x + variance_y + c2)
    return float((luminance * structure).mean(dtype=torch.float64))


def _blur(x: Tensor) -> Tensor:
    """Gaussian window over rows, then columns, without a border. `(n, h, w) -> (n, h-10, w-10)`.

    Sums of shifted pictures: a convolution of one channel would copy the picture once per weight, in torch.
    """
    offsets = torch.arange(SSIM_WINDOW) - SSIM_WINDOW // 2
    window = torch.exp(-(offsets**2) / (2 * SSIM_SIGMA**2))
    weights = (window / window.sum()).tolist()
    for axis in (1, 2):
        length = x.shape[axis] - SSIM_WINDOW + 1
        total = x.narrow(axis, 0, length) * weights[0]
        for shift, weight in enumerate(weights[1:], start=1):
            total.add_(x.narrow(axis, shift, length), alpha=weight)
        x = total
    return x


@dataclass
class QualityMeter:
    """Collects the figures of a long video from its successive pieces.

    Flicker of a frame is the mean absolute error of its difference to the frame before, in 8-bit levels: what moves
    in the result and not in the source. The first frame has none.
    """

    mse: list[float] = field(default_factory=list)
    ssim: list[float] = field(default_factory=list)
    flicker: list[float] = field(default_factory=list)
    _last_error: NDArray[np.int16] | None = None

    def update(self, source: NDArray[np.uint8], result: NDArray[np.uint8]) -> None:
        """Add the next frames of both videos, `(t, h, w, 3)` each."""
        if source.shape != result.shape:
            raise InputError(
                f"metrics: source {source.shape} and result {result.shape} differ; compare frames of one size"
            )
        self.mse.extend(mse(source, result).tolist())
        self.ssim.extend(ssim(source, result).tolist())
        for pair in zip(source, result, strict=True):
            error = pair[1].astype(np.int16) - pair[0]
            if self._last_error is not None:
                self.flicker.append(float(np.abs(error - self._last_error).mean()))
            self._last_error = error

    def summary(self) -> dict[str, Any]:
        """Figures over the whole video.

        Returns:
            `psnr`: mean of the frames' PSNR in dB; `psnr_of_mean_error`: PSNR of the mean squared error over the
            whole video in dB; `psnr_worst`: that of the worst frame; `ssim`: mean; `flicker`: mean in 8-bit levels.
        """
        return {
            "frames": len(self.mse),
            "psnr": float(np.mean(self.psnr)),
            "psnr_of_mean_error": psnr(float(np.mean(self.mse))),
            "psnr_worst": min(self.psnr),
            "ssim": float(np.mean(self.ssim)),
            "flicker": float(np.mean(self.flicker)) if self.flicker else 0.0,
        }

    @property
    def psnr(self) -> list[float]:
        """PSNR of each frame in dB."""
        return [psnr(error) for error in self.mse]
