"""Any autoencoder of this package, of whichever class: a configuration names it, and a file tells."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from temporal_vae.autoencoders.base import Autoencoder
from temporal_vae.autoencoders.image import AutoencoderKL, AutoencoderKLFlux2
from temporal_vae.autoencoders.temporal import AutoencoderKLTemporalDecoder
from temporal_vae.checkpoints.convert import load
from temporal_vae.checkpoints.lazy import TensorsAtHand
from temporal_vae.checkpoints.single_file import SingleFile
from temporal_vae.errors import CheckpointError

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
