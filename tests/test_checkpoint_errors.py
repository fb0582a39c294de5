"""Refusals of weights: folders and files that are damaged, unsafe or of another model, and altered modules."""

import json
import pickle

import pytest
import torch
from oracle import TINY, Theirs, config
from refusals import refused
from safetensors.torch import load_file, save_file
from torch import nn

from temporal_vae import AutoencoderKLTemporalDecoder as Ours
from temporal_vae.errors import CheckpointError, InputError

WEIGHTS = "diffusion_pytorch_model.safetensors"
INDEX = f"{WEIGHTS}.index.json"


@pytest.fixture(scope="module")
def model():
    return Ours(**config(**TINY)).eval()


@pytest.fixture
def folder(model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def sharded(model, tmp_path):
    model.save_pretrained(tmp_path / "model", max_shard_size="300KB")
    return tmp_path / "model"


each_way = pytest.mark.parametrize("low_cpu_mem_usage", [True, False])


@each_way
def test_tensors_that_do_not_fit(folder, low_cpu_mem_usage, capfd):
    tensors = load_file(folder / WEIGHTS)
    lost = sorted(name for name in tensors if name.startswith("decoder.conv"))
    for name in lost:
        del tensors[name]
    tensors["loss.logvar"] = torch.zeros(1)
    tensors["quant_conv.bias"] = torch.zeros(6)
    save_file(tensors, folder / WEIGHTS)
    refused(
        CheckpointError,
        lambda: Ours.from_pretrained(folder, low_cpu_mem_usage=low_cpu_mem_usage),
        folder,
        f"{len(lost)} missing ({', '.join(lost[:3])}, …)",
        "1 not of this model (loss.logvar)",
        "1 of another shape (quant_conv.bias is [6] but the model has [8])",
        "config.json",
    )
    assert "Some weights" not in "".join(capfd.readouterr())  # diffusers says it too, at length


def test_another_models_weights(folder):
    written = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(written | {"latent_channels": 8}))
    refused(
        CheckpointError, lambda: Ours.from_pretrained(folder), "5 of another shape", "decoder.conv_in.weight"
    )


def test_mismatched_sizes_may_be_asked_for(folder):
    refused(CheckpointError, lambda: Ours.from_pretrained(folder, latent_channels=8), "of another shape")
    model = Ours.from_pretrained(
        folder, latent_channels=8, low_cpu_mem_usage=False, ignore_mismatched_sizes=True
    )
    assert model.decoder.conv_in.weight.shape[1] == 8


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_truncated_file(folder, share):
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: int(len(data) * share)])
    refused(CheckpointError, lambda: Ours.from_pretrained(folder), folder / WEIGHTS, "damaged", "again")


def test_file_that_is_something_else(folder):
    (folder / WEIGHTS).write_text("<html>404</html>")
    refused(CheckpointError, lambda: Ours.from_pretrained(folder), folder / WEIGHTS, "damaged")
    (folder / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    refused(CheckpointError, lambda: Ours.from_pretrained(folder), folder / WEIGHTS, "git lfs pull")


def test_half_present_shards(sharded):
    second = sorted(sharded.glob("*.safetensors"))[1]
    second.unlink()
    refused(CheckpointError, lambda: Ours.from_pretrained(sharded), INDEX, "1 of", second.name, "again")


def test_damaged_shard(sharded):
    second = sorted(sharded.glob("*.safetensors"))[1]
    second.write_bytes(second.read_bytes()[:-7])
    refused(CheckpointError, lambda: Ours.from_pretrained(sharded), second, "damaged", "again")


@each_way
def test_shard_that_lacks_a_tensor(sharded, low_cpu_mem_usage):
    second = sorted(sharded.glob("*.safetensors"))[1]
    tensors = load_file(second)
    name, _ = tensors.popitem()
    save_file(tensors, second)
    call = lambda: Ours.from_pretrained(sharded, low_cpu_mem_usage=low_cpu_mem_usage)  # noqa: E731
    refused(CheckpointError, call, INDEX, "not in their files", name)


@pytest.mark.parametrize("text", ["", "{", "{}", "[]", '{"weight_map": 3}', '{"weight_map": {"a": 1}}'])
def test_damaged_index(sharded, text):
    (sharded / INDEX).write_text(text)
    refused(CheckpointError, lambda: Ours.from_pretrained(sharded), INDEX, "again")


@pytest.mark.parametrize("text", ["", "{", "[1]", "null"])
def test_damaged_config(folder, text):
    (folder / "config.json").write_text(text)
    refused(CheckpointError, lambda: Ours.from_pretrained(folder), folder / "config.json", "again")


def test_missing_files(folder, tmp_path):
    refused(CheckpointError, lambda: Ours.from_pretrained(folder, variant="fp16"), folder, "fp16.safetensors")
    refused(
        CheckpointError,
        lambda: Ours.from_pretrained(folder, subfolder="vae"),
        folder / "vae",
        "no such folder",
    )
    (folder / "config.json").unlink()
    refused(
        CheckpointError, lambda: Ours.from_pretrained(folder), folder, "no config.json", "save_pretrained"
    )
    (tmp_path / "empty").mkdir()
    refused(CheckpointError, lambda: Ours.from_pretrained(tmp_path / "empty"), tmp_path / "empty", "holds no")
    for absent in (tmp_path / "absent", str(tmp_path / "absent"), "./absent", "absent", "a/b/c"):
        refused(
            CheckpointError,
            lambda name=absent: Ours.from_pretrained(name),
            "absent" if absent != "a/b/c" else "a/b/c",
            "no such folder",
            "hub id",
        )


def test_hub_id_that_is_not_there(tmp_path):
    call = lambda: Ours.from_pretrained("someone/nothing", cache_dir=tmp_path)  # noqa: E731
    refused(CheckpointError, call, "someone/nothing", "no such folder, and no model of the hub", "connection")


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.bin", "svd.ckpt", "weights.pt", "weights.pth"])
def test_pickles(folder, tmp_path, name):
    """They are refused before they are opened: this one would fail the test by being read."""
    trap = tmp_path / "sprung"
    (folder / WEIGHTS).unlink()
    (folder / name).write_bytes(pickle.dumps(Trap(trap)))
    refused(CheckpointError, lambda: Ours.from_pretrained(folder), folder, name, "safetensors")
    refused(CheckpointError, lambda: Ours.from_pretrained(folder / name), folder / name, "safetensors")
    assert not trap.exists()


class Trap:
    """Touches a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_pickles_are_not_asked_for(folder):
    call = lambda: Ours.from_pretrained(folder, use_safetensors=False)  # noqa: E731
    refused(CheckpointError, call, folder, "use_safetensors=False", "safetensors")


def test_a_file_is_no_folder(folder):
    refused(CheckpointError, lambda: Ours.from_pretrained(folder / WEIGHTS), WEIGHTS, "is a file", "folder")


# from_module


def test_other_modules():
    refused(InputError, lambda: Ours.from_module(nn.Conv2d(3, 3, 1)), "Conv2d", "pipe.vae")
    refused(InputError, lambda: Ours.from_module(None), "NoneType", "pipe.vae")


class Adapted(nn.Module):
    """A layer with an adapter around it, as LoRA makes them."""

    def __init__(self, base_layer):
        super().__init__()
        self.base_layer = base_layer


class Quantised(nn.Linear):
    """A layer that has a Linear's weights and computes something else."""


def test_altered_modules():
    for change, part in ((Adapted, "base_layer"), (lambda old: Quantised(64, 64), "another kind")):
        theirs = Theirs(**config(**TINY))
        attention = theirs.decoder.mid_block.attentions[0]
        attention.to_q = change(attention.to_q)
        refused(CheckpointError, lambda module=theirs: Ours.from_module(module), part, "to_q", "adapters")


def test_fused_and_offloaded_modules():
    theirs = Theirs(**config(**TINY))
    with torch.no_grad():
        theirs.encoder.mid_block.attentions[0].fuse_projections()
    refused(CheckpointError, lambda: Ours.from_module(theirs), "to_qkv", "unfuse")
    with torch.device("meta"):
        empty = Theirs(**config(**TINY))
    refused(CheckpointError, lambda: Ours.from_module(empty), "offloaded", "remove offloading")
