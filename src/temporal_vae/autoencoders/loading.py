"""Any autoencoder of this package, of whichever class: a configuration names it, and a file tells."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from temporal_vae.autoencoders.base import Autoencoder
from temporal_vae.autoencoders.image import AutoencoderKL, AutoencoderKLFlux2
from temporal_vae.autoencoders.temporal import AutoencoderKLTemporalDecoder
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


def load_pretrained(source: str | Path, *, subfolder: str | None = None, **options: Any) -> Autoencoder:
    """Load a model from a folder, a hub id or a safetensors file, as its class does.

    Args:
        source: as `from_pretrained` or `from_single_file` take it.
        subfolder: of a folder or hub id.
        **options: of either, such as `torch_dtype`.

    Raises:
        CheckpointError: a class that this package does not have, and whatever its loading refuses.
    """
    if Path(source).suffix == ".safetensors":
        return class_of_file(SingleFile(source)).from_single_file(source, **options)
    model: Autoencoder = class_of(source, subfolder).from_pretrained(source, subfolder=subfolder, **options)
    return model
