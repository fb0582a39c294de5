"""Files through a model: videos to latents and back, and how close the result is."""

from typing import TYPE_CHECKING

from temporal_vae.namespace import loaded_on_use

if TYPE_CHECKING:
    from temporal_vae.video.coder import to_frames, to_tensor
    from temporal_vae.video.latents import LatentInfo, LatentReader, LatentWriter
    from temporal_vae.video.pipeline import decode_video, encode_video, reconstruct_video
    from temporal_vae.video.report import Report

__all__ = [
    "LatentInfo",
    "LatentReader",
    "LatentWriter",
    "Report",
    "decode_video",
    "encode_video",
    "reconstruct_video",
    "to_frames",
    "to_tensor",
]

__getattr__ = loaded_on_use(
    __name__,
    {
        "LatentInfo": "latents",
        "LatentReader": "latents",
        "LatentWriter": "latents",
        "Report": "report",
        "decode_video": "pipeline",
        "encode_video": "pipeline",
        "reconstruct_video": "pipeline",
        "to_frames": "coder",
        "to_tensor": "coder",
    },
)
