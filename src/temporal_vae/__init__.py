"""temporal-vae: the video autoencoder of Stable Video Diffusion as a library and a tool of its own.

Public names are loaded on first use, so `import temporal_vae` pulls in neither torch nor PyAV.
"""

from typing import TYPE_CHECKING

from temporal_vae.namespace import loaded_on_use

if TYPE_CHECKING:
    from temporal_vae.autoencoders.image import AutoencoderKL, AutoencoderKLFlux2
    from temporal_vae.autoencoders.loading import load_autoencoder
    from temporal_vae.autoencoders.temporal import AutoencoderKLTemporalDecoder
    from temporal_vae.inflation import inflate
    from temporal_vae.media.frames import Clip
    from temporal_vae.video.pipeline import decode_video, encode_video, reconstruct_video

__version__ = "0.1.0"

__all__ = [
    "AutoencoderKL",
    "AutoencoderKLFlux2",
    "AutoencoderKLTemporalDecoder",
    "Clip",
    "__version__",
    "decode_video",
    "encode_video",
    "inflate",
    "load_autoencoder",
    "reconstruct_video",
]

__getattr__ = loaded_on_use(
    __name__,
    {
        "AutoencoderKL": "autoencoders.image",
        "AutoencoderKLFlux2": "autoencoders.image",
        "AutoencoderKLTemporalDecoder": "autoencoders.temporal",
        "Clip": "media.frames",
        "ModelMixin": "checkpoints.loading",  # diffusers' pipelines ask the library of a part for its base class
        "decode_video": "video.pipeline",
        "encode_video": "video.pipeline",
        "inflate": "inflation",
        "load_autoencoder": "autoencoders.loading",
        "reconstruct_video": "video.pipeline",
    },
)


def __dir__() -> list[str]:
    return sorted(__all__)
