"""Calls that only modules can answer: derivatives, graphs, modes, foreign parts; and what a memory limit has to say."""

import copy
import logging
import subprocess
import sys
from pathlib import Path

import diffusers
import kinds
import pytest
import torch
from diffusers.utils import logging as diffusers_logging
from oracle import assert_close, error, noise
from torch import nn
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

pytestmark = pytest.mark.filterwarnings("ignore")  # of torch, about its own derivatives

FRAMES, LATENTS = noise(2, 3, 16, 16), noise(2, 4, 4, 6)


@pytest.fixture(scope="module", params=kinds.KINDS)
def as_built(request):
    return kinds.pair(request.param)


@pytest.fixture
def models(as_built):
    return copy.deepcopy(as_built)


@pytest.fixture
def ours(models):
    return models[0]


@pytest.fixture
def of_clips():
    return kinds.pair(kinds.CLIPS)


def decoder_of(model):
    return lambda z: kinds.decode(model, z)


def encoder_of(model):
    return lambda x: model.encode(x).latent_dist.mean


CALLS = {"encode": (encoder_of, FRAMES), "decode": (decoder_of, LATENTS)}
each_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


class Gain:
    """In the place of attention, for which torch has no forward-mode derivative."""

    __module__ = "diffusers.models.attention_processor"  # with one of your own, the modules run in any case

    def __call__(self, attention, x, *_, **__):
        return 1.5 * x


def dual(function, x):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(function(forward_ad.make_dual(x, torch.ones_like(x)))).tangent


TRANSFORMS = {
    "dual numbers": dual,
    "jvp": lambda function, x: torch.func.jvp(function, (x,), (torch.ones_like(x),))[1],
    "vmap": lambda function, x: torch.func.vmap(function)(torch.stack([x, 2 * x])),
    "grad": lambda function, x: torch.func.grad(lambda y: function(y).square().mean())(x),
    "vjp": lambda function, x: torch.func.vjp(lambda y: function(y).square().mean(), x)[1](torch.ones(()))[0],
    "jacfwd": lambda function, x: torch.func.jacfwd(lambda scale: function(scale * x)[:1, :1])(
        torch.ones(())
    ),
    "make_fx": lambda function, x: make_fx(function)(x)(2 * x),
}


@each_call
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
@pytest.mark.parametrize("frozen", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_transforms(models, by_engine, call, transform, frozen):
    make, x = call
    functions = []
    for model in models:
        model.set_attn_processor(Gain())
        functions.append(make(model.requires_grad_(not frozen)))
    try:
        expected = transform(functions[1], x)
    except RuntimeError:  # of torch: its norms know no vmap on a CPU
        with pytest.raises(RuntimeError, match="vmap"):
            transform(functions[0], x)
    else:
        assert_close(transform(functions[0], x), expected, 5e-5)
        assert expected.any()
    assert not by_engine


@torch.no_grad()
def test_derivatives_of_weights(models, by_engine):
    """The tangent is that of a parameter."""
    for model in models:
        model.set_attn_processor(Gain())

    def of(model, scale):
        weights = {"decoder.conv_in.weight": scale * model.decoder.conv_in.weight}
        return torch.func.functional_call(model, weights, (FRAMES,), kinds.length(model)).sample

    found, expected = (
        torch.func.jvp(lambda scale, model=model: of(model, scale), (torch.ones(()),), (torch.ones(()),))[1]
        for model in models
    )
    assert_close(found, expected, 5e-5)
    assert not by_engine


@torch.no_grad()
def test_fake_and_meta(ours, by_engine):
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert kinds.decode(ours, mode.from_tensor(LATENTS)).shape == (2, 3, 8, 12)
        assert ours.encode(mode.from_tensor(FRAMES)).latent_dist.mean.shape == (2, 4, 8, 8)
    ours.to("meta")
    assert kinds.decode(ours, LATENTS.to("meta")).shape == (2, 3, 8, 12)
    assert ours.encode(FRAMES.to("meta")).latent_dist.mean.shape == (2, 4, 8, 8)
    assert not by_engine


class Operations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


class Doubling(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        return 2 * result if func is torch.nn.functional.silu else result


@torch.no_grad()
def test_modes(models, by_engine):
    with Operations() as mode:
        kinds.decode(models[0], LATENTS)
    assert mode.seen.count("convolution") > 20
    counters = []
    for model in models:
        with FlopCounterMode(display=False) as counter:
            model.encode(FRAMES)
        counters.append(counter.get_total_flops())
    assert counters[0] == counters[1] > 0
    with Doubling():
        found, expected = (kinds.decode(model, LATENTS) for model in models)
    assert_close(found, expected)
    assert not by_engine


# What stands in the place of a part


class Adapter(nn.Module):
    """As those who wrap a part write it."""

    def __init__(self, part):
        super().__init__()
        self.part = part
        self.seen = []

    def forward(self, sample, **options):
        self.seen.append(options)
        return self.part(sample, **options) * 2


@torch.no_grad()
def test_adapters(of_clips, by_engine):
    ours = of_clips[0]
    ours.decoder, ours.encoder = Adapter(ours.decoder), Adapter(ours.encoder)
    frames = ours.decode(LATENTS.repeat(2, 1, 1, 1), num_frames=2).sample
    assert_close(frames[:2], 2 * ours.decoder.part(LATENTS, num_frames=2))
    assert_close(ours.encode(FRAMES).latent_dist.parameters, ours.quant_conv(2 * ours.encoder.part(FRAMES)))
    (options,) = ours.decoder.seen
    assert set(options) == {"num_frames", "image_only_indicator"}
    assert options["num_frames"] == 2
    indicator = options["image_only_indicator"]
    assert indicator.shape == (2, 2)
    assert indicator.dtype == LATENTS.dtype
    assert not indicator.any()
    assert ours.encoder.seen == [{}]
    assert not by_engine


@torch.no_grad()
def test_adapters_of_pictures(by_engine):
    ours = kinds.pair(kinds.PICTURES)[0]
    ours.decoder, ours.encoder = Adapter(ours.decoder), Adapter(ours.encoder)
    z = ours.post_quant_conv(LATENTS)
    assert_close(kinds.decode(ours, LATENTS), 2 * ours.decoder.part(z))
    assert_close(kinds.encode(ours, FRAMES), ours.quant_conv(2 * ours.encoder.part(FRAMES)))
    assert ours.decoder.seen == ours.encoder.seen == [{}]
    assert not by_engine


@torch.no_grad()
def test_parts_of_diffusers(models, by_engine):
    ours, theirs = models
    length = kinds.length(ours)
    expected = [model(FRAMES, **length).sample for model in models]
    by_engine.clear()
    others = copy.deepcopy(ours)
    ours.decoder, ours.encoder = theirs.decoder, theirs.encoder
    assert torch.equal(ours(FRAMES, **length).sample, expected[1])
    assert not by_engine
    theirs.decoder, theirs.encoder = others.decoder, others.encoder  # and the other way
    assert_close(theirs(FRAMES, **length).sample, expected[0], 2e-5)


def activated(model):
    """Other activations, and a factor that diffusers' blocks have."""
    model.encoder.conv_act, model.decoder.conv_act = nn.GELU(), nn.Tanh()
    middle = model.decoder.mid_block.resnets[0]
    for block in (model.encoder.down_blocks[1].resnets[0], getattr(middle, "spatial_res_block", middle)):
        block.nonlinearity, block.output_scale_factor = nn.Hardswish(), 1.5
    if kinds.length(model):
        model.decoder.up_blocks[0].resnets[0].temporal_res_block.nonlinearity = nn.ReLU()


@torch.no_grad()
def test_activations_and_scales_are_where_diffusers_has_them(models, by_engine):
    for model in models:
        activated(model)
    found, expected = (model(FRAMES, **kinds.length(model)).sample for model in models)
    assert_close(found, expected)
    assert not by_engine


def grouped(conv):
    conv.groups, conv.weight = 2, nn.Parameter(conv.weight[:, ::2].detach().clone())


OVER_TIME = {
    "dilation": lambda conv: conv.__dict__.update(dilation=(2, 1, 1), padding=(2, 0, 0)),
    "padding by name": lambda conv: conv.__dict__.update(padding="same"),
    "padding mode": lambda conv: conv.__dict__.update(
        padding_mode="circular", _reversed_padding_repeated_twice=[0, 0, 0, 0, 1, 1]
    ),
    "groups": grouped,
    "3x3 pixels": lambda conv: (
        conv.__dict__.update(padding=(1, 1, 1))
        or setattr(conv, "weight", nn.Parameter(conv.weight.detach().repeat(1, 1, 1, 3, 3)))
    ),
}


@pytest.mark.parametrize("change", OVER_TIME.values(), ids=OVER_TIME)
@torch.no_grad()
def test_convolutions_over_time_changed_in_place(of_clips, by_engine, change):
    for model in of_clips:
        change(model.decoder.up_blocks[0].resnets[0].temporal_res_block.conv2)
    found, expected = (kinds.decode(model, LATENTS) for model in of_clips)
    assert_close(found, expected)
    assert not by_engine


@torch.no_grad()
def test_wrapped_parts(ours, by_engine):
    expected = kinds.decode_by_modules(ours, LATENTS)
    ours.decoder = nn.DataParallel(ours.decoder)
    assert torch.equal(kinds.decode(ours, LATENTS), expected)
    assert not by_engine


@pytest.mark.slow
@torch.no_grad()
def test_compiled_parts(ours, by_engine):
    expected = kinds.decode_by_modules(ours, LATENTS)
    ours.decoder = torch.compile(ours.decoder, backend="eager")
    assert torch.equal(kinds.decode(ours, LATENTS), expected)
    ours.encoder.compile(backend="eager")
    assert_close(ours.encode(FRAMES).latent_dist.parameters, ours.quant_conv(ours.encoder(FRAMES)))
    assert not by_engine


@torch.no_grad()
def test_quant_conv_is_a_module_like_any_other(ours, by_engine):
    mean = ours.encode(FRAMES).latent_dist.mean
    handle = ours.quant_conv.register_forward_hook(lambda module, arguments, result: 2 * result)
    assert_close(ours.encode(FRAMES).latent_dist.mean, 2 * mean)
    handle.remove()
    ours.quant_conv = nn.Identity()
    assert ours.encode(FRAMES).latent_dist.mean.shape == mean.shape
    assert by_engine["encode"] == 3


@torch.no_grad()
def test_calls_that_were_replaced(ours, monkeypatch):
    calls = []
    decode, length = ours.decode, kinds.length(ours)
    ours.decode = lambda z, **options: calls.append(options) or decode(z, **options)
    ours(FRAMES, **length)
    assert calls == [length]

    class Scaled(type(ours)):
        def decode(self, z, *arguments, **options):
            return super().decode(z / 2, *arguments, **options)

    scaled = Scaled.from_config(ours.config).eval()
    scaled.load_state_dict(ours.state_dict())
    assert torch.equal(kinds.decode(scaled, 2 * LATENTS), decode(LATENTS, **length).sample)


@pytest.mark.slow
@torch.no_grad()
def test_what_ended_the_process():
    """In a process of its own, with two threads: native code ran past its buffers."""
    program = """
import torch
from oracle import noise, pair
torch.set_num_threads(2)
ours, theirs = pair(block_out_channels=(32, 64), layers_per_block=1)
x, z = noise(4, 3, 64, 64), noise(4, 4, 32, 32)
for model in (ours, theirs):
    model.decoder.up_blocks[0].upsamplers = None
    model.encoder.down_blocks[0].downsamplers = None
with torch.no_grad():
    found, expected = (model.decode(z, num_frames=4).sample for model in (ours, theirs))
    assert (found - expected).abs().max() < 1e-4, found.shape
    found, expected = (model.encode(x).latent_dist.mean for model in (ours, theirs))
    assert (found - expected).abs().max() < 1e-4, found.shape
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parent)


# A memory limit that is not kept


@pytest.fixture
def said(caplog):
    """What the model said."""
    diffusers_logging.enable_propagation()
    caplog.set_level(logging.WARNING)

    def lines():
        found = [record.getMessage() for record in caplog.records]
        caplog.clear()
        return [line for line in found if line.startswith(("encode:", "decode:"))]

    yield lines
    diffusers_logging.disable_propagation()


def test_gradients_under_a_limit(ours, said, by_engine):
    kinds.decode(ours, LATENTS)
    ours.encode(FRAMES)
    assert said() == []  # this is how one trains
    ours.enable_tiling(memory_limit="200MiB")
    for _ in range(2):
        kinds.decode(ours, LATENTS)
        ours.encode(FRAMES)
    for line, call in zip(said(), ("decode", "encode"), strict=True):
        assert line.startswith(f"{call}: the memory limit is not kept")
        assert "gradients are recorded" in line
        assert "torch.no_grad()" in line
    with torch.no_grad():
        kinds.decode(ours, LATENTS)
    kinds.decode(ours.requires_grad_(False), LATENTS)
    assert said() == []
    kinds.decode(ours, LATENTS.clone().requires_grad_())
    assert said() == []  # that was said
    assert by_engine == {"decode": 2}


def under_autocast(model):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        kinds.decode(model, LATENTS)


def under_mode(model):
    with Operations():
        kinds.decode(model, LATENTS)


def traced(model):
    torch.jit.trace(decoder_of(model.requires_grad_(False)), LATENTS, check_trace=False)


def in_forward_mode(model):
    model.set_attn_processor(Gain())
    dual(decoder_of(model), LATENTS)


def hooked(model):
    model.decoder.register_forward_hook(lambda *_: None)
    kinds.decode(model, LATENTS)


def changed(model):
    model.decoder.conv_in.padding_mode = "circular"
    model.decoder.conv_in._reversed_padding_repeated_twice = [1, 1, 1, 1]
    kinds.decode(model, LATENTS)


REASONS = {
    "autocast": (under_autocast, "autocast is on"),
    "tracing": (traced, "traced"),
    "forward mode": (in_forward_mode, "function transform"),
    "modes": (under_mode, "mode"),
    "device": (lambda model: kinds.decode(model.to("meta"), LATENTS.to("meta")), "device is meta"),
    "hooks": (hooked, "has hooks"),
    "changed": (changed, "conv_in"),
}


@pytest.mark.parametrize(("call", "reason"), REASONS.values(), ids=REASONS)
@pytest.mark.filterwarnings("ignore")
@torch.no_grad()
def test_every_reason_is_said_once(ours, said, by_engine, call, reason):
    ours.enable_tiling(memory_limit="200MiB")
    for _ in range(2):
        call(ours)
    (line,) = said()
    assert line.startswith("decode: the memory limit is not kept")
    assert reason in line
    assert not by_engine


@pytest.mark.parametrize("name", ["autocast", "modes", "forward mode", "device"])
@torch.no_grad()
def test_without_a_limit_ordinary_use_is_quiet(ours, said, name):
    REASONS[name][0](ours)
    assert said() == []


@torch.no_grad()
def test_without_a_limit_changes_are_said(ours, said):
    for _ in range(2):
        hooked(ours)
    assert said() == ["decode: the plain modules run, without the engine: it has hooks"]


def test_the_modules_give_the_numbers(ours):
    limited = copy.deepcopy(ours)
    limited.enable_tiling(memory_limit="200MiB")
    assert error(kinds.decode(limited, LATENTS), kinds.decode(ours, LATENTS)) == 0


def test_diffusers_is_what_is_compared(models):
    ours, theirs = models
    assert type(theirs) is getattr(diffusers, type(ours).__name__)
