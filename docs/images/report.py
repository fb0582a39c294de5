"""Take the picture of a report: its top, light, beside its lower part, dark.

temporal-vae reconstruct monster.mp4 out.mp4 --size 480 --frames 50 --report report.html   # footage: CC0, MDN
python docs/images/report.py report.html docs/images/report.jpg
"""

import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

WIDTH, HEIGHT = 1000, 1240
MARGIN = 24


def shot(page: Page, selector: str) -> Image.Image:
    """A screenful that begins at an element."""
    page.evaluate("place => document.querySelector(place).scrollIntoView()", selector)
    return Image.open(io.BytesIO(page.screenshot())).convert("RGB")


def main(report: Path, target: Path) -> None:
    """Write the picture."""
    shots = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        for scheme, place in (("light", "html"), ("dark", "#moments")):
            page = browser.new_page(
                viewport={"width": WIDTH, "height": HEIGHT}, color_scheme=scheme, reduced_motion="reduce"
            )
            page.goto(report.resolve().as_uri())
            shots.append(shot(page, place))
        browser.close()
    picture = Image.new("RGB", (2 * WIDTH + 3 * MARGIN, HEIGHT + 2 * MARGIN), "#8a93a0")
    for index, each in enumerate(shots):
        picture.paste(each, (MARGIN + index * (WIDTH + MARGIN), MARGIN))
    picture.resize((picture.width * 3 // 4, picture.height * 3 // 4), Image.Resampling.LANCZOS).save(
        target, quality=78, optimize=True
    )


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
