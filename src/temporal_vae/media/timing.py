"""Which frames are shown when: pure functions on streams of `(time, item)`; items are whatever the caller carries."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from typing import TypeVar

Item = TypeVar("Item")

ROUNDING = Fraction(1, 1000)
"""Seconds. Matroska and others round time stamps to a millisecond."""

_LOOK_AHEAD = 8  # frames


def repair(stamps: Iterable[tuple[int | None, Item]], step: Fraction) -> Iterator[tuple[Fraction, Item]]:
    """Make ticks strictly increasing: those that are missing, repeated or run backwards go between their neighbours.

    Where no later tick is in order, as after a clock that was set back, each is put `step` after the one before.

    Args:
        stamps: ticks of a time base, with their items, in the order of display.
        step: nominal distance of two frames in ticks.
    """
    step = max(step, Fraction(1))
    last: Fraction | None = None
    waiting: list[Item] = []  # whose ticks are not in order
    for tick, item in stamps:
        if tick is None or (last is not None and tick <= last):
            waiting.append(item)
            if len(waiting) > _LOOK_AHEAD or last is None:
                for late in waiting:
                    last = Fraction(0) if last is None else last + step
                    yield last, late
                waiting.clear()
            continue
        if waiting and last is not None:
            gap = min(step, (tick - last) / (len(waiting) + 1))
            for late in waiting:
                last += gap
                yield last, late
            waiting.clear()
        last = Fraction(tick)
        yield last, item
    for late in waiting:
        last = Fraction(0) if last is None else last + step
        yield last, late


def end_at_rate(last: Fraction, shown: Fraction, fps: Fraction) -> Fraction:
    """Before when the multiples of `1 / fps` must lie that show the last frame: from `last` for `shown` seconds."""
    return last + shown - min(ROUNDING, 1 / fps / 4)


def starting(stream: Iterable[tuple[Fraction, Item]], start: Fraction) -> Iterator[tuple[Fraction, Item]]:
    """Leave out what is shown before `start` seconds, give or take the millisecond that containers round by."""
    return ((time, item) for time, item in stream if time >= start - ROUNDING)


def at_rate(
    stream: Iterable[tuple[Fraction, Item]],
    fps: Fraction,
    source_rate: Fraction,
    last_duration: Callable[[], Fraction | None] = lambda: None,
    first: Fraction | None = None,
) -> Iterator[tuple[Fraction, Item]]:
    """Show, at each multiple of `1 / fps` after the first frame, the frame that is nearest in time.

    Frames are dropped or repeated, never mixed. The last frame lasts for what `last_duration` tells at the end, or else
    for `1 / source_rate`. With `first`, the multiples are counted from there, which lies behind the first frame.
    """
    held: tuple[Fraction, Item] | None = None
    shown = 0
    for time, item in stream:
        if first is None:
            first = time
        if held is not None:
            while (due := first + shown / fps) - held[0] <= time - due:
                yield due, held[1]
                shown += 1
        held = time, item
    if held is not None and first is not None:
        end = end_at_rate(held[0], last_duration() or 1 / source_rate, fps)
        while (due := first + shown / fps) < end:
            yield due, held[1]
            shown += 1
