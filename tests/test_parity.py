"""The same numbers as diffusers, from the same weights: encode, decode, forward, and every gradient.

Without gradients, each is computed twice: by the modules, and by the engine.
"""

import pytest
import torch
from oracle import CONFIGS, SVD, Theirs, assert_close, config, noise, pair

from temporal_vae import AutoencoderKLTemporalDecoder

# Clips, and frames of each.
CLIPS = [(1, 5), (2, 3), *(pytest.param(clips, 1, marks=pytest.mark.slow) for clips in (1, 3))]

each_config = pytest.mark.parametrize("options", CONFIGS.values(), ids=CONFIGS)


@each_config
def test_a_seed_gives_the_same_weights(options):
    drawn = []
    for model in (AutoencoderKLTemporalDecoder, Theirs):
        torch.manual_seed(5)
        drawn.append(model(**config(**options)).state_dict())
    ours, theirs = drawn
    assert [key for key in theirs if not torch.equal(ours[key], theirs[key])] == []


def frames_for(model, clips, frames, size=(24, 16), dtype=torch.float32):
    return noise(clips * frames, model.config.in_channels, *size).to(dtype)


@each_config
def test_posterior(options, tolerance):
    ours, theirs = pair(**options)
    frames = frames_for(theirs, 1, 3)
    mine, other = ours.encode(frames).latent_dist, theirs.encode(frames).latent_dist
    assert_close(mine.mean, other.mean, tolerance)
    assert_close(mine.logvar, other.logvar, tolerance)
    assert_close(mine.mode(), other.mode(), tolerance)
    seeded = [posterior.sample(torch.Generator().manual_seed(7)) for posterior in (mine, other)]
    assert_close(*seeded, tolerance)
    assert not torch.equal(seeded[0], mine.mode())
    assert_close(mine.kl(), other.kl(), tolerance)
    assert_close(mine.nll(seeded[1]), other.nll(seeded[1]), tolerance)
    prior = theirs.encode(frames.flip(0)).latent_dist
    assert_close(mine.kl(prior), other.kl(prior), tolerance)


def test_logvar_is_clamped(tolerance):
    ours, theirs = pair(block_out_channels=(64,))
    for model in (ours, theirs):
        model.quant_conv.weight.data.mul_(100)
    mine, other = (model.encode(noise(2, 3, 8, 8)).latent_dist for model in (ours, theirs))
    assert other.logvar.min() == -30
    assert other.logvar.max() == 20
    assert mine.logvar.min() == -30
    assert mine.logvar.max() == 20
    samples = (posterior.sample(torch.Generator().manual_seed(0)) for posterior in (mine, other))
    # A standard deviation is exp(logvar / 2): half of what logvar is off, before the clamp, becomes a relative error.
    assert_close(*samples, 0.5 * tolerance * other.parameters.abs().max())


@pytest.mark.parametrize("size", [(17, 23), (9, 40), (31, 8)])
def test_encode_odd_sizes(size, tolerance):
    ours, theirs = pair(block_out_channels=(32, 32, 64, 64))
    frames = noise(2, 3, *size)
    mine, other = (model.encode(frames).latent_dist.parameters for model in (ours, theirs))
    assert_close(mine, other, tolerance)


@each_config
@pytest.mark.parametrize(("clips", "frames"), CLIPS)
def test_decode(options, clips, frames, tolerance):
    ours, theirs = pair(**options)
    z = noise(clips * frames, theirs.config.latent_channels, 3, 4)
    mine, other = (model.decode(z, num_frames=frames).sample for model in (ours, theirs))
    assert 0.1 < other.abs().max() < 100  # of order one: neither norm hides the rest
    assert_close(mine, other, tolerance)


@pytest.mark.usefixtures("tolerance")
def test_clip_length_matters():
    """Otherwise `num_frames` could be ignored and the comparisons above would not notice."""
    ours, _ = pair(block_out_channels=(64,))
    z = noise(6, 4, 4, 4)
    whole, halves = (ours.decode(z, num_frames=frames).sample for frames in (6, 3))
    assert (whole - halves).abs().max() > 0.1


@pytest.mark.parametrize("sample_posterior", [pytest.param(False, marks=pytest.mark.slow), True])
@each_config
def test_forward(options, sample_posterior, tolerance):
    ours, theirs = pair(**options)
    frames = frames_for(theirs, 2, 3)
    mine, other = (
        model(
            frames,
            sample_posterior=sample_posterior,
            generator=torch.Generator().manual_seed(3),
            num_frames=3,
        ).sample
        for model in (ours, theirs)
    )
    assert_close(mine, other, tolerance)


def gradients(model, frames, num_frames, weights):
    """Gradients of a loss that reaches encoder, posterior and decoder."""
    posterior = model.encode(frames).latent_dist
    z = posterior.sample(torch.Generator().manual_seed(2))
    decoded = model.decode(z, num_frames=num_frames).sample
    (decoded * weights).mean().add(1e-2 * posterior.kl().mean()).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def compare_gradients(options, *, dtype, tolerance, clips=2, frames=3, size=(24, 16)):
    ours, theirs = (model.to(dtype) for model in pair(**options))
    video = frames_for(theirs, clips, frames, size, dtype)
    factor = ours.spatial_factor
    decoded = (clips * frames, theirs.config.out_channels, *(-(-n // factor) * factor for n in size))
    weights = noise(*decoded, seed=5).to(dtype)
    mine, other = (gradients(model, video, frames, weights) for model in (ours, theirs))
    assert mine.keys() == other.keys()
    resting = {name for name, gradient in other.items() if gradient is None}
    assert {name for name, gradient in mine.items() if gradient is None} == resting
    layers = options.get("layers_per_block", 1)
    assert any("decoder.mid_block.attentions" in name for name in resting) == (layers == 1)
    assert any("decoder.mid_block.resnets.2" in name for name in resting) == (layers == 3)
    largest = max(gradient.abs().max() for gradient in other.values() if gradient is not None)
    for name in other.keys() - resting:
        # A bias before a norm of one channel per group has no effect; its gradient is nothing but rounding.
        scale = max(other[name].abs().max(), 0.01 * largest)
        assert (mine[name] - other[name]).abs().max() <= tolerance * scale, name


@pytest.mark.slow  # in float64, which is stricter, always
@each_config
def test_gradients(options):
    compare_gradients(options, dtype=torch.float32, tolerance=1e-5)


@each_config
def test_gradients_in_float64(options):
    compare_gradients(options, dtype=torch.float64, tolerance=1e-12)


def test_gradients_of_inputs():
    ours, theirs = pair(block_out_channels=(32, 64), layers_per_block=2)
    found = []
    for model in (ours, theirs):
        frames = noise(3, 3, 16, 16).requires_grad_()
        model(frames, num_frames=3).sample.square().mean().backward()
        found.append(frames.grad)
    assert_close(*found)


@pytest.fixture(scope="module")
def published():
    """The configuration of the published checkpoint."""
    return pair(**SVD)


both_ways = pytest.mark.parametrize(
    "tolerance", ["engine", pytest.param("modules", marks=pytest.mark.slow)], indirect=True
)


@both_ways
@pytest.mark.usefixtures("tolerance")
def test_published_encode(published):
    mine, other = (model.encode(noise(2, 3, 40, 64)).latent_dist for model in published)
    assert_close(mine.mean, other.mean, 5e-5)
    assert_close(mine.logvar, other.logvar, 5e-5)


@both_ways
@pytest.mark.usefixtures("tolerance")
def test_published_decode(published):
    mine, other = (model.decode(noise(3, 4, 5, 8), num_frames=3).sample for model in published)
    assert_close(mine, other, 5e-5)


@pytest.mark.slow
def test_published_gradients():
    compare_gradients(SVD, dtype=torch.float32, tolerance=5e-5, clips=1, frames=2, size=(32, 32))
