"""The same numbers as diffusers' image autoencoders, from the same weights: encode, decode, forward, every gradient.

Without gradients, each is computed twice: by the modules, and by the engine.
"""

import pytest
import torch
from engines import ENGINE
from images import FLUX, FLUX2, KINDS, SD, pair
from oracle import assert_close, noise

each_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def given(model, size=(40, 36), count=3):
    """Pictures and latents."""
    latents = [length // model.spatial_factor for length in size]
    pictures = noise(count, model.config.in_channels, *size)
    return pictures, noise(count, model.config.latent_channels, *latents)


@each_kind
def test_encode_and_decode(kind, tolerance):
    ours, theirs = pair(*kind)
    pictures, z = given(ours)
    mine, other = (model.encode(pictures).latent_dist for model in (ours, theirs))
    assert_close(mine.parameters, other.parameters, tolerance)
    seeded = [posterior.sample(torch.Generator().manual_seed(7)) for posterior in (mine, other)]
    assert_close(*seeded, tolerance)
    mine, other = (model.decode(z).sample for model in (ours, theirs))
    assert 0.1 < other.abs().max() < 100
    assert_close(mine, other, tolerance)


@each_kind
@pytest.mark.parametrize("sample_posterior", [pytest.param(False, marks=pytest.mark.slow), True])
def test_forward(kind, sample_posterior, tolerance):
    ours, theirs = pair(*kind)
    pictures, _ = given(ours, count=2)
    mine, other = (
        model(pictures, sample_posterior=sample_posterior, generator=torch.Generator().manual_seed(3)).sample
        for model in (ours, theirs)
    )
    assert_close(mine, other, tolerance)


@pytest.mark.parametrize("size", [(45, 37), (9, 40), (31, 8)])
def test_encode_odd_sizes(size, tolerance):
    ours, theirs = pair(*KINDS["FLUX"])
    pictures = noise(2, 3, *size)
    assert_close(
        ours.encode(pictures).latent_dist.mode(), theirs.encode(pictures).latent_dist.mode(), tolerance
    )


def gradients(model, pictures):
    posterior = model.encode(pictures).latent_dist
    decoded = model.decode(posterior.sample(torch.Generator().manual_seed(2))).sample
    (decoded.square().mean() + 1e-2 * posterior.kl().mean()).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@each_kind
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients(kind, checkpointing):
    models = [model.double() for model in pair(*kind)]
    if checkpointing:
        models[0].enable_gradient_checkpointing()
    pictures = given(models[0], size=(24, 16))[0].double()
    mine, other = (gradients(model, pictures) for model in models)
    assert list(mine) == list(other)
    largest = max(gradient.abs().max() for gradient in other.values())
    for name, gradient in other.items():
        # A bias before a norm of one channel per group has no effect; its gradient is nothing but rounding.
        scale = max(gradient.abs().max(), 0.01 * largest)
        assert (mine[name] - gradient).abs().max() <= 1e-12 * scale, name


@pytest.mark.parametrize("kind", [SD, FLUX, FLUX2], ids=["SD", "FLUX", "FLUX.2"])
@torch.no_grad()
def test_published_sizes(kind):
    """Stable Diffusion 1.x, 2.x and XL are one network; so are Stable Diffusion 3 and FLUX."""
    ours, theirs = pair(*kind)
    pictures, z = given(ours, size=(64, 48), count=2)
    mine, other = (model.encode(pictures).latent_dist.parameters for model in (ours, theirs))
    assert_close(mine, other, 5e-5)
    assert_close(ours.decode(z).sample, theirs.decode(z).sample, 5e-5)


@each_kind
@torch.no_grad()
def test_no_pixel_changes_with_the_limit(kind):
    ours, _ = pair(*kind)
    pictures, z = given(ours)
    decoded, moments = ours.decode(z).sample, ours.encode(pictures).latent_dist.parameters
    size = {"height": 40, "width": 36, "num_frames": 3}
    for offer in ours.plan_decode(**size).ladder:
        assert ours.plan_decode(**size, memory_limit=offer.peak).peak <= offer.peak
        assert_close(ours.decode(z, memory_limit=offer.peak).sample, decoded, ENGINE)
    for offer in ours.plan_encode(**size).ladder:
        found = ours.encode(pictures, memory_limit=offer.peak).latent_dist.parameters
        assert_close(found, moments, ENGINE)
