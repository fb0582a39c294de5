"""Original checkpoints of image models, with random weights and names written by hand: SD, SDXL, SD 3, FLUX, FLUX.2."""

import diffusers
import pytest
import torch
from command_line import run
from images import config, pair
from oracle import assert_close, noise, randomise
from originals import FIRST, OPTIONS, changed, image_model, original, original_names, temporal_model
from refusals import refused
from safetensors.torch import load_file, save_file

from temporal_vae import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLTemporalDecoder,
    inflate,
    load_autoencoder,
)
from temporal_vae.checkpoints import save_single_file
from temporal_vae.errors import CheckpointError

PLAIN = {"use_quant_conv": False, "use_post_quant_conv": False, "latent_channels": 16}
PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
BESIDE = {
    "SD 1": ("cond_stage_model.transformer.text_model.final_layer_norm.bias", {}, (0.18215, None)),
    "SDXL": ("conditioner.embedders.1.model.ln_final.bias", {}, (0.13025, None)),
    "SD 3": ("model.diffusion_model.joint_blocks.0.x_block.attn.proj.bias", PLAIN, (1.5305, 0.0609)),
    "FLUX": ("model.diffusion_model.double_blocks.0.img_attn.proj.bias", PLAIN, (0.3611, 0.1159)),
}


def same(ours, theirs):
    """The weights of theirs, and the numbers."""
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for name, values in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], values), name
    z = noise(1, theirs.config.latent_channels, 5, 4)
    with torch.no_grad():
        assert_close(ours.decode(z).sample, theirs.decode(z).sample, 2e-5)


@pytest.mark.parametrize("name", BESIDE)
@pytest.mark.parametrize("home", [FIRST, "vae."])
def test_whole_checkpoints(name, home, tmp_path, caplog):
    """What else lies in it tells the scaling of latents."""
    mark, options, (scale, shift) = BESIDE[name]
    theirs, file = image_model(**options), tmp_path / "model.safetensors"
    save_file(original(theirs, *PARTS, home=home, temporal=False) | {mark: torch.ones(2)}, file)
    with caplog.at_level("WARNING"):
        ours = AutoencoderKL.from_single_file(file)
    assert not caplog.text
    same(ours, theirs)
    assert (ours.config.scaling_factor, ours.config.shift_factor) == (scale, shift)
    for key in ("use_quant_conv", "use_post_quant_conv", "latent_channels", "block_out_channels"):
        assert ours.config[key] == theirs.config[key]
    assert not ours.training


@pytest.mark.parametrize(("options", "scale"), [({}, 0.18215), (PLAIN, 0.3611)])
def test_autoencoders_alone(options, scale, tmp_path, caplog):
    theirs, file = image_model(**options), tmp_path / "ae.safetensors"
    save_file(original(theirs, *PARTS, temporal=False), file)
    with caplog.at_level("WARNING"):
        ours = AutoencoderKL.from_single_file(file)
    same(ours, theirs)
    assert ours.config.scaling_factor == scale
    assert "does not tell its scaling_factor" in caplog.text
    caplog.clear()
    assert AutoencoderKL.from_single_file(file, scaling_factor=0.13025).config.scaling_factor == 0.13025
    assert not caplog.text
    assert type(load_autoencoder(file)) is AutoencoderKL


@pytest.mark.parametrize("options", [{}, PLAIN, {"mid_block_add_attention": False}, {"layers_per_block": 1}])
def test_names_of_diffusers(options, tmp_path):
    theirs = image_model(**options)
    theirs.save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    same(AutoencoderKL.from_single_file(file), theirs)
    same(AutoencoderKL.from_single_file(file, config=tmp_path), theirs)
    other = tmp_path / "moved.safetensors"
    (tmp_path / "config.json").unlink()
    file.rename(other)
    same(AutoencoderKL.from_single_file(other), theirs)


def test_attentions_in_levels(tmp_path):
    """As autoencoders of latent diffusion with a factor of 16 have them."""
    kinds = {
        "down_block_types": ("DownEncoderBlock2D",) * 2 + ("AttnDownEncoderBlock2D",),
        "up_block_types": ("AttnUpDecoderBlock2D",) + ("UpDecoderBlock2D",) * 2,
    }
    theirs = image_model(**kinds)
    tensors, state = original(theirs, *PARTS, temporal=False), theirs.state_dict()
    inside = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
    for old, new, count in (
        ("encoder.down.2", "encoder.down_blocks.2", 2),
        ("decoder.up.2", "decoder.up_blocks.0", 3),
    ):
        for index in range(count):
            for short, long in inside.items():
                for leaf in ("weight", "bias"):
                    values = state[f"{new}.attentions.{index}.{long}.{leaf}"]
                    tensors[f"{old}.attn.{index}.{short}.{leaf}"] = (
                        values[..., None, None] if values.ndim == 2 else values
                    )
    save_file({name: values.contiguous() for name, values in tensors.items()}, tmp_path / "f16.safetensors")
    ours = AutoencoderKL.from_single_file(tmp_path / "f16.safetensors")
    same(ours, theirs)
    assert ours.config.up_block_types == kinds["up_block_types"]


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("counted", [True, False])
def test_flux2(inside, counted, tmp_path):
    """The original keeps its 1x1 convolutions within encoder and decoder."""
    options = {**OPTIONS, "latent_channels": 32}
    theirs = randomise(diffusers.AutoencoderKLFlux2(**config(**options))).eval()
    theirs.bn.running_mean.copy_(noise(128))
    theirs.bn.running_var.copy_(noise(128).square())
    tensors = original(theirs, *PARTS, temporal=False)
    if inside:
        homes = {"quant_conv.": "encoder.quant_conv.", "post_quant_conv.": "decoder.post_quant_conv."}
        for name in [name for name in tensors if name.startswith(tuple(homes))]:
            head, _, leaf = name.partition(".")
            tensors[homes[f"{head}."] + leaf] = tensors.pop(name)
    tensors |= {f"bn.{name}": values for name, values in theirs.bn.state_dict().items()}
    if not counted:
        del tensors["bn.num_batches_tracked"]
    file = tmp_path / "flux2.safetensors"
    save_file(tensors, file)
    same(AutoencoderKLFlux2.from_single_file(file), theirs)
    assert type(load_autoencoder(file)) is AutoencoderKLFlux2
    refused(
        CheckpointError, lambda: AutoencoderKL.from_single_file(file), file, "FLUX.2", "AutoencoderKLFlux2"
    )


def test_a_narrow_decoder(tmp_path):
    _, theirs = pair(
        "AutoencoderKLFlux2", {**OPTIONS, "latent_channels": 32, "decoder_block_out_channels": (32, 32, 64)}
    )
    theirs.save_pretrained(tmp_path / "model")
    file = tmp_path / "alone.safetensors"
    (tmp_path / "model" / "diffusion_pytorch_model.safetensors").rename(file)
    ours = AutoencoderKLFlux2.from_single_file(file)
    assert ours.config.decoder_block_out_channels == (32, 32, 64)
    same(ours, theirs)


def test_types(tmp_path):
    theirs, file = image_model().half(), tmp_path / "half.safetensors"
    save_file(original(theirs, *PARTS, temporal=False), file)
    assert AutoencoderKL.from_single_file(file).dtype == torch.float16
    assert AutoencoderKL.from_single_file(file, torch_dtype=torch.bfloat16).dtype == torch.bfloat16


def test_a_decoder_alone(tmp_path):
    theirs, file = image_model(), tmp_path / "decoder.safetensors"
    save_file(original(theirs, "decoder.", "post_quant_conv.", temporal=False), file)
    ours, z = AutoencoderKL.from_single_file(file), noise(1, 4, 5, 4)
    with torch.no_grad():
        assert_close(ours.decode(z).sample, theirs.decode(z).sample, 2e-5)
        refused(CheckpointError, lambda: ours.encode(noise(1, 3, 16, 16)), "encode", "no encoder")


def test_files_of_another_kind(tmp_path):
    file = tmp_path / "model.safetensors"
    save_file(original(temporal_model(), "encoder.", "decoder."), file)
    refused(
        CheckpointError, lambda: AutoencoderKL.from_single_file(file), file, "AutoencoderKLTemporalDecoder"
    )
    assert type(load_autoencoder(file)) is AutoencoderKLTemporalDecoder
    save_file(original(image_model(), *PARTS, temporal=False), file)
    refused(
        CheckpointError, lambda: AutoencoderKLFlux2.from_single_file(file), file, "lacks", "AutoencoderKL"
    )
    refused(
        CheckpointError, lambda: AutoencoderKLTemporalDecoder.from_single_file(file), file, "AutoencoderKL"
    )
    changed(file, lambda tensors: tensors.pop("decoder.mid.block_1.conv1.bias"))
    refused(
        CheckpointError,
        lambda: AutoencoderKL.from_single_file(file),
        file,
        "missing",
        "decoder.mid.block_1.conv1.bias",
    )


@pytest.mark.parametrize("options", [{}, PLAIN, {"layers_per_block": 1}])
@pytest.mark.parametrize("bare", [True, False])
def test_original_to_folder_and_back(options, bare, tmp_path, capsys):
    theirs, file, folder = image_model(**options), tmp_path / "a.safetensors", tmp_path / "model"
    save_single_file(AutoencoderKL.from_module(theirs), file, bare=bare)
    if options.get("layers_per_block") != 1:  # the table of names is of two
        expected = original(theirs, *PARTS, home="" if bare else FIRST, temporal=False)
        assert load_file(file).keys() == expected.keys()
        assert all(torch.equal(load_file(file)[name], values) for name, values in expected.items())
    assert run("convert", file, folder, "--scaling-factor", 0.13025) == 0
    assert run("convert", folder, tmp_path / "b.safetensors", *(["--bare"] if bare else [])) == 0
    again = load_file(tmp_path / "b.safetensors")
    assert all(torch.equal(again[name], values) for name, values in load_file(file).items())
    loaded = diffusers.AutoencoderKL.from_pretrained(folder)
    same(loaded, theirs)
    assert loaded.config.scaling_factor == 0.13025
    assert "AutoencoderKL" in capsys.readouterr().out


def test_names_are_all_there():
    """The table of names covers the network, or the tests above compare less than they say."""
    named = set(original_names(temporal=False).values())
    rest = {name for name in image_model().state_dict() if name not in named}
    assert rest == {
        f"{conv}.{leaf}" for conv in ("quant_conv", "post_quant_conv") for leaf in ("weight", "bias")
    }


def test_inflate_takes_our_class(tmp_path):
    theirs = image_model()
    save_file(original(theirs, *PARTS, temporal=False), tmp_path / "image.safetensors")
    ours = AutoencoderKL.from_module(theirs)
    made = [inflate(source).vae.state_dict() for source in (theirs, ours, tmp_path / "image.safetensors")]
    for name, values in made[0].items():
        assert all(torch.equal(values, other[name]) for other in made[1:]), name
