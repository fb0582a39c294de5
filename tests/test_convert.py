"""Original checkpoints in and out: names written by hand, weights and frames of diffusers as the oracle."""

import json
import os
import resource
import struct

import pytest
import torch
from command_line import run
from oracle import TINY, Theirs, assert_close, config, noise, randomise
from originals import (
    FIRST,
    OPTIONS,
    WRAPPED,
    averages,
    changed,
    original,
    original_names,
    temporal_model,
    whole_checkpoint,
)
from refusals import refused
from safetensors.torch import load_file, save_file

from temporal_vae import AutoencoderKLTemporalDecoder as Ours
from temporal_vae.checkpoints.convert import save_single_file
from temporal_vae.errors import CheckpointError, ConfigError, InputError

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def theirs():
    return temporal_model()


@pytest.fixture(scope="module")
def plain():
    """A model whose quant_conv is the identity, as an original first stage has none."""
    model = temporal_model(seed=2)
    with torch.no_grad():
        model.quant_conv.weight.copy_(torch.eye(8)[:, :, None, None])
        model.quant_conv.bias.zero_()
    return model


@pytest.fixture
def whole(theirs, tmp_path):
    whole_checkpoint(theirs, tmp_path / "svd.safetensors")
    return tmp_path / "svd.safetensors"


@pytest.fixture
def bare(plain, tmp_path):
    save_file(original(plain, "encoder.", "decoder."), tmp_path / "vae.safetensors")
    return tmp_path / "vae.safetensors"


def assert_same(found, expected):
    """The same names, types and bits."""
    assert sorted(found) == sorted(expected)
    for name, tensor in found.items():
        assert tensor.dtype == expected[name].dtype
        assert torch.equal(tensor, expected[name]), name


# Reading


def test_the_names_are_those_of_the_whole_network(theirs):
    names = original_names()
    quant = {"quant_conv.weight", "quant_conv.bias"}
    assert set(names.values()) | quant == set(theirs.state_dict())
    assert len(set(names.values())) == len(names)


@torch.no_grad()
def test_whole_checkpoint(theirs, whole):
    model = Ours.from_single_file(whole)
    assert_same(model.state_dict(), theirs.state_dict())
    assert not model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert model.config.block_out_channels == OPTIONS["block_out_channels"]
    assert (model.config.layers_per_block, model.config.latent_channels) == (2, 4)
    assert (model.config.scaling_factor, model.config.force_upcast) == (0.18215, True)
    x, z = noise(3, 3, 16, 24), noise(6, 4, 4, 6)
    assert_close(model.decode(z, num_frames=3).sample, theirs.decode(z, num_frames=3).sample, 2e-5)
    assert_close(model.encode(x).latent_dist.parameters, theirs.encode(x).latent_dist.parameters, 2e-5)


@torch.no_grad()
def test_the_other_encoder(theirs, whole):
    model = Ours.from_single_file(whole, encoder="first_stage")
    assert_same(model.decoder.state_dict(), theirs.decoder.state_dict())
    assert_same(model.encoder.state_dict(), temporal_model(seed=7).encoder.state_dict())
    x = noise(1, 3, 16, 16)
    assert torch.equal(model.quant_conv(model.encoder(x)), model.encoder(x))


@pytest.mark.parametrize("home", ["", FIRST, "vae."])
def test_first_stage_alone(plain, tmp_path, home):
    file = tmp_path / "vae.safetensors"
    save_file(original(plain, "encoder.", "decoder.", home=home), file)
    assert_same(Ours.from_single_file(str(file)).state_dict(), plain.state_dict())


@pytest.mark.parametrize("number", [1, 12])
def test_the_conditioner_may_have_another_number(theirs, tmp_path, number):
    whole_checkpoint(theirs, tmp_path / "sv.safetensors", number=number)
    assert_same(Ours.from_single_file(tmp_path / "sv.safetensors").state_dict(), theirs.state_dict())


def test_averages_of_the_original_trainer(plain, bare, caplog, capsys):
    tensors = load_file(bare)
    save_file(tensors | averages(tensors), bare)
    assert_same(Ours.from_single_file(bare).state_dict(), plain.state_dict())
    assert f"{bare}: left out {len(tensors) + 2} averages (model_ema.*)" in caplog.text
    averaged = Ours.from_single_file(bare, ema=True).state_dict()
    assert f"took the averages of {len(tensors)} of {len(tensors)} tensors" in caplog.text
    for name, tensor in plain.state_dict().items():
        assert torch.equal(averaged[name], tensor if "quant_conv" in name else tensor + 1), name

    frozen = {name: tensor for name, tensor in averages(tensors).items() if "ema.encoder" not in name}
    save_file(tensors | frozen, bare)
    part = Ours.from_single_file(bare, ema=True).state_dict()
    for name, tensor in plain.state_dict().items():
        assert torch.equal(part[name], tensor + 1 if name.startswith("decoder") else tensor), name
    save_file(tensors, bare)
    refused(CheckpointError, lambda: Ours.from_single_file(bare, ema=True), bare, "no averages", "model_ema.")
    assert run("convert", bare, bare.parent / "model", "--ema") == 1
    assert "holds no averages" in capsys.readouterr().err


@pytest.mark.parametrize("before", ["module.", "state_dict.", "state_dict.module.", "_orig_mod.", "model."])
def test_words_before_every_name_and_numbers(plain, theirs, bare, whole, before, caplog):
    for file, model in ((bare, plain), (whole, theirs)):
        tensors = {f"{before}{name}": tensor for name, tensor in load_file(file).items()}
        numbers = {"global_step": torch.tensor([3]), f"{before}epoch": torch.tensor(1)}
        save_file(tensors | numbers, file)
        assert_same(Ours.from_single_file(file).state_dict(), model.state_dict())
    assert f"{bare}: left out {before}epoch: no weights" in caplog.text
    save_file(original(plain, "encoder.", "decoder.") | {"global_step": torch.tensor(3)}, bare)
    assert_same(Ours.from_single_file(bare).state_dict(), plain.state_dict())
    assert "left out global_step: no weights" in caplog.text


def test_types(theirs, whole):
    changed(whole, lambda tensors: tensors.update({name: t.half() for name, t in tensors.items()}))
    assert Ours.from_single_file(whole).dtype == torch.float16
    model = Ours.from_single_file(whole, torch_dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    name = f"{FIRST}decoder.mid.block_1.mix_factor"
    changed(whole, lambda tensors: tensors.update({name: tensors[name].float()}))
    assert {parameter.dtype for parameter in Ours.from_single_file(whole).parameters()} == {torch.float32}


def test_configuration(theirs, whole, tmp_path):
    assert Ours.from_single_file(whole, scaling_factor=0.5).config.scaling_factor == 0.5
    theirs.register_to_config(scaling_factor=0.25)
    theirs.save_pretrained(tmp_path / "model" / "vae")
    theirs.register_to_config(scaling_factor=0.18215)
    for source in (tmp_path / "model" / "vae", {"scaling_factor": 0.25}):
        assert Ours.from_single_file(whole, config=source).config.scaling_factor == 0.25
    model = Ours.from_single_file(whole, config=str(tmp_path / "model"), subfolder="vae", force_upcast=False)
    assert (model.config.scaling_factor, model.config.force_upcast) == (0.25, False)
    call = lambda **options: lambda: Ours.from_single_file(whole, **options)  # noqa: E731
    refused(CheckpointError, call(config=tmp_path / "nowhere"), "nowhere", "config.json")
    refused(
        CheckpointError,
        call(latent_channels=8),
        "5 of another shape",
        "quant_conv.bias is [8] but the model has [16]",
    )
    refused(ConfigError, call(token="x"), "unknown keys token")


def test_file_under_the_names_of_diffusers(theirs, tmp_path):
    theirs.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text()) | {"scaling_factor": 0.5}
    (tmp_path / "config.json").write_text(json.dumps(written))
    model = Ours.from_single_file(tmp_path / WEIGHTS)
    assert_same(model.state_dict(), theirs.state_dict())
    assert model.config.scaling_factor == 0.5
    (tmp_path / "config.json").unlink()
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = load_file(tmp_path / WEIGHTS)
    for new, name in old.items():
        tensors = {key.replace(f".{new}.", f".{name}."): tensor for key, tensor in tensors.items()}
    save_file(tensors, tmp_path / WEIGHTS)
    model = Ours.from_single_file(tmp_path / WEIGHTS)
    assert_same(model.state_dict(), theirs.state_dict())
    assert model.config.scaling_factor == 0.18215
    changed(tmp_path / WEIGHTS, lambda tensors: tensors.pop("quant_conv.bias"))
    refused(CheckpointError, lambda: Ours.from_single_file(tmp_path / WEIGHTS), "1 missing (quant_conv.bias)")


def test_one_layer_under_the_names_of_diffusers(tmp_path):
    model = randomise(Theirs(**config(**TINY)))
    model.save_pretrained(tmp_path)
    assert_same(Ours.from_single_file(tmp_path / WEIGHTS).state_dict(), model.state_dict())


def test_the_rest_of_a_checkpoint_is_not_read(theirs, whole):
    """A UNet of 64 GiB, which is a hole in the file."""
    data = whole.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    hole = 2**36
    header["model.diffusion_model.middle"] = {
        "dtype": "F32",
        "shape": [hole // 4],
        "data_offsets": [len(body), len(body) + hole],
    }
    text = json.dumps(header).encode()
    whole.write_bytes(struct.pack("<Q", len(text)) + text + body)
    os.truncate(whole, 8 + len(text) + len(body) + hole)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert_same(Ours.from_single_file(whole).state_dict(), theirs.state_dict())
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # KiB: less than 1 GiB


# A decoder alone


@torch.no_grad()
def test_a_decoder_without_encoder(theirs, tmp_path, caplog):
    file = tmp_path / "sv3d.safetensors"
    save_file(original(theirs, "decoder.", home=FIRST), file)
    model = Ours.from_single_file(file)
    assert f"{file}: there is no encoder" in caplog.text
    z, x = noise(3, 4, 4, 6), noise(1, 3, 16, 16)
    assert_close(model.decode(z, num_frames=3).sample, theirs.decode(z, num_frames=3).sample, 2e-5)
    model.save_pretrained(tmp_path / "model")
    again = Ours.from_pretrained(tmp_path / "model")
    for call in (
        lambda: model.encode(x),
        lambda: model(x),
        lambda: again.encode(x),
        lambda: again.encoder(x),
    ):
        refused(CheckpointError, call, "has no encoder", "other.encoder")
    save_single_file(again, tmp_path / "back.safetensors")
    assert_same(load_file(tmp_path / "back.safetensors"), load_file(file))

    other = Ours.from_module(theirs)
    model.encoder, model.quant_conv = other.encoder, other.quant_conv
    again.load_state_dict(other.state_dict())
    for vae in (model, again):
        assert_close(vae.encode(x).latent_dist.mean, theirs.encode(x).latent_dist.mean, 2e-5)


# Round trips


def test_original_to_folder_and_back(plain, bare, tmp_path):
    Ours.from_single_file(bare).save_pretrained(tmp_path / "model")
    model = Ours.from_pretrained(tmp_path / "model")
    assert_same(model.state_dict(), plain.state_dict())
    save_single_file(model, tmp_path / "again.safetensors", bare=True)
    assert_same(load_file(tmp_path / "again.safetensors"), load_file(bare))
    save_single_file(model, tmp_path / "first.safetensors")
    assert_same(
        load_file(tmp_path / "first.safetensors"),
        {f"{FIRST}{name}": tensor for name, tensor in load_file(bare).items()},
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_folder_to_original_and_back(theirs, whole, tmp_path, dtype):
    model = Ours.from_single_file(whole, torch_dtype=dtype)
    save_single_file(model, tmp_path / "out.safetensors")
    written = load_file(tmp_path / "out.safetensors")
    expected = original(model, "encoder.", "decoder.", home=FIRST)
    expected |= original(model, "encoder.", "quant_conv.", home=WRAPPED)
    for leaf in ("weight", "bias"):  # quant_conv is folded into it
        del written[f"{FIRST}encoder.conv_out.{leaf}"], expected[f"{FIRST}encoder.conv_out.{leaf}"]
    assert_same(written, expected)
    assert_same(Ours.from_single_file(tmp_path / "out.safetensors").state_dict(), model.state_dict())


@torch.no_grad()
def test_quant_conv_is_folded_into_the_first_stage(theirs, tmp_path):
    """The fold is exact in exact arithmetic: in float64 to its rounding."""
    model = Ours.from_module(theirs)
    x = noise(2, 3, 16, 24)
    expected = theirs.encode(x).latent_dist.parameters
    for bare_file in (True, False):
        save_single_file(model, tmp_path / "out.safetensors", bare=bare_file)
        read = Ours.from_single_file(tmp_path / "out.safetensors", encoder="first_stage")
        assert_close(read.encode(x).latent_dist.parameters, expected, 2e-5)
        assert torch.equal(read.quant_conv.weight[..., 0, 0], torch.eye(8))
    double = Ours.from_config(model.config).double()
    double.load_state_dict(model.state_dict())
    save_single_file(double, tmp_path / "out.safetensors", bare=True)
    read = Ours.from_single_file(tmp_path / "out.safetensors")
    found = read.quant_conv(read.encoder(x.double()))
    assert_close(found, double.quant_conv(double.encoder(x.double())), 1e-13)


def test_what_no_original_checkpoint_holds(tmp_path):
    file = tmp_path / "out.safetensors"
    model = Ours(**config(**TINY))
    refused(InputError, lambda: save_single_file(model, file), "layers_per_block=1", "at least 2")
    model = Ours(**config(**OPTIONS))
    model.encoder.mid_block.attentions[0].to_q = torch.nn.Sequential(torch.nn.Linear(96, 96))
    refused(InputError, lambda: save_single_file(model, file), "to_q.0.bias", "adapters")
    assert not file.exists()


# The command


def test_command(theirs, whole, tmp_path, capsys):
    assert run("convert", whole, tmp_path / "model", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert_same(load_file(tmp_path / "model" / WEIGHTS), theirs.state_dict())
    assert json.loads((tmp_path / "model" / "config.json").read_text())["_class_name"] == Theirs.__name__
    assert said["block_out_channels"] == [32, 64, 96]
    assert (said["layout"], said["levels"], said["dtype"], said["encoder"]) == ("sgm", 3, "float32", True)
    assert (said["decoder_from"], said["encoder_from"]) == (FIRST, WRAPPED)
    assert said["ignored_tensors"] == len(load_file(whole)) - len(theirs.state_dict())

    words = ("--dtype", "bfloat16", "--scaling-factor", 0.5)
    assert run("convert", tmp_path / "model", tmp_path / "half", *words) == 0
    assert "bfloat16" in capsys.readouterr().out
    half = Ours.from_pretrained(tmp_path / "half", torch_dtype=torch.bfloat16)
    assert half.config.scaling_factor == 0.5
    assert run("convert", tmp_path / "half", tmp_path / "half.safetensors") == 0
    assert_same(Ours.from_single_file(tmp_path / "half.safetensors").state_dict(), half.state_dict())
    assert run("convert", whole, tmp_path / "a.safetensors", "--bare", "--encoder", "first_stage") == 0
    assert set(load_file(tmp_path / "a.safetensors")) == set(original_names())


def test_command_on_a_decoder_alone(theirs, tmp_path, capsys):
    save_file(original(theirs, "decoder."), tmp_path / "in.safetensors")
    assert run("convert", tmp_path / "in.safetensors", tmp_path / "model", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["encoder"], said["encoder_from"], said["quant_conv"]) == (False, None, False)
