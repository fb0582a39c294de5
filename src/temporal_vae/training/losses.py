"""What training makes small: errors of frames and of motion, divergence of latents, and the game against a critic.

Frames are float tensors `(b*t, c, h, w)`, values about [-1, 1], the frames of each clip one after the other. Every
loss is a scalar, a mean, computed in at least float32 whatever autocast says; the caller puts weights on them.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from temporal_vae.errors import InputError
from temporal_vae.metrics import SSIM_SIGMA, SSIM_WINDOW

Penalty = Callable[[Tensor, Tensor], Tensor]
"""A loss of two tensors of one shape: `l1`, `l2`, or `charbonnier` with its scale bound by `functools.partial`."""

SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Of the scales of MS-SSIM, the finest first, as published; they add up to 1.0001."""

PERCEPTUAL_NETWORKS = ("alex", "squeeze", "vgg")

_RANGE = 2.0  # of values in [-1, 1]
_C1, _C2 = (0.01 * _RANGE) ** 2, (0.03 * _RANGE) ** 2
_LEAST_SIMILARITY = 1e-4  # of a scale


def l1(output: Tensor, frames: Tensor) -> Tensor:
    """Mean absolute error: `mean(|e|)`, `e = output - frames`; 0 or more."""
    return _error(output, frames).abs().mean()


def l2(output: Tensor, frames: Tensor) -> Tensor:
    """Mean squared error: `mean(e**2)`, `e = output - frames`; 0 or more."""
    return _error(output, frames).square().mean()


def charbonnier(output: Tensor, frames: Tensor, *, scale: float) -> Tensor:
    """Mean of `sqrt(e**2 + scale**2) - scale`, `e = output - frames`; 0 or more.

    Errors well below `scale` count squared, those well above it absolutely. Charbonnier et al., "Two deterministic
    half-quadratic regularization algorithms for computed imaging", 1994; Lai et al., "Deep Laplacian pyramid
    networks for fast and accurate super-resolution", 2017.

    Raises:
        InputError: `scale` is not above 0, or the shapes differ.
    """
    if not scale > 0:
        raise InputError(f"charbonnier: scale={scale} must be above 0; pass l1 as the loss for a scale of 0")
    squared = _error(output, frames).square()
    # The same number without the difference of two that are nearly equal.
    return (squared / ((squared + scale**2).sqrt() + scale)).mean()


def kl(mean: Tensor, logvar: Tensor) -> Tensor:
    """Mean divergence of the posterior from a standard normal distribution, in nats per latent number; 0 or more.

    `mean((mean**2 + exp(logvar) - 1 - logvar) / 2)`, logvar clamped to [-30, 20] as the posterior does it. Kingma
    and Welling, "Auto-encoding variational Bayes", 2014, appendix B.
    """
    mean, logvar = _widen("kl", mean, logvar)
    logvar = logvar.clamp(-30, 20)
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()


def motion(output: Tensor, frames: Tensor, *, length: int, penalty: Penalty) -> Tensor:
    """Loss of flicker: `penalty` on the differences of neighbouring frames of each clip.

    What moves in the output and not in the frames, or the other way round; an error that is the same in all frames
    of a clip costs nothing. Its range is that of the penalty; 0, with a gradient of 0, for clips of one frame.

    Args:
        output: `(b*t, c, h, w)`.
        frames: the same, true.
        length: t.
        penalty: `l1`, `l2`, or `charbonnier` with its scale bound.

    Raises:
        InputError: `length` does not divide the number of frames, or the shapes differ.
    """
    check_length("motion", output, length)
    output, frames = _widen("motion", output, frames)
    if length == 1:
        return (output[:0] - frames[:0]).sum()
    changes = [x.unflatten(0, (-1, length)).diff(dim=1).flatten(0, 1) for x in (output, frames)]
    return penalty(*changes)


def ms_ssim(output: Tensor, frames: Tensor, *, scales: int = len(SCALE_WEIGHTS)) -> Tensor:
    """1 - multi-scale structural similarity, the mean over frames and colours; in [0, 1).

    Per frame and colour `l[m] * cs[m]` of the coarsest scale to the power of its weight, times `cs[j]` of each finer
    one to the power of its own: Wang, Simoncelli and Bovik, "Multiscale structural similarity for image quality
    assessment", 2003. Brightness counts from black, which is -1. Gaussian window of 11 pixels and sigma 1.5,
    K1 = 0.01, K2 = 0.03, windows wholly inside the picture, as in `temporal_vae.metrics.ssim`. From scale to scale the
    picture is averaged over 2x2 pixels; an odd last row or column is left out. No scale counts as less similar than
    1e-4: a factor of 0 would silence the others.

    The smallest side has to hold a window on every scale: five scales take 176 pixels, four 88, three 44, two 22
    and one 11. A smaller picture gets the finer scales alone, their weights divided by their sum.

    Args:
        output: `(n, c, h, w)`, values about [-1, 1].
        frames: the same, true.
        scales: use at most so many, 1 to 5; 1 is plain SSIM.

    Raises:
        InputError: a side under 11 pixels, `scales` outside 1 to 5, or shapes that differ.
    """
    x, y = _widen("ms_ssim", output, frames)
    weights = _scale_weights(x.shape, scales)
    similarity = x.new_ones(x.shape[:2])
    with torch.autocast(x.device.type, enabled=False):
        for scale, weight in enumerate(weights, start=1):
            luminance, structure = _similarity(x, y)
            term = luminance * structure if scale == len(weights) else structure
            # Pictures can be negatives of each other, and the slope of a power has no bound towards 0.
            similarity = similarity * term.mean((2, 3)).clamp(min=_LEAST_SIMILARITY) ** weight
            if scale < len(weights):
                x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
    return 1 - similarity.mean()


class Perceptual:
    """LPIPS: distance of the features that a classifier of photographs sees in two frames; 0 or more.

    Weighted squared differences of normalised features, summed over layers, the mean over frames and places: Zhang
    et al., "The unreasonable effectiveness of deep features as a perceptual metric", 2018. Values are clamped to
    [-1, 1], the range it was made for. The network is made, frozen and in eval mode, by the first call, which may
    download its weights; it follows the frames to their device. It is no module: no optimizer or checkpoint will
    find it.

    Args:
        network: `vgg`, `alex` or `squeeze`.

    Raises:
        InputError: another network, or the lpips package is not installed or does not work.
    """

    def __init__(self, *, network: str = "vgg") -> None:
        if network not in PERCEPTUAL_NETWORKS:
            raise InputError(
                f"perceptual loss: network={network!r} is not one of {', '.join(PERCEPTUAL_NETWORKS)}"
            )
        try:
            self._make: Any = importlib.import_module("lpips").LPIPS
        except (ImportError, RuntimeError) as error:  # the latter where torchvision is of another torch
            reason = str(error).partition("\n")[0]
            raise InputError(
                f"perceptual loss: lpips cannot be imported ({reason}); pip install lpips torchvision, "
                "or give the loss no weight"
            ) from error
        self._name = network
        self._network: Any = None

    def __call__(self, output: Tensor, frames: Tensor) -> Tensor:
        """Mean distance of `output` from `frames`, both `(n, 3, h, w)`; `InputError` for other shapes."""
        output, frames = _widen("perceptual loss", output, frames)
        if output.ndim != 4 or output.shape[1] != 3:
            raise InputError(
                f"perceptual loss: got frames of shape {tuple(output.shape)}; pass (frames, 3, height, width)"
            )
        if self._network is None:
            network = self._make(net=self._name, verbose=False)
            self._network = network.eval().requires_grad_(False)
        self._network.to(device=output.device, dtype=output.dtype)
        with torch.autocast(output.device.type, enabled=False):
            return self._network(output.clamp(-1, 1), frames.clamp(-1, 1)).mean()


def hinge_discriminator(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """What the discriminator makes small: `mean(relu(1 - real)) + mean(relu(1 + fake))`; 0 or more, 2 when undecided.

    Lim and Ye, "Geometric GAN", 2017; Miyato et al., "Spectral normalization for generative adversarial
    networks", 2018, eq. 16.
    """
    real, fake = (logits.to(_wide(logits)) for logits in (real_logits, fake_logits))
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def hinge_generator(fake_logits: Tensor) -> Tensor:
    """What the generator makes small: `-mean(fake)`; any number.

    Lim and Ye, "Geometric GAN", 2017; Miyato et al., "Spectral normalization for generative adversarial
    networks", 2018, eq. 17.
    """
    return -fake_logits.to(_wide(fake_logits)).mean()


def adaptive_weight(
    reconstruction: Tensor,
    adversarial: Tensor,
    last_layer: Tensor,
    *,
    most: float = 1e4,
    epsilon: float = 1e-4,
) -> Tensor:
    """Weight of the adversarial loss under which both losses pull equally hard at the decoder's last layer.

    `|d reconstruction / d w| / (|d adversarial / d w| + epsilon)`, at most `most`: Esser et al., "Taming transformers
    for high-resolution image synthesis", 2021, eq. 7. 0 where either loss does not reach the layer.

    Args:
        reconstruction: scalar loss; its graph is kept.
        adversarial: scalar loss of the generator; its graph is kept.
        last_layer: w, the weight of the decoder's last layer.
        most: bound of the result.
        epsilon: keeps a gradient of nearly nothing from making the ratio infinite.

    Returns:
        A scalar in [0, most] without a graph.
    """
    wanted, opposed = (_pull(loss, last_layer) for loss in (reconstruction, adversarial))
    ratio = (wanted / (opposed + epsilon)).clamp(max=most)
    return torch.where(opposed > 0, ratio, 0.0)


def check_length(call: str, frames: Tensor, length: int) -> None:
    """Raise `InputError` unless `frames` `(b*t, ...)` are whole clips of `length` frames."""
    if length < 1 or frames.shape[0] % length:
        raise InputError(
            f"{call}: a batch of {frames.shape[0]} frames is not made of clips of length={length}; "
            "pass the number of frames of each clip, a whole number that divides the batch"
        )


def _wide(*tensors: Tensor) -> torch.dtype:
    """The type to compute in: float32, or float64 where it is among the arguments'."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def _widen(call: str, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Both in the type to compute in; `InputError` unless their shapes are the same."""
    if x.shape != y.shape:
        raise InputError(
            f"{call}: shapes {tuple(x.shape)} and {tuple(y.shape)} differ; pass two tensors of one shape"
        )
    dtype = _wide(x, y)
    return x.to(dtype), y.to(dtype)


def _error(output: Tensor, frames: Tensor) -> Tensor:
    output, frames = _widen("reconstruction loss", output, frames)
    return output - frames


def _pull(loss: Tensor, weight: Tensor) -> Tensor:
    """Norm of the gradient of `loss` at `weight`, 0 if there is none."""
    if not loss.requires_grad:
        return torch.zeros((), dtype=_wide(weight), device=weight.device)
    (gradient,) = torch.autograd.grad(
        loss, weight, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return gradient.to(_wide(gradient)).norm()


def _scale_weights(shape: torch.Size, scales: int) -> list[float]:
    """Weights of the scales that a picture of this shape has room for, at most `scales`."""
    if not 1 <= scales <= len(SCALE_WEIGHTS):
        raise InputError(f"ms_ssim: scales={scales} must be 1 to {len(SCALE_WEIGHTS)}")
    if len(shape) != 4 or min(shape[2:]) < SSIM_WINDOW:
        raise InputError(
            f"ms_ssim: frames of shape {tuple(shape)} hold no window; pass (frames, channels, height, width), "
            f"at least {SSIM_WINDOW}x{SSIM_WINDOW} pixels"
        )
    room = (min(shape[2:]) // SSIM_WINDOW).bit_length()  # a scale for every halving, and the first
    weights = SCALE_WEIGHTS[: min(scales, room)]
    total = sum(weights) if len(weights) < len(SCALE_WEIGHTS) else 1.0
    return [weight / total for weight in weights]


def _similarity(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Luminance and contrast-structure terms of SSIM, of every window. `(n, c, h, w) -> (n, c, h-10, w-10)` each."""
    mean_x, mean_y, squares, product = _blur(torch.cat([x, y, x * x + y * y, x * y], dim=1)).chunk(4, dim=1)
    bright_x, bright_y = mean_x + 1, mean_y + 1
    luminance = (2 * bright_x * bright_y + _C1) / (bright_x**2 + bright_y**2 + _C1)
    covariance, variances = product - mean_x * mean_y, squares - mean_x**2 - mean_y**2
    # Far outside [-1, 1] rounding can leave variances of less than nothing.
    structure = (2 * covariance + _C2) / (variances + _C2).clamp(min=_C2 / 2)
    return luminance, structure


def _blur(x: Tensor) -> Tensor:
    """Gaussian window over columns, then rows, without a border. `(n, c, h, w) -> (n, c, h-10, w-10)`.

    One filter per channel over many channels is what torch has fast code for, on a CPU and on a GPU.
    """
    channels = x.shape[1]
    offsets = torch.arange(SSIM_WINDOW, dtype=torch.float64) - SSIM_WINDOW // 2
    window = torch.exp(-(offsets**2) / (2 * SSIM_SIGMA**2))
    window = (window / window.sum()).to(x).expand(channels, 1, 1, -1)
    # Channels-last would go to cuDNN, which may round to TF32: too coarse for a difference of squares.
    x = F.conv2d(x.contiguous(), window.contiguous(), groups=channels)
    return F.conv2d(x, window.transpose(2, 3).contiguous(), groups=channels)
