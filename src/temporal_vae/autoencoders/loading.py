"""Any autoencoder of this package, of whichever class: a configuration names it, and a file tells."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from temporal_vae.autoencoders.base import Autoencoder
from temporal_vae.autoencoders.image import AutoencoderKL, AutoencoderKLFlux2
from temporal_vae.autoencoders.temporal import AutoencoderKLTemporalDecoder
from temporal_vae.checkpoints.convert import load
from temporal_vae.checkpoints.lazy import TensorsAtHand
from temporal_vae.checkpoints.single_file import SingleFile
from temporal_vae.engine.resources import best_device
from temporal_vae.errors import CheckpointError, InputError

CLASSES: dict[str, type[Autoencoder]] = {
    kind.__name__: kind for kind in (AutoencoderKLTemporalDecoder, AutoencoderKL, AutoencoderKLFlux2)
}


def class_of_file(file: SingleFile) -> type[Autoencoder]:
    """The class of the autoencoder in a file."""
    if file.temporal:
        return AutoencoderKLTemporalDecoder
    return AutoencoderKLFlux2 if file.normalised else AutoencoderKL


def class_of(source: str | Path, subfolder: str | None = None) -> type[Autoencoder]:
    """The class that the configuration in a folder or of a hub id names; that of clips where it names none.

    Raises:
        CheckpointError: one that this package does not have.
    """
    try:
        name = AutoencoderKLTemporalDecoder.load_config(source, subfolder=subfolder).get("_class_name")
    except (OSError, ValueError, AttributeError):
        name = None  # said by `from_pretrained`
    name = name or AutoencoderKLTemporalDecoder.__name__
    if name not in CLASSES:
        raise CheckpointError(f"{source}: is a {name}; pass a folder with one of {', '.join(CLASSES)}")
    return CLASSES[name]


def load_autoencoder(
    source: str | Path | Mapping[str, Tensor], *, subfolder: str | None = None, **options: Any
) -> Autoencoder:
    """Load a model, of clips or of pictures, as its class does.

    Args:
        source: a folder or hub id, as `from_pretrained` takes it; a safetensors file, as `from_single_file` does; or
            the state dict of an autoencoder, under original names or those of diffusers: its tensors are shared.
        subfolder: of a folder or hub id.
        **options: of `from_pretrained` or `from_single_file`, such as `torch_dtype`; of a state dict, values of the
            configuration.

    Returns:
        An `AutoencoderKLTemporalDecoder`, `AutoencoderKL` or `AutoencoderKLFlux2` in eval mode.

    Raises:
        CheckpointError: a class that this package does not have, and whatever its loading refuses.
    """
    if isinstance(source, Mapping):
        state = SingleFile("state dict", tensors=TensorsAtHand(source), allow_nonfinite=True)
        return load(class_of_file(state), state, options=options)
    if Path(source).suffix == ".safetensors":
        return class_of_file(SingleFile(source)).from_single_file(source, **options)
    model: Autoencoder = class_of(source, subfolder).from_pretrained(source, subfolder=subfolder, **options)
    return model


def load_named(
    name: str, subfolder: str | None = None, *, dtype: str = "float32", device: str = "cpu"
) -> Autoencoder:
    """Load the model that a user names, in a dtype on a device, ready for inference.

    Args:
        name: a folder, a hub id, a safetensors file, or `embedded`.
        subfolder: of a folder or hub id.
        dtype: as torch names it.
        device: as torch names it, or `auto`: a GPU where there is one.

    Raises:
        CheckpointError: a model that cannot be loaded.
        InputError: a device that this machine does not have.
    """
    device = best_device() if device == "auto" else device
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(
            f"--device {device}: not on this machine; use cpu, or a device torch sees"
        ) from error
    torch_dtype = getattr(torch, dtype)
    if name == "embedded":
        vae: Autoencoder = AutoencoderKLTemporalDecoder.from_embedded(torch_dtype=torch_dtype)
    else:
        vae = load_autoencoder(name, subfolder=subfolder, torch_dtype=torch_dtype)
    return vae.to(device).eval()
