"""What the machine can do at best: the rates of convolutions and of a matrix product that fit its cache."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

_CONVOLUTIONS = ((8, 128, 64), (4, 256, 64), (4, 512, 32))  # images, channels, side
_PRODUCT = (4096, 512, 512)
_SECONDS = 0.2  # that each is repeated for


def measure_ceiling(dtype: str) -> dict[str, float]:
    """Best sustained rate of 3x3 convolutions, channels last, and the rate of a matrix product, in GFLOP/s."""
    import torch

    with torch.no_grad():
        conv = max(_rate(*_convolution(torch, dtype, *shape)) for shape in _CONVOLUTIONS)
        return {"conv": conv, "gemm": _rate(*_matrix_product(torch, dtype))}


def _convolution(
    torch: Any, dtype: str, images: int, channels: int, side: int
) -> tuple[Callable[[], Any], int]:
    layer = torch.nn.Conv2d(channels, channels, 3, padding=1).to(getattr(torch, dtype))
    layer = layer.to(memory_format=torch.channels_last)
    x = torch.randn(images, channels, side, side, dtype=getattr(torch, dtype))
    x = x.contiguous(memory_format=torch.channels_last)
    return lambda: layer(x), 2 * 9 * channels * channels * images * side * side


def _matrix_product(torch: Any, dtype: str) -> tuple[Callable[[], Any], int]:
    m, k, n = _PRODUCT
    a, b = (torch.randn(shape, dtype=getattr(torch, dtype)) for shape in ((m, k), (k, n)))
    return lambda: torch.mm(a, b), 2 * m * k * n


def _rate(run: Callable[[], Any], operations: int) -> float:
    run()
    count, began = 0, perf_counter()
    while (elapsed := perf_counter() - began) < _SECONDS or not count:
        run()
        count += 1
    return count * operations / elapsed / 1e9
