"""temporal-vae: the video autoencoder of Stable Video Diffusion as a library and a tool of its own.

Public names are loaded on first use, so `import temporal_vae` pulls in neither torch nor PyAV.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from temporal_vae.autoencoder import AutoencoderKLTemporalDecoder as AutoencoderKLTemporalDecoder
    from temporal_vae.video.frames import Clip as Clip
    from temporal_vae.video.pipeline import decode_video as decode_video
    from temporal_vae.video.pipeline import encode_video as encode_video
    from temporal_vae.video.pipeline import reconstruct_video as reconstruct_video

__version__ = "0.1.0"

_HOME = {
    "AutoencoderKLTemporalDecoder": "temporal_vae.autoencoder",
    "Clip": "temporal_vae.video.frames",
    "ModelMixin": "temporal_vae.autoencoder",  # diffusers' pipelines ask the library of a part for its base class
    "decode_video": "temporal_vae.video.pipeline",
    "encode_video": "temporal_vae.video.pipeline",
    "reconstruct_video": "temporal_vae.video.pipeline",
}

__all__ = [
    "AutoencoderKLTemporalDecoder",
    "Clip",
    "__version__",
    "decode_video",
    "encode_video",
    "reconstruct_video",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it offers {', '.join(__all__)}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
