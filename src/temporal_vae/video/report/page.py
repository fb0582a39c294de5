"""The page that `reconstruct --report` writes: what it keeps while frames pass by, and the HTML it becomes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from temporal_vae import __version__, engine
from temporal_vae.autoencoders.base import Autoencoder
from temporal_vae.errors import MediaError, file_name
from temporal_vae.media.frames import Frames
from temporal_vae.metrics import psnr as psnr_of
from temporal_vae.namespace import need_extra
from temporal_vae.outputs import check_writable
from temporal_vae.video.comparison import EvenlySpaced
from temporal_vae.video.report import pictures, view, words
from temporal_vae.video.report.charts import Timeline
from temporal_vae.video.report.facts import machine_facts, model_facts
from temporal_vae.video.report.figures import Report

if TYPE_CHECKING:
    from jinja2 import Environment

_SHEET_ROWS = 6  # at most; at least half as many of a video that long
_SHEET_SIDE = 480  # pixels of the longer side of its pictures
_MOMENTS = 4  # weakest frames that are shown
_MOMENT_SIDE = 840
_APART = 12  # frames between them at least; fewer in a short video, the sixteenth part of it
_MAP_SIDE = 960
_SUFFIXES = (".html", ".htm")


@dataclass(frozen=True, kw_only=True)
class Moment:
    """A frame of the weakest."""

    shot: pictures.Shot
    detail: pictures.Shot | None


class Page:
    """Gathers what a page shows of a reconstruction; memory does not grow with the number of frames.

    Args:
        width, height: of the frames in pixels.
        pixel_aspect: width of a pixel over its height.
        expected: about how many frames there will be; None where nobody knows.

    Attributes:
        plans: how clips are encoded and decoded; none where the engine does not plan.
    """

    def __init__(self, *, width: int, height: int, pixel_aspect: Fraction, expected: int | None) -> None:
        self.plans: tuple[engine.Plan, ...] | None = None
        fitted = [
            pictures.fitted(width, height, float(pixel_aspect), side)
            for side in (_SHEET_SIDE, _MOMENT_SIDE, _MAP_SIDE)
        ]
        self._sheet_size, self._moment_size, self._map_size = fitted
        apart = _APART if expected is None else min(max(1, expected // 16), _APART)
        self._sheet: EvenlySpaced[pictures.Shot] = EvenlySpaced(_SHEET_ROWS)
        self._weakest: pictures.Weakest[Moment] = pictures.Weakest(_MOMENTS, apart)
        self._errors = pictures.ErrorMap()
        self._count = 0

    def write(self, source: Frames, result: Frames, mse: list[float]) -> None:
        """Add the next frames of both videos, `(t, h, w, 3)` each, and their mean squared errors."""
        for one, other, error, loss in zip(source, result, pictures.errors(source, result), mse, strict=True):
            score = psnr_of(loss)
            self._errors.add(error)
            if self._sheet.wants(self._count):
                self._sheet.add(self._count, pictures.shot(one, other, error, self._sheet_size))
            if self._weakest.wants(self._count, score):
                shot = pictures.shot(one, other, error, self._moment_size)
                moment = Moment(shot=shot, detail=pictures.detail(one, other, error))
                self._weakest.add(self._count, score, moment)
            self._count += 1

    def html(self, report: Report, timeline: Timeline, vae: Autoencoder, command: str) -> str:
        """The page.

        Args:
            report: the figures.
            timeline: moments of the frames, and how they were cut into clips.
            vae: the model.
            command: what the reconstruction was asked for with; may be empty.
        """
        moments = [
            (number, moment)
            for number, moment in self._weakest.ranked()
            if self._count == 1 or math.isfinite(psnr_of(report.quality.mse[number]))
        ]
        kept = self._sheet.kept
        factor = pictures.amplification([*kept.values(), *(found.shot for _, found in moments)])
        values: dict[str, Any] = {
            "version": __version__,
            **view.heading(report, timeline),
            **view.charts(report, timeline, [number for number, _ in moments]),
            "moments": [view.moment(report, timeline, factor, *entry) for entry in moments],
            "sheet": [view.row(report, timeline, factor, *entry) for entry in kept.items()],
            "heat": view.heat(self._errors, self._map_size),
            "amplification": factor,
            "video": view.video_facts(report, timeline),
            "model": model_facts(vae),
            "machine": machine_facts(vae.device),
            "cost": view.cost_facts(report, self.plans or ()),
            "plans": [str(plan) for plan in self.plans or ()],
            "command": words.shown(command),
            "meanings": view.MEANINGS,
            "closeness": words.CLOSENESS,
            "steadiness": words.STEADINESS,
            "pumping": words.PUMPING,
        }
        return _environment().get_template("page.html.jinja").render(values)


def check_page(path: str | Path) -> Path:
    """A name for a page, once it is clear that one can be made and written there.

    Raises:
        InputError: what makes pages is not installed.
        MediaError: a name that is none of a page, or cannot be written.
    """
    need_extra("report", "jinja2")
    check_writable(path)
    if Path(path).suffix.lower() not in _SUFFIXES:
        raise MediaError(f"{file_name(path)}: a report is a page of HTML; give a name that ends in .html")
    return Path(path)


@cache
def _environment() -> Environment:
    """What reads the templates; threads may share it."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("temporal_vae.video.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
