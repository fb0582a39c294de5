"""The report in a browser: light, dark, on a phone, on paper. Skipped where there is no Chromium."""

import numpy as np
import pytest
from oracle import config, randomise
from video_files import scene

from temporal_vae import AutoencoderKLTemporalDecoder, reconstruct_video
from temporal_vae.media.writer import VideoWriter
from temporal_vae.video.coder import Coder

pytest_plugins = ("page_fixtures",)


class Darker(Coder):
    """In place of a model: the latents are the frames."""

    def encode_clip(self, frames):
        """Mean and log-variance, neither of which is any."""
        return frames, frames

    def decode(self, frames):
        """The frames, a little darker."""
        return frames - np.minimum(frames, 5)


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    with VideoWriter(folder / "in.mkv", rate=25) as writer:
        writer.write(scene(9, 160, 304))
    vae = randomise(AutoencoderKLTemporalDecoder(**config(block_out_channels=(32,)))).eval()
    name = folder / f"{'long' * 30}.html"
    reconstruct_video(
        folder / "in.mkv", folder / "out.mkv", vae=vae, coder_type=Darker, clip_frames=4, report=name
    )
    return name


@pytest.fixture
def opened(chromium, page_file):
    """Opens the page; at the end nothing may have been loaded beside it, and nothing complained."""
    contexts, loaded, said = [], [], []

    def open_page(width=1280, **options):
        context = chromium.new_context(viewport={"width": width, "height": 800}, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: loaded.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.goto(page_file.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert [url for url in loaded if not url.startswith("data:")] == [page_file.as_uri()] * len(contexts)
    assert said == []


def color(page, selector, name):
    """A computed colour as three numbers."""
    value = page.locator(selector).first.evaluate(f"node => getComputedStyle(node)['{name}']")
    return [int(part) for part in value.removeprefix("rgb(").removesuffix(")").split(",")[:3]]


def test_pictures_are_shown(opened):
    page = opened()
    sizes = page.eval_on_selector_all("img", "all => all.map(image => image.naturalWidth)")
    assert len(sizes) > 10
    assert min(sizes) > 0


@pytest.mark.parametrize("width", [1280, 375, 320])
def test_nothing_is_wider_than_the_screen(opened, width):
    page = opened(width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    shown = page.locator("svg:visible")
    assert shown.count() == 3
    assert all(chart.bounding_box()["width"] <= width for chart in shown.all())
    assert page.locator("svg:visible text").first.evaluate("node => node.getBoundingClientRect().height") > 9


def test_dark_mode_reaches_the_charts(opened):
    light, dark = opened(color_scheme="light"), opened(color_scheme="dark")
    for selector, name in (("body", "color"), ("svg text", "fill"), ("svg polyline.line", "stroke")):
        assert sum(color(dark, selector, name)) > sum(color(light, selector, name)) + 100
    assert sum(color(light, "body", "backgroundColor")) > 700
    assert sum(color(dark, "body", "backgroundColor")) < 120


def test_paper_is_light(opened):
    """With wide charts and without what can only be used on a screen, also where the screen is dark and narrow."""
    page = opened(375, color_scheme="dark")
    page.emulate_media(media="print")
    assert sum(color(page, "body", "backgroundColor")) > 700
    assert sum(color(page, "body", "color")) < 200
    assert page.locator("svg.wide:visible").count() == 3
    assert page.locator("svg.narrow:visible").count() == 0
    assert page.locator("input:visible").count() == 0
    assert page.pdf(format="A4").startswith(b"%PDF")


def test_source_over_result_by_keyboard(opened):
    page = opened(reduced_motion="reduce")  # where it is scrolled to is there at once
    source, result = page.locator(".pair .source img").first, page.locator(".pair .result img").first
    assert source.bounding_box()["x"] < result.bounding_box()["x"]
    page.locator("#swap-1").focus()
    page.keyboard.press("Space")
    assert source.bounding_box() == result.bounding_box()
    page.keyboard.press("Space")
    assert source.bounding_box()["x"] < result.bounding_box()["x"]
