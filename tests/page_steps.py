"""What a person does on the page, and what they find there."""

from __future__ import annotations

import base64
import io
import json

import numpy as np
from PIL import Image
from safetensors import safe_open

READ_CANVAS = "id => document.getElementById(id).toDataURL('image/png')"


def choose(page, file, **fields):
    """Choose a file and fill fields by their ids."""
    page.set_input_files("#file", file)
    page.locator("#chosen:not([aria-busy])", has_text=getattr(file, "name", None)).wait_for()
    for name, value in fields.items():
        page.fill(f"#{name}", str(value))


def reconstruct(page):
    """Press the button and wait for what comes out."""
    page.click("#start")
    finish(page)


def finish(page):
    page.wait_for_selector("#outcome:visible, #error:visible")
    assert page.locator("#error:visible").count() == 0, page.text_content("#error")
    page.wait_for_selector("#result-canvas[data-frame='0']")


def refusal(page):
    """Press the button and wait for the sentence."""
    page.click("#start")
    page.wait_for_selector("#error:visible")
    return page.text_content("#error")


def pixels(page, canvas):
    """What a canvas shows, `(h, w, 3)`."""
    return decoded(page.evaluate(READ_CANVAS, canvas))


def decoded(address):
    """The picture of a data address, `(h, w, 3)`."""
    png = base64.b64decode(address.split(",")[1])
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def seek(page, number):
    """Move to a frame with the native slider, and wait until it is there."""
    page.evaluate(
        "n => { const s = document.getElementById('seek'); s.value = n; s.dispatchEvent(new Event('input')); }",
        number,
    )
    page.wait_for_selector(f"#result-canvas[data-frame='{number}']")


def show_difference(page, number):
    """Switch to the amplified difference and wait until a frame of it is there."""
    page.check("input[name=view][value=difference]", force=True)
    page.wait_for_selector(f"#difference-canvas[data-frame='{number}']")


def shown(page):
    """Numbers of the frames that the canvases show."""
    return [page.get_attribute(f"#{name}-canvas", "data-frame") for name in ("source", "result")]


def frames(page, canvas, count):
    """All frames of one side, `(t, h, w, 3)`."""
    found = []
    for number in range(count):
        seek(page, number)
        found.append(pixels(page, canvas))
    return np.stack(found)


def download(page, label, folder):
    """Take something away; its path."""
    with page.expect_download() as waiting:
        page.locator("#downloads button", has_text=label).first.click()
    path = folder / waiting.value.suggested_filename
    waiting.value.save_as(path)
    return path


def download_json(page, label, folder):
    return json.loads(download(page, label, folder).read_text())


def latents_of(path):
    """Mean, log-variance and metadata of a latent file."""
    with safe_open(path, framework="np") as file:
        about = json.loads(file.metadata()["temporal_vae"])
        return file.get_tensor("mean"), file.get_tensor("logvar"), about
