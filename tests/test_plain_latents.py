"""Latents of pipelines and of ComfyUI, decoded from files: what the pipelines themselves make of them is the oracle."""

import numpy as np
import pytest
import test_image_pipelines as pictures
import test_svd_pipeline as svd
import torch
from command_line import run
from images import KINDS, pair
from oracle import noise
from oracle import pair as pair_of_clips
from PIL import Image
from refusals import refused
from safetensors.torch import save_file

from temporal_vae.errors import InputError, LatentFileError
from temporal_vae.media import VideoReader
from temporal_vae.video import LatentReader, decode_video, to_frames
from temporal_vae.video.plain_latents import PlainLatents

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"
)


def read(folder):
    return np.stack([np.asarray(Image.open(path)) for path in sorted(folder.iterdir())])


def levels(expected):
    """What a pipeline returned, values in [0, 1], as 8-bit frames `(t, h, w, 3)`."""
    return to_frames(expected.flatten(0, -4) * 2 - 1).astype(int)


def decoded(source, target, vae, **options):
    decode_video(source, target, vae=vae, **options)
    return read(target).astype(int)


@pytest.fixture(scope="module")
def vae():
    return pair("AutoencoderKL", KINDS["Stable Diffusion"][1])[0]


@pytest.mark.parametrize("name", ["SD", "SD 3", "AnimateDiff"])
def test_latents_of_a_pipeline(name, tmp_path):
    kind, options = pictures.PIPELINES[name][1]
    vae = pair(kind, options)[0]
    pipe = pictures.build(name, vae)
    latents, expected = (pictures.run(name, pipe, output_type=output) for output in ("latent", "pt"))
    save_file({"latents": latents.contiguous()}, tmp_path / "latents.safetensors")
    found = decoded(tmp_path / "latents.safetensors", tmp_path / "frames", vae, scaled=True)
    assert abs(found - levels(expected)).max() <= 1
    assert abs(found - decoded(tmp_path / "latents.safetensors", tmp_path / "unscaled", vae)).max() > 1


def test_latents_of_video_diffusion(tmp_path):
    vae = pair_of_clips(**svd.VAE)[0]
    pipe = svd.pipeline(vae)
    latents, expected = (
        svd.run(pipe, output_type=output, decode_chunk_size=3) for output in ("latent", "pt")
    )
    np.save(tmp_path / "latents.npy", latents.numpy())
    found = decoded(tmp_path / "latents.npy", tmp_path / "frames", vae, scaled=True)
    assert abs(found - levels(expected)).max() <= 1


def test_mean_and_deviation_of_latents(tmp_path):
    """As pipelines of SDXL use them; written out here."""
    values = {
        "latents_mean": [0.1, 0.2, 0.3, 0.4],
        "latents_std": [1.0, 2.0, 3.0, 4.0],
        "scaling_factor": 0.5,
    }
    vae = pair("AutoencoderKL", {**KINDS["one layer"][1], **values})[0]
    z = noise(2, 4, 5, 6)
    save_file({"z": z}, tmp_path / "z.safetensors")
    (_, mean, _) = next(PlainLatents(tmp_path / "z.safetensors", vae=vae, scaled=True).clips(None))
    for channel in range(4):
        expected = z[:, channel] * values["latents_std"][channel] / 0.5 + values["latents_mean"][channel]
        torch.testing.assert_close(mean[:, channel], expected)


def test_a_file_of_comfyui(vae, tmp_path):
    """As its node SaveLatent writes them: unscaled, beside an empty tensor that tells the version."""
    z = noise(1, 4, 6, 5)
    file = {"latent_tensor": z, "latent_format_version_0": torch.tensor([])}
    save_file(file, tmp_path / "ComfyUI_00001_.latent", {"prompt": "{}"})
    found = decoded(tmp_path / "ComfyUI_00001_.latent", tmp_path / "frames", vae)
    with torch.no_grad():
        assert abs(found - to_frames(vae.decode(z).sample).astype(int)).max() <= 1


CLIP = noise(4, 6, 3, 5)  # channels, frames
SHAPES = {
    "c t h w": CLIP,
    "t c h w": CLIP.transpose(0, 1),
    "1 c t h w": CLIP[None],
    "1 t c h w": CLIP.transpose(0, 1)[None],
    "bfloat16": CLIP.bfloat16(),
}


@pytest.mark.parametrize("values", SHAPES.values(), ids=SHAPES)
def test_shapes(vae, tmp_path, values):
    save_file({"z": values.contiguous()}, tmp_path / "z.safetensors")
    with PlainLatents(tmp_path / "z.safetensors", vae=vae) as latents:
        assert len(latents) == 6
        found = torch.cat([mean for _, mean, _ in latents.clips(4)])
    torch.testing.assert_close(found.float(), CLIP.transpose(0, 1), atol=0.02, rtol=0.02)


def test_as_many_frames_as_channels(vae, tmp_path):
    """Of clips the frames come first, of pictures the channels."""
    values = noise(1, 4, 4, 3, 5)
    np.save(tmp_path / "z.npy", values.numpy())
    for model, expected in ((vae, values[0].transpose(0, 1)), (pair_of_clips(**svd.VAE)[0], values[0])):
        ((_, mean, _),) = PlainLatents(tmp_path / "z.npy", vae=model).clips(None)
        assert torch.equal(mean, expected)


def test_the_command(tmp_path, capsys):
    source, target = tmp_path / "z.npy", tmp_path / "out.mp4"
    np.save(source, noise(1, 8, 5, 8, 6).numpy())
    assert run("decode", source, target, "--fps", 8, "--clip-frames", "all") == 0
    assert "5 frames of 24x32" in capsys.readouterr().out
    with VideoReader(target) as video:
        assert video.rate == 8
    assert run("decode", source, target, "--sample", 1) == 1
    assert "no posterior" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"z": noise(2, 4, 3, 5, 5)}, ("z (2, 4, 3, 5, 5)", "4 channels", "(1, c, t, h, w)")),
        ({"z": noise(1, 20, 64)}, ("z (1, 20, 64)", "unpacked")),
        ({"z": noise(3, 5, 8, 8)}, ("z (3, 5, 8, 8)", "4 channels")),
        ({"z": noise(1, 4, 8, 8), "y": noise(1, 4, 8, 8)}, ("y (1, 4, 8, 8), z (1, 4, 8, 8)", "one tensor")),
        ({"z": noise(8)}, ("z (8,)", "one tensor")),
        ({"z": torch.full((1, 4, 3, 3), torch.nan)}, ("z holds values", "not finite")),
    ],
)  # fmt: skip
def test_tensors_that_are_none(vae, tmp_path, values, words):
    source = tmp_path / "z.safetensors"
    save_file(values, source)
    refused(LatentFileError, lambda: decode_video(source, tmp_path / "out", vae=vae), str(source), *words)
    assert not (tmp_path / "out").exists()


def test_files_that_are_none(vae, tmp_path):
    torch.save(noise(1, 4, 3, 3), tmp_path / "z.pt")
    np.save(tmp_path / "whole.npy", np.arange(24).reshape(2, 3, 4))
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    (tmp_path / "empty.npy").touch()
    for name, *words in (
        ("z.pt", "safetensors or .npy"),
        ("whole.npy", "the array (2, 3, 4)"),
        ("objects.npy", "safetensors or .npy"),
        ("empty.npy", "safetensors or .npy"),
        ("none.npy", "no such file"),
    ):
        source = tmp_path / name
        refused(LatentFileError, lambda s=source: decode_video(s, tmp_path / "out", vae=vae), name, *words)


def test_what_has_no_meaning(vae, tmp_path):
    save_file({"z": noise(1, 4, 3, 3)}, tmp_path / "z.safetensors")
    flux2 = pair(*KINDS["FLUX.2"])[0]
    save_file({"z": noise(1, 32, 3, 3)}, tmp_path / "flux2.safetensors")
    z, target = tmp_path / "z.safetensors", tmp_path / "out"
    refused(InputError, lambda: decode_video(z, target, vae=vae, sample_seed=1), "sample", "no posterior")
    refused(InputError, lambda: decode_video(z, target, vae=vae, fps=0), "fps=0", "above 0")
    refused(
        InputError,
        lambda: decode_video(tmp_path / "flux2.safetensors", target, vae=flux2, scaled=True),
        "scaled", "AutoencoderKLFlux2", "patches",
    )  # fmt: skip


def test_a_latent_file_says_it_itself(footage, tmp_path):
    from temporal_vae import encode_video

    encode_video(footage, tmp_path / "z.safetensors", frames=1, size=(32, 24))
    with LatentReader(tmp_path / "z.safetensors"):
        pass
    for options in ({"scaled": True}, {"fps": 8}, {"fps": 0}):
        refused(
            InputError,
            lambda options=options: decode_video(tmp_path / "z.safetensors", tmp_path / "out", **options),
            *options, "by itself",
        )  # fmt: skip
