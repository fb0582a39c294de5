"""Files without a model: videos and images in and out, their colours, times and sound."""

from typing import TYPE_CHECKING

from temporal_vae.namespace import loaded_on_use

if TYPE_CHECKING:
    from temporal_vae.media.frames import Clip, Color, Frames
    from temporal_vae.media.reader import VideoReader
    from temporal_vae.media.writer import VideoWriter

__all__ = ["Clip", "Color", "Frames", "VideoReader", "VideoWriter"]

__getattr__ = loaded_on_use(
    __name__,
    {
        "Clip": "frames",
        "Color": "frames",
        "Frames": "frames",
        "VideoReader": "reader",
        "VideoWriter": "writer",
    },
)
