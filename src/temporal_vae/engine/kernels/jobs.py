"""The jobs of a sweep: which part of the target each writes, and what their sums come to.

A job is a row of 64-bit integers, in the order that `native_code` reads. Each gathers sums of its own; they are added
in the order of the jobs, whoever did them and whenever.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import torch

from temporal_vae.engine.geometry import Span, shares, sums_bytes
from temporal_vae.engine.kernels import Progress
from temporal_vae.engine.kernels.compiler import Sweep
from temporal_vae.engine.kernels.crew import Crew
from temporal_vae.engine.kernels.norms import moments_of
from temporal_vae.engine.stats import Moments
from temporal_vae.engine.storage import Scratch


@dataclass(frozen=True, slots=True)
class Call:
    """A kernel with what its jobs share."""

    code: Sweep
    fields: list[int]
    room: int  # bytes of scratch


class Jobs:
    """Has a crew do the jobs of sweeps."""

    def __init__(self, crew: Crew, panel: int) -> None:
        self.crew = crew
        self.sums = Scratch(torch.device("cpu"))
        self._panel = panel  # outputs that a kernel writes at a time

    def over_frames(
        self,
        call: Call,
        frames: Sequence[tuple[int, ...]],
        pixels: int,
        parts: Sequence[Span],
        outputs: int,
        scratch: Sequence[Scratch],
        progress: Progress,
    ) -> Moments:
        """Each job does a part of one frame; `frames` are the first fields of the jobs of each. Moments `(t, c)`."""
        shared = len(frames[0])
        jobs = self._blank((len(frames), len(parts)), shared, outputs)
        jobs[..., :shared] = np.array(frames)[:, None, None]
        jobs[..., shared + 1 : shared + 3] = np.array([(part.first, part.last) for part in parts])[:, None]
        nbytes, each = sums_bytes(1, 1, outputs), sums_bytes(len(parts), 1, outputs)
        place = self.sums.reset().address(len(frames) * each)
        jobs[..., shared] = place + nbytes * np.arange(len(frames) * len(parts)).reshape(len(frames), -1, 1)
        self._do(call, jobs, scratch, progress)
        return moments_of(place, pixels, len(frames), each, len(parts), nbytes, outputs)

    def over_time(
        self,
        call: Call,
        frames: int,
        pixels: int,
        parts: Sequence[Span],
        outputs: int,
        scratch: Sequence[Scratch],
        progress: Progress,
    ) -> Moments:
        """Each job does some pixels, the same of all frames. Moments `(t, c)`."""
        jobs = self._blank((len(parts),), 0, outputs)
        jobs[..., 1:3] = np.array([(part.first, part.last) for part in parts])[:, None]
        nbytes, each = sums_bytes(1, 1, outputs), sums_bytes(1, frames, outputs)
        place = self.sums.reset().address(len(parts) * each)
        jobs[..., 0] = place + each * np.arange(len(parts))[:, None]
        self._do(call, jobs, scratch, progress)
        return moments_of(place, pixels, frames, nbytes, len(parts), each, outputs)

    def _blank(self, count: tuple[int, ...], shared: int, outputs: int) -> np.ndarray:
        """Jobs with a range of outputs each; where there are few, several share what one would write.

        Their fields: what is shared, the place of the sums, and the ends of the part and of the range.
        """
        most = max(1, 2 * self.crew.count // prod(count))
        ranges = shares(outputs, self._panel, most)
        jobs = np.empty((*count, len(ranges), shared + 5), dtype=np.int64)
        jobs[..., -2:] = [(part.first, part.last) for part in ranges]
        return jobs

    def _do(self, call: Call, jobs: np.ndarray, scratch: Sequence[Scratch], progress: Progress) -> None:
        rooms = [one.reset().address(call.room) for one in scratch]
        self.crew.sweep(call.code, call.fields, jobs.reshape(-1, jobs.shape[-1]), rooms, progress)
