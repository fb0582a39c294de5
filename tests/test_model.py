"""The calls of the class beyond its numbers: outputs, processors, fused projections, checkpointing, sharing."""

import copy
import pickle

import diffusers
import pytest
import torch
from diffusers.models.attention_processor import (
    AttnProcessor,
    AttnProcessor2_0,
    FusedAttnProcessor2_0,
    SlicedAttnProcessor,
)
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from memory import peak_bytes
from oracle import TINY, Theirs, assert_close, config, noise, pair, randomise
from refusals import refused

from temporal_vae import AutoencoderKLTemporalDecoder as Ours
from temporal_vae.autoencoders.base import Autoencoder
from temporal_vae.engine import attention as attention_pass
from temporal_vae.errors import InputError, MemoryLimitError

ATTENDING = {"block_out_channels": (32, 64), "layers_per_block": 2}  # both attentions run
PROCESSORS = ["encoder.mid_block.attentions.0.processor", "decoder.mid_block.attentions.0.processor"]


@pytest.fixture
def models():
    return pair(**ATTENDING)


@pytest.fixture
def ours(models):
    return models[0]


def run(model):
    """Everything attention has a part in, as one tensor."""
    with torch.no_grad():
        moments = model.encode(noise(2, 3, 16, 16)).latent_dist.parameters
        frames = model.decode(noise(2, 4, 4, 4), num_frames=2).sample
    return torch.cat([moments.flatten(), frames.flatten()])


# Outputs


@torch.no_grad()
def test_outputs(ours):
    frames, z = noise(4, 3, 16, 16), noise(4, 4, 8, 8)
    encoded, decoded, both = ours.encode(frames), ours.decode(z, 2), ours(frames, num_frames=2)
    assert type(encoded) is AutoencoderKLOutput
    assert type(encoded.latent_dist) is DiagonalGaussianDistribution
    assert type(decoded) is type(both) is DecoderOutput
    (posterior,) = ours.encode(frames, return_dict=False)
    assert torch.equal(posterior.parameters, encoded.latent_dist.parameters)
    for values, output in (
        (ours.decode(z, num_frames=2, return_dict=False), decoded),
        (ours(frames, return_dict=False, num_frames=2), both),
    ):
        assert type(values) is tuple
        assert len(values) == 1
        assert torch.equal(values[0], output.sample)
    assert posterior.mean.shape == (4, 4, 8, 8)
    assert decoded.sample.shape == (4, 3, 16, 16)


def test_forward_default_is_single_frames(ours):
    frames = noise(3, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(ours(frames).sample, ours(frames, num_frames=1).sample)
        assert not torch.equal(ours(frames).sample, ours(frames, num_frames=3).sample)


# The parent class


def test_is_the_diffusers_type_and_nothing_of_its_network(ours):
    assert isinstance(ours, Theirs)
    assert isinstance(ours, (diffusers.ModelMixin, diffusers.ConfigMixin))
    homes = {type(module).__module__.split(".")[0] for module in ours.modules()}
    assert homes == {"temporal_vae", "torch", "diffusers"}
    borrowed = {
        type(module).__name__ for module in ours.modules() if type(module).__module__.startswith("diffusers")
    }
    assert borrowed == {"Attention"}


def test_every_computing_method_is_ours():
    inherited = {name for name, value in vars(Theirs).items() if callable(value)}
    assert {"encode", "decode", "forward"} <= inherited
    # This one sets processors and computes nothing.
    assert inherited - vars(Ours).keys() - vars(Autoencoder).keys() == {"set_default_attn_processor"}


# Bounded memory


def decode(model):
    with torch.no_grad():
        return model.decode(noise(4, 4, 4, 4), num_frames=2).sample


def test_switches_of_diffusers_change_no_pixel(ours):
    """There, tiling blends tiles that know nothing of each other; here it is the whole computation in less memory."""
    expected = decode(ours)
    for switch in ("tiling", "slicing"):
        assert not getattr(ours, f"use_{switch}")
        getattr(ours, f"enable_{switch}")()
        assert getattr(ours, f"use_{switch}")
        assert torch.equal(decode(ours), expected)
        getattr(ours, f"disable_{switch}")()
        assert not getattr(ours, f"use_{switch}")
        assert torch.equal(decode(ours), expected)


def test_settings_of_blended_tiles_are_kept_and_do_nothing(ours):
    expected = decode(ours)
    assert ours.tile_sample_min_size == ours.config.sample_size
    ours.tile_latent_min_size, ours.tile_overlap_factor = 1, 0.5
    ours.enable_tiling()
    assert torch.equal(decode(ours), expected)


def test_memory_limit(ours):
    expected = decode(ours)
    size = {"num_frames": 2, "height": 8, "width": 8, "clips": 2}
    peaks = [rung.peak for rung in ours.plan_decode(**size).ladder]
    for limit in (max(peaks), min(peaks)):
        ours.enable_tiling(memory_limit=limit)
        assert ours.memory_limit == limit
        assert ours.plan_decode(**size).peak <= limit
        assert_close(decode(ours), expected, 2e-5)
    ours.enable_tiling(memory_limit="1MiB")  # refused when it is known for what
    refused(MemoryLimitError, lambda: decode(ours), "memory limit 1 MiB", "8x8", "at least", "MiB")
    ours.disable_tiling()
    assert ours.memory_limit is None
    assert torch.equal(decode(ours), expected)


def test_memory_limit_goes_with_tiling(ours):
    ours.enable_tiling(memory_limit="1.5GiB")
    assert ours.memory_limit == 3 * 2**29
    ours.enable_tiling()
    assert ours.memory_limit is None
    ours.enable_tiling(False, memory_limit="1.5GiB")
    assert not ours.use_tiling
    assert ours.memory_limit is None


@pytest.mark.parametrize("amount", ["", "much", "4 giga", "-1GiB", 0, -1, True, 1.5, "0.1"])
def test_memory_limit_that_is_none(ours, amount):
    refused(InputError, lambda: ours.enable_tiling(memory_limit=amount), "memory limit", repr(amount), "4GiB")
    assert not ours.use_tiling


# Attention processors


def test_processors_have_the_published_names(models):
    ours, theirs = models
    assert list(ours.attn_processors) == list(theirs.attn_processors) == PROCESSORS
    assert {type(processor) for processor in ours.attn_processors.values()} == {AttnProcessor2_0}


@pytest.mark.parametrize("processor", [AttnProcessor(), AttnProcessor2_0(), SlicedAttnProcessor(1)])
def test_set_processor(models, processor):
    for model in models:
        model.set_attn_processor(processor)
        assert set(model.attn_processors.values()) == {processor}
    ours, theirs = map(run, models)
    assert_close(ours, theirs)


def test_set_processors_by_name(ours):
    chosen = dict(zip(PROCESSORS, (AttnProcessor(), AttnProcessor2_0()), strict=True))
    ours.set_attn_processor(dict(chosen))
    assert ours.attn_processors == chosen
    with pytest.raises(ValueError, match="does not match"):
        ours.set_attn_processor({PROCESSORS[0]: AttnProcessor()})


def test_the_engine_knows_the_attention_that_comes_with_the_network(ours, monkeypatch):
    """It computes it by itself, in less memory; with another processor, the module is called."""
    calls = []
    for name in ("add_attention", "add_by_kernels"):
        add = getattr(attention_pass, name)
        monkeypatch.setattr(attention_pass, name, lambda *a, add=add: calls.append(a[2]) or add(*a))
    expected = run(ours)
    attentions = [*ours.encoder.mid_block.attentions, *ours.decoder.mid_block.attentions]
    assert set(calls) == set(attentions)
    calls.clear()
    ours.set_attn_processor(AttnProcessor())
    assert_close(run(ours), expected)
    assert not calls
    ours.set_attn_processor(AttnProcessor2_0())
    hook = attentions[1].to_q.register_forward_hook(lambda *_: None)
    assert_close(run(ours), expected)
    assert set(calls) == set(attentions[:1])  # the decoder's modules run
    hook.remove()
    calls.clear()
    assert torch.equal(run(ours), expected)
    assert set(calls) == set(attentions)


def test_custom_processor_is_called(ours):
    seen = []

    class Recording(AttnProcessor2_0):
        def __call__(self, attention, hidden_states, *args, **kwargs):
            seen.append(tuple(hidden_states.shape))
            return super().__call__(attention, hidden_states, *args, **kwargs) * 0

    before = run(ours)
    ours.set_attn_processor(Recording())
    assert not torch.equal(run(ours), before)
    assert seen == [(2, 64, 8, 8), (2, 64, 4, 4)]  # all frames at once: it may look from one to the other
    with pytest.raises(ValueError, match="set_default_attn_processor"):
        ours.set_default_attn_processor()


def test_default_processor(ours):
    ours.set_attn_processor(SlicedAttnProcessor(1))
    ours.set_default_attn_processor()
    assert {type(processor) for processor in ours.attn_processors.values()} == {AttnProcessor}


# Fused projections


def test_fused_projections(ours):
    expected, names = run(ours), list(ours.state_dict())
    ours.set_attn_processor({name: AttnProcessor2_0() for name in PROCESSORS})
    before = ours.attn_processors
    ours.fuse_qkv_projections()
    ours.fuse_qkv_projections()  # a second call changes nothing
    assert {type(processor) for processor in ours.attn_processors.values()} == {FusedAttnProcessor2_0}
    for attention in (*ours.encoder.mid_block.attentions, *ours.decoder.mid_block.attentions):
        assert attention.fused_projections
        assert attention.to_qkv.weight.shape == (3 * 64, 64)
        attention.to_q.weight.data.zero_()  # no longer read
    assert_close(run(ours), expected)
    assert list(ours.state_dict()) == names
    ours.unfuse_qkv_projections()
    ours.unfuse_qkv_projections()
    assert ours.attn_processors == before
    assert not any("to_qkv" in name for name, _ in ours.named_parameters())
    assert not torch.allclose(run(ours), expected, atol=1e-3)  # reads to_q again


def test_fused_projections_follow_new_weights(ours):
    ours.fuse_qkv_projections()
    other, _ = pair(seed=5, **ATTENDING)
    expected = run(other)
    ours.load_state_dict(other.state_dict())
    assert {type(processor) for processor in ours.attn_processors.values()} == {FusedAttnProcessor2_0}
    assert_close(run(ours), expected)


def test_fused_model_saves_as_any_other(models, tmp_path):
    ours, theirs = models
    ours.fuse_qkv_projections()
    ours.save_pretrained(tmp_path)
    assert_close(run(Theirs.from_pretrained(tmp_path)), run(theirs))


# Gradient checkpointing


def training_step(model, size=16):
    """One step without an optimizer: the gradients of every parameter that is used."""
    model.train()
    frames = noise(6, 3, size, size)
    model(frames, num_frames=3).sample.square().mean().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return gradients


def test_checkpointing_gives_the_same_gradients(ours):
    expected = training_step(ours)
    ours.enable_gradient_checkpointing()
    assert ours.is_gradient_checkpointing
    found = training_step(ours)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        assert torch.equal(gradient, expected[name]), name
    ours.disable_gradient_checkpointing()
    assert not ours.is_gradient_checkpointing


@pytest.mark.slow
def test_checkpointing_takes_less_memory(models):
    ours, theirs = models
    plain = peak_bytes(lambda: training_step(ours, size=32))
    for model in models:
        model.enable_gradient_checkpointing()
    saving, reference = (
        peak_bytes(lambda model=model: training_step(model, size=32)) for model in (ours, theirs)
    )
    assert saving < 0.4 * plain
    assert saving <= reference


def test_checkpointing_rests_without_gradients(ours):
    expected = run(ours)
    ours.enable_gradient_checkpointing()
    ours._set_gradient_checkpointing(True, gradient_checkpointing_func=lambda *_: pytest.fail("called"))
    assert torch.equal(run(ours), expected)


# Copies


def test_copies(ours):
    expected = run(ours)
    for twin in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert type(twin) is Ours
        assert twin.config == ours.config
        assert torch.equal(run(twin), expected)
        randomise(twin, seed=9)
        assert not torch.equal(run(twin), expected)
    assert torch.equal(run(ours), expected)


# from_module


@pytest.mark.parametrize("training", [True, False])
def test_from_module_shares_every_weight(models, training):
    _, theirs = models
    theirs.to(torch.bfloat16).train(training)
    theirs.encoder.requires_grad_(False)
    made = Ours.from_module(theirs)
    assert type(made) is Ours
    assert made.config == theirs.config
    assert made.training is training
    assert made.decoder.mid_block.training is training
    assert made.dtype == torch.bfloat16
    ours = dict(made.named_parameters())
    assert ours.keys() == dict(theirs.named_parameters()).keys()
    for name, parameter in theirs.named_parameters():
        assert ours[name] is parameter
        assert ours[name].data_ptr() == parameter.data_ptr()
        assert ours[name].requires_grad is not name.startswith("encoder.")


def test_from_module_computes_and_trains_both(models):
    _, theirs = models
    made = Ours.from_module(theirs)
    before = run(theirs)
    assert_close(run(made), before)
    optimizer = torch.optim.SGD(made.parameters(), lr=0.1)
    made(noise(4, 3, 16, 16), num_frames=2).sample.square().mean().backward()
    optimizer.step()
    assert not torch.allclose(run(theirs), before, atol=1e-3)
    assert_close(run(made), run(theirs))


def test_from_module_keeps_processors(models):
    _, theirs = models
    theirs.set_attn_processor({name: AttnProcessor() for name in PROCESSORS})
    assert Ours.from_module(theirs).attn_processors == theirs.attn_processors


def test_from_module_takes_our_own_class(ours):
    made = Ours.from_module(ours)
    assert made is not ours
    assert_close(run(made), run(ours))


def test_default_weights_train():
    """A new model is initialised: gradients are finite and reach every block that runs."""
    model = Ours(**config(**TINY))
    model(noise(2, 3, 16, 16), num_frames=2).sample.square().mean().backward()
    resting = "decoder.mid_block.attentions."
    for name, parameter in model.named_parameters():
        if not name.startswith(resting):
            assert torch.isfinite(parameter.grad).all(), name


def test_adapters_find_the_layers_they_know():
    peft = pytest.importorskip("peft")
    ours, theirs = pair(**TINY)
    z = noise(4, 4, 8, 8)
    whole = peft.LoraConfig(r=4, target_modules=r".*temporal_res_block\.conv[12]|.*\.to_q")
    adapted = [peft.get_peft_model(model, whole) for model in (ours, theirs)]
    for model in adapted:
        randomise(model)
    assert_close(*(model.base_model.model.decode(z, 2).sample for model in adapted))
    assert not torch.allclose(
        adapted[0].base_model.model.decode(z, 2).sample, pair(**TINY)[0].decode(z, 2).sample
    )
