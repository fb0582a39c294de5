"""Every loss against sums by hand or another implementation, its gradients, and its types."""

import math
import sys
import types
from functools import partial

import numpy as np
import pytest
import torch
from refusals import refused
from torch import nn
from torch.autograd import gradcheck

from temporal_vae.errors import InputError
from temporal_vae.training import losses


def noise(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def pictures(*shape, strength=0.2, seed=0, dtype=torch.float32):
    """Smooth pictures in [-1, 1], and the same with noise on them: `(output, frames)`."""
    frames = noise(*shape, seed=seed, dtype=dtype).cumsum(-1).cumsum(-2)
    frames = frames / frames.abs().amax((-2, -1), keepdim=True)
    output = frames + strength * noise(*shape, seed=seed + 1, dtype=dtype)
    return output.clamp(-1, 1), frames


PAIRWISE = {
    "l1": losses.l1,
    "l2": losses.l2,
    "charbonnier": partial(losses.charbonnier, scale=0.05),
    "motion": partial(losses.motion, length=2, penalty=losses.l2),
    "ms_ssim": losses.ms_ssim,
}
pairwise = pytest.mark.parametrize("loss", PAIRWISE.values(), ids=PAIRWISE)


# Every loss of two tensors


@pairwise
def test_equal_frames_cost_nothing(loss):
    _, frames = pictures(2, 3, 48, 40)
    assert loss(frames, frames).item() == pytest.approx(0, abs=1e-6)
    assert loss(torch.ones(2, 3, 48, 40), torch.ones(2, 3, 48, 40)).item() == pytest.approx(0, abs=1e-6)


@pairwise
def test_gradients(loss):
    output, frames = pictures(2, 1, 23, 22, dtype=torch.float64)
    assert gradcheck(loss, (output.requires_grad_(), frames.requires_grad_()), fast_mode=True)


@pairwise
def test_half_precision_and_autocast_compute_in_float32(loss):
    output, frames = pictures(2, 3, 24, 24)
    low, exact = output.bfloat16(), loss(output.bfloat16().float(), frames)
    assert loss(low, frames).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(loss(low, frames), exact)
        low.requires_grad_()
        loss(low, frames).backward()
    assert low.grad.dtype == torch.bfloat16
    assert loss(output.double(), frames).dtype == torch.float64
    assert loss(output.double(), frames).item() == pytest.approx(loss(output, frames).item(), rel=1e-4)


@pairwise
def test_shapes_that_would_broadcast_are_refused(loss):
    refused(
        InputError,
        lambda: loss(noise(2, 3, 24, 24), noise(2, 1, 24, 24)),
        "(2, 3, 24, 24)",
        "(2, 1, 24, 24)",
        "one shape",
    )


# One by one


def test_penalties_by_hand():
    output, frames = torch.tensor([0.5, -1.0, 0.0]), torch.tensor([0.0, 1.0, 0.0])
    assert losses.l1(output, frames).item() == pytest.approx(2.5 / 3)
    assert losses.l2(output, frames).item() == pytest.approx(4.25 / 3)
    expected = np.mean([math.sqrt(error**2 + 0.1**2) - 0.1 for error in (0.5, 2.0, 0.0)])
    assert losses.charbonnier(output, frames, scale=0.1).item() == pytest.approx(expected, rel=1e-6)


def test_charbonnier_keeps_small_errors():
    error = torch.full((4,), 1e-5)
    assert losses.charbonnier(error, torch.zeros(4), scale=0.5).item() == pytest.approx(1e-10, rel=1e-4)


@pytest.mark.parametrize("scale", [0, -0.1, math.nan])
def test_charbonnier_needs_a_scale(scale):
    refused(
        InputError,
        lambda: losses.charbonnier(noise(2), noise(2), scale=scale),
        f"scale={scale}",
        "above 0",
        "l1",
    )


def test_kl_is_that_of_torch():
    mean, logvar = noise(2, 4, 3, 3), noise(2, 4, 3, 3, seed=1)
    posterior = torch.distributions.Normal(mean, (logvar / 2).exp())
    expected = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0)).mean()
    assert losses.kl(mean, logvar).item() == pytest.approx(expected.item(), rel=1e-6)
    assert losses.kl(torch.zeros(3), torch.zeros(3)).item() == 0


def test_kl_clamps_as_the_posterior_does():
    zero = torch.zeros(1)
    assert losses.kl(zero, zero - 1000).item() == pytest.approx((math.exp(-30) - 1 + 30) / 2)
    assert losses.kl(zero, zero + 1000).item() == pytest.approx((math.exp(20) - 1 - 20) / 2)
    assert losses.kl(zero.half(), (zero + 1000).half()).item() == pytest.approx((math.exp(20) - 21) / 2)


def test_motion_by_hand():
    frames = torch.zeros(6, 1, 1, 1)
    steady = torch.tensor([0.3, 0.3, 0.3, -0.2, -0.2, -0.2]).view(6, 1, 1, 1)
    flicker = torch.tensor([0.0, 0.4, 0.0, 0.1, 0.1, 0.3]).view(6, 1, 1, 1)
    assert losses.motion(steady, frames, length=3, penalty=losses.l1).item() == 0
    assert losses.motion(flicker, frames, length=3, penalty=losses.l1).item() == pytest.approx(1.0 / 4)
    assert losses.motion(flicker, frames, length=3, penalty=losses.l2).item() == pytest.approx(0.36 / 4)
    moving = torch.arange(6.0).view(6, 1, 1, 1)
    assert losses.motion(moving + steady, moving, length=3, penalty=losses.l1).item() == pytest.approx(
        0, abs=1e-6
    )


def test_motion_of_single_frames_is_nothing_with_a_graph():
    output = noise(3, 3, 8, 8).requires_grad_()
    loss = losses.motion(output, noise(3, 3, 8, 8), length=1, penalty=losses.l1)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(output.grad, torch.zeros_like(output))


@pytest.mark.parametrize("length", [0, -1, 4])
def test_motion_needs_whole_clips(length):
    refused(
        InputError,
        lambda: losses.motion(noise(6, 1, 2, 2), noise(6, 1, 2, 2), length=length, penalty=losses.l1),
        "6 frames",
        f"length={length}",
        "divides",
    )


# MS-SSIM


def test_one_scale_is_the_ssim_of_scikit_image():
    structural_similarity = pytest.importorskip("skimage.metrics").structural_similarity
    output, frames = pictures(2, 3, 40, 57)
    expected = [
        structural_similarity(
            x,
            y,
            data_range=2,
            channel_axis=0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        for x, y in zip((output.double() + 1).numpy(), (frames.double() + 1).numpy(), strict=True)
    ]
    assert 1 - losses.ms_ssim(output, frames, scales=1).item() == pytest.approx(np.mean(expected), abs=1e-6)


def oracle(x, y, weights):
    """MS-SSIM of two pictures in [0, 2], by scipy's filters in float64."""
    ndimage = pytest.importorskip("scipy.ndimage")

    def blur(picture):
        return ndimage.gaussian_filter(picture, 1.5, radius=5)[5:-5, 5:-5]

    result = 1.0
    for scale, weight in enumerate(weights):
        mean_x, mean_y = blur(x), blur(y)
        var_x, var_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
        structure = (2 * (blur(x * y) - mean_x * mean_y) + 0.06**2) / (var_x + var_y + 0.06**2)
        if scale == len(weights) - 1:
            structure *= (2 * mean_x * mean_y + 0.02**2) / (mean_x**2 + mean_y**2 + 0.02**2)
        result *= structure.mean() ** weight
        height, width = x.shape[0] // 2, x.shape[1] // 2
        x, y = (z[: 2 * height, : 2 * width].reshape(height, 2, width, 2).mean((1, 3)) for z in (x, y))
    return result


@pytest.mark.parametrize(
    ("height", "width", "scales"), [(176, 181, 5), (175, 300, 4), (51, 44, 3), (22, 43, 2), (11, 200, 1)]
)
def test_scales_follow_the_smallest_side(height, width, scales):
    output, frames = pictures(1, 2, height, width)
    weights = np.array([0.0448, 0.2856, 0.3001, 0.2363, 0.1333])[:scales]
    if scales < 5:
        weights /= weights.sum()
    planes = zip((output[0].double() + 1).numpy(), (frames[0].double() + 1).numpy(), strict=True)
    expected = 1 - np.mean([oracle(*pair, weights) for pair in planes])
    assert losses.ms_ssim(output, frames).item() == pytest.approx(expected, abs=2e-6)
    assert losses.ms_ssim(output, frames, scales=scales).item() == pytest.approx(expected, abs=2e-6)


def test_memory_layout_changes_nothing():
    output, frames = (x.to(memory_format=torch.channels_last) for x in pictures(2, 3, 50, 50))
    assert torch.equal(
        losses.ms_ssim(output, frames), losses.ms_ssim(*(x.contiguous() for x in (output, frames)))
    )


def test_opposite_pictures_have_finite_gradients():
    frames = noise(2, 3, 48, 48).sign()
    output = (-frames).requires_grad_()
    loss = losses.ms_ssim(output, frames)
    loss.backward()
    assert 0.99 < loss.item() < 1
    assert output.grad.isfinite().all()


def test_values_far_outside_the_range_have_gradients_of_no_great_size():
    _, frames = pictures(1, 3, 128, 128)
    output = (300 + 1e-2 * noise(1, 3, 128, 128)).requires_grad_()
    loss = losses.ms_ssim(output, frames)
    loss.backward()
    assert 0 < loss.item() < 1
    assert output.grad.abs().max() < 0.01


def test_ms_ssim_leads_back_to_the_frames():
    output, frames = pictures(1, 1, 48, 48, strength=0.5)
    output.requires_grad_()
    optimizer = torch.optim.Adam([output], lr=0.02)
    first = losses.ms_ssim(output, frames).item()
    for _ in range(60):
        optimizer.zero_grad()
        loss = losses.ms_ssim(output, frames)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1 * first


@pytest.mark.parametrize(
    ("shape", "scales", "parts"),
    [
        ((1, 3, 10, 40), 5, ["(1, 3, 10, 40)", "11x11"]),
        ((3, 40, 40), 5, ["(3, 40, 40)", "(frames, channels, height, width)"]),
        ((1, 3, 40, 40), 0, ["scales=0", "1 to 5"]),
        ((1, 3, 40, 40), 6, ["scales=6", "1 to 5"]),
    ],
)
def test_ms_ssim_refuses(shape, scales, parts):
    refused(
        InputError, lambda: losses.ms_ssim(noise(*shape), noise(*shape), scales=scales), "ms_ssim", *parts
    )


# LPIPS


class FakeLpips(nn.Module):
    """Stands in for `lpips.LPIPS`: a weighted squared difference, and a record of its calls."""

    made = None

    def __init__(self, net, verbose):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0))
        self.net, self.verbose, self.inputs, self.moves = net, verbose, [], []
        FakeLpips.made.append(self)

    def to(self, **target):
        self.moves.append(target)
        return super().to(**target)

    def forward(self, output, frames):
        self.inputs.append((output, frames))
        self.autocast = torch.is_autocast_enabled("cpu")
        return self.weight * (output - frames).square().mean((1, 2, 3), keepdim=True)


@pytest.fixture
def fake_lpips(monkeypatch):
    module = types.ModuleType("lpips")
    module.LPIPS = FakeLpips
    monkeypatch.setitem(sys.modules, "lpips", module)
    monkeypatch.setattr(FakeLpips, "made", [])
    return FakeLpips.made


def test_perceptual_hands_clamped_frames_to_a_frozen_network(fake_lpips):
    perceptual = losses.Perceptual()
    assert fake_lpips == []
    output, frames = (2 * noise(2, 3, 8, 8)).bfloat16().requires_grad_(), noise(2, 3, 8, 8, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        loss = perceptual(output, frames)
        perceptual(output, frames)
    (network,) = fake_lpips
    assert (network.net, network.verbose, network.training, network.autocast) == ("vgg", False, False, False)
    assert network.weight.requires_grad is False
    for given, own in zip(network.inputs[0], (output, frames), strict=True):
        assert torch.equal(given, own.float().clamp(-1, 1))
    expected = 2 * (output.float().clamp(-1, 1) - frames.clamp(-1, 1)).square().mean()
    assert loss.item() == pytest.approx(expected.item())
    loss.backward()
    assert output.grad.abs().sum() > 0


def test_perceptual_follows_type_and_device(fake_lpips):
    perceptual = losses.Perceptual(network="alex")
    output = noise(1, 3, 8, 8, dtype=torch.float64).requires_grad_()
    assert gradcheck(perceptual, (output, torch.zeros(1, 3, 8, 8).double()), fast_mode=True)
    assert fake_lpips[0].moves[0] == {"device": output.device, "dtype": torch.float64}
    assert perceptual(output.float(), output.float()).dtype == torch.float32
    assert fake_lpips[0].net == "alex"


def test_perceptual_refuses(fake_lpips):
    refused(InputError, lambda: losses.Perceptual(network="resnet"), "'resnet'", "alex, squeeze, vgg")
    refused(
        InputError,
        lambda: losses.Perceptual()(noise(2, 1, 8, 8), noise(2, 1, 8, 8)),
        "(2, 1, 8, 8)",
        "3, height",
    )


def test_without_lpips_perceptual_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", None)
    refused(InputError, losses.Perceptual, "lpips", "pip install lpips torchvision", "no weight")


# The game


def test_hinge_by_hand():
    real, fake = torch.tensor([2.0, 0.5, -1.0, 1.0]), torch.tensor([-3.0, 0.0, 1.0, -0.5])
    assert losses.hinge_discriminator(real, fake).item() == pytest.approx(2.5 / 4 + 3.5 / 4)
    assert losses.hinge_generator(fake).item() == pytest.approx(2.5 / 4)
    assert losses.hinge_discriminator(torch.zeros(3), torch.zeros(5)).item() == 2


def test_hinge_computes_in_float32():
    logits = noise(64).bfloat16()
    assert losses.hinge_discriminator(logits, -logits).dtype == torch.float32
    assert losses.hinge_generator(logits).item() == pytest.approx(-logits.float().mean().item())
    exact = noise(9, dtype=torch.float64).requires_grad_()
    assert gradcheck(losses.hinge_discriminator, (exact, noise(9, seed=1).double().requires_grad_()))
    assert gradcheck(losses.hinge_generator, (exact,))


def test_adaptive_weight_by_hand():
    layer = torch.tensor([3.0, 4.0], requires_grad=True)
    reconstruction, adversarial = (layer * torch.tensor([6.0, 8.0])).sum(), 0.5 * layer[0]
    weight = losses.adaptive_weight(reconstruction, adversarial, layer)
    assert weight.item() == pytest.approx(10 / (0.5 + 1e-4))
    assert not weight.requires_grad
    assert layer.grad is None
    assert losses.adaptive_weight(reconstruction, adversarial, layer, most=7).item() == 7
    assert losses.adaptive_weight(reconstruction, 1e-9 * adversarial, layer).item() == 1e4
    assert losses.adaptive_weight(reconstruction, adversarial, layer, epsilon=0.5).item() == 10
    (reconstruction + weight * adversarial).backward()  # the graph is still there


def test_adaptive_weight_is_zero_where_a_loss_does_not_reach_the_layer():
    layer, other = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    here, elsewhere, constant = layer.sum(), other.sum(), torch.tensor(3.0)
    for pair in [
        (here, elsewhere),
        (elsewhere, here),
        (here, constant),
        (constant, here),
        (constant, constant),
    ]:
        assert losses.adaptive_weight(*pair, layer).item() == 0


def test_adaptive_weight_balances_a_decoder():
    torch.manual_seed(0)
    last = nn.Conv2d(4, 3, 3, padding=1)
    body, critic = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(3, 1, 4, stride=2)
    frames = noise(2, 3, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        hidden = torch.utils.checkpoint.checkpoint(body, noise(2, 2, 16, 16), use_reentrant=False)
        output = last(hidden)
        logits = critic(output)
    reconstruction, adversarial = losses.l1(output, frames), losses.hinge_generator(logits)
    weight = losses.adaptive_weight(reconstruction, adversarial, last.weight, epsilon=0)
    norms = []
    for loss in (reconstruction, weight * adversarial):
        last.weight.grad = None
        loss.backward(retain_graph=True)
        norms.append(last.weight.grad.norm().item())
    assert norms[0] == pytest.approx(norms[1], rel=0.01)  # gradients came in bfloat16
