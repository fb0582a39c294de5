"""Images out of the bytes that a client sends."""

from __future__ import annotations

import warnings
from io import BytesIO

from PIL import Image, ImageOps

from temporal_vae.media.reader import MAX_PIXELS
from temporal_vae.serve.refusals import bad, too_large

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")


class Picture:
    """An image of which only the header was read; a context manager.

    Attributes:
        size: width and height in pixels, upright.
    """

    def __init__(self, image: Image.Image) -> None:
        self._image = image
        turned = image.getexif().get(0x0112, 1) >= 5
        self.size = image.size[::-1] if turned else image.size

    def __enter__(self) -> Picture:
        return self

    def __exit__(self, *exception: object) -> None:
        self._image.close()

    def upright(self) -> Image.Image:
        """RGB, turned as its camera meant it, on black where it is transparent.

        Raises:
            Refusal: a damaged image.
        """
        try:
            upright = ImageOps.exif_transpose(self._image)
            if not upright.has_transparency_data:
                return upright.convert("RGB")
            black = Image.new("RGBA", upright.size, "black")
            return Image.alpha_composite(black, upright.convert("RGBA")).convert("RGB")
        except (OSError, SyntaxError, ValueError, EOFError) as error:
            raise bad(f"the image is damaged ({error}); send it again") from error


def open_picture(content: bytes | bytearray) -> Picture:
    """Read the header of an image.

    Raises:
        Refusal: not an image of `FORMATS`, or one of more than `MAX_PIXELS`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of size, which is looked at below
            picture = Picture(Image.open(BytesIO(content), formats=FORMATS))
    except Image.DecompressionBombError as error:
        raise too_large(f"an image of more than {MAX_PIXELS} pixels; scale it down") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise bad(
            f"the body is no image ({', '.join(FORMATS)}); send one, or a tensor with shape and dtype"
        ) from error
    width, height = picture.size
    if width * height > MAX_PIXELS:
        raise too_large(f"an image of {width}x{height} has more than {MAX_PIXELS} pixels; scale it down")
    return picture
