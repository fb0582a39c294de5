"""Training of the autoencoder, or of its temporal layers: `temporal-vae train`.

Read `config/` (what a run is told), `data/` (what it learns from), `step.py` (one step; the losses are in `losses.py`
and `objective.py`, the critics in `discriminator.py`), then `loop.py`. What a run begins with is in `initial.py`, what
it keeps in `checkpoint.py`, what it shows in `log.py`, what it is measured by in `validation.py`.
"""

from typing import TYPE_CHECKING

from temporal_vae.namespace import loaded_on_use

if TYPE_CHECKING:
    from temporal_vae.training.config import (
        Source,
        TrainConfig,
        Validation,
        make_config,
        read_config,
        to_yaml,
    )
    from temporal_vae.training.data.sources import items_of
    from temporal_vae.training.loop import train
    from temporal_vae.training.validation import Sample, measure, reconstruct, samples

__all__ = [
    "Sample",
    "Source",
    "TrainConfig",
    "Validation",
    "items_of",
    "make_config",
    "measure",
    "read_config",
    "reconstruct",
    "samples",
    "to_yaml",
    "train",
]

__getattr__ = loaded_on_use(
    __name__,
    {
        **dict.fromkeys(("Sample", "measure", "reconstruct", "samples"), "validation"),
        **dict.fromkeys(("Source", "TrainConfig", "Validation"), "config"),
        **dict.fromkeys(("make_config", "read_config", "to_yaml"), "config"),
        "items_of": "data.sources",
        "train": "loop",
    },
)
