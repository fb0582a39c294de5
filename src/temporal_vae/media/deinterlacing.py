"""Fields to frames, by FFmpeg's bwdif: Weston's three-field method behind the motion check of Yadif."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import av
import av.filter


def deinterlaced(frames: Iterator[av.VideoFrame], time_base: Fraction) -> Iterator[av.VideoFrame]:
    """As many frames as come in; those that are flagged as interlaced are built from both of their fields.

    Chroma of 4:2:0 fields is built field by field too. Nothing is touched before the first flagged frame, and where the
    size or the format changes, the filter begins anew.

    Args:
        frames: decoded, with ticks of `time_base`.
        time_base: seconds.
    """
    graph: av.filter.Graph | None = None
    shape: tuple[int, int, str] | None = None
    for frame in frames:
        here = frame.width, frame.height, frame.format.name
        if graph is not None and here != shape:
            yield from _pulled(graph, None, time_base)
            graph = None
        if graph is None:
            if not frame.interlaced_frame:
                yield frame
                continue
            graph, shape = _graph(frame, time_base), here
        yield from _pulled(graph, frame, time_base)
    if graph is not None:
        yield from _pulled(graph, None, time_base)


def _graph(frame: av.VideoFrame, time_base: Fraction) -> av.filter.Graph:
    graph = av.filter.Graph()
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=time_base
    )
    nodes = (
        source,
        graph.add("bwdif", "mode=send_frame:parity=auto:deint=interlaced"),
        graph.add("buffersink"),
    )
    graph.link_nodes(*nodes).configure()
    return graph


def _pulled(
    graph: av.filter.Graph, frame: av.VideoFrame | None, time_base: Fraction
) -> Iterator[av.VideoFrame]:
    """What comes out when a frame goes in, or at the end; the filter counts in ticks of half the length."""
    graph.push(frame)
    while True:
        try:
            found = graph.pull()
        except (av.error.BlockingIOError, av.error.EOFError):
            return
        assert isinstance(found, av.VideoFrame)
        scale = found.time_base / time_base if found.time_base else 1
        if found.pts is not None:
            found.pts = round(found.pts * scale)
        if found.duration:
            found.duration = round(found.duration * scale)
        found.time_base = time_base
        yield found
