"""Any autoencoder of this package from a folder or hub id: the configuration names its class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from temporal_vae.autoencoders.base import Autoencoder
from temporal_vae.autoencoders.image import AutoencoderKL, AutoencoderKLFlux2
from temporal_vae.autoencoders.temporal import AutoencoderKLTemporalDecoder
from temporal_vae.errors import CheckpointError

CLASSES: dict[str, type[Autoencoder]] = {
    kind.__name__: kind for kind in (AutoencoderKLTemporalDecoder, AutoencoderKL, AutoencoderKLFlux2)
}


def load_pretrained(source: str | Path, *, subfolder: str | None = None, **options: Any) -> Autoencoder:
    """Load a model of whichever class its `config.json` names, as `from_pretrained` of that class does.

    Raises:
        CheckpointError: a class that this package does not have, and whatever `from_pretrained` refuses.
    """
    try:
        name = AutoencoderKLTemporalDecoder.load_config(source, subfolder=subfolder).get("_class_name")
    except (OSError, ValueError, AttributeError):
        name = None  # said by `from_pretrained`
    name = name or AutoencoderKLTemporalDecoder.__name__
    if name not in CLASSES:
        raise CheckpointError(f"{source}: is a {name}; pass a folder with one of {', '.join(CLASSES)}")
    model: Autoencoder = CLASSES[name].from_pretrained(source, subfolder=subfolder, **options)
    return model
