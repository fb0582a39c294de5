"""The model that the options of a command name."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

from temporal_vae.errors import InputError

if TYPE_CHECKING:
    from temporal_vae.autoencoder import AutoencoderKLTemporalDecoder

DTYPES = ("float32", "bfloat16", "float16")


device_option = click.option(
    "--device",
    default="auto",
    show_default=True,
    help="To compute on: cpu, cuda, cuda:1, mps. auto: a CUDA GPU where there is one, else the CPU.",
)


def takes_model(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that name a model; it is called with the loaded one as `vae`."""

    @click.option(
        "--model", default="embedded", show_default=True, help="Folder, Hugging Face id, or `embedded`."
    )
    @click.option("--subfolder", help="Folder of the autoencoder inside the model, such as vae.")
    @click.option(
        "--dtype", type=click.Choice(DTYPES), default="float32", show_default=True, help="To compute in."
    )
    @device_option
    @wraps(command)
    def load_and_run(model: str, subfolder: str | None, dtype: str, device: str, **arguments: Any) -> None:
        command(vae=load_model(model, subfolder, dtype, device), **arguments)

    return load_and_run


def best_device() -> str:
    """The device to compute on where none is named: a CUDA GPU if there is one, or else the CPU."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def load_model(
    model: str, subfolder: str | None = None, dtype: str = "float32", device: str = "cpu"
) -> AutoencoderKLTemporalDecoder:
    """Load `model` in a dtype on a device, ready for inference.

    Raises:
        CheckpointError: a model that cannot be loaded.
        InputError: a device that this machine does not have.
    """
    import torch

    from temporal_vae.autoencoder import AutoencoderKLTemporalDecoder

    device = best_device() if device == "auto" else device
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
