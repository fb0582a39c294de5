"""What `reconstruct` found out: quality, time and memory."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from temporal_vae.metrics import QualityMeter


@dataclass(frozen=True, kw_only=True)
class Report:
    """Figures of one reconstruction.

    Attributes:
        source, target: file names.
        model: name of the model.
        dtype, device: what was computed in, and where.
        width, height: size of the frames in pixels.
        clip_frames: frames decoded as one clip; `None` for all. 1 where each frame is decoded by itself.
        overlap: frames that neighbouring clips share.
        quality: PSNR, SSIM and flicker of every frame.
        model_seconds: time spent in encode and decode.
        total_seconds: time of the whole run, reading and writing included.
        peak_memory: bytes; see `peak_memory`.
    """

    source: str
    target: str
    model: str
    dtype: str
    device: str
    width: int
    height: int
    clip_frames: int | None
    overlap: int
    quality: QualityMeter
    model_seconds: float
    total_seconds: float
    peak_memory: int | None

    def per_frame(self) -> list[dict[str, float]]:
        """PSNR (dB), SSIM and flicker (8-bit levels; none for the first frame) of each frame."""
        flicker = [math.nan, *self.quality.flicker]
        rows = zip(self.quality.psnr, self.quality.ssim, flicker, strict=True)
        return [{"psnr": psnr, "ssim": ssim, "flicker": flicker} for psnr, ssim, flicker in rows]

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values; numbers that JSON does not have (infinite, undefined) are `None`."""
        frames = len(self.quality.mse)
        fields = {name: value for name, value in vars(self).items() if name != "quality"}
        times = {"seconds_per_frame": self.model_seconds / frames}
        return _finite({**fields, **times, "summary": self.quality.summary(), "per_frame": self.per_frame()})

    def save(self, path: Path) -> None:
        """Write `to_dict` as a JSON file."""
        path.write_text(json.dumps(self.to_dict(), indent=2) + "\n")

    def lines(self) -> list[str]:
        """The summary for people."""
        summary = self.quality.summary()
        worst = self.quality.psnr.index(summary["psnr_worst"])
        memory = "unknown" if self.peak_memory is None else f"{self.peak_memory / 2**20:,.0f} MiB"
        alone = ["clips    each frame by itself"] if self.clip_frames == 1 and summary["frames"] > 1 else []
        return [
            *alone,
            f"PSNR     {summary['psnr']:.2f} dB mean, {summary['psnr_worst']:.2f} worst (frame {worst})",
            f"SSIM     {summary['ssim']:.4f} mean",
            f"flicker  {summary['flicker']:.2f} levels of 255",
            f"time     {self.model_seconds / summary['frames']:.3f} s per frame in the model, "
            f"{self.total_seconds:.1f} s in all for {summary['frames']} frames of {self.width}x{self.height}",
            f"memory   {memory} at the peak",
        ]


def report_path(target: Path) -> Path:
    """Where the report of a target goes."""
    return target.with_name(f"{target.name}.metrics.json")


def peak_memory(device: torch.device) -> int | None:
    """Most bytes in use so far: allocated on a CUDA device, else resident of the process; `None` where unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kibibytes on Linux


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
