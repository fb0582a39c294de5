"""Other ways to run the model: offloaded, in half precision, in another layout, compiled, exported, cast by layer."""

import shutil

import accelerate
import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from diffusers.hooks import apply_group_offloading
from oracle import assert_close, error, noise, pair
from torch.export import Dim, export

from temporal_vae import AutoencoderKLTemporalDecoder as Ours

SMALL = {"block_out_channels": (32, 64), "layers_per_block": 2}
FRAMES = noise(4, 3, 16, 24)
LATENTS = noise(4, 4, 8, 12)
ENGINE = 2e-5  # how far the engine may be from the modules, of the output's scale

each_half = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])


@pytest.fixture
def models():
    return pair(**SMALL)


@pytest.fixture
def ours(models):
    return models[0]


@torch.no_grad()
def both_ways(model, frames=FRAMES, latents=LATENTS):
    """Moments and frames, as one tensor."""
    moments = model.encode(frames).latent_dist.parameters
    return torch.cat([moments.flatten(), model.decode(latents, num_frames=2).sample.flatten()])


# Offloading


def test_forward_hooks_fire_on_encode_and_decode(ours):
    calls = []

    class Counting(ModelHook):
        def pre_forward(self, module, *args, **kwargs):
            calls.append(module)
            return args, kwargs

    add_hook_to_module(ours, Counting())
    with torch.no_grad():
        ours.encode(FRAMES)
        assert calls == [ours]
        ours.decode(LATENTS, num_frames=4)
        assert calls == [ours] * 2


def test_model_offload(ours):
    expected = both_ways(ours)
    model, hook = accelerate.cpu_offload_with_hook(ours, execution_device="cpu")
    assert torch.equal(both_ways(model), expected)
    hook.offload()
    assert torch.equal(both_ways(model), expected)


def test_sequential_offload(ours):
    """Weights that are elsewhere come in for the turn of each module: the modules run, not the engine."""
    expected = both_ways(ours)
    accelerate.cpu_offload(ours, execution_device=torch.device("cpu"))
    assert {parameter.device.type for parameter in ours.parameters()} == {"meta"}
    assert_close(both_ways(ours), expected, ENGINE)


@pytest.mark.parametrize(
    "kind", [{"offload_type": "leaf_level"}, {"offload_type": "block_level", "num_blocks_per_group": 1}]
)
def test_group_offload(ours, kind):
    expected = both_ways(ours)
    cpu = torch.device("cpu")
    apply_group_offloading(ours, onload_device=cpu, offload_device=cpu, **kind)
    assert_close(both_ways(ours), expected, ENGINE)


def test_device_map(ours, tmp_path):
    ours.save_pretrained(tmp_path)
    loaded = Ours.from_pretrained(tmp_path, device_map={"": "cpu"})
    assert torch.equal(both_ways(loaded), both_ways(ours))


# Precision and layout


@each_half
def test_half_precision(models, dtype):
    """As near to float32 as the diffusers model is in the same precision."""
    expected = both_ways(models[1])
    ours, theirs = (
        error(both_ways(model.to(dtype), FRAMES.to(dtype), LATENTS.to(dtype)).float(), expected)
        for model in models
    )
    assert ours < 1.3 * theirs
    assert ours < (0.01 if dtype == torch.float16 else 0.08)


@each_half
@torch.no_grad()
def test_half_precision_stays_so(ours, dtype):
    ours.to(dtype)
    assert ours.dtype == dtype
    posterior = ours.encode(FRAMES.to(dtype)).latent_dist
    assert posterior.sample(torch.Generator().manual_seed(0)).dtype == dtype
    assert ours.decode(LATENTS.to(dtype), num_frames=2).sample.dtype == dtype


def test_autocast(ours):
    expected = both_ways(ours)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert error(both_ways(ours).float(), expected) < 0.08


def test_channels_last(ours):
    expected = both_ways(ours)
    layout = {"memory_format": torch.channels_last}
    assert_close(both_ways(ours, FRAMES.to(**layout), LATENTS.to(**layout)), expected)
    for module in ours.modules():
        if isinstance(module, torch.nn.Conv2d):  # torch cannot lay out Conv3d weights so
            module.to(**layout)
    assert_close(both_ways(ours, FRAMES.to(**layout), LATENTS.to(**layout)), expected)


def test_input_that_is_a_view(ours):
    """Frames cut out of a longer and larger video."""
    video, z = noise(8, 5, 20, 24), noise(8, 6, 8, 12)
    frames, latents = video[::2, 1:4, 2:18], z[::2, 2:]
    expected = both_ways(ours, frames.contiguous(), latents.contiguous())
    assert_close(both_ways(ours, frames, latents), expected)


def test_layerwise_casting(models):
    found = []
    for model in models:
        model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
        assert (
            model.decoder.up_blocks[0].resnets[0].spatial_res_block.conv1.weight.dtype == torch.float8_e4m3fn
        )
        assert model.decoder.time_conv_out.weight.dtype == torch.float8_e4m3fn
        found.append(both_ways(model))
    assert_close(*found)  # modules both: the engine does not see through the casts


# Compiled


def compiled(call, backend):
    torch.compiler.reset()
    return torch.compile(call, fullgraph=True, backend=backend)


@pytest.mark.parametrize(
    "part",
    [
        "decode",
        *(pytest.param(each, marks=pytest.mark.slow) for each in ("encode", "encoder", "decoder", "forward")),
    ],
)
def test_compiles_without_a_graph_break(ours, part):
    fast = compiled(getattr(ours, part), "aot_eager")
    calls = {
        "encoder": lambda call: call(FRAMES),
        "decoder": lambda call: call(LATENTS, num_frames=2),
        "encode": lambda call: call(FRAMES).latent_dist.parameters,
        "decode": lambda call: call(LATENTS, num_frames=2).sample,
        "forward": lambda call: call(FRAMES, num_frames=2).sample,
    }
    with torch.no_grad():
        assert_close(calls[part](fast), calls[part](getattr(ours, part)), ENGINE)


@pytest.mark.slow
def test_compiles_for_training(ours):
    def loss(model):
        return model(FRAMES, num_frames=2).sample.square().mean()

    loss(ours).backward()
    expected = {name: p.grad for name, p in ours.named_parameters()}
    ours.zero_grad()
    compiled(loss, "aot_eager")(ours).backward()
    for name, parameter in ours.named_parameters():
        assert torch.allclose(parameter.grad, expected[name], rtol=1e-4, atol=1e-6), name


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="inductor needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")  # of what torch's compiler itself uses
def test_inductor(ours):
    with torch.no_grad():
        encode = compiled(lambda x: ours.encode(x).latent_dist.parameters, "inductor")
        assert_close(encode(FRAMES), ours.encode(FRAMES).latent_dist.parameters, ENGINE)
        decode = compiled(lambda z: ours.decode(z, num_frames=2).sample, "inductor")
        assert_close(decode(LATENTS), ours.decode(LATENTS, num_frames=2).sample, ENGINE)


# Exported


def assert_exports(module, example, shapes, others):
    program = export(module, example, dynamic_shapes=shapes, strict=False).module()
    with torch.no_grad():
        for arguments in (example, *others):
            assert_close(program(*arguments), module(*arguments))


def sides(largest):
    return Dim("h", min=2, max=largest), Dim("w", min=2, max=largest)


@pytest.mark.slow
def test_export_encoder(ours):
    height, width = sides(512)
    shapes = ({0: Dim("n", max=64), 2: 2 * height, 3: 2 * width},)
    assert_exports(ours.encoder, (FRAMES,), shapes, [(noise(1, 3, 8, 32),), (noise(3, 3, 22, 10),)])


@pytest.mark.parametrize("frames", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_export_decoder(ours, frames):
    height, width = sides(128)
    shapes = ({2: height, 3: width}, None, None)
    assert_exports(ours.decoder, (LATENTS, None, frames), shapes, [(noise(4, 4, 5, 7), None, frames)])


@pytest.mark.slow  # sympy reasons half a minute about products of three unknowns
def test_export_decoder_for_any_number_of_clips():
    ours, _ = pair(block_out_channels=(32, 64), layers_per_block=1)
    height, width = sides(128)
    shapes = (
        {0: 3 * Dim("clips", min=2, max=16), 2: height, 3: width},
        None,
        None,
    )  # torch treats a 1 as a case of its own
    others = [(noise(12, 4, 5, 7), None, 3), (noise(9, 4, 6, 4), None, 3)]
    assert_exports(ours.decoder, (noise(6, 4, 8, 6), None, 3), shapes, others)
