"""Saving and loading, both ways between this package and diffusers."""

import json
from pathlib import Path

import pytest
import torch
from oracle import CONFIGS, SVD, TINY, Theirs, config, noise, pair, randomise
from torch import nn

from temporal_vae import AutoencoderKLTemporalDecoder as Ours

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def models():
    return pair(**TINY)


def assert_same_weights(model: nn.Module, expected: nn.Module, dtype: torch.dtype = torch.float32) -> None:
    ours, theirs = model.state_dict(), expected.state_dict()
    assert list(ours) == list(theirs)
    for name, tensor in ours.items():
        assert tensor.dtype == dtype
        assert torch.equal(tensor, theirs[name].to(dtype)), name


def shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("options", [*CONFIGS.values(), SVD], ids=[*CONFIGS, "published"])
def test_state_dict_has_the_same_names_and_shapes(options):
    with torch.device("meta"):
        ours, theirs = Ours(**config(**options)), Theirs(**config(**options))
    assert shapes(ours) == shapes(theirs)


def test_state_dict_loads_strictly_both_ways(models):
    ours, theirs = models
    mine = randomise(Ours(**config(**TINY)), seed=3)
    mine.load_state_dict(theirs.state_dict(), strict=True)
    assert_same_weights(mine, theirs)
    other = Theirs(**config(**TINY))
    other.load_state_dict(ours.state_dict(), strict=True)
    assert_same_weights(other, ours)


def test_missing_weights_are_refused_by_load_state_dict(models):
    state = models[1].state_dict()
    del state["quant_conv.weight"]
    with pytest.raises(RuntimeError, match=r"quant_conv\.weight"):
        Ours(**config(**TINY)).load_state_dict(state)


@pytest.mark.parametrize(("saver", "loader"), [(0, Theirs), (1, Ours), (0, Ours)], ids=["out", "in", "own"])
@pytest.mark.parametrize("low_cpu_mem_usage", [True, False])
def test_folder(models, tmp_path, saver, loader, low_cpu_mem_usage):
    models[saver].save_pretrained(tmp_path)
    loaded = loader.from_pretrained(tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
    assert type(loaded) is loader
    assert not loaded.training
    assert_same_weights(loaded, models[1])


def test_no_pickle_is_written(models, tmp_path):
    models[0].save_pretrained(tmp_path, safe_serialization=False)
    assert {file.name for file in tmp_path.iterdir()} == {"config.json", WEIGHTS}


def test_config_file(models, tmp_path):
    ours, theirs = models
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    assert json.loads((tmp_path / "ours/config.json").read_text()) == json.loads(
        (tmp_path / "theirs/config.json").read_text()
    )


@pytest.mark.parametrize("loader", [Ours, Theirs])
@pytest.mark.parametrize("model", [0, 1])
def test_from_config(models, model, loader):
    built = loader.from_config(models[model].config)
    assert type(built) is loader
    assert shapes(built) == shapes(models[1])
    assert built.config.block_out_channels == models[1].config.block_out_channels


def test_from_config_takes_overrides_and_defaults():
    built = Ours.from_config({"latent_channels": 8}, scaling_factor=0.5)
    assert built.config.latent_channels == 8
    assert built.config.scaling_factor == 0.5
    for name, value in Theirs().config.items():
        assert (
            name in ("latent_channels", "scaling_factor", "_use_default_values")
            or built.config[name] == value
        )


@pytest.mark.parametrize("loader", [Ours, Theirs])
@pytest.mark.parametrize("spelling", ["torch_dtype", "dtype"])
def test_subfolder_variant_and_dtype(tmp_path, loader, spelling):
    ours, theirs = pair(**TINY)
    pair(seed=4, **TINY)[0].save_pretrained(tmp_path / "vae")  # other weights beside the variant
    ours.half().save_pretrained(tmp_path / "vae", variant="fp16")
    for dtype in (torch.float16, torch.bfloat16):
        loaded = loader.from_pretrained(tmp_path, subfolder="vae", variant="fp16", **{spelling: dtype})
        assert loaded.dtype == dtype
        assert_same_weights(loaded, theirs.half(), dtype)


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_sharded(models, tmp_path, variant):
    models[0].save_pretrained(tmp_path, max_shard_size="300KB", variant=variant)
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    for loader in (Ours, Theirs):
        assert_same_weights(loader.from_pretrained(tmp_path, variant=variant), models[1])


def test_loading_report(models, tmp_path):
    models[1].save_pretrained(tmp_path)
    model, info = Ours.from_pretrained(tmp_path, output_loading_info=True)
    assert isinstance(model, Ours)
    assert not any(info.values())


def test_path_as_text(models, tmp_path, monkeypatch):
    models[1].save_pretrained(tmp_path / "a" / "model")
    monkeypatch.chdir(tmp_path)
    for name in ("a/model", "./a/model", str(tmp_path / "a" / "model")):
        assert_same_weights(Ours.from_pretrained(name), models[1])


def hub_cache(root: Path, repository: str) -> Path:
    """Make the folders in which the hub's client keeps a repository it has downloaded."""
    home = root / f"models--{repository.replace('/', '--')}"
    (home / "refs").mkdir(parents=True)
    commit = "0123456789abcdef0123456789abcdef01234567"
    (home / "refs" / "main").write_text(commit)
    return home / "snapshots" / commit


@pytest.mark.parametrize("sharded", [False, True])
def test_hub_id(models, tmp_path, sharded):
    options = {"max_shard_size": "300KB"} if sharded else {}
    snapshot = hub_cache(tmp_path, "someone/video-model")
    models[1].save_pretrained(snapshot / "vae", **options)
    for loader in (Ours, Theirs):
        loaded = loader.from_pretrained(
            "someone/video-model", subfolder="vae", cache_dir=tmp_path, local_files_only=True
        )
        assert_same_weights(loaded, models[1])


def test_old_attention_names(models, tmp_path):
    """Checkpoints from before diffusers' Attention class say query, key, value and proj_attn."""
    from safetensors.torch import load_file, save_file

    models[1].save_pretrained(tmp_path)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = load_file(tmp_path / WEIGHTS)
    for new, name in old.items():
        tensors = {key.replace(f".{new}.", f".{name}."): tensor for key, tensor in tensors.items()}
    save_file(tensors, tmp_path / WEIGHTS)
    assert_same_weights(Ours.from_pretrained(tmp_path), models[1])


def test_loaded_model_computes_the_same(models, tmp_path):
    models[0].save_pretrained(tmp_path)
    z = noise(4, 4, 3, 3)
    with torch.no_grad():
        loaded = Ours.from_pretrained(tmp_path).decode(z, num_frames=2).sample
        assert torch.equal(loaded, models[0].decode(z, num_frames=2).sample)
