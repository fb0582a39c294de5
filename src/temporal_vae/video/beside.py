"""What `reconstruct` writes beside its video: figures, a comparison, charts, a page."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from torch import Tensor

from temporal_vae.autoencoders.base import Autoencoder
from temporal_vae.media.frames import Clip, clip_starts
from temporal_vae.media.reader import VideoReader
from temporal_vae.media.writer import VideoWriter
from temporal_vae.metrics import QualityMeter
from temporal_vae.outputs import check_writable, complete_or_nothing, writing
from temporal_vae.video.coder import Coder
from temporal_vae.video.comparison import Comparison, comparison_paths
from temporal_vae.video.latents import LatentInfo, LatentWriter, check_latent_target
from temporal_vae.video.report import Report, report_path
from temporal_vae.video.report.charts import Timeline, charts_drawing, series_of
from temporal_vae.video.report.drawing import picture, svg_file
from temporal_vae.video.report.page import Page, check_page


class ByProducts:
    """Measures a reconstruction, and writes what was asked for beside it.

    Args:
        target: the video.
        compare: write a comparison side by side.
        charts: write the figures over time as SVG and PNG.
        page: where a page about it all goes.
        latents: where the latents go.
        source_copy: where the source goes as it was read.

    Attributes:
        paths: all that will be written.
        quality: the figures so far.

    Raises:
        InputError: what makes pages is not installed.
        MediaError: a name that cannot be written.
    """

    def __init__(
        self,
        target: Path,
        *,
        compare: bool,
        charts: bool,
        page: str | Path | None,
        latents: str | Path | None,
        source_copy: str | Path | None,
    ) -> None:
        self._target, self._compare = target, compare
        self._metrics_path = report_path(target)
        self._chart_paths = chart_paths(target) if charts else ()
        self._page_path = None if page is None else check_page(page)
        self.paths = [
            self._metrics_path,
            *(comparison_paths(target) if compare else ()),
            *self._chart_paths,
            *([self._page_path] if self._page_path else []),
        ]
        self._latents_path, self._copy_path = (
            None if one is None else Path(one) for one in (latents, source_copy)
        )
        if self._latents_path:
            check_latent_target(self._latents_path)
        self.paths += [path for path in (self._latents_path, self._copy_path) if path]
        for path in self.paths:
            check_writable(path)
        self._latents: LatentWriter | None = None
        self._copy: VideoWriter | None = None
        self.quality = QualityMeter()
        self._stamps: list[float] = []
        self._comparison: Comparison | None = None
        self._page: Page | None = None
        self._files: dict[Path, Path] = {}  # name -> temporary name

    @contextmanager
    def opened(
        self, reader: VideoReader, shown: dict[str, Any], describe: Callable[[], LatentInfo]
    ) -> Iterator[None]:
        """Within this, frames are added; they appear under their names if it ends well.

        Args:
            reader: of the source.
            shown: what a player needs to show the frames as the source.
            describe: what a latent file says of the source.
        """
        with ExitStack() as stack:
            for path in (self._metrics_path, *self._chart_paths, self._page_path):
                if path:
                    self._files[path] = stack.enter_context(complete_or_nothing(path))
            if self._latents_path:
                self._latents = stack.enter_context(LatentWriter(self._latents_path, describe()))
            if self._copy_path:
                self._copy = stack.enter_context(VideoWriter(self._copy_path, **shown))
            if self._compare:
                self._comparison = stack.enter_context(Comparison(self._target, rate=reader.rate))
            if self._page_path:
                self._page = Page(
                    width=reader.width,
                    height=reader.height,
                    pixel_aspect=shown["pixel_aspect"],
                    expected=reader.expected_frames,
                )
            yield

    def note_plans(self, coder: Coder, frames: int) -> None:
        """Remember how clips of so many frames, the first ones, are computed."""
        if self._page and self._page.plans is None:
            self._page.plans = coder.plans(frames)

    def keep(self, mean: Tensor, logvar: Tensor, timestamps: Sequence[Fraction], overlap: int) -> None:
        """Add the latents of the next clip, of which the one before had the first `overlap` frames."""
        if self._latents is not None:
            new = slice(overlap if len(self._latents) else 0, None)
            self._latents.write(mean[new], logvar[new], timestamps[new])

    def write(self, source: Clip, result: Clip) -> None:
        """Add the next frames."""
        if self._copy:
            self._copy.write(source.frames, source.timestamps)
        self.quality.update(source.frames, result.frames)
        self._stamps += map(float, result.timestamps)
        if self._page:
            self._page.write(source.frames, result.frames, self.quality.mse[-len(result) :])
        if self._comparison:
            for i in range(len(result)):  # one frame at a time keeps the pictures side by side small
                one = slice(i, i + 1)
                self._comparison.write(source.frames[one], result.frames[one], result.timestamps[one])

    def finish(self, report: Report, vae: Autoencoder, command: str, last_duration: Fraction | None) -> None:
        """Write what is still held back; call it before the block ends."""
        if self._latents is not None:
            self._latents.info = replace(self._latents.info, last_duration=last_duration)
        if self._copy:
            self._copy.finish(last_duration)
        if self._comparison:
            self._comparison.finish(last_duration)
        timeline = Timeline(stamps=self._stamps, clips=_clips(report))
        for path, temporary in self._files.items():
            with writing(path):
                if path == self._metrics_path:
                    report.save(temporary)
                elif path == self._page_path and self._page:
                    temporary.write_text(self._page.html(report, timeline, vae, command), encoding="utf-8")
                else:
                    save_charts(path, temporary, self.quality, timeline)


def chart_paths(target: Path) -> tuple[Path, Path]:
    """Where the charts of a target go, as lines and as pixels."""
    return target.with_name(f"{target.name}.charts.svg"), target.with_name(f"{target.name}.charts.png")


def save_charts(path: Path, temporary: Path, quality: QualityMeter, timeline: Timeline) -> None:
    """Write charts in the format of a path's suffix, under a temporary name."""
    drawing = charts_drawing(series_of(quality), timeline)
    if path.suffix == ".svg":
        temporary.write_text(svg_file(drawing), encoding="utf-8")
    else:
        picture(drawing).save(temporary, format="PNG", optimize=True)


def _clips(report: Report) -> list[tuple[int, int]]:
    """How the video was cut; nothing where it was not, or where frames have nothing to do with each other."""
    if report.clip_frames == 1:
        return []
    found = list(clip_starts(len(report.quality.mse), report.clip_frames, report.overlap))
    return found if len(found) > 1 else []
