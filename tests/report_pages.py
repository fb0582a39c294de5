"""Reports for tests: stand-ins for a model, and a reader of pages."""

import base64
import io
from html.parser import HTMLParser

import numpy as np
from PIL import Image

from temporal_vae.video.coder import Coder

FRAMES, HEIGHT, WIDTH = 23, 160, 304
CUT = {"clip_frames": 8, "overlap": 0}
VOID = {"meta", "img", "br", "input", "link", "hr"}


class Same(Coder):
    """In place of a model that loses nothing: the latents are the frames."""

    def encode_clip(self, frames):
        """Mean and log-variance, neither of which is any."""
        return frames, frames

    def decode(self, latents):
        """The same frames."""
        return latents.copy()


class Worse(Same):
    """Takes from every frame what a clip takes, and more from one pixel in the fourth."""

    def decode(self, frames):
        """Frames off by 3 levels in the first clip, 9 in the second, and so on."""
        self.calls = getattr(self, "calls", 0) + 1
        taken = np.full(frames.shape, 6 * self.calls - 3)
        taken[3, 100:104, 200:204] += 60
        return (frames.astype(int) - taken).clip(0, 255).astype(np.uint8)


class Document(HTMLParser):
    """Reads a page: its text, elements, and whether all that was opened is closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open, self.elements, self.words = [], [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        """Note an element."""
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        """Note an element without content."""
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        """Close an element."""
        assert self.open.pop() == tag

    def handle_data(self, data):
        """Note text that is shown."""
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self):
        """All text, with single spaces."""
        return " ".join(" ".join(self.words).split())

    def all(self, tag):
        """Attributes of all elements of a kind."""
        return [attributes for name, attributes in self.elements if name == tag]


def pictures_of(document):
    """All pictures of a page, by their text."""
    found = {}
    for image in document.all("img"):
        kind, _, data = image["src"].partition(";base64,")
        assert kind in ("data:image/jpeg", "data:image/png")
        picture = Image.open(io.BytesIO(base64.b64decode(data)))
        assert picture.size == (int(image["width"]), int(image["height"]))
        found[image["alt"]] = picture
    return found
