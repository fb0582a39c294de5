"""More than one process: one clip on many ranks (`clip/`), a folder of videos on a machine or a cluster (`dataset/`)."""

from typing import TYPE_CHECKING

from temporal_vae.namespace import loaded_on_use

if TYPE_CHECKING:
    from temporal_vae.distributed.dataset.latents import LatentDataset

__all__ = ["LatentDataset"]

__getattr__ = loaded_on_use(__name__, {"LatentDataset": "dataset.latents"})
