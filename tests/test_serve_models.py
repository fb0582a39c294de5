"""Services of other models than the embedded one: of images, in half precision, on other devices."""

from importlib.util import find_spec

import images
import kinds
import numpy as np
import pytest
import requests
import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils.remote_utils import remote_decode, remote_encode
from PIL import Image
from serving import serving, serving_here

from temporal_vae import AutoencoderKLTemporalDecoder
from temporal_vae.checkpoints.loading import EMBEDDED
from temporal_vae.video.coder import as_encoder

pytestmark = pytest.mark.filterwarnings("ignore:`do_scaling` is deprecated:FutureWarning")

ROUNDING = 2e-5
NUMBERS = {"latents_mean": [0.1, -0.2, 0.3, 0.4], "latents_std": [1.5, 0.5, 2.0, 1.0]}
MODELS = {
    "Stable Diffusion": ("AutoencoderKL", images.SMALL),
    "FLUX": images.KINDS["FLUX"],
    "numbers for each channel": ("AutoencoderKL", {**images.SMALL, **NUMBERS}),
}
SCALINGS = {
    "nothing": {"do_scaling": False},
    "factor and shift": {"scaling_factor": 0.7, "shift_factor": 0.2},
    "of the configuration": {"do_scaling": True},
    "of the configuration, shifted": {"do_scaling": True, "shift_factor": 0.3},
}


@pytest.fixture(scope="module", params=MODELS.values(), ids=MODELS)
def served(request):
    """An image autoencoder and where it is served."""
    vae, _ = images.pair(*request.param)
    with serving_here(vae) as url:
        yield vae, url


def unscaled(z, config, *, do_scaling=True, scaling_factor=None, shift_factor=None):
    """As pipelines of diffusers do it: `(b, c, h, w)`."""
    if not do_scaling:
        return z
    if scaling_factor is not None:
        return z / scaling_factor + (shift_factor or 0)
    z = z / config["scaling_factor"]
    if shift_factor is None and config.get("latents_std"):
        return z * torch.tensor(config["latents_std"]).view(-1, 1, 1) + torch.tensor(
            config["latents_mean"]
        ).view(-1, 1, 1)
    return z + ((config.get("shift_factor") or 0) if shift_factor is None else shift_factor)


@torch.no_grad()
def decoded(vae, z):
    return vae.decode(z).sample


@pytest.mark.parametrize("how", SCALINGS.values(), ids=SCALINGS)
@pytest.mark.parametrize("layout", [(2,), (1, 3)], ids=["pictures", "clips"])
def test_image_autoencoders_decode(served, layout, how):
    vae, url = served
    z = torch.randn(2, vae.config["latent_channels"], 3, 4, generator=torch.Generator().manual_seed(1))
    expected = decoded(vae, unscaled(z, vae.config, **how))
    if len(layout) == 2:  # (b, c, t, h, w)
        z, expected = z.transpose(0, 1)[None].contiguous(), expected.transpose(0, 1)[None]
    found = remote_decode(f"{url}/decode", z, output_type="pt", return_type="pt", **how)
    torch.testing.assert_close(found, expected, atol=ROUNDING, rtol=ROUNDING)


def test_image_autoencoders_answer_with_images(served):
    vae, url = served
    z = torch.randn(1, vae.config["latent_channels"], 3, 4)
    found = remote_decode(f"{url}/", z, do_scaling=False, image_format="png")
    expected = VaeImageProcessor().postprocess(decoded(vae, z), output_type="np")[0] * 255
    assert np.abs(np.asarray(found) - expected).max() < 1.01


def test_image_autoencoders_encode(served):
    vae, url = served
    pixels = np.random.default_rng(0).integers(0, 256, (2 * vae.spatial_factor, 17, 3), np.uint8)
    image = Image.fromarray(pixels)
    x = VaeImageProcessor(vae_scale_factor=vae.spatial_factor).preprocess(image)
    with torch.no_grad():
        mode = vae.encode(x).latent_dist.mode()
    found = remote_encode(f"{url}/encode", image, scaling_factor=0.7, shift_factor=0.2)
    torch.testing.assert_close(found, (mode - 0.2) * 0.7, atol=ROUNDING, rtol=ROUNDING)
    assert requests.get(f"{url}/info", timeout=60).json()["model"]["clips"] is False


def test_latents_in_patches_have_no_factor_of_the_configuration():
    vae, _ = images.pair(*images.KINDS["FLUX.2"])
    z = torch.randn(1, 32, 3, 4)
    with serving_here(vae) as url:
        with pytest.raises(
            RuntimeError, match=r"do_scaling: pipelines of AutoencoderKLFlux2 .* do_scaling=false"
        ):
            remote_decode(f"{url}/decode", z, output_type="pt", return_type="pt")
        for how in (SCALINGS["nothing"], SCALINGS["factor and shift"]):
            found = remote_decode(f"{url}/decode", z, output_type="pt", return_type="pt", **how)
            expected = decoded(vae, unscaled(z, vae.config, **how))
            torch.testing.assert_close(found, expected, atol=ROUNDING, rtol=ROUNDING)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_models_in_half_precision(dtype):
    """Those that ask for it encode in single precision, and all answer in their own type."""
    vae = AutoencoderKLTemporalDecoder.from_pretrained(EMBEDDED, torch_dtype=dtype).eval()
    x = torch.rand(2, 3, 12, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with serving_here(vae) as url:
        latents = remote_encode(f"{url}/encode", x.to(dtype))
        pictures = remote_decode(
            f"{url}/decode", latents, do_scaling=False, output_type="pt", return_type="pt"
        )
    encoder = as_encoder(vae)
    with torch.no_grad():
        expected = encoder.encode(x.to(dtype).to(encoder.dtype)).latent_dist.mode().to(dtype)
        shown = vae.decode(expected, num_frames=2).sample
    assert latents.dtype == pictures.dtype == dtype
    torch.testing.assert_close(latents, expected)
    torch.testing.assert_close(pictures, shown)


def test_what_overflows_half_precision_is_refused():
    vae = AutoencoderKLTemporalDecoder.from_pretrained(EMBEDDED, torch_dtype=torch.float16).eval()
    z = torch.full((1, 8, 3, 4), 1e6)
    with (
        serving_here(vae) as url,
        pytest.raises(RuntimeError, match="larger than this model takes in float16"),
    ):
        remote_decode(f"{url}/decode", z, do_scaling=False, output_type="pt", return_type="pt")


@pytest.mark.slow
def test_a_model_of_a_folder_is_served(tmp_path):
    vae, _ = kinds.pair(kinds.PICTURES)
    vae.save_pretrained(tmp_path / "mine")
    z = torch.randn(1, 4, 3, 4)
    options = ("--model", str(tmp_path / "mine"), "--dtype", "bfloat16", "--device", "cpu")
    with serving(*options) as server:
        found = remote_decode(f"{server.url}/", z, do_scaling=False, output_type="pt", return_type="pt")
        info = server.get("/info").json()
    expected = decoded(vae.to(torch.bfloat16), z.to(torch.bfloat16))
    assert info["model"]["name"] == "mine"
    assert info["model"]["dtype"] == "bfloat16"
    assert str(tmp_path) not in str(info)
    torch.testing.assert_close(found, expected, atol=0.05, rtol=0.05)  # in another order, of 8 bits


def test_a_model_and_a_device_that_are_none(capsys, monkeypatch):
    from temporal_vae.cli import main

    for words, message in (
        (("--model", "/nowhere"), "/nowhere"),
        (("--device", "abacus"), "abacus"),
        (("--memory-limit", "lots"), "lots"),
        (("--memory-limit", "1MiB"), "takes at least"),
        (("--token", "gelb\u00fc"), "--token: letters and digits of ASCII only"),
        (("--origin", "https://a.example/page"), "--origin https://a.example/page: a scheme and a host"),
        (("--host", "256.1.1.1"), "256.1.1.1, port 8000"),
    ):
        monkeypatch.setattr("sys.argv", ["temporal-vae", "serve", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code in (1, 2)
        error = capsys.readouterr().err
        assert message in error
        assert ended.value.code == 2 or error.count("\n") == 1, error


def test_what_is_not_installed_is_named(capsys, monkeypatch):
    from temporal_vae.cli import main

    monkeypatch.setattr(
        "temporal_vae.namespace.find_spec", lambda name: None if name == "fastapi" else find_spec(name)
    )
    monkeypatch.setattr("sys.argv", ["temporal-vae", "serve"])
    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().err == (
        "temporal-vae: serve: fastapi is not installed; pip install 'temporal-vae[serve]'\n"
    )
