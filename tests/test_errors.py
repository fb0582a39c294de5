"""Every refusal: its type, and a message of one line that names the value, the rule and the remedy."""

import json

import pytest
import torch
from oracle import TINY, config, noise
from refusals import refused

from temporal_vae import AutoencoderKLTemporalDecoder as Ours
from temporal_vae import errors
from temporal_vae.errors import CheckpointError, ConfigError, InputError


@pytest.fixture(scope="module")
def model():
    return Ours(**config(**TINY)).eval()


def test_tree():
    kinds = [getattr(errors, name) for name in errors.__all__]
    assert all(issubclass(kind, errors.TemporalVaeError) for kind in kinds)
    others: dict[type, type] = dict.fromkeys((errors.TrainingError, errors.RankError), RuntimeError)
    others[errors.TemporalVaeError] = Exception
    assert all(issubclass(kind, others.get(kind, ValueError)) for kind in kinds)
    assert issubclass(CheckpointError, OSError)
    assert all(kind.__name__ in errors.__doc__ for kind in kinds)


# Tensors


@pytest.mark.parametrize(
    ("frames", "parts"),
    [
        (noise(3, 16, 16), ["encode", "3 axes", "(3, 16, 16)", "(frames, channels, height, width)"]),
        (noise(1, 2, 3, 16, 16), ["5 axes", "the frames of all clips on the first axis"]),
        (noise(2, 4, 16, 16), ["4 channels", "this model takes 3"]),
        (noise(2, 16, 16, 3), ["16 channels", "takes 3"]),
        (torch.zeros(2, 3, 16, 16, dtype=torch.uint8), ["torch.uint8", "float tensor", "[-1, 1]"]),
        (torch.zeros(2, 3, 16, 16, dtype=torch.complex64), ["torch.complex64", "float tensor"]),
        (noise(0, 3, 16, 16), ["empty", "(0, 3, 16, 16)", "at least one frame"]),
        (noise(2, 3, 0, 16), ["empty", "(2, 3, 0, 16)"]),
        (noise(2, 3, 1, 16), ["1x16", "pad", "2x2"]),
        ([[1.0]], ["list", "float tensor"]),
    ],
)
def test_frames(model, frames, parts):
    refused(InputError, lambda: model.encode(frames), *parts)
    refused(InputError, lambda: model(frames), *parts)


@pytest.mark.parametrize(
    ("latents", "num_frames", "parts"),
    [
        (noise(4, 8, 8), 4, ["decode", "3 axes", "(frames, channels, height, width)"]),
        (noise(4, 3, 8, 8), 4, ["3 channels", "takes 4"]),
        (torch.zeros(4, 4, 8, 8, dtype=torch.int64), 4, ["torch.int64", "float tensor"]),
        (noise(4, 4, 8, 0), 4, ["empty", "(4, 4, 8, 0)"]),
        (noise(0, 4, 8, 8), 1, ["empty"]),
        (noise(4, 4, 8, 8), 3, ["4 latents", "num_frames=3", "divides"]),
        (noise(4, 4, 8, 8), 8, ["4 latents", "num_frames=8"]),
        (noise(4, 4, 8, 8), 0, ["num_frames=0", "divides"]),
        (noise(4, 4, 8, 8), -2, ["num_frames=-2"]),
        (noise(4, 4, 8, 8), 2.0, ["num_frames=2.0"]),
        (noise(4, 4, 8, 8), None, ["num_frames=None"]),
    ],
)
def test_latents(model, latents, num_frames, parts):
    refused(InputError, lambda: model.decode(latents, num_frames=num_frames), *parts)


def test_forward_checks_the_clip_length(model):
    refused(InputError, lambda: model(noise(4, 3, 16, 16), num_frames=3), "4 latents", "num_frames=3")


# Configurations


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"down_block_types": ("DownEncoderBlock2D",) * 2}, ["2 entries", "1", "one of each per level"]),
        ({"down_block_types": (), "block_out_channels": ()}, ["at least one level"]),
        ({"down_block_types": ("DownBlock2D",)}, ["'DownBlock2D'", "'DownEncoderBlock2D'"]),
        ({"down_block_types": "DownEncoderBlock2D"}, ["down_block_types='DownEncoderBlock2D'", "list"]),
        ({"block_out_channels": 64}, ["block_out_channels=64", "list"]),
        ({"block_out_channels": (48,)}, ["48", "multiple of 32"]),
        ({"block_out_channels": (0,)}, ["holds 0", "positive multiple"]),
        ({"block_out_channels": (-32,)}, ["-32", "positive"]),
        ({"block_out_channels": (64.0,)}, ["64.0", "multiple of 32"]),
        ({"block_out_channels": ("64",)}, ["'64'", "multiple of 32"]),
        ({"layers_per_block": 0}, ["layers_per_block=0", "at least 1"]),
        ({"layers_per_block": 1.5}, ["layers_per_block=1.5", "whole number"]),
        ({"layers_per_block": True}, ["layers_per_block=True", "whole number"]),
        ({"latent_channels": -4}, ["latent_channels=-4", "at least 1"]),
        ({"in_channels": None}, ["in_channels=None", "whole number"]),
        ({"out_channels": "3"}, ["out_channels='3'", "whole number"]),
        ({"scaling_factor": 0}, ["scaling_factor=0", "above 0"]),
        ({"scaling_factor": -1.0}, ["scaling_factor=-1.0", "above 0"]),
        ({"scaling_factor": float("nan")}, ["scaling_factor=nan", "above 0"]),
        ({"scaling_factor": None}, ["scaling_factor=None", "above 0"]),
    ],
)
def test_configurations(tmp_path, options, parts):
    refused(ConfigError, lambda: Ours(**options), "configuration", *parts)
    refused(ConfigError, lambda: Ours.from_config(dict(options)), "configuration", *parts)
    Ours().save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(written | options))
    for low_cpu_mem_usage in (True, False):
        refused(
            ConfigError,
            lambda low=low_cpu_mem_usage: Ours.from_pretrained(tmp_path, low_cpu_mem_usage=low),
            "configuration",
        )


def test_unknown_keys(tmp_path):
    odd = {"latent_channels": 4, "up_block_types": ["UpDecoderBlock2D"], "act_fn": "silu"}
    Ours().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(odd))
    for load in (lambda: Ours.from_config(dict(odd)), lambda: Ours.from_pretrained(tmp_path)):
        assert load().config.latent_channels == 4  # as diffusers does; `tests/test_walks.py` has the warning
    with pytest.raises(TypeError, match="act_fn"):
        Ours(act_fn="silu")
