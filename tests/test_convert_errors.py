"""Refusals of single files: damaged, unsafe, of another network; and of the command, which leaves nothing then."""

import pickle

import pytest
import torch
from command_line import run
from originals import FIRST, WRAPPED, changed, image_model, original, temporal_model, whole_checkpoint
from refusals import refused
from safetensors.torch import save_file

from temporal_vae import AutoencoderKLTemporalDecoder as Ours
from temporal_vae.errors import CheckpointError

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def theirs():
    return temporal_model()


@pytest.fixture
def whole(theirs, tmp_path):
    whole_checkpoint(theirs, tmp_path / "svd.safetensors")
    return tmp_path / "svd.safetensors"


@pytest.fixture
def bare(theirs, tmp_path):
    save_file(original(theirs, "encoder.", "decoder."), tmp_path / "vae.safetensors")
    return tmp_path / "vae.safetensors"


def test_tensors_that_do_not_fit(whole):
    def change(tensors):
        del tensors[f"{FIRST}decoder.mid.attn_1.q.weight"]
        del tensors[f"{FIRST}decoder.up.1.block.0.time_stack.in_layers.2.bias"]
        tensors[f"{FIRST}decoder.up.1.block.9.conv2.weight"] = torch.zeros(1)
        tensors[f"{WRAPPED}encoder.more"] = torch.zeros(1)
        tensors[f"{FIRST}loss.logvar"] = torch.zeros(1)  # left from training; nobody minds
        tensors[f"{FIRST}decoder.conv_in.bias"] = torch.zeros(5)
        tensors[f"{WRAPPED}quant_conv.bias"] = torch.zeros(8, dtype=torch.int32)

    refused(
        CheckpointError,
        lambda: Ours.from_single_file(changed(whole, change)),
        whole,
        f"2 missing ({FIRST}decoder.mid.attn_1.q.weight, {FIRST}decoder.up.1.block.0.time_stack.in_layers.2.bias)",
        f"2 not of this model ({WRAPPED}encoder.more, {FIRST}decoder.up.1.block.9.conv2.weight)",
        f"1 of another shape ({FIRST}decoder.conv_in.bias is [5] but the model has [96])",
        f"1 no floats ({WRAPPED}quant_conv.bias)",
        "again",
    )


def test_a_level_that_is_missing(bare):
    def change(tensors):
        for name in [name for name in tensors if name.startswith("decoder.up.1.")]:
            del tensors[name]

    refused(
        CheckpointError, lambda: Ours.from_single_file(changed(bare, change)), bare, "lacks level 1", "again"
    )


@pytest.mark.parametrize(
    "name", ["encoder.conv_in.weight", "decoder.conv_out.weight", "decoder.conv_in.weight"]
)
def test_a_tensor_that_is_needed_to_know_the_network(bare, name):
    changed(bare, lambda tensors: tensors.pop(name))
    refused(CheckpointError, lambda: Ours.from_single_file(bare), bare, "encoder" if "en" in name else name)


def test_files_that_hold_no_temporal_autoencoder(theirs, tmp_path):
    image, unet, one = (tmp_path / f"{name}.safetensors" for name in ("image", "unet", "one"))
    save_file(original(image_model(), "encoder.", "decoder.", "quant_conv.", temporal=False), image)
    refused(
        CheckpointError,
        lambda: Ours.from_single_file(image),
        image,
        "image autoencoder",
        "temporal-vae inflate",
    )
    image_model().save_pretrained(tmp_path)
    file = tmp_path / WEIGHTS
    refused(
        CheckpointError,
        lambda: Ours.from_single_file(file),
        file,
        "image autoencoder",
        "temporal-vae inflate",
    )
    save_file({"model.diffusion_model.out.weight": torch.ones(1)}, unet)
    refused(CheckpointError, lambda: Ours.from_single_file(unet), unet, "holds no autoencoder", FIRST)
    tensors = original(theirs, "encoder.", "decoder.")
    save_file({name: t for name, t in tensors.items() if ".block.2." not in name}, one)
    refused(CheckpointError, lambda: Ours.from_single_file(one), one, "layers_per_block=1", "at least 2")


def test_an_encoder_that_is_not_there(bare):
    call = lambda: Ours.from_single_file(bare, encoder="conditioner")  # noqa: E731
    refused(CheckpointError, call, bare, "no encoder in the conditioner", "there is first_stage")


@pytest.mark.parametrize(
    "name",
    [
        f"{WRAPPED}encoder.conv_in.weight",
        f"{WRAPPED}encoder.mid.attn_1.q.bias",
        f"{WRAPPED}quant_conv.weight",
    ],
)
def test_an_encoder_that_is_there_in_part(whole, name):
    """The other encoder of the file is no substitute."""
    changed(whole, lambda tensors: tensors.pop(name))
    refused(CheckpointError, lambda: Ours.from_single_file(whole), whole, name)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite(whole, tmp_path, capsys, value):
    name = f"{FIRST}decoder.up.1.block.0.time_stack.in_layers.2.bias"

    def change(tensors):
        tensors[name][3] = value

    changed(whole, change)
    refused(CheckpointError, lambda: Ours.from_single_file(whole), whole, "1 of", name, "allow_nonfinite")
    target = tmp_path / "model"
    assert run("convert", whole, target) == 1
    assert f"NaN or infinite values ({name})" in capsys.readouterr().err
    assert not target.exists()
    assert run("convert", whole, target, "--allow-nonfinite") == 0
    assert run("convert", target, tmp_path / "again") == 1
    assert "temporal_res_block.conv1.bias" in capsys.readouterr().err
    assert run("convert", target, tmp_path / "again", "--allow-nonfinite") == 0


def test_weights_that_a_type_cannot_hold(whole, tmp_path, capsys):
    def change(tensors):
        tensors[f"{FIRST}decoder.conv_in.bias"][0] = 7e4

    changed(whole, change)
    assert run("convert", whole, tmp_path / "model", "--dtype", "float16") == 1
    assert "too large for it (decoder.conv_in.bias); use bfloat16" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()
    assert run("convert", whole, tmp_path / "model", "--dtype", "bfloat16") == 0


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_truncated_file(whole, share):
    data = whole.read_bytes()
    whole.write_bytes(data[: int(len(data) * share)])
    refused(CheckpointError, lambda: Ours.from_single_file(whole), whole, "damaged", "again")


@pytest.mark.parametrize("suffix", ["ckpt", "pt", "pth", "bin"])
def test_pickles(tmp_path, suffix):
    """They are refused before they are opened: this one would fail the test by being read."""
    trap, file = tmp_path / "sprung", tmp_path / f"svd.{suffix}"
    file.write_bytes(pickle.dumps(Trap(trap)))
    refused(
        CheckpointError, lambda: Ours.from_single_file(file), file, "pickle", "can run code", "safetensors"
    )
    assert not trap.exists()


class Trap:
    """Touches a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_what_is_no_file(tmp_path):
    refused(
        CheckpointError, lambda: Ours.from_single_file(tmp_path), tmp_path, "is a folder", "from_pretrained"
    )
    url = "https://huggingface.co/stabilityai/x/svd.safetensors"
    refused(
        CheckpointError,
        lambda: Ours.from_single_file(url),
        "svd.safetensors",
        "no such file",
        "on this machine",
    )


# The command


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("{in}", "notes"), 1, "notes: is a folder that holds todo.txt; name a folder of its own"),
        (("{in}", "nowhere/model"), 1, "there is no folder nowhere; create it first"),
        (("{in}", "model", "--bare"), 2, "--bare is for an OUT"),
        (("image", "model", "--encoder", "first_stage"), 2, "--encoder is for an IN"),
        (("image", "model", "--ema"), 2, "--ema is for an IN"),
        (("image", "model"), 1, "image: holds no diffusion_pytorch_model.safetensors"),
        (("absent.safetensors", "model"), 1, "absent.safetensors: no such file"),
        (("svd.ckpt", "model"), 1, "svd.ckpt: is a pickle file"),
        (("{in}", "model", "--dtype", "int8"), 2, "'int8' is not one of"),
    ],
)
def test_command_refuses_and_leaves_nothing(bare, tmp_path, monkeypatch, capsys, words, code, message):
    work = tmp_path / "work"
    for folder in (work / "notes", work / "image"):
        folder.mkdir(parents=True)
    (work / "notes" / "todo.txt").write_text("buy milk")
    (work / "image" / "config.json").write_text('{"_class_name": "AutoencoderKL"}')
    monkeypatch.chdir(work)
    assert run("convert", *(word.format(**{"in": bare}) for word in words)) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message in printed.err
    assert sorted(path.name for path in work.iterdir()) == ["image", "notes"]
    assert (work / "notes" / "todo.txt").exists()
