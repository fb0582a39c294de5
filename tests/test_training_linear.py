"""The linear start: a network that computes a linear autoencoder before it learns; and the linear yardstick."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from refusals import refused

from temporal_vae.autoencoders.temporal import AutoencoderKLTemporalDecoder
from temporal_vae.errors import ConfigError
from temporal_vae.training.config.fields import Architecture, make_config
from temporal_vae.training.data.scenes import render_scene
from temporal_vae.training.figures import PatchComponents
from temporal_vae.training.initial import begin, choose, new_model, start_linear
from temporal_vae.training.linear import LinearAutoencoder, keep_constants, plant
from temporal_vae.video.coder import to_tensor

pytestmark = pytest.mark.usefixtures("scenes_drawn_once")


@pytest.fixture(scope="module")
def frames() -> torch.Tensor:
    """`(8, 3, 32, 32)` in [-1, 1]."""
    return to_tensor(render_scene(0, frames=8, height=32, width=32))


def linear_of(frames: torch.Tensor, *, latent_channels: int = 8, levels: int = 3) -> LinearAutoencoder:
    linear = LinearAutoencoder(channels=3, latent_channels=latent_channels, levels=levels)
    linear.start_from_components(frames)
    linear.balance(frames)
    return linear


def test_the_planted_network_computes_the_linear_one(frames):
    torch.manual_seed(0)
    linear, vae = linear_of(frames), new_model(Architecture())
    plant(linear, vae, logvar=-8.0)
    with torch.no_grad():
        posterior = vae.encode(frames).latent_dist
        output = vae.decode(posterior.mean, num_frames=4).sample
        wanted = linear(frames)
    assert torch.allclose(posterior.logvar, torch.tensor(-8.0))
    assert posterior.mean.std().item() == pytest.approx(1, abs=0.1)
    assert (output - wanted).square().mean().sqrt() < 0.1 * wanted.std()


def test_balance_leaves_the_output(frames):
    torch.manual_seed(0)
    linear = LinearAutoencoder(channels=3, latent_channels=4, levels=2)
    with torch.no_grad():
        before = linear(frames)
        linear.balance(frames)
        assert torch.allclose(linear(frames), before, atol=1e-4)


@pytest.mark.parametrize("widths", [(64, 64), (96, 128)])
def test_a_linear_start_needs_room(frames, widths):
    vae = new_model(Architecture(block_out_channels=widths, latent_channels=4))
    linear = LinearAutoencoder(channels=3, latent_channels=4, levels=2)
    refused(ConfigError, lambda: plant(linear, vae, logvar=-8.0), "linear start", str(widths), "at least 96")


def test_convolutions_that_read_the_trunk_never_learn_its_constants(frames):
    vae = new_model(Architecture(block_out_channels=(96, 96), latent_channels=4))
    keep_constants(vae)
    vae(frames[:1]).sample.square().mean().backward()
    gradient = vae.get_parameter("encoder.down_blocks.0.downsamplers.0.conv.weight").grad
    constants = torch.arange(96) % 3 == 2
    assert (gradient[:, constants] == 0).all()
    assert (gradient[:, ~constants] != 0).any()


def test_a_run_begins_with_a_linear_start():
    config = make_config(
        {
            "model": {
                "new": {"block_out_channels": [96, 96], "latent_channels": 4},
                "linear_start": {"crops": 32, "size": 16, "batch": 4, "steps": 40},
            },
            "data": {"sources": [{"scenes": 2, "sides": [48]}], "workers": 0},
        }
    )
    how, errors = config.model.linear_start, []
    for _ in range(2):
        vae = begin(config)
        errors.append(start_linear(vae, config, how))
        with torch.no_grad():
            x = to_tensor(render_scene(0, frames=2, height=48, width=48))
            output = vae.decode(vae.encode(x).latent_dist.mean, num_frames=2).sample
        assert (output - x).square().mean() < 0.5 * x.var()
    assert errors[0] == errors[1] < 0.1
    other = replace(config, model=replace(config.model, new=None, linear_start=None))
    refused(ConfigError, lambda: start_linear(vae, other, how), "model.linear_start", "model.new")


def test_the_same_seed_begins_with_the_same_weights():
    config = make_config({"model": {"new": {"block_out_channels": [32]}}})
    one, other = begin(config), begin(config)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())
    third = begin(replace(config, seed=1))
    assert not torch.equal(
        third.get_parameter("encoder.conv_in.weight"), one.get_parameter("encoder.conv_in.weight")
    )


# The yardstick


def test_enough_components_reconstruct_exactly(frames):
    pictures = render_scene(0, frames=2, height=32, width=32)
    components = PatchComponents.of(frames, patch=2, components=12)
    assert components.basis.shape == (12, 12)
    assert np.array_equal(components.reconstruct(pictures), pictures)


def test_more_components_are_better_and_sizes_may_be_odd(frames):
    pictures = render_scene(0, frames=2, height=31, width=45)
    errors = []
    for count in (1, 4, 12, 48):
        result = PatchComponents.of(frames, patch=4, components=count).reconstruct(pictures)
        assert (result.shape, result.dtype) == (pictures.shape, np.uint8)
        errors.append(float(np.square(result.astype(float) - pictures).mean()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-9 < errors[0]


def test_components_are_the_best_that_only_add():
    """On patches with two degrees of freedom two components suffice, and one does not."""
    random = torch.Generator().manual_seed(0)
    patterns = torch.randn(2, 3, 4, 4, generator=random) * 0.2
    amounts = torch.rand(16, 2, generator=random) - 0.5
    patches = torch.einsum("np,pchw->nchw", amounts, patterns)
    pictures = ((patches + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    two, one = (
        PatchComponents.of(to_tensor(pictures), patch=4, components=count).reconstruct(pictures)
        for count in (2, 1)
    )
    assert np.abs(two.astype(int) - pictures).max() <= 1
    assert np.abs(one.astype(int) - pictures).max() > 3


@pytest.mark.parametrize("learns", ["decoder", "temporal"])
def test_constants_are_kept_in_a_model_that_is_frozen_in_part(learns):
    vae = AutoencoderKLTemporalDecoder(
        down_block_types=("DownEncoderBlock2D",) * 2, block_out_channels=(96, 96), latent_channels=4
    )
    choose(vae, learns)
    keep_constants(vae)
    vae(torch.zeros(2, 3, 16, 16), num_frames=2).sample.sum().backward()
    grads = {name for name, parameter in vae.named_parameters() if parameter.grad is not None}
    assert any("temporal_res_block" in name for name in grads)
