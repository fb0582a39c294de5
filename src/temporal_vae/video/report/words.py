"""What the numbers mean, in words; and how they are written."""

from __future__ import annotations

import math
from dataclasses import dataclass

CLOSENESS = (
    (42.0, "Hardly to be told from the source"),
    (36.0, "Very close to the source"),
    (31.0, "Close to the source"),
    (26.0, "Visibly short of the source"),
    (-math.inf, "Far from the source"),
)
"""Least PSNR in dB, and what it is called."""

STEADINESS = ((1.5, "steady over time"), (3.0, "with a faint shimmer"), (math.inf, "with visible flicker"))
"""Flicker in 8-bit levels below which it is called so."""

PUMPING = 1.5
"""How many times the flicker within clips that between them is where they are said to pump."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """How good a reconstruction is.

    Attributes:
        title: a few words.
        sentences: what stands behind them.
        flicker_between: mean flicker of the frames where one clip becomes the next; None where there is but one.
        flicker_within: mean flicker of all others.
        pumps: whether the changes from clip to clip stand out.
    """

    title: str
    sentences: tuple[str, ...]
    flicker_between: float | None = None
    flicker_within: float | None = None
    pumps: bool = False


def judge(
    *,
    psnr: list[float],
    overall: float,
    flicker: list[float],
    between: set[int],
    stamps: list[float],
) -> Verdict:
    """Say how good a reconstruction is.

    Args:
        psnr: dB of each frame.
        overall: dB of all frames together; infinite only if all are identical.
        flicker: levels of each frame but the first.
        between: frames at which one clip becomes the next.
        stamps: seconds of each frame.
    """
    if math.isinf(overall):
        what = "The picture is" if len(psnr) == 1 else f"All {len(psnr):,} frames are"
        return Verdict(
            title="Identical to the source",
            sentences=(f"{what} the same as in the source, to the last bit.",),
        )
    title = next(words for least, words in CLOSENESS if overall >= least)
    if len(psnr) == 1:
        return Verdict(title=title, sentences=(f"PSNR is {psnr[0]:.2f} dB.",))
    mean_flicker = sum(flicker) / len(flicker)
    steady = next(words for below, words in STEADINESS if mean_flicker < below)
    worst = min(range(len(psnr)), key=psnr.__getitem__)
    sentences = [
        f"PSNR is {overall:.2f} dB on average over {len(psnr):,} frames. The weakest is frame {worst:,}, at "
        f"{clock(stamps[worst], 2)}, with {psnr[worst]:.2f} dB.",
        f"From frame to frame the error changes by {mean_flicker:.2f} of 255 levels.",
    ]
    first = _mean([value for frame, value in enumerate(flicker, start=1) if frame in between])
    rest = _mean([value for frame, value in enumerate(flicker, start=1) if frame not in between])
    pumps = False
    if first is not None and rest is not None:
        pumps = first >= 1 and first >= PUMPING * rest
        sentences.append(
            f"Where one clip becomes the next it is {first:.2f}, within clips {rest:.2f}"
            + (": the clips pump. Longer clips, or clips that overlap, help." if pumps else ".")
        )
    return Verdict(
        title=f"{title}, {'but clips pump' if pumps else steady}",
        sentences=tuple(sentences),
        flicker_between=first,
        flicker_within=rest,
        pumps=pumps,
    )


def clock(seconds: float, digits: int = 3) -> str:
    """A time as players show it: `1:02.500`."""
    ticks = round(abs(seconds) * 10**digits)
    whole, part = divmod(ticks, 10**digits)
    sign, (minutes, rest) = "-" if seconds < 0 and ticks else "", divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    front = f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
    return f"{sign}{front}.{part:0{digits}d}"


def duration(seconds: float) -> str:
    """How long something took."""
    return f"{seconds:.3g} s" if seconds < 100 else f"{seconds:,.0f} s"


def shown(text: str) -> str:
    """A name or command as a page can show it: what has no sign, such as half of a character, is replaced by one."""
    return "".join(sign if sign.isprintable() or sign in "\n\u200c\u200d" else "\ufffd" for sign in text)


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
