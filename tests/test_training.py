"""The trainer: rendered scenes, batches, the linear start, steps, resume, export, and the model it made."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from temporal_vae.autoencoder import AutoencoderKLTemporalDecoder
from temporal_vae.checkpoints.loading import EMBEDDED as EMBEDDED_FOLDER
from temporal_vae.errors import CheckpointError, ConfigError, InputError, MediaError
from temporal_vae.training import data, loop
from temporal_vae.training.__main__ import main
from temporal_vae.training.evaluate import measure, reconstruct
from temporal_vae.training.export import export
from temporal_vae.training.linear import LinearAutoencoder, plant
from temporal_vae.training.recipe import EMBEDDED, Phase, Recipe
from temporal_vae.training.scenes import render_scene

TINY = Recipe(
    block_out_channels=(96, 96),
    latent_channels=4,
    linear_crops=32,
    linear_size=16,
    linear_steps=30,
    phases=(Phase(steps=6, frames=4, clip_lengths=(1, 2), size=16),),
    learning_rate=1e-3,
    warm_up=2,
    ema=0.5,
    save_every=3,
    validate_every=6,
)


@pytest.fixture(scope="module")
def sampler() -> data.Sampler:
    sources = [
        data.Source(name=str(seed), kind="scene", frames=render_scene(seed, frames=3, height=64, width=64))
        for seed in range(2)
    ]
    return data.Sampler(sources, seed=0, odds={"scene": 1.0, "footage": 1.0})


def train(
    recipe: Recipe, sampler: data.Sampler, checkpoint: Path
) -> tuple[AutoencoderKLTemporalDecoder, list[str]]:
    lines: list[str] = []
    vae = loop.train(
        recipe, sampler, checkpoint=checkpoint, validate=lambda model: "measured", report=lines.append
    )
    return vae, lines


def test_scenes_are_reproducible_and_move() -> None:
    clip = render_scene(7, frames=3, height=40, width=56)
    assert clip.shape == (3, 40, 56, 3)
    assert clip.dtype == np.uint8
    assert np.array_equal(clip, render_scene(7, frames=3, height=40, width=56))
    assert not np.array_equal(clip, render_scene(8, frames=3, height=40, width=56))
    assert not np.array_equal(clip[0], clip[1])
    assert clip.std() > 10


def test_a_batch_depends_on_its_number_alone(sampler: data.Sampler) -> None:
    first = sampler.batch(3, clips=4, frames=2, size=24)
    assert first.shape == (8, 3, 24, 24)
    assert first.min() >= -1
    assert first.max() <= 1
    sampler.batch(9, clips=1, frames=1, size=16)
    assert torch.equal(first, sampler.batch(3, clips=4, frames=2, size=24))
    assert not torch.equal(first, sampler.batch(4, clips=4, frames=2, size=24))


def test_windows_no_source_can_fill(sampler: data.Sampler) -> None:
    with pytest.raises(InputError, match="128x128"):
        sampler.batch(0, clips=1, frames=1, size=128)


def test_what_is_held_out_is_not_trained_on() -> None:
    assert not set(data.HELD_OUT_PHOTOGRAPHS) & set(data.TRAINING_PHOTOGRAPHS)
    assert data.read_photograph(data.HELD_OUT_PHOTOGRAPHS[0]).shape[3] == 3


def test_the_planted_network_computes_the_linear_one(sampler: data.Sampler) -> None:
    torch.manual_seed(0)
    frames = sampler.batch(0, clips=8, frames=1, size=32)
    linear = LinearAutoencoder(channels=3, latent_channels=8, levels=3)
    linear.start_from_components(frames)
    linear.balance(frames)
    vae = AutoencoderKLTemporalDecoder(
        down_block_types=("DownEncoderBlock2D",) * 3,
        block_out_channels=(96, 96, 96),
        layers_per_block=1,
        latent_channels=8,
    )
    plant(linear, vae, logvar=-8.0)
    with torch.no_grad():
        posterior = vae.encode(frames).latent_dist
        output = vae.decode(posterior.mean, num_frames=4).sample
        wanted = linear(frames)
    assert torch.allclose(posterior.logvar, torch.tensor(-8.0))
    assert posterior.mean.std().item() == pytest.approx(1, abs=0.1)
    assert (output - wanted).square().mean().sqrt() < 0.1 * wanted.std()


def test_the_linear_start_needs_room_for_constants() -> None:
    vae = loop.new_model(dataclasses.replace(TINY, block_out_channels=(64, 64)))
    with pytest.raises(ConfigError, match="at least 96"):
        plant(LinearAutoencoder(channels=3, latent_channels=4, levels=2), vae, logvar=-8.0)


def test_steps_reduce_the_loss(sampler: data.Sampler) -> None:
    recipe = dataclasses.replace(
        TINY, phases=(Phase(steps=40, frames=4, clip_lengths=(2,), size=16),), warm_up=5
    )
    run = loop.new_run(recipe)
    loop.start_linear(run, recipe, sampler)
    losses = [loop.training_step(run, recipe, sampler) for _ in range(40)]
    assert sum(losses[-8:]) < 0.8 * sum(losses[:8])


def test_a_resumed_run_ends_in_the_same_weights(sampler: data.Sampler, tmp_path: Path) -> None:
    whole, lines = train(TINY, sampler, tmp_path / "whole.safetensors")
    assert lines[0].startswith("linear start")
    assert lines[-1] == "step 6: measured"

    checkpoint = tmp_path / "parts.safetensors"
    run = loop.new_run(TINY)
    loop.start_linear(run, TINY, sampler)
    for _ in range(2):
        loop.training_step(run, TINY, sampler)
    loop.save_run(run, checkpoint)
    parts, lines = train(TINY, sampler, checkpoint)
    assert "step 2" in lines[0]
    for name, value in whole.state_dict().items():
        assert torch.equal(value, parts.state_dict()[name]), name
    assert sorted(path.name for path in tmp_path.iterdir()) == ["parts.safetensors", "whole.safetensors"]


def test_another_recipes_checkpoint_is_refused(sampler: data.Sampler, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint.safetensors"
    loop.save_run(loop.new_run(TINY), checkpoint)
    with pytest.raises(CheckpointError, match="no checkpoint of this recipe"):
        loop.load_run(loop.new_run(EMBEDDED), checkpoint)
    checkpoint.write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="no checkpoint of this recipe"):
        loop.load_run(loop.new_run(TINY), checkpoint)


def test_exported_models_load_in_half_precision(sampler: data.Sampler, tmp_path: Path) -> None:
    vae = loop.new_model(TINY)
    export(vae, sampler, tmp_path)
    loaded = AutoencoderKLTemporalDecoder.from_pretrained(tmp_path)
    scale = json.loads((tmp_path / "config.json").read_text())["scaling_factor"]
    assert loaded.config.scaling_factor == scale
    with torch.no_grad():
        latents = vae.encode(sampler.batch(0, clips=64, frames=1, size=64)).latent_dist.mean
    assert scale * latents.std().item() == pytest.approx(1, rel=0.2)
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, vae.state_dict()[name].half().float()), name


def test_footage_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="holds no"):
        data.footage_files(tmp_path)
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"not a video")
    with pytest.raises(MediaError, match=r"broken\.mp4"):
        data.read_video(broken, width=32)
    result = CliRunner().invoke(main, ["--media", str(tmp_path / "nowhere"), "--output", str(tmp_path)])
    assert result.exit_code == 2
    assert "nowhere" in result.output


def test_the_embedded_model_is_small_and_good() -> None:
    weights = EMBEDDED_FOLDER / "diffusion_pytorch_model.safetensors"
    assert sum(file.stat().st_size for file in EMBEDDED_FOLDER.iterdir()) <= 12_000_000
    vae = AutoencoderKLTemporalDecoder.from_embedded()
    assert sum(parameter.numel() for parameter in vae.parameters()) <= 6_000_000
    assert weights.stat().st_size <= 12_000_000
    frames = data.read_video(data.package_video("bikes.mp4"), width=320, limit=2)
    assert measure(frames, reconstruct(vae, frames)).psnr >= 24
