"""Which parameters learn."""

import pytest
from oracle import config, noise
from refusals import refused

from temporal_vae import AutoencoderKLTemporalDecoder
from temporal_vae.errors import ConfigError
from temporal_vae.training.initial import choose


def model(layers: int = 1) -> AutoencoderKLTemporalDecoder:
    return AutoencoderKLTemporalDecoder(**config(block_out_channels=(32, 32), layers_per_block=layers))


def with_gradients(vae: AutoencoderKLTemporalDecoder) -> set[str]:
    """Names of the parameters that a step gives gradients to."""
    posterior = vae.encode(noise(2, 3, 16, 16)).latent_dist
    vae.decode(posterior.mean, num_frames=2).sample.square().mean().backward()
    return {name for name, parameter in vae.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("train", ["full", "decoder", "temporal", r"conv_out\.bias$"])
def test_exactly_what_is_chosen_learns(layers, train):
    vae = model(layers)
    names = choose(vae, train)
    assert len(set(names)) == len(names)
    assert {name for name, parameter in vae.named_parameters() if parameter.requires_grad} == set(names)
    assert with_gradients(vae) == set(names)


@pytest.mark.parametrize(
    ("layers", "resting"),
    [
        (1, {"decoder.mid_block.attentions.0."}),
        (2, set()),
        (3, {"decoder.mid_block.resnets.2."}),
        (4, {"decoder.mid_block.resnets.2.", "decoder.mid_block.resnets.3."}),
    ],
)
def test_what_checkpoints_hold_and_nothing_runs_does_not_learn(layers, resting):
    vae = model(layers)
    left = {name for name, _ in vae.named_parameters()} - set(choose(vae, "full"))
    assert {".".join(name.split(".")[:4]) + "." for name in left} == resting


def test_modes():
    vae = model(2)
    full, decoder, temporal = (set(choose(vae, mode)) for mode in ("full", "decoder", "temporal"))
    assert full == {name for name, _ in vae.named_parameters()}
    assert decoder == {name for name in full if name.startswith("decoder.")}
    assert temporal < decoder
    assert {"decoder.time_conv_out.weight", "decoder.mid_block.resnets.0.time_mixer.mix_factor"} < temporal
    assert not any("spatial" in name for name in temporal)
    assert all("temporal_res_block" in name or "time_" in name for name in temporal)


def test_a_later_choice_counts_alone():
    vae = model()
    choose(vae, "full")
    names = choose(vae, r"^decoder\.conv_in\.")
    assert names == ["decoder.conv_in.weight", "decoder.conv_in.bias"]
    assert with_gradients(vae) == set(names)


def test_expressions_are_searched_for_anywhere():
    assert set(choose(model(), "quant")) == {"quant_conv.weight", "quant_conv.bias"}


@pytest.mark.parametrize("train", ["no_such_name", "^conv_in", r"decoder\.mid_block\.attentions"])
def test_nothing_to_learn(train):
    vae = model()
    refused(ConfigError, lambda: choose(vae, train), f"train={train!r}", "no parameter", "is one that it has")
    example = "decoder.up_blocks.0.resnets.0.spatial_res_block.conv1.weight"
    assert example in dict(vae.named_parameters())
