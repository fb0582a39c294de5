"""High dynamic range: PQ and HLG pictures as a screen of ordinary range shows them, in BT.709.

Signal to light: SMPTE ST 2084 for PQ; inverse OETF and OOTF of ITU-R BT.2100-2, table 5, for HLG on a screen of 1000
cd/m². Colours move to the primaries of BT.709 (SMPTE RP 177). Light above what a screen shows is bent by the curve of
ITU-R BT.2390-8, section 5.4.1, from the source's peak to 203 cd/m², the reference white of ITU-R BT.2408: it bends the
largest of red, green and blue, and the other two keep their ratio to it, so that hues stay. What lies outside of
BT.709 is cut off. Light to signal: ITU-R BT.1886, a power of 2.4.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from temporal_vae.media.decoding import side_data_of
from temporal_vae.media.frames import Color, Frames

if TYPE_CHECKING:
    from av import VideoFrame

TRANSFERS_OF_HDR = {"smpte2084": "PQ", "arib-std-b67": "HLG"}
MAPPED = Color(matrix="bt709", range="limited", primaries="bt709", transfer="bt709")
"""What tone-mapped frames are, and how they are stored."""

WHITE = 203.0  # cd/m², white of ordinary video among highlights
_PQ_PEAK, _HLG_PEAK = 10_000.0, 1000.0
USUAL_PEAK = 1000.0  # of PQ that does not tell
_BRIGHTEST = _PQ_PEAK / WHITE * 1.7  # whites; a channel of BT.2020 gains up to 1.66 on its way to BT.709

# x and y of red, green and blue, of ITU-T H.273; the white of all of them is D65
_CHROMATICITIES = {
    "bt709": ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06)),
    "bt2020": ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),
    "smpte432": ((0.68, 0.32), (0.265, 0.69), (0.15, 0.06)),
}
_D65 = (0.3127, 0.3290)

_STEPS = 4096
_BLOCK = 1 << 16  # pixels at a time: what they need stays in cache


def is_hdr(color: Color) -> bool:
    """Whether a picture is PQ or HLG."""
    return color.transfer in TRANSFERS_OF_HDR


def peak_of(frame: VideoFrame) -> float:
    """cd/m² of the brightest point of a PQ video, as its light level or the screen it was graded on tell."""
    level = side_data_of(frame, "CONTENT_LIGHT_LEVEL")
    screen = side_data_of(frame, "MASTERING_DISPLAY_METADATA")
    peak = 0.0
    if level is not None:
        peak = float(np.frombuffer(bytes(level), np.uint32)[0])
    if not peak and screen is not None:
        # AVMasteringDisplayMetadata: ten fractions, the last of which is the most light, and two flags
        values = np.frombuffer(bytes(screen), np.int32)
        if values[21] and values[19] > 0:
            peak = float(values[18] / values[19])
    return min(max(peak or USUAL_PEAK, WHITE), _PQ_PEAK)


def tone_map(signal: NDArray[np.uint16], color: Color, peak: float) -> Frames:
    """PQ or HLG, `(h, w, 3)` of RGB 0 to 65535, as BT.709 of 8 bits.

    Args:
        signal: full range.
        color: whose transfer function and primaries it has; BT.2020 where the primaries are not known.
        peak: cd/m² of the brightest point of a PQ video; HLG has its own.
    """
    mapped = np.empty(signal.shape, np.uint8)
    rows = max(1, _BLOCK // signal.shape[1])
    for top in range(0, len(signal), rows):
        mapped[top : top + rows] = _map_block(signal[top : top + rows], color, peak)
    return mapped


def _map_block(signal: NDArray[np.uint16], color: Color, peak: float) -> Frames:
    primaries = color.primaries if color.primaries in _CHROMATICITIES else "bt2020"
    light = _light_of(color.transfer)[signal]  # (h, w, 3), float32, white is 1
    if color.transfer == "arib-std-b67":
        scene = light @ _to_xyz(primaries)[1].astype(np.float32)
        light *= (_HLG_PEAK / WHITE) * scene[..., None] ** np.float32(0.2)
        peak = _HLG_PEAK
    light = light @ _to_bt709(primaries)
    np.maximum(light, 0, out=light)
    largest = light.max(-1)
    steps = np.sqrt(np.sqrt(largest * np.float32(1 / _BRIGHTEST))) * np.float32(_STEPS - 1)
    light *= _gains(peak)[np.minimum(steps + 0.5, _STEPS - 1).astype(np.intp)][..., None]
    steps = np.sqrt(np.minimum(light, 1, out=light)) * np.float32(_STEPS - 1)
    return _signals()[(steps + 0.5).astype(np.intp)]


@lru_cache
def _light_of(transfer: str) -> NDArray[np.float32]:
    """Light for each of 65536 levels: white is 1 for PQ, the peak is 1 for HLG, before its OOTF."""
    signal = np.arange(65536) / 65535
    light = pq_to_light(signal) / WHITE if transfer == "smpte2084" else hlg_to_scene(signal)
    return light.astype(np.float32)


def pq_to_light(signal: NDArray[np.float64]) -> NDArray[np.float64]:
    """EOTF of SMPTE ST 2084: signal 0 to 1 to cd/m²."""
    power = signal ** (1 / _M2)
    return _PQ_PEAK * (np.maximum(power - _C1, 0) / (_C2 - _C3 * power)) ** (1 / _M1)


def light_to_pq(light: NDArray[np.float64]) -> NDArray[np.float64]:
    """Undo `pq_to_light`."""
    power = (light / _PQ_PEAK) ** _M1
    return ((_C1 + _C2 * power) / (1 + _C3 * power)) ** _M2


_M1, _M2 = 2610 / 16384, 2523 / 32
_C1, _C2, _C3 = 3424 / 4096, 2413 / 128, 2392 / 128


def hlg_to_scene(signal: NDArray[np.float64]) -> NDArray[np.float64]:
    """Inverse OETF of HLG, ITU-R BT.2100: signal 0 to 1 to light of the scene, 0 to 1."""
    a = 0.17883277
    b, c = 1 - 4 * a, 0.5 - a * np.log(4 * a)
    return np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)


def bend(light: NDArray[np.float64], peak: float) -> NDArray[np.float64]:
    """The curve of ITU-R BT.2390, section 5.4.1: cd/m² of a source with `peak` to 0 to 203, black to black."""
    top = float(light_to_pq(np.array(peak)))
    most = float(light_to_pq(np.array(WHITE))) / top
    knee = 1.5 * most - 0.5
    level = np.minimum(light_to_pq(light) / top, 1)
    if knee < 1:
        t = np.maximum(level - knee, 0) / (1 - knee)
        curve = (
            (2 * t**3 - 3 * t**2 + 1) * knee
            + (t**3 - 2 * t**2 + t) * (1 - knee)
            + (-2 * t**3 + 3 * t**2) * most
        )
        level = np.where(level < knee, level, curve)
    return pq_to_light(level * top)


@lru_cache
def _gains(peak: float) -> NDArray[np.float32]:
    """By how much light is multiplied, for each step of the fourth root of the largest channel."""
    light = (np.maximum(np.arange(_STEPS), 1) / (_STEPS - 1)) ** 4 * _BRIGHTEST * WHITE
    return (bend(light, peak) / light).astype(np.float32)


@lru_cache
def _signals() -> Frames:
    """Levels of BT.1886 for each step of the square root of light."""
    return np.rint(255 * (np.arange(_STEPS) / (_STEPS - 1)) ** (2 / 2.4)).astype(np.uint8)


@lru_cache
def _to_bt709(primaries: str) -> NDArray[np.float32]:
    """What to multiply rows of linear RGB by."""
    return (np.linalg.inv(_to_xyz("bt709")) @ _to_xyz(primaries)).T.astype(np.float32)


def _to_xyz(primaries: str) -> NDArray[np.float64]:
    """Linear RGB to XYZ, SMPTE RP 177."""
    colors = np.array([(x / y, 1, (1 - x - y) / y) for x, y in (*_CHROMATICITIES[primaries], _D65)]).T
    return colors[:, :3] * np.linalg.solve(colors[:, :3], colors[:, 3])
