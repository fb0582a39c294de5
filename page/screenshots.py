"""Pictures of the real page for README and docs: `.venv/bin/python page/screenshots.py`, after `make page`.

Starts `temporal-vae serve`, sends a clip of our own renderer through the page in Debian's chromium, and takes what a
person would see: `docs/images/page.jpg`, `page-dark.jpg` and `page-phone.jpg`.
"""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from temporal_vae.media import VideoWriter
from temporal_vae.training.data.scenes import render_scene

IMAGES = Path(__file__).resolve().parents[1] / "docs/images"
CLIP = {"seed": 18, "frames": 16, "height": 288, "width": 512}
FRAME = 9  # that is shown
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
]
PATIENCE = 600_000  # milliseconds


@contextmanager
def server() -> Iterator[str]:
    """The address of a server that runs within the block."""
    command = [sys.executable, "-m", "temporal_vae", "serve", "--port", "0", "--memory-limit", "4GiB"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            for line in process.stderr or ():
                if found := re.match(r"serving on (\S+)", line):
                    yield found[1]
                    break
        finally:
            process.terminate()


def reconstructed(browser: Browser, address: str, video: Path, **options: Any) -> Page:
    """The page with a result, at a frame in the middle."""
    page = browser.new_context(reduced_motion="reduce", **options).new_page()
    page.set_default_timeout(PATIENCE)
    page.goto(address)
    page.wait_for_selector("html[data-ready=server]")
    page.set_input_files("#file", video)
    page.wait_for_selector("#preview:visible")
    page.click("#start")
    page.wait_for_selector("#outcome:visible")
    page.focus("#charts")
    page.keyboard.press("Home")
    for _ in range(FRAME):
        page.keyboard.press("ArrowRight")
    page.wait_for_selector(f"#result-canvas[data-frame='{FRAME}']")
    page.evaluate("document.activeElement.blur()")
    return page


def save(png: bytes, name: str) -> None:
    """Write a picture as JPEG of high quality, colours at full size."""
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    picture.save(IMAGES / name, quality=86, subsampling=0, optimize=True, progressive=True)
    print(f"{(IMAGES / name).stat().st_size / 1000:6.0f} kB  {name}")


def desktop(page: Page) -> bytes:
    """From the result's title to the end of the charts."""
    page.evaluate("scrollTo(0, 0)")
    top = page.locator("#outcome").bounding_box()
    end = page.locator("#charts-section").bounding_box()
    assert top is not None
    assert end is not None
    box = {"x": top["x"] - 24, "y": top["y"] - 24, "width": top["width"] + 48}
    height = end["y"] + end["height"] - top["y"] + 40
    return page.screenshot(full_page=True, clip={**box, "height": height})


def main() -> None:
    """Take all pictures."""
    chromium = shutil.which("chromium") or sys.exit("chromium is not installed")
    with tempfile.TemporaryDirectory() as folder, server() as address, sync_playwright() as playwright:
        video = Path(folder) / "leaves.mp4"
        with VideoWriter(video, rate=12) as writer:
            writer.write(render_scene(**CLIP))
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        window = {"viewport": {"width": 1000, "height": 760}}
        save(desktop(reconstructed(browser, address, video, **window)), "page.jpg")
        save(desktop(reconstructed(browser, address, video, color_scheme="dark", **window)), "page-dark.jpg")
        phone = {"viewport": {"width": 375, "height": 740}, "has_touch": True, "device_scale_factor": 1.5}
        page = reconstructed(browser, address, video, **phone)
        page.evaluate("document.getElementById('outcome').scrollIntoView()")
        save(page.screenshot(), "page-phone.jpg")
        browser.close()


if __name__ == "__main__":
    main()
