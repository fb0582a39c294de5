"""Images out of the bytes that a client sends."""

from __future__ import annotations

import warnings
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from temporal_vae.errors import MediaError
from temporal_vae.media.images import upright_pixels, upright_size
from temporal_vae.media.reader import MAX_PIXELS
from temporal_vae.serve.refusals import bad, too_large

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
_BLACK = np.zeros(3, np.uint8)
_NAME = Path("the image")  # in messages


class Picture:
    """An image of which only the header was read; a context manager.

    Attributes:
        size: width and height in pixels, upright as far as the header tells.
    """

    def __init__(self, image: Image.Image) -> None:
        self._image = image
        self.size = upright_size(image, load=False)

    def __enter__(self) -> Picture:
        return self

    def __exit__(self, *exception: object) -> None:
        self._image.close()

    def upright(self) -> Image.Image:
        """RGB, turned as its camera meant it, on black where it is transparent.

        Raises:
            Refusal: a damaged image, or one of values whose range nobody knows.
        """
        try:
            return Image.fromarray(upright_pixels(self._image, _NAME, _BLACK, None))
        except MediaError as error:
            raise bad(str(error)) from error
        except Exception as error:  # of a dozen types
            reason = " ".join(str(error).split()) or type(error).__name__
            raise bad(f"the image is damaged ({reason}); send it again") from error


def open_picture(content: bytes | bytearray) -> Picture:
    """Read the header of an image.

    Raises:
        Refusal: not an image of `FORMATS`, or one of more than `MAX_PIXELS`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of size, which is looked at below
            image = Image.open(BytesIO(content), formats=FORMATS)
        width, height = image.size
        if width * height <= MAX_PIXELS:
            return Picture(image)
    except Image.DecompressionBombError as error:
        raise too_large(f"an image of more than {MAX_PIXELS:,} pixels; scale it down") from error
    except Exception as error:  # of a dozen types
        raise bad(
            f"the body is no image ({', '.join(FORMATS)}); send one, or a tensor with shape and dtype"
        ) from error
    raise too_large(f"an image of {width}x{height} has more than {MAX_PIXELS:,} pixels; scale it down")
