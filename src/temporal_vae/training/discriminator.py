"""Critics that tell real frames from decoded ones, patch by patch.

`PatchDiscriminator2D` looks at each frame by itself, `PatchDiscriminator3D` at the whole clip, so that it sees
flicker. Both are called in the same way and answer with one logit per frame and patch.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from temporal_vae.errors import ConfigError, InputError
from temporal_vae.model.blocks import clips_to_frames, frames_to_clips
from temporal_vae.training.losses import check_length

GROUPS = 8
"""Of every norm: with widths that are multiples of it, a group holds two channels or more."""

_SLOPE = 0.2  # of LeakyReLU below 0
_DEVIATION = 0.02  # of the first weights
_WIDEST = 8  # times the width of the first layer


class _PatchDiscriminator(nn.Module):
    """A stack of convolutions of 4x4 pixels: `layers` of stride 2, one of stride 1, and one that gives the logits.

    Widths double from layer to layer up to 8 times the first. GroupNorm, where the papers have BatchNorm: a logit
    then depends on its own frame or clip alone, not on the batch it came with, on how many processes share the
    batch, or on running averages that differ between training and evaluation.
    """

    def __init__(
        self, conv: Callable[[int, int, int], nn.Module], *, channels: int, width: int, layers: int
    ) -> None:
        super().__init__()
        _check_sizes(channels=channels, width=width, layers=layers)
        self.channels = channels
        self.smallest = 3 * 2**layers  # 3 pixels after the halvings, and two 4x4 convolutions take one each
        widths = [width * min(2**layer, _WIDEST) for layer in range(layers + 1)]
        stages = [conv(channels, width, 2), nn.LeakyReLU(_SLOPE, inplace=True)]
        for layer in range(1, layers + 1):
            stages += [
                conv(widths[layer - 1], widths[layer], 2 if layer < layers else 1),
                nn.GroupNorm(GROUPS, widths[layer]),
                nn.LeakyReLU(_SLOPE, inplace=True),
            ]
        self.stages = nn.Sequential(*stages, conv(widths[-1], 1, 1))
        self.apply(_initialise)

    def _check(self, frames: Tensor, length: int) -> None:
        if frames.ndim != 4 or frames.shape[1] != self.channels:
            raise InputError(
                f"discriminator: got frames of shape {tuple(frames.shape)}; "
                f"pass (frames, {self.channels}, height, width)"
            )
        if min(frames.shape[2:]) < self.smallest:
            raise InputError(
                f"discriminator: frames of {frames.shape[2]}x{frames.shape[3]} are too small; pass at least "
                f"{self.smallest}x{self.smallest} pixels or build it with fewer layers"
            )
        check_length("discriminator", frames, length)


class PatchDiscriminator2D(_PatchDiscriminator):
    """Judges patches of single frames. `(b*t, c, h, w) -> (b*t, 1, h//2**layers - 2, w//2**layers - 2)`.

    Isola et al., "Image-to-image translation with conditional adversarial networks", 2017, with GroupNorm for
    BatchNorm. With three layers a logit sees 70x70 pixels.

    Args:
        channels: of a frame.
        width: of the first layer, a multiple of 8.
        layers: of stride 2.

    Raises:
        ConfigError: numbers from which it cannot be built.
        InputError: from a call, frames of other channels, sides under `3 * 2**layers`, or a clip length that
            does not divide the batch.
    """

    def __init__(self, *, channels: int = 3, width: int = 64, layers: int = 3) -> None:
        super().__init__(_conv_2d, channels=channels, width=width, layers=layers)

    def forward(self, frames: Tensor, length: int) -> Tensor:
        """Logits of `frames`, clips of `length`: above 0 means real."""
        self._check(frames, length)
        return self.stages(frames)


class PatchDiscriminator3D(_PatchDiscriminator):
    """Judges patches of clips. `(b*t, c, h, w) -> (b*t, 1, h//2**layers - 2, w//2**layers - 2)`.

    Convolutions of 3 frames by 4x4 pixels, as the decoder of Blattmann et al., "Align your latents", 2023, section
    3.1.1, was tuned against. Only height and width are strided, time is padded by zeros: clips of any length
    pass, one frame too, and every frame has its logits. With three layers a logit sees 11 frames of 70x70 pixels,
    and the norms see the clip.

    Args:
        channels: of a frame.
        width: of the first layer, a multiple of 8.
        layers: of stride 2.

    Raises:
        ConfigError: numbers from which it cannot be built.
        InputError: from a call, frames of other channels, sides under `3 * 2**layers`, or a clip length that
            does not divide the batch.
    """

    def __init__(self, *, channels: int = 3, width: int = 64, layers: int = 3) -> None:
        super().__init__(_conv_3d, channels=channels, width=width, layers=layers)

    def forward(self, frames: Tensor, length: int) -> Tensor:
        """Logits of `frames`, clips of `length`: above 0 means real."""
        self._check(frames, length)
        return clips_to_frames(self.stages(frames_to_clips(frames, length)))


def _conv_2d(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    return nn.Conv2d(in_channels, out_channels, 4, stride=stride, padding=1)


def _conv_3d(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    return nn.Conv3d(in_channels, out_channels, (3, 4, 4), stride=(1, stride, stride), padding=1)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, (nn.Conv2d, nn.Conv3d)):
        nn.init.normal_(module.weight, 0.0, _DEVIATION)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _check_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise ConfigError(f"discriminator: {name}={size!r} must be a whole number of at least 1")
    if sizes["width"] % GROUPS:
        raise ConfigError(
            f"discriminator: width={sizes['width']} must be a multiple of {GROUPS}, "
            "the number of groups of every norm"
        )
