"""Below the class: people call the blocks themselves, as the published ones are called, and change them."""

import copy
import pickle

import pytest
import torch
from diffusers.training_utils import EMAModel
from oracle import assert_close, noise, pair
from safetensors.torch import load_file, save_file
from torch import nn

from temporal_vae import AutoencoderKLTemporalDecoder as Ours
from temporal_vae.checkpoints.names import sgm_name
from temporal_vae.errors import CheckpointError, InputError

SMALL = {"block_out_channels": (32, 64), "layers_per_block": 2}
CLOSE = 1e-5


@pytest.fixture
def models():
    return pair(**SMALL)


def walk_encoder(encoder, x):
    x = encoder.conv_in(sample := x)
    assert sample.shape[1] == 3
    for block in encoder.down_blocks:
        for resnet in block.resnets:
            x = walk_resnet(resnet, x)
        if block.downsamplers is not None:
            for downsampler in block.downsamplers:
                x = downsampler(x)
    middle = encoder.mid_block
    x = middle.resnets[0](x, None)
    for attention, resnet in zip(middle.attentions, middle.resnets[1:], strict=True):
        x = resnet(attention(x, temb=None), temb=None)
    return encoder.conv_out(encoder.conv_act(encoder.conv_norm_out(x)))


def walk_resnet(resnet, x):
    h = resnet.conv1(resnet.nonlinearity(resnet.norm1(x)))
    h = resnet.conv2(resnet.dropout(resnet.nonlinearity(resnet.norm2(h))))
    if resnet.use_in_shortcut:
        assert resnet.in_channels != resnet.out_channels
        x = resnet.conv_shortcut(x)
    return (x + h) / resnet.output_scale_factor


def walk_decoder(decoder, z, frames):
    indicator = torch.zeros(len(z) // frames, frames)
    x = decoder.conv_in(z)
    middle = decoder.mid_block
    assert decoder.layers_per_block == len(middle.resnets)
    x = walk_block(middle.resnets[0], x, indicator)
    for resnet, attention in zip(middle.resnets[1:], middle.attentions, strict=True):
        x = resnet(attention(x), image_only_indicator=indicator)
    for block in decoder.up_blocks:
        for resnet in block.resnets:
            x = walk_block(resnet, x, indicator)
        if block.upsamplers is not None:
            x = block.upsamplers[0](x)
    x = decoder.conv_out(decoder.conv_act(decoder.conv_norm_out(x)))
    clips = x.unflatten(0, (-1, frames)).permute(0, 2, 1, 3, 4)
    return decoder.time_conv_out(clips).permute(0, 2, 1, 3, 4).flatten(0, 1)


def walk_block(block, x, indicator):
    frames = indicator.shape[-1]
    h = block.spatial_res_block(x, None).unflatten(0, (-1, frames)).permute(0, 2, 1, 3, 4)
    temporal = block.temporal_res_block
    t = temporal.conv1(temporal.nonlinearity(temporal.norm1(h)))
    t = h + temporal.conv2(temporal.dropout(temporal.nonlinearity(temporal.norm2(t))))
    y = block.time_mixer(x_spatial=h, x_temporal=t, image_only_indicator=indicator)
    return y.permute(0, 2, 1, 3, 4).flatten(0, 1)


@torch.no_grad()
def test_walked_by_hand(models):
    x, z = noise(2, 3, 16, 24), noise(6, 4, 5, 4)
    (mine, moments), (theirs, expected) = ((m, walk_encoder(m.encoder, x)) for m in models)
    assert_close(moments, expected, CLOSE)
    assert_close(mine.encoder(sample=x), moments, CLOSE)
    frames, wanted = (walk_decoder(m.decoder, z, 3) for m in (mine, theirs))
    assert_close(frames, wanted, CLOSE)
    assert_close(mine.decode(z, num_frames=3).sample, frames, 2e-5)


Z, H = noise(6, 4, 5, 4), noise(6, 64, 5, 4)
INDICATOR = torch.zeros(2, 3)
CALLS = {
    "decoder, by position": lambda m: m.decoder(Z, INDICATOR, 3),
    "decoder, by keyword": lambda m: m.decoder(sample=Z, image_only_indicator=INDICATOR, num_frames=3),
    "decoder, with images": lambda m: m.decoder(Z, num_frames=3, image_only_indicator=torch.ones(2, 3)),
    "middle, by position": lambda m: m.decoder.mid_block(H, INDICATOR),
    "middle, by keyword": lambda m: m.decoder.mid_block(hidden_states=H, image_only_indicator=INDICATOR),
    "up, by position": lambda m: m.decoder.up_blocks[0](H, INDICATOR),
    "up, by keyword": lambda m: m.decoder.up_blocks[1](hidden_states=H, image_only_indicator=INDICATOR),
    "both, by position": lambda m: m.decoder.up_blocks[0].resnets[0](H, None, INDICATOR),
    "both, by keyword": lambda m: m.decoder.up_blocks[1].resnets[0](
        hidden_states=H, temb=None, image_only_indicator=INDICATOR
    ),
    "spatial, with temb": lambda m: (
        m.decoder.up_blocks[1].resnets[0].spatial_res_block(input_tensor=H, temb=noise(6, 32, 1, 1))
    ),
    "temporal": lambda m: (
        m.decoder.up_blocks[0].resnets[0].temporal_res_block(input_tensor=noise(2, 64, 3, 5, 4), temb=None)
    ),
    "upsampler": lambda m: m.decoder.up_blocks[0].upsamplers[0](hidden_states=H),
    "down": lambda m: m.encoder.down_blocks[0](hidden_states=noise(2, 32, 8, 6)),
    "downsampler": lambda m: m.encoder.down_blocks[0].downsamplers[0](hidden_states=noise(2, 32, 8, 7)),
    "encoder's middle, by position": lambda m: m.encoder.mid_block(H, None),
    "encoder's middle, by keyword": lambda m: m.encoder.mid_block(hidden_states=H, temb=None),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@torch.no_grad()
def test_called_as_the_published_blocks_are(models, call):
    mine, theirs = map(call, models)
    assert_close(mine, theirs, CLOSE)


def test_blocks_say_what_they_need(models):
    with pytest.raises(TypeError, match="image_only_indicator"):
        models[0].decoder.up_blocks[0].resnets[0](H)


@torch.no_grad()
def test_hooks_see_the_same_arguments(models):
    """Every module that both have, called with so many positions and these keywords."""
    calls = []
    for model in models:
        seen, names = {}, {module: name for name, module in model.named_modules()}

        def record(module, args, kwargs, output, seen=seen, names=names):
            seen.setdefault(names[module], []).append((len(args), sorted(kwargs)))

        for name, module in model.named_modules():
            if name.split(".")[0] in ("encoder", "decoder"):
                module.register_forward_hook(record, with_kwargs=True)
        model.encode(noise(2, 3, 16, 16))
        model.decode(noise(2, 4, 4, 4), num_frames=2)
        calls.append(seen)
    mine, theirs = calls
    assert mine.keys() == theirs.keys()
    assert {name: mine[name] for name in mine if mine[name] != theirs[name]} == {}


@torch.no_grad()
def test_a_decoder_that_was_replaced_is_called_as_theirs_is(models):
    for model in models:
        forward = model.decoder.forward
        model.decoder.forward = lambda sample, image_only_indicator, num_frames=1, forward=forward: (
            2 * forward(sample, image_only_indicator, num_frames)
        )
    mine, theirs = (model.decode(Z, num_frames=3).sample for model in models)
    assert_close(mine, theirs, CLOSE)


@torch.no_grad()
def test_the_middle_in_another_type(models):
    """What comes first in float64, the rest in float32, as tools do with float32 and float16."""
    for model in models:
        model.decoder.conv_in.double()
        model.decoder.mid_block.double()
    mine, theirs = (model.decode(Z.double(), num_frames=3).sample for model in models)
    assert mine.dtype == theirs.dtype == torch.float32
    assert_close(mine, theirs, CLOSE)


@pytest.mark.parametrize("registered", [True, False])
@torch.no_grad()
def test_wider_inputs(models, registered):
    """A mask beside the image, a condition beside the latents."""
    found = []
    for model in models:
        for part, extra in ((model.encoder, 1), (model.decoder, 2)):
            old = part.conv_in
            new = nn.Conv2d(old.in_channels + extra, old.out_channels, 3, padding=1)
            new.weight.copy_(torch.cat([old.weight, old.weight[:, :extra] / 2], 1))
            new.bias.copy_(old.bias)
            part.conv_in = new
        if registered:
            model.register_to_config(in_channels=4)
        posterior = model.encode(noise(2, 4, 16, 16)).latent_dist
        found.append((posterior.mean, model.decode(noise(2, 6, 4, 4), num_frames=2).sample))
    for mine, theirs in zip(*found, strict=True):
        assert_close(mine, theirs, CLOSE)


def test_other_channels_are_still_refused(models):
    with pytest.raises(InputError, match="this model takes 3"):
        models[0].encode(noise(1, 4, 16, 16))


# Copies


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
}
each_copy = pytest.mark.parametrize("again", COPIES.values(), ids=COPIES)


@each_copy
@torch.no_grad()
def test_copies(models, again):
    ours = models[0]
    twin = again(ours)
    assert torch.equal(twin.decode(Z, num_frames=3).sample, ours.decode(Z, num_frames=3).sample)
    twin.decoder.conv_in.weight.zero_()
    assert ours.decoder.conv_in.weight.any()
    assert twin.state_dict().keys() == ours.state_dict().keys()


@each_copy
@torch.no_grad()
def test_copies_of_a_decoder_without_encoder(models, again, tmp_path):
    models[0].save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "diffusion_pytorch_model.safetensors")
    save_original(tensors, tmp_path / "decoder.safetensors")
    twin = again(Ours.from_single_file(tmp_path / "decoder.safetensors"))
    assert torch.isfinite(twin.decode(Z, num_frames=3).sample).all()
    with pytest.raises(CheckpointError, match="has no encoder"):
        twin.encode(noise(1, 3, 16, 16))
    twin.encoder.load_state_dict(models[0].encoder.state_dict())
    assert torch.isfinite(twin.encode(noise(1, 3, 16, 16)).latent_dist.mean).all()
    assert not twin.encoder._forward_pre_hooks


def save_original(tensors, path):
    """The decoder alone, under its original names."""
    names = {name: sgm_name(name, 2) for name in tensors if name.startswith("decoder.")}
    flat = {new: tensors[old] for old, new in names.items()}
    save_file(
        {n: t[..., None, None] if ".attn_1." in n and t.ndim == 2 else t for n, t in flat.items()}, path
    )


@torch.no_grad()
def test_the_whole_model_in_a_file_of_torch(models, tmp_path):
    ours = models[0]
    torch.save(ours, tmp_path / "model.pt")
    again = torch.load(tmp_path / "model.pt", weights_only=False)
    assert type(again) is Ours
    assert torch.equal(again.decode(Z, num_frames=3).sample, ours.decode(Z, num_frames=3).sample)


def test_tensors_of_siblings_stay_in_the_state(models):
    """A model inside of another, beside something that has a `to_qkv` of its own."""
    ours = models[0]
    ours.fuse_qkv_projections()
    whole = nn.ModuleDict({"other": nn.ModuleDict({"to_qkv": nn.Linear(2, 2)}), "vae": ours})
    whole.register_parameter("to_qkv", nn.Parameter(torch.zeros(1)))
    names = whole.state_dict().keys()
    assert {"other.to_qkv.weight", "other.to_qkv.bias", "to_qkv"} <= names
    assert not any("to_qkv" in name for name in names if name.startswith("vae."))


# Types, configurations, wrapped models


def test_casts_say_nothing(models, caplog):
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        models[0].to(dtype)
    assert not caplog.records


@pytest.mark.parametrize(
    "config",
    [
        {"decay": 0.999, "power": 0.75},
        {
            "_class_name": "AutoencoderKL",
            "act_fn": "silu",
            "norm_num_groups": 32,
            "mid_block_add_attention": True,
        },
    ],
)
def test_unknown_keys_of_a_configuration(config, caplog):
    known = {"block_out_channels": [32], "scaling_factor": 0.5}
    for _ in range(2):
        model, unused = Ours.from_config({**known, **config}, return_unused_kwargs=True)
        assert model.config.scaling_factor == 0.5
    assert unused.keys() >= config.keys() - {"_class_name"} or "_class_name" in config
    (record,) = caplog.records
    assert all(name in record.getMessage() for name in config if name != "_class_name")


def test_an_unknown_argument_is_an_error():
    with pytest.raises(TypeError, match="decay"):
        Ours(decay=0.9)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # diffusers warns itself of what it does to itself
@torch.no_grad()
def test_averages_of_diffusers(models, tmp_path):
    ours = models[0]
    average = EMAModel(ours.parameters(), decay=0.5, model_cls=Ours, model_config=ours.config)
    ours.decoder.conv_in.weight.add_(1)
    average.step(ours.parameters())
    average.save_pretrained(tmp_path)
    again = EMAModel.from_pretrained(tmp_path, model_cls=Ours)
    assert (again.decay, again.optimization_step) == (0.5, average.optimization_step)
    for mine, theirs in zip(again.shadow_params, average.shadow_params, strict=True):
        assert torch.equal(mine, theirs)


class Parallel(nn.Module):
    """As DataParallel and DistributedDataParallel hold a model."""

    def __init__(self, module):
        super().__init__()
        self.module = module


def compiled_inside(model):
    model.decoder = torch.compile(model.decoder, backend="eager")
    return model


WRAPPERS = {
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "parallel": Parallel,
    "both": lambda model: Parallel(torch.compile(model, backend="eager")),
    "decoder compiled": compiled_inside,
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
@torch.no_grad()
def test_from_a_module_that_is_wrapped(models, wrap):
    theirs = models[1]
    expected = theirs.decode(Z, num_frames=3).sample
    ours = Ours.from_module(wrap(theirs))
    assert_close(ours.decode(Z, num_frames=3).sample, expected, 2e-5)


def test_from_something_that_holds_no_model():
    with pytest.raises(InputError, match="a Parallel is no AutoencoderKLTemporalDecoder, and holds none"):
        Ours.from_module(Parallel(nn.Linear(2, 2)))


def test_a_part_that_was_dropped_to_free_memory(models):
    ours = models[0]
    ours.decoder = None
    assert torch.isfinite(ours.encode(noise(1, 3, 16, 16)).latent_dist.mean).all()
    with pytest.raises(InputError, match="the decoder of this model is None; load the model again to decode"):
        ours.decode(Z, num_frames=3)
