"""What the engine may not stand in for: networks that somebody changed, and functions that somebody replaced."""

import copy
import re

import kinds
import pytest
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from oracle import config, noise, randomise
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from temporal_vae import AutoencoderKLTemporalDecoder
from temporal_vae.engine import calls, originals
from temporal_vae.model import blocks

FRAMES, LATENTS = noise(2, 3, 16, 16), noise(2, 4, 4, 6)


@pytest.fixture(scope="module", params=kinds.KINDS)
def as_built(request):
    return kinds.pair(request.param)[0]


@pytest.fixture
def ours(as_built):
    return copy.deepcopy(as_built)


@pytest.fixture(scope="module")
def plain(as_built):
    """What encoder and decoder give as they were built, by the engine."""
    with torch.no_grad():
        return {part: compute(as_built) for part, compute in COMPUTE.items()}


@pytest.fixture
def of_clips():
    return kinds.pair(kinds.CLIPS)[0]


def encoded(model):
    return kinds.encode(model, FRAMES)


def decoded(model):
    return kinds.decode(model, LATENTS)


def by_modules(model, part):
    if part == "encoder":
        return kinds.encode_by_modules(model, FRAMES)
    return kinds.decode_by_modules(model, LATENTS)


COMPUTE = {"encoder": encoded, "decoder": decoded}


def convolutions(part):
    return [module for module in part.modules() if isinstance(module, nn.Conv2d)]


def blocks_of(part):
    """The levels of an encoder or decoder."""
    return part.down_blocks if hasattr(part, "down_blocks") else part.up_blocks


def spatial(part):
    """The first spatial block."""
    block = blocks_of(part)[0].resnets[0]
    return getattr(block, "spatial_res_block", block)


def circular(conv, x, weight, bias):
    return (
        F.conv2d(F.pad(x, (1, 1, 1, 1), mode="circular"), weight, bias, conv.stride) if x.shape[2] > 1 else x
    )


def patch_forwards(part):
    for conv in convolutions(part):
        if conv.padding == (1, 1):
            conv._conv_forward = lambda x, weight, bias, conv=conv: circular(conv, x, weight, bias)


def each_convolution(**values):
    def change(part):
        for conv in convolutions(part):
            for name, value in values.items():
                setattr(conv, name, value)

    return change


def first(**values):
    """Change one attribute of the first convolution of a block that keeps its shape."""

    def change(part):
        for name, value in values.items():
            setattr(spatial(part).conv2, name, value)

    return change


def replace(name, make):
    def change(part):
        owner, _, last = name.rpartition(".")
        owner = spatial(part).get_submodule(owner) if owner else spatial(part)
        setattr(owner, last, randomise(make(getattr(owner, last))))

    return change


def attention(**values):
    def change(part):
        for name, value in values.items():
            setattr(part.mid_block.attentions[0], name, value)

    return change


def conv(*sizes, **options):
    return lambda old: nn.Conv2d(old.in_channels, old.out_channels, *sizes, **options)


def grouped(part):
    old = spatial(part).conv2
    spatial(part).conv2 = randomise(nn.Conv2d(old.in_channels, old.out_channels, 3, padding=1, groups=4))


def grouped_in_place(part):
    old = spatial(part).conv2
    old.groups = 2
    old.weight = nn.Parameter(old.weight[:, ::2].detach().clone())


def sizes_gone(part):
    for block in blocks_of(part):
        for name in ("upsamplers", "downsamplers"):
            if hasattr(block, name):
                setattr(block, name, None)


def sizes_more(part):
    if hasattr(part, "up_blocks"):
        part.up_blocks[-1].upsamplers = nn.ModuleList([randomise(blocks.Upsample(32))])
    else:
        part.down_blocks[-1].downsamplers = nn.ModuleList([randomise(blocks.Downsample(64))])


def sizes_twice(part):
    if hasattr(part, "up_blocks"):
        part.up_blocks[0].upsamplers.append(randomise(blocks.Upsample(64)))
    else:
        part.down_blocks[0].downsamplers.append(randomise(blocks.Downsample(32)))


def more_blocks(part):
    resnets = blocks_of(part)[-1].resnets
    width = 32 if hasattr(part, "up_blocks") else 64
    resnets.append(randomise(type(resnets[-1])(width, width)))


def fewer_blocks(part):
    del blocks_of(part)[-1].resnets[-1]


def other_order(part):
    resnets = blocks_of(part)[-1].resnets
    resnets._modules = dict(reversed(list(resnets._modules.items())))


def changed_class(part):
    class Twice(type(part.conv_out)):
        def forward(self, x):
            return 2 * super().forward(x)

    part.conv_out.__class__ = Twice


def own_forward(part):
    forward = spatial(part).forward
    spatial(part).forward = lambda *a, **k: 2 * forward(*a, **k)


def lora_beside(part):
    """As LyCORIS does it: the forward of a layer, on the instance, with a product added."""
    layer = part.mid_block.attentions[0].to_v
    forward = layer.forward
    layer.forward = lambda x: forward(x) + 0.3 * x


class Adapter(nn.Module):
    def __init__(self, part):
        super().__init__()
        self.part = part

    def forward(self, x, **options):
        return self.part(x, **options) * 2


CHANGES = {
    "convolutions patched": patch_forwards,
    "conv padding mode": each_convolution(padding_mode="circular"),
    "padding in place": first(padding=(0, 0), kernel_size=(3, 3)),
    "padding by name": first(padding="same"),
    "dilation in place": first(dilation=(2, 2), padding=(2, 2)),
    "stride in place": lambda part: setattr(part.conv_out, "stride", (2, 2)),
    "groups in place": grouped_in_place,
    "grouped": grouped,
    "a 5x5 convolution": replace("conv1", conv(5, padding=2)),
    "a 1x1 convolution": replace("conv2", conv(1)),
    "a (3, 1) convolution": replace("conv2", conv((3, 1), padding=(1, 0))),
    "5x5 conv_in": lambda part: setattr(part, "conv_in", randomise(conv(5, padding=2)(part.conv_in))),
    "no bias": replace("conv1", conv(3, padding=1, bias=False)),
    "bias none": lambda part: setattr(spatial(part).conv1, "bias", None),
    "bias of another length": lambda part: setattr(spatial(part).conv1, "bias", nn.Parameter(torch.ones(7))),
    "bias of one": lambda part: setattr(spatial(part).norm1, "bias", nn.Parameter(torch.ones(1))),
    "weight of another type": lambda part: setattr(
        part.conv_out, "weight", nn.Parameter(part.conv_out.weight.detach().double())
    ),
    "norm without weights": replace("norm1", lambda old: nn.GroupNorm(32, old.num_channels, affine=False)),
    "norm of other groups": lambda part: setattr(spatial(part).norm1, "num_groups", 16),
    "norm of another eps": lambda part: setattr(part.conv_norm_out, "eps", 0.1),
    "norm replaced": replace("norm1", lambda old: nn.BatchNorm2d(old.num_channels).eval()),
    "a shortcut added": replace("conv_shortcut", lambda old: nn.Conv2d(64, 64, 1)),
    "up- and downsamplers gone": sizes_gone,
    "up- and downsamplers more": sizes_more,
    "up- and downsamplers twice": sizes_twice,
    "blocks more": more_blocks,
    "blocks fewer": fewer_blocks,
    "another order": other_order,
    "class changed": changed_class,
    "forward of its own": own_forward,
    "forward of a layer of attention": lora_beside,
    "frozen call": lambda part: setattr(spatial(part), "_call_impl", lambda *a: 0 * a[0]),
    "compiled call": lambda part: setattr(
        part, "_compiled_call_impl", lambda *a, **k: torch.zeros(2, 8, 3, 3)
    ),
    "output scale": lambda part: setattr(spatial(part), "output_scale_factor", 2.0),
    "nonlinearity": lambda part: setattr(spatial(part), "nonlinearity", nn.GELU()),
    "last activation": lambda part: setattr(part, "conv_act", nn.ReLU()),
    "forward hook": lambda part: part.conv_out.register_forward_hook(lambda m, a, out: 2 * out),
    "pre-hook": lambda part: part.conv_out.register_forward_pre_hook(lambda m, a: (2 * a[0],)),
    "hook with keywords": lambda part: part.register_forward_hook(
        lambda m, a, k, out: 2 * out, with_kwargs=True
    ),
    "hook in attention": lambda part: part.mid_block.attentions[0].to_v.register_forward_hook(
        lambda m, a, out: 2 * out
    ),
    "parametrised": lambda part: parametrize.register_parametrization(part.conv_out, "weight", nn.Tanh()),
    "weight norm": lambda part: parametrizations.weight_norm(part.conv_out),
    "spectral norm": lambda part: torch.nn.utils.spectral_norm(part.conv_out),
    "pruned": lambda part: prune.l1_unstructured(spatial(part).conv2, "weight", 0.5),
    "rescaled attention": attention(rescale_output_factor=2.0),
    "attention without residual": attention(residual_connection=False),
    "attention of several heads": attention(heads=4),
    "attention without norm": attention(group_norm=None),
    "attention with norms of queries": attention(norm_q=nn.LayerNorm(64)),
    "attention's norm eps": lambda part: setattr(part.mid_block.attentions[0].group_norm, "eps", 0.5),
    "attention's projection replaced": attention(to_k=randomise(nn.Linear(64, 64, bias=False))),
    "attention drops": lambda part: setattr(part.mid_block.attentions[0].to_out, "1", nn.Identity()),
    "attention replaced": lambda part: setattr(part.mid_block.attentions, "0", nn.Identity()),
    "attention forward": lambda part: attention(forward=lambda x: 2 * x)(part),
    "quantised": lambda part: torch.ao.quantization.quantize_dynamic(part, {nn.Linear}, inplace=True),
}


@pytest.mark.parametrize("part", ["encoder", "decoder"])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.filterwarnings("ignore")
@torch.no_grad()
def test_what_was_changed_runs_as_modules(ours, plain, by_engine, change, part):
    change(getattr(ours, part))
    try:
        expected = by_modules(ours, part)
    except (RuntimeError, TypeError, NotImplementedError) as error:
        with pytest.raises(type(error), match=re.escape(str(error))):
            COMPUTE[part](ours)
    else:
        found = COMPUTE[part](ours)
        assert torch.equal(found, expected)
        assert found.shape != plain[part].shape or not torch.allclose(found, plain[part], rtol=1e-4)
    assert not by_engine
    other = {"encoder": "decoder", "decoder": "encoder"}[part]
    COMPUTE[other](ours)
    assert by_engine.total() == 1  # the rest is as it was


TEMPORAL = {
    "mix factor of each channel": lambda block: setattr(
        block.time_mixer, "mix_factor", nn.Parameter(torch.linspace(-3, 3, 64).view(64, 1, 1, 1))
    ),
    "mixer replaced": lambda block: setattr(block, "time_mixer", Second()),
    "mixer's forward": lambda block: setattr(block.time_mixer, "forward", lambda x_spatial, **_: x_spatial),
    "temporal block gone": lambda block: setattr(block, "temporal_res_block", First()),
    "temporal nonlinearity": lambda block: setattr(block.temporal_res_block, "nonlinearity", nn.Tanh()),
    "temporal eps": lambda block: setattr(block.temporal_res_block.norm2, "eps", 0.3),
    "temporal padding": lambda block: setattr(block.temporal_res_block.conv1, "padding", (0, 0, 0)),
    "a temporal convolution of 1": lambda block: setattr(
        block.temporal_res_block, "conv1", randomise(nn.Conv3d(64, 64, 1))
    ),
    "a plain Conv3d": lambda block: setattr(
        block.temporal_res_block, "conv1", randomise(nn.Conv3d(64, 64, 3, padding=1))
    ),
}


class First(nn.Module):
    def forward(self, input_tensor, temb):
        return input_tensor


class Second(nn.Module):
    def forward(self, x_spatial, x_temporal, image_only_indicator=None):
        return x_temporal


@pytest.mark.parametrize("change", TEMPORAL.values(), ids=TEMPORAL)
@torch.no_grad()
def test_temporal_layers(of_clips, by_engine, change):
    plain = decoded(of_clips)
    by_engine.clear()
    change(of_clips.decoder.up_blocks[0].resnets[1])
    try:
        expected = by_modules(of_clips, "decoder")
    except RuntimeError:
        with pytest.raises(RuntimeError):
            decoded(of_clips)
    else:
        assert torch.equal(decoded(of_clips), expected)
        assert not torch.allclose(expected, plain, rtol=1e-4)
    assert not by_engine


@torch.no_grad()
def test_last_convolution_over_time(of_clips, by_engine):
    of_clips.decoder.time_conv_out = randomise(nn.Conv3d(3, 3, 1))
    assert torch.equal(decoded(of_clips), by_modules(of_clips, "decoder"))
    assert not by_engine


# Functions replaced, for all models


def doubled(function):
    return lambda *arguments, **options: 2 * function(*arguments, **options)


def conv_forward(self, x, weight, bias):
    return (
        F.conv2d(F.pad(x, (1, 1, 1, 1), mode="circular"), weight, bias)
        if self.padding == (1, 1)
        else F.conv2d(x, weight, bias, self.stride)
    )


def with_attention(self, attn, x, *_, **__):
    return 2 * x


FUNCTIONS = {
    "Conv2d._conv_forward": (nn.Conv2d, "_conv_forward", conv_forward),
    "Conv2d.forward": (nn.Conv2d, "forward", doubled(nn.Conv2d.forward)),
    "Conv2d.__call__": (nn.Conv2d, "__call__", doubled(nn.Conv2d.__call__)),
    "Module.__call__": (nn.Module, "__call__", doubled(nn.Module.__call__)),
    "Module._call_impl": (nn.Module, "_call_impl", doubled(nn.Module._call_impl)),
    "GroupNorm.forward": (nn.GroupNorm, "forward", doubled(nn.GroupNorm.forward)),
    "Linear.forward": (nn.Linear, "forward", doubled(nn.Linear.forward)),
    "Attention.forward": (Attention, "forward", doubled(Attention.forward)),
    "AttnProcessor2_0.__call__": (AttnProcessor2_0, "__call__", with_attention),
    "SpatialResBlock.forward": (blocks.SpatialResBlock, "forward", doubled(blocks.SpatialResBlock.forward)),
    "silu": (F, "silu", F.relu),
    "conv2d": (F, "conv2d", doubled(F.conv2d)),
    "group_norm": (F, "group_norm", lambda x, *_: x),
    "linear": (F, "linear", doubled(F.linear)),
    "attention": (F, "scaled_dot_product_attention", lambda q, k, v, **_: v),
    "torch.group_norm": (torch, "group_norm", doubled(torch.group_norm)),
    "silu of torch._C": (torch._C._nn, "silu", torch.tanh),
    "F of our blocks": (blocks, "F", nn.functional.__class__("F")),
}
blocks_f = FUNCTIONS["F of our blocks"][2]
blocks_f.__dict__.update({**vars(F), "conv2d": doubled(F.conv2d), "pad": lambda x, _: F.pad(x, (1, 0, 1, 0))})


@pytest.mark.parametrize(("home", "name", "function"), FUNCTIONS.values(), ids=FUNCTIONS)
@pytest.mark.parametrize("part", ["encoder", "decoder"])
@torch.no_grad()
def test_functions_replaced(ours, plain, by_engine, monkeypatch, home, name, function, part):
    with monkeypatch.context() as patch:
        patch.setattr(home, name, function)
        expected = by_modules(ours, part)
        assert torch.equal(COMPUTE[part](ours), expected)
        assert not torch.allclose(expected, plain[part], rtol=1e-4)
        assert not by_engine
    assert torch.equal(COMPUTE[part](ours), plain[part])
    assert by_engine.total() == 1


@pytest.mark.parametrize(("home", "name"), [(F, "interpolate"), (F, "pad")])
@torch.no_grad()
def test_functions_of_resizing(ours, by_engine, monkeypatch, home, name):
    monkeypatch.setattr(home, name, doubled(getattr(home, name)))
    assert torch.equal(decoded(ours), by_modules(ours, "decoder"))
    assert torch.equal(encoded(ours), by_modules(ours, "encoder"))
    assert not by_engine


@torch.no_grad()
def test_a_patched_constructor_is_no_measure(monkeypatch):
    """Models that are built like that wrap around; so would the network that they are compared with."""
    init = nn.Conv2d.__init__

    def circular_everywhere(self, *arguments, **options):
        init(self, *arguments, **{**options, "padding_mode": "circular"})

    options = config(block_out_channels=(32, 96), layers_per_block=1, latent_channels=7)  # of no other test
    monkeypatch.setattr(calls, "run", lambda *_: pytest.fail("this wraps around"))
    with monkeypatch.context() as patch:
        patch.setattr(nn.Conv2d, "__init__", circular_everywhere)
        model = randomise(AutoencoderKLTemporalDecoder(**options)).eval()
        z = noise(2, 7, 4, 4)
        expected = model.decoder(z, num_frames=2)
        assert torch.equal(model.decode(z, 2).sample, expected)
    assert torch.equal(model.decode(z, 2).sample, expected)


@torch.no_grad()
def test_hooks_on_all_modules(ours, by_engine):
    handle = nn.modules.module.register_module_forward_hook(lambda module, arguments, result: 2 * result)
    try:
        assert torch.equal(decoded(ours), by_modules(ours, "decoder"))
        assert torch.equal(encoded(ours), 2 * ours.quant_conv.forward(ours.encoder(FRAMES)))
    finally:
        handle.remove()
    assert not by_engine


def test_originals_are_there():
    assert originals.replaced() is None
    assert originals.rebuilt() is None


def test_functions_replaced_before_we_were_imported():
    mine = [
        ("F", {}, "silu", lambda x: x),
        ("Conv2d", {}, "forward", property(lambda self: None)),
        ("F", {}, "pad", object()),
    ]
    for place in mine:
        assert originals._foreign([place]) == f"{place[0]}.{place[2]} was replaced"
    assert (
        originals._foreign(
            [("F", vars(F), name, vars(F)[name]) for name in ("silu", "conv2d", "interpolate")]
        )
        is None
    )
