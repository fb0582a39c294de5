"""What stands in a report's page: numbers as text, pictures as addresses, charts as SVG; the template lays it out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from temporal_vae import engine
from temporal_vae.metrics import SSIM_WINDOW
from temporal_vae.video.report import pictures
from temporal_vae.video.report.charts import Series, Timeline, chart, columns, series_of
from temporal_vae.video.report.drawing import inline_svg
from temporal_vae.video.report.figures import Report, report_path
from temporal_vae.video.report.words import Verdict, clock, duration, judge, shown

if TYPE_CHECKING:
    from temporal_vae.video.report.page import Moment

_WIDE, _NARROW = (800, 168), (350, 180)  # of charts: on a screen or paper, and on a phone
_TABLE_ROWS = 25  # of the figures over time

MEANINGS = {
    "PSNR": "Peak signal-to-noise ratio of each frame: higher is closer, 6 dB more is half the error.",
    "SSIM": "Structural similarity: 1 is identical. It notices lost texture more than a shift of brightness.",
    "Flicker": "How much the error changes from one frame to the next, in levels of 255: what moves in the result and "
    "not in the source. Lower is steadier.",
}


def heading(report: Report, timeline: Timeline) -> dict[str, Any]:
    """Title, verdict and the table of figures."""
    verdict = _verdict(report, timeline)
    series = [one for one in series_of(report.quality) if _has_values(one)]
    memory = None if report.peak_memory is None else engine.readable(report.peak_memory)
    per_frame = report.model_seconds / len(report.quality.mse)
    summary = report.quality.summary()
    return {
        "name": shown(Path(report.source).name or report.source),
        "frames": len(report.quality.mse),
        "size": f"{report.width}x{report.height}",
        "model_name": shown(report.model),
        "verdict": verdict,
        "tiles": [
            ("PSNR", series[0].text(_overall(report))),
            *((one.name, one.text(_mean(one))) for one in series[1:]),
            (
                "Time per frame" if len(report.quality.mse) > 1 else "Model time",
                duration(per_frame),
            ),
            *([("Peak memory", memory)] if memory else []),
        ],
        "overall": series[0].number(summary["psnr_of_mean_error"]),
        "table": [_figures(one, timeline) for one in series],
        "no_ssim": f"{SSIM_WINDOW}x{SSIM_WINDOW}" if math.isnan(summary["ssim"]) else "",
        "metrics_name": shown(report_path(Path(report.target)).name),
    }


def charts(report: Report, timeline: Timeline, marks: Sequence[int]) -> dict[str, Any]:
    """A chart of each figure that there is, in two widths; and the figures over time as a table."""
    series = [one for one in series_of(report.quality) if _has_values(one)]
    count = len(timeline.stamps)
    found = []
    for one in series if count > 1 else ():
        label = _description(one, timeline)
        pointed = marks if one.name == "PSNR" else ()
        drawn = [
            inline_svg(chart(one, timeline, width=width, height=height, marks=pointed), css=css, label=label)
            for css, (width, height) in (("chart wide", _WIDE), ("chart narrow", _NARROW))
        ]
        found.append(
            {
                "name": one.name,
                "unit": one.unit,
                "meaning": MEANINGS[one.name],
                "label": label,
                "wide": _safe(drawn[0]),
                "narrow": _safe(drawn[1]),
            }
        )
    return {
        "charts": found,
        "series_names": [one.title for one in series],
        "over_time": _over_time(series, timeline) if count > 1 else [],
        "clips": len(timeline.clips),
        "fades": any(stop > start for start, stop in timeline.fades),
        "thinned": count > _WIDE[0] // 2,
    }


def moment(report: Report, timeline: Timeline, factor: int, number: int, found: Moment) -> dict[str, Any]:
    """A frame of the weakest; `factor` is that of the difference."""
    part = _shot(found.detail, factor, exact=True) if found.detail else None
    return {**row(report, timeline, factor, number, found.shot), "detail": part}


def row(report: Report, timeline: Timeline, factor: int, number: int, found: pictures.Shot) -> dict[str, Any]:
    """A row of the contact sheet."""
    return {**_frame(report, timeline, number), **_shot(found, factor)}


def heat(errors: pictures.ErrorMap, size: tuple[int, int]) -> dict[str, Any]:
    """Where the error lies, over all frames."""
    levels = errors.mean()
    picture, end = pictures.heat(levels, size)
    height, width = levels.shape
    row, column = divmod(int(levels.argmax()), width)
    thirds = ("left", "middle", "right")[3 * column // width], ("top", "middle", "bottom")[3 * row // height]
    return {
        "uri": pictures.as_uri(picture),
        "width": size[0],
        "height": size[1],
        "end": f"{end:g}",
        "mean": f"{levels.mean():.2f}",
        "most": f"{levels.max():.1f}",
        "where": f"{thirds[1]} {thirds[0]}" if thirds != ("middle", "middle") else "middle",
        "colors": ", ".join(pictures.heat_colors()),
    }


def video_facts(report: Report, timeline: Timeline) -> dict[str, str]:
    """What was reconstructed, and how it was cut."""
    count = len(timeline.stamps)
    facts = {
        "Source": shown(Path(report.source).name),
        "Frames": f"{count:,} of {report.width}x{report.height} pixels",
    }
    if count > 1:
        facts["From, to"] = f"{clock(timeline.stamps[0])} to {clock(timeline.stamps[-1])}"
        facts["Clips"] = _cut(report, timeline)
    return facts


def cost_facts(report: Report, plans: Sequence[engine.Plan]) -> dict[str, str]:
    """Time and memory."""
    frames = len(report.quality.mse)
    facts = {
        "Time in the model": f"{duration(report.model_seconds)}, {duration(report.model_seconds / frames)} per frame",
        "Time of everything": f"{duration(report.total_seconds)}, reading, measuring and writing included",
    }
    if report.peak_memory is not None:
        facts["Memory at the peak"] = f"{engine.readable(report.peak_memory)} of the {_where(report)}"
    if plans:
        limit = plans[0].memory_limit
        facts["Memory limit"] = engine.readable(limit) + " above the weights" if limit else "what is free"
    for plan in plans:
        again = f", {plan.extra_work:.0%} of the work done twice" if plan.extra_work >= 0.005 else ""
        facts[f"Plan to {plan.task}"] = f"{engine.readable(plan.peak)} above the weights ({plan.rung}{again})"
    return facts


def _where(report: Report) -> str:
    return "device, allocated" if report.device.startswith("cuda") else "process"


def _cut(report: Report, timeline: Timeline) -> str:
    if report.clip_frames == 1:
        return "each frame by itself"
    if not timeline.clips:
        return "all frames as one clip"
    overlap = f", {report.overlap} of them shared and cross-faded" if report.overlap else ""
    return f"{len(timeline.clips):,} of {report.clip_frames} frames{overlap}"


def _verdict(report: Report, timeline: Timeline) -> Verdict:
    between = {frame for start, stop in timeline.fades for frame in range(start, max(stop, start) + 1)}
    quality = report.quality
    return judge(
        psnr=quality.psnr,
        overall=_overall(report),
        flicker=quality.flicker,
        between=between,
        stamps=list(timeline.stamps),
    )


def _overall(report: Report) -> float:
    """The mean PSNR of the frames, unless some of them are identical: then that of their mean error."""
    summary = report.quality.summary()
    return float(summary["psnr"] if math.isfinite(summary["psnr"]) else summary["psnr_of_mean_error"])


def _has_values(series: Series) -> bool:
    return not all(map(math.isnan, series.values))


def _mean(series: Series) -> float:
    values = [value for value in series.values if not math.isnan(value)]
    return sum(values) / len(values)


def _figures(series: Series, timeline: Timeline) -> dict[str, str]:
    """A row of the table: what most frames have, and which frame has the worst."""
    numbered = [(value, frame) for frame, value in enumerate(series.values) if not math.isnan(value)]
    least, most = min(numbered), max(numbered, key=lambda pair: (pair[0], -pair[1]))
    worst, best = (least, most) if series.least is None else (most, least)
    return {
        "name": series.title,
        "mean": series.number(_mean(series)),
        "median": series.number(median(value for value, _ in numbered)),
        "best": series.number(best[0]),
        "worst": series.number(worst[0]),
        "frame": f"{worst[1]:,}",
        "time": clock(timeline.stamps[worst[1]]),
    }


def _description(series: Series, timeline: Timeline) -> str:
    """A chart in words."""
    found, unit = _figures(series, timeline), series.unit and f" {series.unit}"
    same = sum(map(math.isinf, series.values))
    identical = f" {same:,} frames are identical to the source." if same else ""
    return (
        f"{series.name} over {len(series.values):,} frames: {found['mean']}{unit} on average, from {found['worst']} "
        f"(worst, frame {found['frame']} at {found['time']}) to {found['best']} (best).{identical}"
    )


def _over_time(series: Sequence[Series], timeline: Timeline) -> list[dict[str, Any]]:
    """Mean and worst of each figure in as many spans of time as a table takes."""
    spans = [columns(one.values, _TABLE_ROWS) for one in series]
    rows = []
    for parts in zip(*spans, strict=True):
        first, last = parts[0].start, parts[0].stop - 1
        cells = []
        for one, part in zip(series, parts, strict=True):
            worst = part.least if one.least is None else part.most
            cells.append((one.number(part.mean), one.number(worst)))
        span = f"{first:,}" if first == last else f"{first:,} to {last:,}"
        rows.append({"frames": span, "time": clock(timeline.stamps[first], 2), "cells": cells})
    return rows


def _frame(report: Report, timeline: Timeline, number: int) -> dict[str, Any]:
    """Number, time and figures of a frame."""
    figures = [
        (one.name, one.text(one.values[number]))
        for one in series_of(report.quality)
        if not math.isnan(one.values[number])
    ]
    return {"number": f"{number:,}", "id": number, "time": clock(timeline.stamps[number]), "figures": figures}


def _shot(found: pictures.Shot, factor: int, *, exact: bool = False) -> dict[str, Any]:
    shown_as = {
        "source": found.source,
        "result": found.result,
        "difference": pictures.amplified(found.error, factor),
    }
    uris = {name: pictures.as_uri(picture, exact=exact) for name, picture in shown_as.items()}
    return {**uris, "width": found.source.width, "height": found.source.height, "place": found.place}


def _safe(svg: str) -> Any:
    """SVG that a page takes as it is: `drawing` has escaped all text in it."""
    from markupsafe import Markup

    return Markup(svg)
