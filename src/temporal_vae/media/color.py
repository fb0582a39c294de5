"""Colour: from a decoded picture to RGB and back, with the matrix and range the file declares.

swscale converts, with these settings within one level of the formulas of BT.601, BT.709 and BT.2020 (tests check it).
Its defaults are up to four levels off, and darken. SMPTE 240M and FCC have the weights of ITU-T H.273, as swscale has
them. Transfer functions are not touched but for PQ and HLG, see `hdr`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import ImageColor

from temporal_vae.errors import InputError, MediaError
from temporal_vae.media.frames import Color, Frames
from temporal_vae.media.hdr import TRANSFERS_OF_HDR, is_hdr, tone_map

if TYPE_CHECKING:
    from av import VideoFrame
    from av.video.format import VideoFormat
    from av.video.reformatter import VideoReformatter

# Numbers of ITU-T H.273, names of FFmpeg. ICtCp and others that FFmpeg's scaler has never read are not among them.
MATRICES = {
    "rgb": 0,
    "bt709": 1,
    "fcc": 4,
    "bt470bg": 5,
    "smpte170m": 6,
    "smpte240m": 7,
    "ycgco": 8,
    "bt2020nc": 9,
    "bt2020c": 10,
}
PRIMARIES = {
    "bt709": 1,
    "unspecified": 2,
    "bt470m": 4,
    "bt470bg": 5,
    "smpte170m": 6,
    "smpte240m": 7,
    "film": 8,
    "bt2020": 9,
    "smpte428": 10,
    "smpte431": 11,
    "smpte432": 12,
    "ebu3213": 22,
}
TRANSFERS = {
    "bt709": 1,
    "unspecified": 2,
    "gamma22": 4,
    "gamma28": 5,
    "smpte170m": 6,
    "smpte240m": 7,
    "linear": 8,
    "log100": 9,
    "log316": 10,
    "iec61966-2-4": 11,
    "bt1361e": 12,
    "iec61966-2-1": 13,
    "bt2020-10": 14,
    "bt2020-12": 15,
    "smpte2084": 16,
    "smpte428": 17,
    "arib-std-b67": 18,
}
RANGES = {"limited": 1, "full": 2}
_UNSUPPORTED = {12: "of other primaries", 13: "of constant luminance", 14: "ICtCp", 15: "IPT-C2"}
_READ_AS = {"ycgco": "smpte170m", "bt2020c": "bt2020nc"}  # by FFmpeg's scaler, where it does not refuse them

# SWS_BICUBIC | SWS_ACCURATE_RND | SWS_FULL_CHR_H_INT | SWS_FULL_CHR_H_INP
QUALITY = 4 | 0x40000 | 0x2000 | 0x4000

# Kr and Kb: the weights of red and blue in luma.
_LUMA = {
    "bt709": (0.2126, 0.0722),
    "bt2020nc": (0.2627, 0.0593),
    "smpte170m": (0.299, 0.114),
    "bt470bg": (0.299, 0.114),
}

_STRETCHED = np.clip(np.rint((np.arange(256) - 16) * (255 / 219)), 0, 255).astype(np.uint8)

SRGB = Color(matrix="rgb", range="full", primaries="bt709", transfer="iec61966-2-1")
"""What a still picture is."""


def has_alpha(format: VideoFormat) -> bool:
    """Whether pictures of this pixel format are partly transparent."""
    return format.name == "pal8" or any(component.is_alpha for component in format.components)


def color_of(frame: VideoFrame, name: str) -> Color:
    """The colour of a decoded picture; what the file leaves open is filled in as players do.

    An open matrix is BT.2020 where primaries or transfer function are, BT.709 from 1280 columns or 720 rows on, else
    BT.601. An open range is full for RGB and for the `yuvj` formats, else limited.

    Raises:
        MediaError: a matrix that can't be converted; `name` is the file that it names.
    """
    matrix = int(frame.colorspace)
    primaries = name_of(PRIMARIES, int(frame.color_primaries))
    transfer = name_of(TRANSFERS, int(frame.color_trc))
    if frame.format.is_rgb or frame.format.name == "pal8":
        matrix = 0
    elif matrix in _UNSUPPORTED:
        raise MediaError(
            f"{name}: colour matrix {_UNSUPPORTED[matrix]} is not supported (BT.601, BT.709, BT.2020 are); "
            "convert the file to one of them"
        )
    elif matrix not in MATRICES.values() or matrix == 0:
        wide = primaries == "bt2020" or transfer in TRANSFERS_OF_HDR
        matrix = 9 if wide else 1 if frame.width >= 1280 or frame.height >= 720 else 6
    full = matrix == 0 or frame.format.name.startswith("yuvj") or int(frame.color_range) == RANGES["full"]
    return Color(
        matrix=name_of(MATRICES, matrix),
        range="full" if full else "limited",
        primaries=primaries,
        transfer=transfer,
    )


def name_of(names: dict[str, int], number: int) -> str:
    """FFmpeg's name of a number of ITU-T H.273."""
    return next((name for name, value in names.items() if value == number), "unspecified")


def to_rgb(
    frame: VideoFrame,
    color: Color,
    reformatter: VideoReformatter,
    size: tuple[int, int],
    background: Frames,
    peak: float | None = None,
) -> Frames:
    """A decoded picture as RGB `(h, w, 3)`; transparent parts show `background`.

    Args:
        frame: any pixel format that FFmpeg has.
        color: matrix and range by which to read it.
        reformatter: keeps its tables from frame to frame.
        size: `(width, height)` of the result. Streams that change size half-way are scaled to the first.
        background: `(3,)`.
        peak: cd/m² from which PQ and HLG are mapped to BT.709; `None` leaves them.
    """
    if color.matrix != "rgb":
        read_as = _READ_AS.get(color.matrix, color.matrix)
        frame.colorspace, frame.color_range = MATRICES[read_as], RANGES[color.range]
    alpha = has_alpha(frame.format)
    mapped = peak is not None and is_hdr(color)
    formats = ("rgb48le", "rgba64le") if mapped else ("rgb24", "rgba")
    converted = reformatter.reformat(
        frame,
        width=size[0],
        height=size[1],
        format=formats[alpha],
        interpolation=QUALITY,
        dst_color_range=RANGES["full"],
    )
    if peak is not None and mapped:
        deep = converted.to_ndarray().astype(np.uint16, copy=False)
        pixels = tone_map(_at_full_scale(deep[..., :3], frame.format, color), color, peak)
        if alpha:
            pixels = np.dstack([pixels, (deep[..., 3] >> 8).astype(np.uint8)])
    else:
        pixels = converted.to_ndarray().astype(np.uint8, copy=False)
    if not mapped and color.range == "limited" and len(frame.format.components) <= 2:
        pixels[..., :3] = _STRETCHED[pixels[..., :3]]  # swscale takes all grey to be full range
    return flatten(pixels, background) if alpha else pixels


def _at_full_scale(deep: NDArray[np.uint16], format: VideoFormat, color: Color) -> NDArray[np.uint16]:
    """Black at 0 and white at 65535, which swscale misses by some levels in its 16-bit RGB."""
    bits, black, white = format.components[0].bits, 0, 255 << 8
    if len(format.components) <= 2 and color.range == "limited":  # grey stays as it is
        black, white = 16 << 8, 235 << 8
    elif color.matrix == "rgb" and bits > 8:
        return deep
    elif color.range == "full":
        white = (2**bits - 1) << (16 - bits)
    scaled = (deep - np.float32(black)) * np.float32(65535 / (white - black)) + np.float32(0.5)
    return np.clip(scaled, 0, 65535).astype(np.uint16)


def flatten(pixels: Frames, background: Frames) -> Frames:
    """RGBA `(h, w, 4)`, colours not multiplied by alpha, over `background` `(3,)`: RGB `(h, w, 3)`."""
    alpha = pixels[..., 3:].astype(np.uint32)
    mixed = pixels[..., :3] * alpha + background * (255 - alpha)
    return ((mixed + 127) // 255).astype(np.uint8)


def parse_background(background: str | tuple[int, int, int]) -> Frames:
    """`"black"`, `"#ff8800"` or `(255, 136, 0)` as uint8 `(3,)`."""
    try:
        values = ImageColor.getrgb(background) if isinstance(background, str) else tuple(background)
    except ValueError:
        values = ()
    if len(values) != 3 or not all(isinstance(value, int) and 0 <= value <= 255 for value in values):
        raise InputError(
            f"background={background!r} is no colour; write black, #ff8800 or three numbers 0 to 255"
        )
    return np.array(values, np.uint8)


def output_color(source: Color | None) -> Color:
    """The colour in which to store a video whose source had `source`: the same where players agree on it.

    That is BT.601, BT.709 and BT.2020 in either range. Everything else, RGB too, becomes BT.709 limited. PQ and HLG,
    whose frames were not mapped, stay PQ and HLG.
    """
    if source is not None and source.matrix in _LUMA:
        return source
    known = source is not None and source.primaries != "unspecified"
    return Color(
        matrix="bt709",
        range="limited",
        primaries=source.primaries if source is not None and known else "bt709",
        transfer=source.transfer if source is not None and is_hdr(source) else "bt709",
    )


def rgb_to_yuv444(frame: Frames, color: Color) -> Frames:
    """RGB `(h, w, 3)` as planes of luma, blue and red chroma `(3, h, w)`, of the matrix and range of `color`.

    The formulas of BT.601, BT.709 and BT.2020, rounded once. As quick as swscale, whose own conversion to full range
    drops half a level of chroma, which reads back as a green tint.
    """
    red, blue = _LUMA[color.matrix]
    luma = np.array([red, 1 - red - blue, blue])
    cb = (np.array([0, 0, 1]) - luma) / (2 * (1 - blue))
    cr = (np.array([1, 0, 0]) - luma) / (2 * (1 - red))
    levels, black = ((219, 224, 224), 16) if color.range == "limited" else ((255, 255, 255), 0)
    channels = [frame[..., index].astype(np.float32) for index in range(3)]
    planes = np.empty((3, *frame.shape[:2]), np.uint8)
    for plane, row, span, zero in zip(planes, (luma, cb, cr), levels, (black, 128, 128), strict=True):
        weights = (row * span / 255).astype(np.float32)
        total = channels[0] * weights[0]
        total += channels[1] * weights[1]
        total += channels[2] * weights[2]
        total += zero + 0.5  # half a level: the cast cuts off
        plane[...] = np.clip(total, 0, 255, out=total)
    return planes


def subsample(plane: Frames) -> Frames:
    """Halve a chroma plane `(h, w)` of even size both ways, to samples that lie where H.264 takes them to lie.

    That is on every other column, and between two rows. swscale puts them between columns too, unless it is told
    otherwise through a field that PyAV does not offer: read back, all colours would be a quarter pixel off.
    """
    rows = plane[0::2].astype(np.uint16) + plane[1::2]
    before = np.concatenate([rows[:, :1], rows[:, 1:-1:2]], axis=1)
    return ((before + 2 * rows[:, 0::2] + rows[:, 1::2] + 4) >> 3).astype(np.uint8)
