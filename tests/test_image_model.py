"""The image classes beyond their numbers: types, switches, processors, checkpointing, files, pipelines, changes."""

import json
import sys

import diffusers
import peft
import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor, SlicedAttnProcessor
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from engines import ENGINE
from images import FLUX2, KINDS, SMALL, config, pair
from oracle import assert_close, noise, randomise
from refusals import refused

import temporal_vae
from temporal_vae.errors import CheckpointError, ConfigError, InputError, MemoryLimitError

FLUX2_SMALL = KINDS["a narrow decoder"]
both_classes = pytest.mark.parametrize("kind", [KINDS["Stable Diffusion"], FLUX2_SMALL], ids=["KL", "Flux2"])


@pytest.fixture
def models():
    return pair(*KINDS["Stable Diffusion"])


@pytest.fixture
def ours(models):
    return models[0]


def run(model):
    """Everything a model computes, as one tensor."""
    with torch.no_grad():
        moments = model.encode(noise(2, 3, 24, 16)).latent_dist.parameters
        pictures = model.decode(noise(2, model.config.latent_channels, 6, 5)).sample
    return torch.cat([moments.flatten(), pictures.flatten()])


# The class


@both_classes
def test_is_the_diffusers_type_and_nothing_of_its_network(kind):
    ours, theirs = pair(*kind)
    assert isinstance(ours, type(theirs))
    assert dict(ours.config) == dict(theirs.config)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in theirs.named_parameters()]
    homes = {type(part).__name__ for part in ours.modules() if type(part).__module__.startswith("diffusers")}
    assert homes == {"Attention"}
    for name in (
        "use_tiling",
        "use_slicing",
        "tile_sample_min_size",
        "tile_latent_min_size",
        "tile_overlap_factor",
    ):
        assert getattr(ours, name) == getattr(theirs, name)


@pytest.mark.parametrize("name", KINDS)
def test_a_seed_gives_the_same_weights(name):
    cls, options = KINDS[name]
    drawn = []
    for library in (temporal_vae, diffusers):
        torch.manual_seed(5)
        drawn.append(getattr(library, cls)(**config(**options)).state_dict())
    ours, theirs = drawn
    assert [key for key in theirs if not torch.equal(ours[key], theirs[key])] == []


@both_classes
def test_put_in_place_of_the_diffusers_class(kind, monkeypatch):
    """As people do for pipelines that build their own."""
    cls, home = getattr(temporal_vae, kind[0]), sys.modules[type(pair(*kind)[1]).__module__]
    monkeypatch.setattr(diffusers, kind[0], cls)
    monkeypatch.setattr(home, "Encoder", lambda **_: pytest.fail("the network of diffusers is built"))
    assert isinstance(cls(**config(**kind[1])), vars(home)[kind[0]])


@torch.no_grad()
def test_outputs(ours):
    pictures, z = noise(2, 3, 24, 16), noise(2, 4, 6, 4)
    encoded, decoded, both = ours.encode(pictures), ours.decode(z), ours(pictures)
    assert type(encoded) is AutoencoderKLOutput
    assert type(encoded.latent_dist) is DiagonalGaussianDistribution
    assert type(decoded) is type(both) is DecoderOutput
    assert torch.equal(ours.encode(pictures, return_dict=False)[0].mean, encoded.latent_dist.mean)
    assert torch.equal(ours.decode(z, return_dict=False)[0], decoded.sample)
    assert torch.equal(ours.decode(z, False, torch.Generator())[0], decoded.sample)  # as pipelines call it
    assert torch.equal(ours(pictures, return_dict=False)[0], both.sample)
    assert decoded.sample.shape == both.sample.shape == (2, 3, 24, 16)


@torch.no_grad()
def test_a_picture_is_decoded_by_itself(ours):
    z = noise(5, 4, 6, 5)
    assert_close(torch.cat([ours.decode(one[None]).sample for one in z]), ours.decode(z).sample, ENGINE)


@torch.no_grad()
def test_switches_of_diffusers_change_no_pixel(ours):
    """There, tiles are blended that know nothing of each other."""
    z, pictures = noise(3, 4, 20, 18), noise(1, 3, 70, 66)
    decoded, encoded = ours.decode(z).sample, ours.encode(pictures).latent_dist.parameters
    ours.tile_sample_min_size, ours.tile_latent_min_size = 32, 8
    for switch in ("tiling", "slicing"):
        getattr(ours, f"enable_{switch}")()
        assert torch.equal(ours.decode(z).sample, decoded)
        assert torch.equal(ours.encode(pictures).latent_dist.parameters, encoded)
    assert torch.equal(ours.tiled_decode(z).sample, decoded)
    assert torch.equal(ours.tiled_decode(z, return_dict=False)[0], decoded)
    assert torch.equal(ours.tiled_encode(pictures).latent_dist.parameters, encoded)
    assert torch.equal(ours._decode(z).sample, decoded)
    assert torch.equal(ours._encode(pictures), encoded)


@torch.no_grad()
def test_memory_limit(ours):
    z = noise(2, 4, 20, 18)
    expected = ours.decode(z).sample
    least = ours.plan_decode(num_frames=2, height=80, width=72).ladder[-1].peak
    ours.enable_tiling(memory_limit=least)
    assert_close(ours.decode(z).sample, expected, ENGINE)
    assert_close(torch.cat([*ours.decode_stream(z.split(1))]), expected, ENGINE)
    ours.enable_tiling(memory_limit="1MiB")
    refused(MemoryLimitError, lambda: ours.decode(z), "memory limit 1 MiB", "80x72", "at least", "MiB")
    ours.disable_tiling()
    assert torch.equal(ours.decode(z).sample, expected)


@torch.no_grad()
def test_streams(ours):
    batches = [noise(2, 3, 24, 16), noise(1, 3, 17, 30)]
    for found, batch in zip(ours.encode_stream(batches), batches, strict=True):
        assert torch.equal(found.parameters, ours.encode(batch).latent_dist.parameters)


@pytest.mark.parametrize("processor", [AttnProcessor(), SlicedAttnProcessor(1)])
@pytest.mark.parametrize("name", ["Stable Diffusion", "attention in levels"])
def test_processors(name, processor):
    ours, theirs = pair(*KINDS[name])
    assert list(ours.attn_processors) == list(theirs.attn_processors)
    expected = run(theirs)
    ours.set_attn_processor(processor)
    assert_close(run(ours), expected, ENGINE)


def test_fused_projections(models):
    ours, theirs = models
    names = list(ours.state_dict())
    ours.fuse_qkv_projections()
    assert_close(run(ours), run(theirs), ENGINE)
    assert list(ours.state_dict()) == names
    ours.unfuse_qkv_projections()
    assert_close(run(ours), run(theirs), ENGINE)


def test_checkpointing_is_where_diffusers_has_it(models):
    """Its tests name the classes that are switched."""
    found = []
    for model in models:
        model.enable_gradient_checkpointing()
        assert model.is_gradient_checkpointing
        found.append(
            {type(m).__name__ for m in model.modules() if getattr(m, "gradient_checkpointing", False)}
        )
    assert found[0] == found[1] == {"Encoder", "Decoder", "UNetMidBlock2D"}


@torch.no_grad()
def test_compiled(models):
    """As one graph, as people compile them for pipelines."""
    ours, theirs = models
    z = noise(1, 4, 6, 5)
    decode = torch.compile(ours.decode, backend="eager", fullgraph=True)
    assert_close(decode(z).sample, theirs.decode(z).sample, ENGINE)


# What others change is honoured


@pytest.mark.parametrize("change", ["hook", "layer", "padding", "block"])
@torch.no_grad()
def test_what_was_changed_runs_as_modules(ours, by_engine, change):
    z, target = noise(1, 4, 6, 5), ours.decoder.up_blocks[1]
    before = ours.decode(z).sample
    assert by_engine == {"decode": 1}
    if change == "hook":
        target.resnets[0].register_forward_hook(lambda module, inputs, output: output * 2)
    elif change == "layer":
        target.resnets[1].conv1 = torch.nn.Conv2d(64, 64, 1)
    elif change == "padding":
        ours.decoder.conv_out.padding_mode = "circular"
    else:
        theirs = diffusers.AutoencoderKL(**config(**SMALL)).decoder.up_blocks[1]
        ours.decoder.up_blocks[1] = randomise(theirs, seed=4).eval()
    assert not torch.allclose(ours.decode(z).sample, before, atol=1e-3)
    assert by_engine == {"decode": 1}


@torch.no_grad()
def test_adapters(models, by_engine):
    """Of the autoencoder itself, as trainers of autoencoders add them."""
    z, outputs = noise(1, 4, 6, 5), []
    for model in models:
        torch.manual_seed(0)
        model.add_adapter(peft.LoraConfig(target_modules=["to_q", "to_v"], init_lora_weights=False))
        outputs.append(model.decode(z).sample)
    assert not by_engine
    assert_close(*outputs, ENGINE)


def test_narrow_levels_are_left_to_the_modules(by_engine):
    """Those of diffusers' own tests have two channels."""
    tiny = ("AutoencoderKL", {"block_out_channels": (2, 4), "norm_num_groups": 2})
    ours, theirs = pair(*tiny)
    assert_close(run(ours), run(theirs))
    assert not by_engine
    refused(InputError, lambda: ours.plan_decode(height=16, width=16), "2 channels", "multiples of 32")


# Files


@both_classes
def test_save_and_load(kind, tmp_path):
    ours, theirs = pair(*kind)
    if kind is FLUX2_SMALL:
        for model in (ours, theirs):
            model.bn.running_mean.copy_(noise(len(model.bn.running_mean)))
    ours.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["_class_name"] == kind[0]
    for cls in (type(ours), type(theirs)):
        model, info = cls.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(info.values())
        assert_close(run(model), run(theirs), ENGINE)
        for name, values in theirs.state_dict().items():
            assert torch.equal(model.state_dict()[name], values), name
    refused(
        CheckpointError,
        lambda: type(ours).from_pretrained(tmp_path / "none"),
        "no such folder",
        "config.json",
    )


@both_classes
def test_from_module_shares_every_weight(kind):
    _, theirs = pair(*kind)
    ours = getattr(temporal_vae, kind[0]).from_module(theirs)
    mine, other = (dict(model.named_parameters()) for model in (ours, theirs))
    assert all(mine[name] is other[name] for name in other)
    assert {name: value.data_ptr() for name, value in ours.named_buffers()} == {
        name: value.data_ptr() for name, value in theirs.named_buffers()
    }
    assert_close(run(ours), run(theirs), ENGINE)
    assert dict(ours.config) == dict(theirs.config)


def test_from_module_of_another_kind(ours):
    wrong = diffusers.AutoencoderKLTemporalDecoder(block_out_channels=(32,))
    refused(
        InputError, lambda: type(ours).from_module(wrong), "AutoencoderKLTemporalDecoder", "AutoencoderKL"
    )


def test_from_module_with_other_values():
    """A pipeline in float16 asks `force_upcast` whether to convert the model."""
    theirs = diffusers.AutoencoderKL(**config(**SMALL))
    ours = temporal_vae.AutoencoderKL.from_module(theirs, force_upcast=False)
    assert not ours.config.force_upcast
    assert theirs.config.force_upcast


def test_values_for_pipelines_are_carried():
    values = {
        "shift_factor": 0.1159,
        "scaling_factor": 0.3611,
        "latents_mean": [0.5] * 4,
        "latents_std": [2.0] * 4,
        "sample_size": [64, 48],
    }
    ours, theirs = pair("AutoencoderKL", {**SMALL, **values})
    assert dict(ours.config) == dict(theirs.config)
    assert ours.tile_latent_min_size == theirs.tile_latent_min_size == 16


# Bad input


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"act_fn": "gelu"}, ("act_fn='gelu'", "silu")),
        ({"norm_num_groups": 5}, ("32", "multiple of 5")),
        ({"norm_num_groups": 0}, ("norm_num_groups=0", "at least 1")),
        ({"down_block_types": ("DownBlock2D",) * 3}, ("DownBlock2D", "DownEncoderBlock2D")),
        ({"up_block_types": ("UpDecoderBlock2D",)}, ("up_block_types has 1", "3")),
        ({"block_out_channels": ()}, ("down_block_types has 3", "0")),
        ({"latent_channels": 0}, ("latent_channels=0", "at least 1")),
        ({"sample_size": "big"}, ("sample_size='big'", "pixels")),
    ],
)
def test_configurations_that_are_none(values, words):
    given = {**config(**SMALL), **values}
    refused(ConfigError, lambda: temporal_vae.AutoencoderKL(**given), "configuration", *words)


def test_a_decoder_with_other_levels():
    given = {
        **config(**SMALL),
        "decoder_block_out_channels": (32, 64),
        "up_block_types": ("UpDecoderBlock2D",) * 2,
    }
    refused(
        ConfigError, lambda: temporal_vae.AutoencoderKLFlux2(**given), "decoder_block_out_channels has 2", "3"
    )


@pytest.mark.parametrize("z", [noise(4, 6, 5), noise(1, 3, 6, 5), torch.zeros(1, 4, 6, 5, dtype=torch.int32)])
def test_latents_that_are_none(ours, z):
    refused(InputError, lambda: ours.decode(z), "decode: got")


def test_published_flux2_is_the_default():
    with torch.device("meta"):
        assert (
            temporal_vae.AutoencoderKLFlux2().network
            == temporal_vae.AutoencoderKLFlux2(**config(**FLUX2[1])).network
        )
