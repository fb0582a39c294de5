"""The nodes of ComfyUI, called as ComfyUI calls them, on state dicts named as its autoencoders name theirs.

Its image autoencoders keep original names without prefix, quant_conv and post_quant_conv where the model has them; that
of Stable Video Diffusion has the temporal decoder of sgm; that of FLUX.2 carries `bn`, and takes patches of latents.
"""

import sys
from pathlib import Path
from types import SimpleNamespace

import diffusers
import pytest
import torch
from images import config
from oracle import assert_close, noise, randomise
from originals import OPTIONS, image_model, original, temporal_model
from refusals import refused

from temporal_vae import load_autoencoder
from temporal_vae.errors import CheckpointError, MemoryLimitError

sys.path.insert(0, str(Path(__file__).parents[1] / "integrations"))
from comfyui import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
from comfyui.nodes import ExactDecode, ExactEncode, autoencoder_of

PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
PLAIN = {"use_quant_conv": False, "use_post_quant_conv": False, "latent_channels": 16}


def comfy(tensors):
    """A VAE object of ComfyUI, as far as the nodes look."""
    return SimpleNamespace(first_stage_model=SimpleNamespace(state_dict=lambda: tensors))


def shown(x):
    return (x.float().add(1).div(2).clamp(0, 1)).permute(0, 2, 3, 1)


@pytest.mark.parametrize("options", [{}, PLAIN], ids=["SD", "FLUX"])
@pytest.mark.parametrize("limit", ["", "1GiB"])
@torch.no_grad()
def test_images(options, limit):
    theirs = image_model(**options)
    vae = comfy(original(theirs, *PARTS, temporal=False))
    z = noise(2, theirs.config.latent_channels, 5, 6)
    (pictures,) = ExactDecode().decode({"samples": z}, vae, limit)
    assert pictures.shape == (2, 20, 24, 3)
    assert_close(pictures, shown(theirs.decode(z).sample), 2e-5)
    (latents,) = ExactEncode().encode(pictures, vae, limit)
    assert_close(latents["samples"], theirs.encode(pictures.movedim(-1, 1) * 2 - 1).latent_dist.mode(), 2e-5)


@pytest.mark.parametrize("length", [0, 2])
@torch.no_grad()
def test_clips(length):
    theirs = temporal_model()
    vae, z = comfy(original(theirs, "encoder.", "decoder.")), noise(4, 4, 5, 6)
    (frames,) = ExactDecode().decode({"samples": z}, vae, "1GiB", clip_frames=length)
    assert_close(frames, shown(theirs.decode(z, num_frames=length or 4).sample), 2e-5)


@torch.no_grad()
def test_flux2():
    """There and back; what is between are the normalised patches that its pipelines work on."""
    theirs = randomise(diffusers.AutoencoderKLFlux2(**config(**OPTIONS, latent_channels=32))).eval()
    theirs.bn.running_mean.copy_(noise(128))
    theirs.bn.running_var.copy_(noise(128).square())
    tensors = original(theirs, *PARTS, temporal=False)
    tensors |= {f"bn.{name}": values for name, values in theirs.bn.state_dict().items()}
    pixels = noise(1, 21, 27, 3).sigmoid()
    (latents,) = ExactEncode().encode(pixels, comfy(tensors), "")
    x = pixels[:, 2:18, 1:25].movedim(-1, 1) * 2 - 1
    z = theirs.encode(x).latent_dist.mode()
    patches = diffusers.Flux2Pipeline._patchify_latents(z)
    expected = theirs.bn(patches)
    assert latents["samples"].shape == expected.shape == (1, 128, 2, 3)
    assert_close(latents["samples"], expected, 1e-4)
    (pictures,) = ExactDecode().decode(latents, comfy(tensors), "")
    assert_close(pictures, shown(theirs.decode(z).sample), 2e-4)


def test_weights_are_shared():
    tensors = original(image_model(), *PARTS, temporal=False)
    model = autoencoder_of(comfy(tensors))
    assert {values.data_ptr() for values in model.parameters()} == {
        values.data_ptr() for values in tensors.values()
    }


def test_a_managed_model_is_brought_to_its_device(monkeypatch):
    loaded = []
    comfy_package = SimpleNamespace(model_management=SimpleNamespace(load_models_gpu=loaded.append))
    monkeypatch.setitem(sys.modules, "comfy", comfy_package)
    vae = comfy(original(image_model(), *PARTS, temporal=False))
    vae.patcher = object()
    autoencoder_of(vae)
    assert loaded == [[vae.patcher]]


def test_what_is_no_autoencoder_of_ours():
    refused(
        CheckpointError,
        lambda: autoencoder_of(comfy({"taesd_decoder.1.weight": torch.ones(1)})),
        "no autoencoder",
    )


def test_a_limit_that_is_too_small():
    vae = comfy(original(image_model(), *PARTS, temporal=False))
    refused(
        MemoryLimitError,
        lambda: ExactDecode().decode({"samples": noise(1, 4, 5, 6)}, vae, "1MiB"),
        "at least",
    )


def test_nodes_are_named():
    assert NODE_CLASS_MAPPINGS.keys() == NODE_DISPLAY_NAME_MAPPINGS.keys()
    for node in NODE_CLASS_MAPPINGS.values():
        assert callable(getattr(node, node.FUNCTION))
        given = node.INPUT_TYPES()
        assert {"vae", "memory_limit"} <= given["required"].keys()


@pytest.mark.parametrize("half", [True, False])
def test_a_state_dict_is_loaded_as_it_is(half, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.json").write_text("of another program")
    theirs = image_model().half() if half else image_model()
    ours = load_autoencoder(theirs.state_dict(), scaling_factor=0.13025)
    assert ours.dtype == theirs.dtype
    assert ours.config.scaling_factor == 0.13025
    assert all(torch.equal(ours.state_dict()[name], values) for name, values in theirs.state_dict().items())
