"""temporal-vae: the video autoencoder of Stable Video Diffusion as a library and a tool of its own.

Public names are loaded on first use, so `import temporal_vae` pulls in neither torch nor PyAV.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from temporal_vae.autoencoder import AutoencoderKLTemporalDecoder as AutoencoderKLTemporalDecoder

__version__ = "0.1.0"

_HOME = {
    "AutoencoderKLTemporalDecoder": "temporal_vae.autoencoder",
    "ModelMixin": "temporal_vae.autoencoder",  # diffusers' pipelines ask the library of a part for its base class
}

__all__ = ["AutoencoderKLTemporalDecoder", "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it offers {', '.join(__all__)}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
