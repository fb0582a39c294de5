"""Drawings of a few shapes: written as SVG into a page or a file, or painted as pixels; the same lines each time.

A shape has a role, not a colour. In a page the style sheet colours roles, so that charts follow dark mode and print;
in files they have the colours of `PAINT`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TypeAlias

from PIL import Image, ImageDraw, ImageFont

Point: TypeAlias = tuple[float, float]

PAINT = {
    "paper": "#ffffff",
    "ink": "#1b2430",
    "muted": "#566070",
    "grid": "#e4e8ed",
    "clip": "#f3f6fa",
    "fade": "#dfe6f1",
    "edge": "#aab4c2",
    "line": "#1f5fbf",
    "spread": "#bdd2f3",
    "mark": "#b42318",
    "first": "#b45309",
}
"""Colours of the roles, on white paper."""

_SIZES = {"title": 14.0}  # of text, by role
_SIZE = 11  # of all other text
_WIDTHS = {"line": 1.6}  # of lines, by role
_FONT = "system-ui, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
_SHARP = 2  # pixels of a picture per unit
_SMOOTH = 3  # samples per pixel, along each axis


@dataclass(frozen=True)
class Line:
    """Straight pieces from point to point."""

    points: Sequence[Point]
    role: str


@dataclass(frozen=True)
class Area:
    """A filled polygon."""

    points: Sequence[Point]
    role: str


@dataclass(frozen=True)
class Dot:
    """A filled circle."""

    at: Point
    radius: float
    role: str


@dataclass(frozen=True)
class Text:
    """A line of text; `at` is on its baseline, at its `start`, `middle` or `end`."""

    at: Point
    text: str
    role: str = "muted"
    anchor: str = "start"


Shape: TypeAlias = Line | Area | Dot | Text


@dataclass(frozen=True)
class Drawing:
    """Shapes on a paper of a size; later ones lie above earlier ones."""

    width: float
    height: float
    shapes: Sequence[Shape]

    def moved(self, right: float, down: float) -> list[Shape]:
        """The shapes, elsewhere."""
        return [_moved(shape, right, down) for shape in self.shapes]


def inline_svg(drawing: Drawing, *, css: str, label: str) -> str:
    """SVG for an HTML page, whose style sheet colours it: roles are classes.

    Args:
        drawing: what is drawn.
        css: classes of the whole.
        label: what it shows, for those who can't see it.
    """
    shapes = "".join(_svg(shape, f'class="{shape.role}"') for shape in drawing.shapes)
    box = f"0 0 {_number(drawing.width)} {_number(drawing.height)}"
    return f'<svg class="{css}" viewBox="{box}" role="img" aria-label="{escape(label)}">{shapes}</svg>'


def svg_file(drawing: Drawing) -> str:
    """An SVG file."""
    shapes = "\n".join(_svg(shape, _paint(shape)) for shape in drawing.shapes)
    width, height = _number(drawing.width), _number(drawing.height)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'font-family="{_FONT}">\n<rect width="{width}" height="{height}" fill="{PAINT["paper"]}"/>\n{shapes}\n</svg>\n'
    )


def picture(drawing: Drawing) -> Image.Image:
    """Pixels, two per unit."""
    scale = _SHARP * _SMOOTH
    size = round(drawing.width * scale), round(drawing.height * scale)
    large = Image.new("RGB", size, PAINT["paper"])
    draw = ImageDraw.Draw(large)
    for shape in drawing.shapes:
        _draw(draw, shape, scale)
    return large.reduce(_SMOOTH)


def _moved(shape: Shape, right: float, down: float) -> Shape:
    if isinstance(shape, (Line, Area)):
        return type(shape)([(x + right, y + down) for x, y in shape.points], shape.role)
    at = shape.at[0] + right, shape.at[1] + down
    if isinstance(shape, Dot):
        return Dot(at, shape.radius, shape.role)
    return Text(at, shape.text, shape.role, shape.anchor)


def _svg(shape: Shape, look: str) -> str:
    if isinstance(shape, (Line, Area)):
        points = " ".join(f"{_number(x)},{_number(y)}" for x, y in shape.points)
        name = "polyline" if isinstance(shape, Line) else "polygon"
        return f'<{name} {look} points="{points}"/>'
    x, y = map(_number, shape.at)
    if isinstance(shape, Dot):
        return f'<circle {look} cx="{x}" cy="{y}" r="{_number(shape.radius)}"/>'
    anchor = "" if shape.anchor == "start" else f' text-anchor="{shape.anchor}"'
    return f'<text {look} x="{x}" y="{y}"{anchor}>{escape(shape.text)}</text>'


def _paint(shape: Shape) -> str:
    color = PAINT["ink" if shape.role == "title" else shape.role]
    if isinstance(shape, Line):
        return f'fill="none" stroke="{color}" stroke-width="{_WIDTHS.get(shape.role, 1)}" stroke-linejoin="round"'
    if isinstance(shape, Text):
        weight = ' font-weight="600"' if shape.role == "title" else ""
        return f'fill="{color}" font-size="{_SIZES.get(shape.role, _SIZE)}"{weight}'
    return f'fill="{color}"'


def _draw(draw: ImageDraw.ImageDraw, shape: Shape, scale: int) -> None:
    color = PAINT["ink" if shape.role == "title" else shape.role]
    if isinstance(shape, Text):
        font = ImageFont.load_default(_SIZES.get(shape.role, _SIZE) * scale)
        anchor = {"start": "ls", "middle": "ms", "end": "rs"}[shape.anchor]
        draw.text(
            (shape.at[0] * scale, shape.at[1] * scale), shape.text, fill=color, font=font, anchor=anchor
        )
        return
    if isinstance(shape, Dot):
        x, y, r = (value * scale for value in (*shape.at, shape.radius))
        draw.ellipse((x - r, y - r, x + r, y + r), fill=color)
        return
    points = [(x * scale, y * scale) for x, y in shape.points]
    if isinstance(shape, Area):
        draw.polygon(points, fill=color)
    else:
        draw.line(points, fill=color, width=round(_WIDTHS.get(shape.role, 1) * scale), joint="curve")


def _number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
