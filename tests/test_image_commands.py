"""The commands with an image autoencoder: frames are pictures, each by itself, and a picture is a picture."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import run
from images import KINDS, config
from oracle import randomise
from PIL import Image
from refusals import refused
from video_files import scene

import temporal_vae
from temporal_vae import decode_video, encode_video, load_autoencoder, reconstruct_video
from temporal_vae.errors import CheckpointError, InputError, LatentFileError, MediaError
from temporal_vae.media.reader import VideoReader
from temporal_vae.media.writer import VideoWriter
from temporal_vae.video.coder import to_frames, to_tensor

FRAMES = 6
MODELS = {name: KINDS[name] for name in ("Stable Diffusion", "FLUX", "a narrow decoder")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A clip, a photo and three models."""
    folder = tmp_path_factory.mktemp("images")
    frames = scene(FRAMES)
    with VideoWriter(folder / "in.mkv", rate=25) as writer:
        writer.write(frames)
    Image.fromarray(frames[0]).save(folder / "photo.png")
    for name, (kind, options) in MODELS.items():
        model = randomise(getattr(temporal_vae, kind)(**config(**options)))
        model.save_pretrained(folder / name / "vae")
    return folder


def of_model(folder: Path, name: str = "Stable Diffusion") -> tuple[str, ...]:
    return "--model", str(folder / name), "--subfolder", "vae"


def frames_of(path: Path) -> np.ndarray:
    with VideoReader(path) as reader:
        return next(reader.clips(None)).frames


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_there_and_back(folder, name, tmp_path, capsys):
    latents, out = tmp_path / "in.safetensors", tmp_path / "out.mkv"
    assert run("encode", folder / "in.mkv", latents, *of_model(folder, name)) == 0
    assert run("decode", latents, out, *of_model(folder, name)) == 0
    vae = load_autoencoder(folder / name, subfolder="vae")
    assert type(vae) is getattr(temporal_vae, MODELS[name][0])
    original = frames_of(folder / "in.mkv")
    z = vae.encode(to_tensor(original)).latent_dist.mode()
    expected = np.concatenate([to_frames(vae.decode(one[None]).sample) for one in z])
    assert np.abs(frames_of(out).astype(int) - expected).max() <= 1
    capsys.readouterr()
    assert run("reconstruct", folder / "in.mkv", tmp_path / "again.mkv", *of_model(folder, name)) == 0
    printed = capsys.readouterr().out
    assert "each frame by itself" in printed
    assert "flicker" in printed
    assert np.abs(frames_of(tmp_path / "again.mkv").astype(int) - expected).max() <= 1
    assert run("info", latents, "--json") == 0
    assert json.loads(capsys.readouterr().out)["shape"][1] == vae.config.latent_channels


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_a_photo_becomes_a_photo(folder, suffix, tmp_path):
    out = tmp_path / f"out{suffix}"
    assert run("reconstruct", folder / "photo.png", out, *of_model(folder)) == 0
    assert run("encode", folder / "photo.png", tmp_path / "z.safetensors", *of_model(folder)) == 0
    assert run("decode", tmp_path / "z.safetensors", tmp_path / "exact.png", *of_model(folder)) == 0
    with (
        Image.open(out) as image,
        Image.open(tmp_path / "exact.png") as exact,
        Image.open(folder / "photo.png") as photo,
    ):
        assert image.format == {".png": "PNG", ".jpg": "JPEG", ".webp": "WEBP"}[suffix]
        assert image.size == exact.size == photo.size
        error = np.abs(np.asarray(image).astype(int) - np.asarray(exact)).mean()
    assert error < 8 if suffix == ".jpg" else error == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["exact.png", f"out{suffix}", f"out{suffix}.metrics.json", "z.safetensors"]
    )


def test_a_video_is_no_picture(folder, tmp_path):
    vae = load_autoencoder(folder / "FLUX", subfolder="vae")
    refused(
        MediaError, lambda: reconstruct_video(folder / "in.mkv", tmp_path / "out.png", vae=vae),
        "out.png", "one picture", "folder",
    )  # fmt: skip
    assert not list(tmp_path.iterdir())


def test_clips_have_no_meaning_and_that_is_said(folder, tmp_path, caplog):
    vae = load_autoencoder(folder / "FLUX", subfolder="vae")
    encode_video(folder / "in.mkv", tmp_path / "z.safetensors", vae=vae)
    refused(
        InputError, lambda: decode_video(tmp_path / "z.safetensors", tmp_path / "out.mkv", vae=vae, overlap=2),
        "overlap=2", "AutoencoderKL", "each frame by itself",
    )  # fmt: skip
    logging.getLogger("temporal_vae").propagate = True
    with caplog.at_level("WARNING"):
        decode_video(tmp_path / "z.safetensors", tmp_path / "three.mkv", vae=vae, clip_frames=3)
        assert "clip_frames=3 has no meaning" in caplog.text
        caplog.clear()
        decode_video(tmp_path / "z.safetensors", tmp_path / "all.mkv", vae=vae)
        assert not caplog.text
    assert np.array_equal(frames_of(tmp_path / "three.mkv"), frames_of(tmp_path / "all.mkv"))


def test_latents_of_another_model_are_refused(folder, tmp_path):
    latents = tmp_path / "z.safetensors"
    encode_video(folder / "photo.png", latents, vae=load_autoencoder(folder / "FLUX", subfolder="vae"))
    for other in (load_autoencoder(folder / "Stable Diffusion", subfolder="vae"), None):
        refused(
            LatentFileError,
            lambda vae=other: decode_video(latents, tmp_path / "x.png", vae=vae),
            "made by model",
        )


def test_info(folder, capsys):
    assert run("info", folder / "a narrow decoder", "--subfolder", "vae", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["class"] == "AutoencoderKLFlux2"
    assert found["decoder_block_out_channels"] == [32, 32, 64]
    assert run("info", folder / "FLUX", "--subfolder", "vae") == 0
    assert "shift_factor" in capsys.readouterr().out


def test_a_model_of_another_class(tmp_path):
    (tmp_path / "config.json").write_text('{"_class_name": "VQModel"}')
    refused(CheckpointError, lambda: load_autoencoder(tmp_path), "VQModel", "AutoencoderKL")


@pytest.mark.parametrize("model", ["sd", "sdxl", "sd3", "flux", "flux2"])
def test_plan(model, capsys):
    assert run("plan", "--model", model, "--size", "4096x4096", "--memory-limit", "4GiB", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["frames"], found["clips"]) == (1, False)
    assert found["peak"] <= 4 * 2**30
    assert run("plan", "--model", model, "--size", "2048x2048", "--memory-limit", "1.5GiB") == 0
    assert "1 at a time" in capsys.readouterr().out


def test_plan_of_a_folder(folder, capsys):
    assert run("plan", *of_model(folder, "a narrow decoder"), "--size", "64x64", "--frames", 3, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    vae = load_autoencoder(folder / "a narrow decoder", subfolder="vae")
    with torch.device("cpu"):
        plan = vae.plan_decode(height=64, width=64, num_frames=3)
    assert (found["work"], found["batch"]) == (plan.work, 3)


def test_a_clip_has_a_length(capsys):
    assert run("plan", "--size", "64x64") == 2
    assert "--frames" in capsys.readouterr().err
