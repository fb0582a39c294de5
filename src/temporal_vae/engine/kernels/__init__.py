"""The few tensor kernels of the engine; each works on one tile, in one thread.

`naive` is plain torch, runs anywhere and says what is right. `native` is machine code for this processor:
`native_code`, written with the words of `control`, `simd` and `bfloat`, compiled by `compiler`, done as `jobs` by a
`crew`; `attention` goes over a whole frame. Those of `triton_kernels` serve `naive` on a GPU. `kernels_for` picks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from temporal_vae.engine import processor
from temporal_vae.engine.stats import Affine, Moments
from temporal_vae.engine.storage import Rows, Scratch
from temporal_vae.engine.workers import Workers

if TYPE_CHECKING:
    from temporal_vae.engine.kernels.attention import KeysAndValues


class Weights(Protocol):
    """Weights in the form in which a kernel reads them."""

    @property
    def outputs(self) -> int:
        """Channels of the result, padding included."""

    @property
    def direct(self) -> bool:
        """Whether they are multiplied as they are, rather than filtered."""

    @property
    def enlarge(self) -> bool:
        """Whether a nearest 2x enlargement comes first."""


W = TypeVar("W", bound=Weights)
Progress = Callable[[float], object]


class Kernels(Protocol[W]):
    """What a pass asks of a kernel.

    `add`: the target holds values already, which the result is added to. `pixels`: how many of all frames the weights
    are for, so that kernels may pack them for few or for many.

    Activations are stored divided by `scale`, so that what float16 cannot hold is held. A convolution behind a norm,
    which undoes that, or of pictures divides its weights and its bias; one that reads activations as they are, divides
    its bias alone.
    """

    scale: int  # a power of two

    attends: bool  # by itself: `NativeKernels.answer`
    sweeps: bool  # over whole frames in memory, by all workers: `NativeKernels.sweep_space` and `sweep_time`
    inputs_multiple: int  # channels are padded with zeros to multiples of these
    outputs_multiple: int

    def affine(self, moments: Moments, norm: nn.GroupNorm, *, over_frames: bool) -> Affine:
        """The norm of values with these moments, as `stats.affine`: of each frame, or of all frames together."""

    def spatial_weights(
        self, conv: nn.Conv2d, room: Scratch, pixels: int, *, enlarge: bool = False, leave: bool = False
    ) -> W:
        """Those of a 3x3 convolution behind a norm or of pictures, or with `enlarge` behind a nearest 2x enlargement.

        With `leave`, of the one behind a norm whose result is not stored but returned.
        """

    def pointwise_weights(self, conv: nn.Conv2d, room: Scratch, pixels: int) -> W:
        """Those of a 1x1 convolution of activations as they are."""

    def strided_weights(self, conv: nn.Conv2d, room: Scratch, pixels: int) -> W:
        """Those of a 3x3 convolution as a 1x1 convolution of its nine neighbours side by side."""

    def temporal_weights(
        self, conv: nn.Conv3d, frames: int, room: Scratch, pixels: int, *,
        factor: Tensor | None = None,
    ) -> W:  # fmt: skip
        """Those of a (3,1,1) convolution over `frames` frames, times a factor."""

    def spatial(
        self,
        source: Rows,
        target: Rows,
        weights: W,
        affine: Affine | None,
        scratch: Scratch,
        *,
        add: bool = False,
    ) -> Moments:
        """3x3 convolution of rows; `source` reaches one row further, but for the border of the picture."""

    def pointwise(self, source: Rows, target: Rows, weights: W, scratch: Scratch) -> Moments:
        """1x1 convolution of the rows of `target`."""

    def temporal(
        self, sources: list[Tensor], targets: list[Tensor], weights: W, affine: Affine, scratch: Scratch, *,
        add: bool = False,
    ) -> Moments:  # fmt: skip
        """(3,1,1) convolution of the same pixels of all frames, `(pixels, c)` each."""


class Sweeping(Kernels[W], Protocol[W]):
    """Kernels that go over whole frames in memory with all workers, a single call of each.

    `scratch`: one for each worker. `progress`: told of shares of the work that are done.
    """

    sums: Scratch  # of the jobs of a sweep

    def sweep_space(
        self, sources: Sequence[Tensor], targets: Sequence[Tensor], weights: W, affine: Affine | None,
        scratch: Sequence[Scratch], progress: Progress, *, add: bool = False,
    ) -> Moments:  # fmt: skip
        """3x3 convolution of frames `(h, w, c)`, each by itself, `affine` a row for each; moments `(t, c)`."""

    def sweep_halving(
        self, sources: Sequence[Tensor], targets: Sequence[Tensor], weights: W, scratch: Sequence[Scratch],
        progress: Progress,
    ) -> Moments:  # fmt: skip
        """Stride-2 3x3 convolution of frames by direct `strided_weights`, zeros at the right and the bottom."""

    def sweep_time(
        self, sources: Sequence[Tensor], targets: Sequence[Tensor], weights: W, affine: Affine | None,
        scratch: Sequence[Scratch], progress: Progress, *, add: bool = False,
    ) -> Moments:  # fmt: skip
        """(3,1,1) convolution of a clip of frames `(pixels, c)`, or a 1x1 convolution."""

    def answer(
        self, asked: KeysAndValues, queries: Tensor, scratch: Sequence[Scratch], progress: Progress
    ) -> None:
        """`queries = softmax(queries @ keys.T) @ values`, `(n, c)` in float32."""


def kernels_for(
    device: torch.device, dtype: torch.dtype, workers: Workers, *, scale: int = 1
) -> Kernels[Any]:
    """The fastest kernels for activations of `dtype` on `device`, stored divided by `scale`."""
    from temporal_vae.engine.kernels.naive import NaiveKernels

    if processor.arithmetic(device.type, str(dtype).removeprefix("torch.")) != "torch":
        from temporal_vae.engine.kernels.native import NativeKernels

        return NativeKernels(dtype, workers, scale=scale)
    return NaiveKernels(device, scale=scale)
