"""How many operations the network asks for: convolutions and matrix products, two per multiply-add.

The count is nominal. An engine that folds or skips some of them does not change it, so that a share of the ceiling
compares all contestants by the same work. Taps that fall on the padding count, norms and activations do not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from temporal_vae.bench.tasks import Case


def nominal_operations(job: str, case: Case, config: Mapping[str, Any]) -> int | None:
    """Operations of `job` on a clip; `None` for training, whose count depends on what is computed again."""
    if job == "decode":
        return 2 * _decode(case, config)
    return 2 * _encode(case, config) if job == "encode" else None


def _decode(case: Case, config: Mapping[str, Any]) -> int:
    widths, layers = config["block_out_channels"], config["layers_per_block"]
    height, width = _latent_size(case, widths)
    pixels = height * width
    deepest = widths[-1]
    block = _spatial_block(deepest, deepest) + _temporal_block(deepest)
    per_frame = pixels * (9 * config["latent_channels"] * deepest + min(layers, 2) * block)
    if layers > 1:
        per_frame += _attention(deepest, pixels)
    for level, (inner, outer) in enumerate(pairwise((deepest, *reversed(widths)))):
        for entering in (inner, *[outer] * layers):
            per_frame += pixels * (_spatial_block(entering, outer) + _temporal_block(outer))
        if level < len(widths) - 1:
            pixels *= 4
            per_frame += pixels * 9 * outer * outer
    colours = config["out_channels"]
    return case.frames * (per_frame + pixels * (9 * widths[0] * colours + 3 * colours * colours))


def _encode(case: Case, config: Mapping[str, Any]) -> int:
    widths, layers = config["block_out_channels"], config["layers_per_block"]
    height, width = case.height, case.width
    per_frame = height * width * 9 * config["in_channels"] * widths[0]
    for level, (inner, outer) in enumerate(pairwise((widths[0], *widths))):
        for entering in (inner, *[outer] * (layers - 1)):
            per_frame += height * width * _spatial_block(entering, outer)
        if level < len(widths) - 1:
            height, width = height // 2, width // 2
            per_frame += height * width * 9 * outer * outer
    deepest, pixels, moments = widths[-1], height * width, 2 * config["latent_channels"]
    per_frame += pixels * 2 * _spatial_block(deepest, deepest) + _attention(deepest, pixels)
    return case.frames * (per_frame + pixels * (9 * deepest * moments + moments * moments))


def _latent_size(case: Case, widths: Sequence[int]) -> tuple[int, int]:
    factor = 2 ** (len(widths) - 1)
    return case.height // factor, case.width // factor


def _spatial_block(entering: int, leaving: int) -> int:
    """Multiply-adds per pixel of two 3x3 convolutions and the 1x1 one that changes the width."""
    return 9 * leaving * (entering + leaving) + (entering * leaving if entering != leaving else 0)


def _temporal_block(channels: int) -> int:
    """Multiply-adds per pixel of two convolutions over three frames."""
    return 2 * 3 * channels * channels


def _attention(channels: int, pixels: int) -> int:
    """Multiply-adds of a frame: four projections, then queries by keys and weights by values."""
    return 4 * pixels * channels * channels + 2 * pixels * pixels * channels
