"""Image autoencoders made temporal: diffusers' AutoencoderKL is the oracle, frame by frame."""

import json

import pytest
import torch
from command_line import run
from diffusers import AutoencoderKL
from oracle import Theirs, assert_close, config, error, noise
from originals import OPTIONS, image_model, original, temporal_model
from refusals import refused
from safetensors.torch import load_file, save_file
from torch import nn

from temporal_vae import AutoencoderKLTemporalDecoder as Ours
from temporal_vae.errors import CheckpointError, ConfigError, InputError
from temporal_vae.inflation import inflate

WEIGHTS = "diffusion_pytorch_model.safetensors"
CLOSE = 2e-5


def without_bias(**options) -> AutoencoderKL:
    """An image model whose `post_quant_conv` folds into `conv_in` without a rest."""
    model = image_model(**options)
    with torch.no_grad():
        model.post_quant_conv.bias.zero_()
    return model


@pytest.fixture(scope="module")
def image():
    return image_model()


@pytest.fixture(scope="module")
def made(image):
    return inflate(image)


@torch.no_grad()
def assert_equal(ours, theirs, frames=3, shift=()):
    """Latents and frames of both, as images one by one and as a clip."""
    shift = torch.tensor(shift or (0.0,))[:, None, None]
    x, z = noise(2, theirs.config.in_channels, 32, 40), noise(frames, theirs.config.latent_channels, 5, 7)
    latents = ours.encode(x).latent_dist
    assert_close(latents.mean - shift, theirs.encode(x).latent_dist.mean, CLOSE)
    assert_close(latents.logvar, theirs.encode(x).latent_dist.logvar, CLOSE)
    clip = ours.decode(z + shift, num_frames=frames).sample
    for frame in range(frames):
        assert_close(clip[frame, None], theirs.decode(z[frame, None]).sample, CLOSE)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"layers_per_block": 3},
        {"latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False},
        {"mid_block_add_attention": False},
        {"block_out_channels": (64,), "in_channels": 1, "out_channels": 4},
    ],
    ids=["as SD", "three layers", "as Flux", "no attention", "one level"],
)
def test_frames_are_those_of_the_image_decoder(options):
    theirs = image_model(**options) if "use_post_quant_conv" in options else without_bias(**options)
    made = inflate(theirs)
    assert (made.difference, made.latent_shift) == (0.0, ())
    assert_equal(made.vae, theirs)
    loaded = Theirs(**{key: value for key, value in made.vae.config.items() if not key.startswith("_")})
    loaded.load_state_dict(made.vae.state_dict())  # diffusers has a place for all of it


def test_the_modules_agree_too():
    theirs = without_bias()
    vae = inflate(theirs).vae
    z = noise(4, 4, 4, 6)
    assert_close(vae.decoder(z, num_frames=4), theirs.decode(z).sample, CLOSE)


# The bias of post_quant_conv


def test_a_bias_is_exact_but_for_the_border(image, caplog):
    made = inflate(image)
    assert made.difference > 0
    assert f"by {made.difference:.2g} on the worst of 8 latents" in caplog.text
    z = noise(2, 4, 6, 8)
    found, expected = made.vae.decoder.conv_in(z), image.decoder.conv_in(image.post_quant_conv(z))
    inside = (slice(None), slice(None), slice(1, -1), slice(1, -1))
    assert_close(found[inside], expected[inside], 1e-6)
    rest = found - expected
    assert (rest[:, :, 0].abs().amax(dim=1) > 1e-3).all()
    # The taps that fall outside the picture, times the bias: the same at every place of an edge, whatever the latents.
    taps = torch.einsum("ocxy,c->oxy", image.decoder.conv_in.weight, image.post_quant_conv.bias)
    assert_close(rest[0, :, 0, 3], taps[:, 0].sum(dim=1), 1e-4)
    assert_close(rest[1, :, -1, -1], taps[:, 2].sum(dim=1) + taps[:, :2, 2].sum(dim=1), 1e-4)


@torch.no_grad()
@pytest.mark.parametrize("deviation", [0.5, 1.0, 4.0, 6.0])
@pytest.mark.parametrize("size", [(4, 6), (16, 16), (20, 12)])
def test_the_difference_is_that_of_frames(image, made, deviation, size):
    """On latents that were not tried it is of the same size, large or small as they are."""
    z = deviation * noise(1, 4, *size, seed=5)
    rest = (made.vae.decode(z, num_frames=1).sample - image.decode(z).sample).abs().max().item()
    assert rest <= 1.3 * made.difference


def test_shifted_latents_are_exact_to_the_border(image, caplog):
    made = inflate(image, shift_latents=True)
    assert len(made.latent_shift) == 4
    assert made.difference == 0
    assert "post_quant_conv" not in caplog.text
    assert_equal(made.vae, image, shift=made.latent_shift)
    x = noise(2, 3, 32, 40)
    with torch.no_grad():
        assert_close(made.vae(x).sample, image(x).sample, CLOSE)


def test_latents_that_cannot_be_shifted():
    model = image_model()
    with torch.no_grad():
        model.post_quant_conv.weight[0] = model.post_quant_conv.weight[1]
    refused(
        InputError,
        lambda: inflate(model, shift_latents=True),
        "post_quant_conv",
        "inverted",
        "condition number",
    )


# Ready to train


def test_gradients_reach_the_temporal_layers(image):
    vae = inflate(image).vae.train()
    temporal = {name: p for name, p in vae.named_parameters() if ".temporal_res_block." in name}
    assert all(p.abs().sum() > 0 for name, p in temporal.items() if name.endswith("conv1.weight"))
    assert all(not p.any() for name, p in temporal.items() if ".conv2." in name)
    assert all(not block.mix_factor.any() for block in vae.modules() if hasattr(block, "mix_factor"))
    optimizer = torch.optim.SGD([p for name, p in temporal.items()], lr=0.1)
    moved = set()
    for _ in range(2):
        optimizer.zero_grad()
        vae.decode(noise(3, 4, 4, 4), num_frames=3).sample.square().mean().backward()
        moved |= {name for name, p in temporal.items() if p.grad is not None and p.grad.any()}
        optimizer.step()
    assert moved == set(temporal)


def test_the_seed(image):
    first, again, other = (inflate(image, seed=seed).vae.state_dict() for seed in (0, 0, 1))
    name = "decoder.mid_block.resnets.0.temporal_res_block.conv1.weight"
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first[name], other[name])
    state = torch.get_rng_state()
    inflate(image)
    assert torch.equal(torch.get_rng_state(), state)


# Where it comes from


def test_folder(image, tmp_path):
    model = image_model(scaling_factor=0.13025, force_upcast=False, sample_size=(512, 768)).half()
    model.save_pretrained(tmp_path / "model" / "vae", variant="fp16")
    vae = inflate(tmp_path / "model", subfolder="vae", variant="fp16").vae
    assert {p.dtype for p in vae.parameters()} == {torch.float16}
    assert torch.equal(vae.encoder.conv_in.weight, model.encoder.conv_in.weight)
    assert (vae.config.scaling_factor, vae.config.force_upcast, vae.config.sample_size) == (
        0.13025,
        False,
        768,
    )
    vae.save_pretrained(tmp_path / "video")
    assert Ours.from_pretrained(tmp_path / "video").config.scaling_factor == 0.13025
    assert inflate(image, scaling_factor=0.5).vae.config.scaling_factor == 0.5


@pytest.mark.parametrize("home", ["", "first_stage_model."])
def test_original_file(tmp_path, home):
    model, file = without_bias(), tmp_path / "sd.safetensors"
    parts = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
    tensors = original(model, *parts, home=home, temporal=False)
    if home:
        tensors["cond_stage_model.transformer.text_model.final_layer_norm.bias"] = torch.ones(2)
        tensors["first_stage_model.loss.logvar"] = torch.ones(1)
    save_file(tensors, file)
    vae = inflate(file).vae
    assert vae.config.scaling_factor == 0.18215
    assert_equal(vae, model)
    del tensors[f"{home}quant_conv.weight"], tensors[f"{home}quant_conv.bias"]
    save_file(tensors, file)
    assert torch.equal(inflate(file).vae.quant_conv.weight[..., 0, 0], torch.eye(8))


def test_file_under_the_names_of_diffusers(tmp_path):
    model = without_bias(scaling_factor=0.13025)
    model.save_pretrained(tmp_path)
    vae = inflate(tmp_path / WEIGHTS).vae
    assert vae.config.scaling_factor == 0.13025
    assert_equal(vae, model)


def test_what_has_no_place_in_the_configuration_is_said(caplog):
    model = without_bias(shift_factor=0.1159)
    inflate(model)
    assert "shift_factor=0.1159 has no place" in caplog.text


# Refusals


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"act_fn": "relu"}, ("act_fn='relu'", "'silu' only")),
        ({"norm_num_groups": 16}, ("norm_num_groups=16", "32 only")),
        ({"up_block_types": ("AttnUpDecoderBlock2D",) * 3}, ("up_block_types", "'UpDecoderBlock2D' only")),
        ({"layers_per_block": 1}, ("layers_per_block=1", "at least 2")),
    ],
)
def test_networks_without_a_place(options, parts):
    refused(InputError, lambda: inflate(image_model(**options)), "AutoencoderKL", *parts)


def test_widths_without_a_place():
    model = image_model(block_out_channels=(16, 32), norm_num_groups=16)
    model.register_to_config(norm_num_groups=32)
    refused(ConfigError, lambda: inflate(model), "block_out_channels holds 16")


def test_sources_that_are_no_image_autoencoder(image, tmp_path):
    refused(InputError, lambda: inflate(nn.Conv2d(3, 3, 1)), "Conv2d", "AutoencoderKL")
    temporal_model().save_pretrained(tmp_path / "video")
    refused(
        CheckpointError,
        lambda: inflate(tmp_path / "video"),
        "of class AutoencoderKLTemporalDecoder",
        "AutoencoderKL",
    )
    for name in ("absent", "./absent", "absent.safetensors"):
        refused(CheckpointError, lambda name=name: inflate(name), name, "no such folder")
    files = {name: tmp_path / f"{name}.safetensors" for name in ("video", "decoder", "damaged")}
    save_file(original(temporal_model(), "encoder.", "decoder."), files["video"])
    save_file(original(image, "decoder.", temporal=False), files["decoder"])
    files["damaged"].write_bytes(files["decoder"].read_bytes()[:-9])
    said = {"video": "temporal layers", "decoder": "no encoder", "damaged": "damaged"}
    for name, words in said.items():
        refused(CheckpointError, lambda name=name: inflate(files[name]), files[name], words)
    pickled = tmp_path / "sd.ckpt"
    pickled.write_bytes(b"\x80\x04.")
    refused(CheckpointError, lambda: inflate(pickled), pickled, "pickle", "safetensors")


def test_altered_modules():
    model = image_model()
    model.decoder.conv_out = nn.Sequential(model.decoder.conv_out)
    refused(
        CheckpointError,
        lambda: inflate(model),
        "decoder.conv_out.bias",
        "decoder.conv_out.0.bias",
        "adapters",
    )


# The command


def test_command(image, tmp_path, capsys):
    image.save_pretrained(tmp_path / "sd")
    assert (
        run("inflate", tmp_path / "sd", tmp_path / "video", "--json", "--dtype", "bfloat16", "--seed", 3) == 0
    )
    said = json.loads(capsys.readouterr().out)
    assert said["block_out_channels"] == list(OPTIONS["block_out_channels"])
    assert (said["dtype"], said["latent_shift"]) == ("bfloat16", [])
    assert 0 < said["border_difference"] < 1
    vae = inflate(image, seed=3).vae
    for name, tensor in load_file(tmp_path / "video" / WEIGHTS).items():
        assert torch.equal(tensor, vae.state_dict()[name].bfloat16()), name
    assert run("inflate", tmp_path / "sd", tmp_path / "video", "--shift-latents") == 0
    assert "latent shift" in capsys.readouterr().out
    with torch.no_grad():
        x = noise(2, 3, 32, 32)
        assert error(Ours.from_pretrained(tmp_path / "video")(x).sample, image(x).sample) <= CLOSE
    assert run("inflate", tmp_path / "video", tmp_path / "again") == 1
    assert "of class AutoencoderKLTemporalDecoder" in capsys.readouterr().err
    assert not (tmp_path / "again").exists()
    assert set(config(**OPTIONS)) <= set(json.loads((tmp_path / "video" / "config.json").read_text()))
