"""Loading the model that the options of a command name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from temporal_vae.errors import InputError

if TYPE_CHECKING:
    from temporal_vae.autoencoder import AutoencoderKLTemporalDecoder


def load_model(model: str, subfolder: str | None, dtype: str, device: str) -> AutoencoderKLTemporalDecoder:
    """Load `model` in a dtype on a device, ready for inference.

    Raises:
        CheckpointError: a model that cannot be loaded.
        InputError: a device that this machine does not have.
    """
    import torch

    from temporal_vae.autoencoder import AutoencoderKLTemporalDecoder

    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(
            f"--device {device}: not on this machine; use cpu, or a device torch sees"
        ) from error
    torch_dtype = getattr(torch, dtype)
    if model == "embedded":
        vae = AutoencoderKLTemporalDecoder.from_embedded(torch_dtype=torch_dtype)
    else:
        vae = AutoencoderKLTemporalDecoder.from_pretrained(
            model, subfolder=subfolder, torch_dtype=torch_dtype
        )
    return vae.to(device).eval()
