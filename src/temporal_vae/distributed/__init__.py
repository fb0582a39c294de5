"""More than one process: a clip on many ranks (`clip/`), a folder of videos on a machine or a cluster (`dataset/`)."""

from typing import TYPE_CHECKING

from temporal_vae.namespace import loaded_on_use

if TYPE_CHECKING:
    from temporal_vae.distributed.clip.sharded import decode_sharded, encode_sharded, plan_sharded
    from temporal_vae.distributed.dataset.decoding import decode_dataset
    from temporal_vae.distributed.dataset.executors.local import LocalExecutor
    from temporal_vae.distributed.dataset.executors.ranks import RankExecutor
    from temporal_vae.distributed.dataset.executors.ray import RayExecutor
    from temporal_vae.distributed.dataset.latents import LatentDataset
    from temporal_vae.distributed.dataset.run import encode_dataset
    from temporal_vae.distributed.dataset.settings import Settings

__all__ = [
    "LatentDataset",
    "LocalExecutor",
    "RankExecutor",
    "RayExecutor",
    "Settings",
    "decode_dataset",
    "decode_sharded",
    "encode_dataset",
    "encode_sharded",
    "plan_sharded",
]

__getattr__ = loaded_on_use(
    __name__,
    {
        "LatentDataset": "dataset.latents",
        "LocalExecutor": "dataset.executors.local",
        "RankExecutor": "dataset.executors.ranks",
        "RayExecutor": "dataset.executors.ray",
        "Settings": "dataset.settings",
        "decode_dataset": "dataset.decoding",
        "decode_sharded": "clip.sharded",
        "encode_dataset": "dataset.run",
        "encode_sharded": "clip.sharded",
        "plan_sharded": "clip.sharded",
    },
)
