"""What ComfyUI calls: its VAE object and its tensors in, its tensors out.

ComfyUI keeps pictures as `(n, h, w, c)` in [0, 1] and latents as `{"samples": (n, z, h, w)}`, unscaled. Those of
FLUX.2 are patches of 2x2 latents, normalised by the running mean and variance that the autoencoder carries.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from temporal_vae import load_autoencoder

LIMIT = {"default": "4GiB", "tooltip": "Memory above the weights, such as 4GiB; empty for what is free."}


class ExactDecode:
    """Latents to pictures, or to the frames of a clip: the same pixels as whole, without tiles that are blended."""

    CATEGORY = "latent"
    FUNCTION = "decode"
    RETURN_TYPES: ClassVar = ("IMAGE",)
    DESCRIPTION = (
        "Decode exactly within a memory limit: no seams, no blending. Works for image and SVD autoencoders."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # a name of ComfyUI's
        """What the node is connected to."""
        frames = {
            "default": 0,
            "min": 0,
            "max": 4096,
            "tooltip": "Of a clip of a video autoencoder; 0 for all.",
        }
        return {
            "required": {"samples": ("LATENT",), "vae": ("VAE",), "memory_limit": ("STRING", LIMIT)},
            "optional": {"clip_frames": ("INT", frames)},
        }

    @torch.no_grad()
    def decode(
        self, samples: dict[str, Tensor], vae: Any, memory_limit: str, clip_frames: int = 0
    ) -> tuple[Tensor]:
        """Pictures `(n, h, w, c)` in [0, 1]."""
        model = autoencoder_of(vae)
        parameter = next(model.parameters())
        z = samples["samples"].to(parameter.device, parameter.dtype)
        if hasattr(model, "bn"):
            z = unpatched(z, model)
        length = {"num_frames": clip_frames or len(z)} if model.clips else {}
        x = model.decode(z, memory_limit=memory_limit.strip() or None, **length).sample
        return (x.float().add(1).div(2).clamp(0, 1).movedim(1, -1).to(samples["samples"].device),)


class ExactEncode:
    """Pictures to latents: the mean of their posterior, computed whole."""

    CATEGORY = "latent"
    FUNCTION = "encode"
    RETURN_TYPES: ClassVar = ("LATENT",)
    DESCRIPTION = "Encode exactly within a memory limit: no seams, no blending."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """What the node is connected to."""
        return {"required": {"pixels": ("IMAGE",), "vae": ("VAE",), "memory_limit": ("STRING", LIMIT)}}

    @torch.no_grad()
    def encode(self, pixels: Tensor, vae: Any, memory_limit: str) -> tuple[dict[str, Tensor]]:
        """Latents of pictures `(n, h, w, c)` in [0, 1], cropped to whole latents about their middle."""
        model = autoencoder_of(vae)
        parameter = next(model.parameters())
        factor = model.spatial_factor * (2 if hasattr(model, "bn") else 1)
        x = cropped(pixels[..., :3], factor).movedim(-1, 1).mul(2).sub(1)
        x = x.to(parameter.device, parameter.dtype)
        z = model.encode(x, memory_limit=memory_limit.strip() or None).latent_dist.mode()
        if hasattr(model, "bn"):
            z = patched(z, model)
        return ({"samples": z.to(pixels.device)},)


def autoencoder_of(vae: Any) -> Any:
    """The autoencoder of a ComfyUI VAE object, made anew for each call: it shares the weights where they lie now."""
    patcher = getattr(vae, "patcher", None)
    if patcher is not None:
        from comfy import model_management

        model_management.load_models_gpu([patcher])
    weights = vae.first_stage_model.state_dict()
    known = {} if "bn.running_mean" in weights else {"scaling_factor": 1.0}  # ComfyUI scales latents itself
    return load_autoencoder(weights, **known)


def cropped(pixels: Tensor, factor: int) -> Tensor:
    """Pictures `(n, h, w, c)` with sides that are multiples of the factor, as ComfyUI crops them."""
    for axis in (1, 2):
        length = pixels.shape[axis] // factor * factor
        pixels = pixels.narrow(axis, pixels.shape[axis] % factor // 2, length)
    return pixels


def patched(z: Tensor, model: Any) -> Tensor:
    """Latents `(n, c, 2h, 2w)` as normalised patches `(n, 4c, h, w)`."""
    mean, deviation = _normalisation(model, z)
    return (torch.nn.functional.pixel_unshuffle(z, 2) - mean) / deviation


def unpatched(z: Tensor, model: Any) -> Tensor:
    """The inverse of `patched`."""
    mean, deviation = _normalisation(model, z)
    return torch.nn.functional.pixel_shuffle(z * deviation + mean, 2)


def _normalisation(model: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    mean, deviation = model.bn.running_mean, torch.sqrt(model.bn.running_var + model.bn.eps)
    return tuple(values.to(like).view(1, -1, 1, 1) for values in (mean, deviation))


NODE_CLASS_MAPPINGS = {"TemporalVaeDecode": ExactDecode, "TemporalVaeEncode": ExactEncode}
NODE_DISPLAY_NAME_MAPPINGS = {
    "TemporalVaeDecode": "VAE Decode (exact, memory limit)",
    "TemporalVaeEncode": "VAE Encode (exact, memory limit)",
}
