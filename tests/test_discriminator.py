"""The critics: shapes, what they see, what they refuse, and that only the temporal one sees flicker."""

import pytest
import torch
from refusals import refused
from torch import nn

from temporal_vae.errors import ConfigError, InputError
from temporal_vae.training.discriminator import PatchDiscriminator2D, PatchDiscriminator3D
from temporal_vae.training.losses import hinge_discriminator

KINDS = [PatchDiscriminator2D, PatchDiscriminator3D]
kinds = pytest.mark.parametrize("kind", KINDS)


def small(kind, **options):
    torch.manual_seed(0)
    return kind(**{"width": 8, "layers": 2} | options)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@kinds
@pytest.mark.parametrize("length", [1, 2, 3, 6])
def test_a_logit_per_frame_and_patch(kind, length):
    discriminator = small(kind, layers=2)
    assert discriminator(noise(6, 3, 32, 44), length).shape == (6, 1, 6, 9)
    assert discriminator(noise(6, 3, 12, 12), length).shape == (6, 1, 1, 1)


def test_layers_are_those_of_pix2pix():
    discriminator = PatchDiscriminator2D()
    convs = [module for module in discriminator.modules() if isinstance(module, nn.Conv2d)]
    assert [conv.out_channels for conv in convs] == [64, 128, 256, 512, 1]
    assert [conv.stride[0] for conv in convs] == [2, 2, 2, 1, 1]
    assert sum(parameter.numel() for parameter in discriminator.parameters()) == sum(
        16 * a * b + b for a, b in [(3, 64), (64, 128), (128, 256), (256, 512), (512, 1)]
    ) + 2 * (128 + 256 + 512)
    with torch.device("meta"):
        deep = PatchDiscriminator3D(channels=4, width=32, layers=5)
    convs = [module for module in deep.modules() if isinstance(module, nn.Conv3d)]
    assert [conv.out_channels for conv in convs] == [32, 64, 128, 256, 256, 256, 1]
    assert all(conv.stride[0] == 1 for conv in convs)


@kinds
def test_first_weights(kind):
    torch.manual_seed(0)
    for module in kind(layers=2).modules():
        if isinstance(module, (nn.Conv2d, nn.Conv3d)):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.1)
            assert module.bias.abs().max() == 0


def test_a_logit_sees_70_pixels_and_11_frames():
    torch.manual_seed(0)
    discriminator = PatchDiscriminator3D(width=8)
    discriminator.stages = nn.Sequential(
        *(module for module in discriminator.stages if not isinstance(module, nn.GroupNorm))
    )
    frames = noise(15, 3, 104, 104).requires_grad_()
    logits = discriminator(frames, 15)
    logits[7, 0, 5, 5].backward()
    seen = frames.grad.abs().sum(1).nonzero()
    assert (seen.amax(0) - seen.amin(0) + 1).tolist() == [11, 70, 70]


@kinds
def test_clips_are_judged_one_by_one(kind):
    """No norm couples a clip with the rest of its batch, in training neither."""
    discriminator = small(kind).train()
    frames = noise(6, 3, 16, 16)
    together = discriminator(frames, 3)
    alone = torch.cat([discriminator(clip, 3) for clip in frames.split(3)])
    assert torch.allclose(together, alone, atol=1e-6)
    assert torch.equal(discriminator.eval()(frames, 3), together)


def test_only_the_temporal_one_couples_frames():
    for kind, coupled in zip(KINDS, (False, True), strict=True):
        frames = noise(3, 3, 16, 16).requires_grad_()
        small(kind)(frames, 3)[0].sum().backward()
        assert [bool(gradient.any()) for gradient in frames.grad] == [True, coupled, coupled]


@kinds
def test_autocast(kind):
    discriminator = small(kind)
    frames = noise(4, 3, 16, 16)
    exact = discriminator(frames, 2)
    with torch.autocast("cpu", torch.bfloat16):
        logits = discriminator(frames, 2)
        loss = hinge_discriminator(logits, logits)
    loss.backward()
    assert logits.dtype == torch.bfloat16
    assert torch.allclose(logits.float(), exact, atol=0.05 * exact.abs().max().item())
    assert all(parameter.grad is not None for parameter in discriminator.parameters())


def flicker_game(discriminator, steps):
    """Hinge losses while learning to tell steady clips from the same frames in an order that flickers.

    Frames are one picture, brighter or darker. A steady clip has one brightness; the flickering clips deal the very
    same frames out anew, so that a judge of single frames gets the same logits for both.
    """
    picture = noise(1, 1, 3, 16, 16).mul(0.2)
    draw = torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(discriminator.parameters(), lr=2e-3, betas=(0.5, 0.9))
    losses = []
    for _ in range(steps):
        brightness = torch.rand(8, 1, 1, 1, 1, generator=draw) - 0.5
        steady = (picture + brightness).expand(8, 4, 3, 16, 16).flatten(0, 1)
        flickering = steady[torch.randperm(32, generator=draw)]
        loss = hinge_discriminator(discriminator(steady, 4), discriminator(flickering, 4))
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses


def test_the_temporal_one_learns_to_see_flicker():
    losses = flicker_game(small(PatchDiscriminator3D), steps=60)
    assert losses[0] == pytest.approx(2, abs=0.2)
    assert sum(losses[-20:]) / 20 < 0.5


def test_the_one_for_single_frames_cannot_see_flicker():
    """relu(1 - d) + relu(1 + d) is 2 or more for every logit d, and both sums go over the same logits."""
    assert min(flicker_game(small(PatchDiscriminator2D), steps=60)) >= 2 - 1e-5


@kinds
@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"width": 12}, ["width=12", "multiple of 8", "groups"]),
        ({"width": 0}, ["width=0", "at least 1"]),
        ({"width": 64.0}, ["width=64.0", "whole number"]),
        ({"channels": -3}, ["channels=-3", "at least 1"]),
        ({"layers": 0}, ["layers=0", "at least 1"]),
        ({"layers": True}, ["layers=True", "whole number"]),
    ],
)
def test_sizes_that_cannot_be_built(kind, options, parts):
    refused(ConfigError, lambda: kind(**options), "discriminator", *parts)


@kinds
@pytest.mark.parametrize(
    ("shape", "length", "parts"),
    [
        ((2, 3, 11, 40), 1, ["11x40", "at least 12x12", "fewer layers"]),
        ((2, 1, 16, 16), 1, ["(2, 1, 16, 16)", "(frames, 3, height, width)"]),
        ((2, 3, 4, 16, 16), 1, ["(2, 3, 4, 16, 16)", "(frames, 3, height, width)"]),
        ((6, 3, 16, 16), 4, ["6 frames", "length=4", "divides"]),
        ((6, 3, 16, 16), 0, ["6 frames", "length=0"]),
    ],
)
def test_frames_that_cannot_be_judged(kind, shape, length, parts):
    refused(InputError, lambda: small(kind)(noise(*shape), length), "discriminator", *parts)
