"""How the page is used: by keyboard, on a phone, in the dark, by who sees little, and without a server or threads."""

from fractions import Fraction

import numpy as np
import pytest
from page_site import static_site
from page_steps import (
    choose,
    download,
    finish,
    latents_of,
    pixels,
    reconstruct,
    refusal,
    seek,
    show_difference,
    shown,
)
from page_videos import write_numbered
from PIL import Image

from temporal_vae import encode_video
from temporal_vae.media import VideoReader
from temporal_vae.training.data.scenes import render_scene

pytest_plugins = ("page_fixtures",)

SMALL = {"width": 32, "frames": 3}
# The focus shows on the control itself, or on what is drawn in its stead.
OUTLINED = """() => {
    const own = document.activeElement;
    const drawn = own.id === "split" ? document.querySelector(".handle") : own.nextElementSibling;
    return [[own, null], [drawn, null], [drawn, "::after"]].some(
        ([element, part]) => element && getComputedStyle(element, part).outlineStyle !== "none");
}"""
PHONE = {"viewport": {"width": 375, "height": 740}, "has_touch": True}


@pytest.fixture
def take_sample(open_page, site):
    """The page with the sample chosen, to be made small."""

    def take(address=site.address, **options):
        page = open_page(address, **options)
        page.click("#sample")
        page.wait_for_selector("#preview:visible")
        for name, value in SMALL.items():
            page.fill(f"#{name}", str(value))
        return page

    return take


def press(page, key, times=1):
    for _ in range(times):
        page.keyboard.press(key)


def focused(page):
    return page.evaluate("document.activeElement.id")


def tab_to(page, name):
    """Go on with the tab key until an element has the focus, which must be visible."""
    for _ in range(40):
        press(page, "Tab")
        if focused(page) == name:
            return
    raise AssertionError(f"the tab key does not reach #{name}")


def test_keyboard_alone(open_page, site):
    page = open_page(site.address)
    tab_to(page, "sample")
    press(page, "Enter")
    page.wait_for_selector("#preview:visible")
    page.wait_for_selector("#start:focus")
    for name, value in SMALL.items():
        page.focus("#overlap")
        tab_to(page, name)
        page.keyboard.type(str(value))
    tab_to(page, "start")
    press(page, "Enter")
    page.wait_for_selector("#cancel:focus")
    finish(page)
    assert focused(page) == "outcome-title"
    tab_to(page, "split")
    before = page.evaluate("getComputedStyle(document.getElementById('result-canvas')).clipPath")
    press(page, "ArrowRight", 5)
    assert page.input_value("#split") == "55"
    assert page.evaluate("getComputedStyle(document.getElementById('result-canvas')).clipPath") != before
    tab_to(page, "forward")
    press(page, "Enter")
    page.wait_for_selector("#result-canvas[data-frame='1']")
    tab_to(page, "seek")
    press(page, "ArrowRight")
    page.wait_for_selector("#result-canvas[data-frame='2']")
    assert page.get_attribute("#seek", "aria-valuetext").startswith("Frame 3 of 3")
    tab_to(page, "charts")
    press(page, "Home")
    page.wait_for_selector("#result-canvas[data-frame='0']")
    press(page, "ArrowRight")
    page.wait_for_selector("#result-canvas[data-frame='1']")
    assert shown(page) == ["1", "1"]
    assert page.get_attribute("#charts", "aria-valuetext").startswith("Frame 2 of 3: PSNR ")


@pytest.mark.slow
def test_focus_is_seen(take_sample):
    """Every control that the tab key reaches changes something of how it looks."""
    page = take_sample()
    reconstruct(page)
    page.focus("#outcome-title")
    seen = 0
    press(page, "Tab")
    while page.evaluate("document.activeElement !== document.body"):
        assert page.evaluate(OUTLINED), page.evaluate("document.activeElement.outerHTML")
        seen += 1
        press(page, "Tab")
    assert seen > 10


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="light"),
        pytest.param({"color_scheme": "dark", **PHONE}, id="dark phone", marks=pytest.mark.slow),
    ],
)
def test_nothing_serious_for_axe(take_sample, axe, options):
    page = take_sample(reduced_motion="reduce", **options)  # colours on their way have less contrast
    page.evaluate(axe)

    def look(state):
        found = page.evaluate("async () => (await axe.run()).violations")
        serious = [each for each in found if each["impact"] in ("serious", "critical")]
        assert not serious, (state, [(each["id"], each["nodes"][0]["html"]) for each in serious])

    look("chosen")
    page.fill("#clip", "none")
    refusal(page)
    look("refused")
    page.fill("#clip", "2")
    page.click("#start")
    page.wait_for_selector("#running:visible")
    look("running")
    finish(page)
    look("done")
    show_difference(page, 0)
    look("difference")


def test_a_phone_never_scrolls_sideways(take_sample):
    page = take_sample(**PHONE)
    width = "document.documentElement.scrollWidth"
    assert page.evaluate(width) == 375
    page.click("#start")
    page.wait_for_selector("#running:visible")
    assert page.evaluate(width) == 375
    finish(page)
    assert page.evaluate(width) == 375
    small = page.evaluate(
        """() => [...document.querySelectorAll('button, select, input:not([type=radio])')]
            .filter((e) => e.checkVisibility() && e.getBoundingClientRect().height < 44).map((e) => e.id)"""
    )
    assert small == []


def test_dark_mode_and_reduced_motion(open_page, site):
    def colours(page):
        style = "getComputedStyle(document.body)"
        return [
            page.evaluate(f"{style}.{name}.match(/\\d+/g).map(Number)")
            for name in ("backgroundColor", "color")
        ]

    def moves(page):
        return page.evaluate(
            "[...document.querySelectorAll('*')].some((e) => getComputedStyle(e).transitionDuration !== '0s')"
        )

    paper, ink = colours(light := open_page(site.address))
    assert min(paper) > 200 > 100 > max(ink)
    assert moves(light)
    paper, ink = colours(dark := open_page(site.address, color_scheme="dark", reduced_motion="reduce"))
    assert max(paper) < 60 < 200 < min(ink)
    assert not moves(dark)


@pytest.mark.slow
def test_the_difference_is_what_it_says(take_sample):
    page = take_sample()
    reconstruct(page)
    seek(page, 1)
    show_difference(page, 1)
    page.select_option("#gain", "8")
    source, result = (pixels(page, f"{side}-canvas").astype(int) for side in ("source", "result"))
    assert (pixels(page, "difference-canvas") == np.minimum(abs(source - result) * 8, 255)).all()


def test_nothing_is_uploaded_and_a_run_is_cancelled(open_page, site, tmp_path):
    page = open_page(site.address)
    video = write_numbered(tmp_path / "private.mp4", 12)
    choose(page, video)
    asked = []
    page.on("request", lambda request: asked.append(request))
    page.click("#start")
    page.wait_for_selector("#progress[value]:visible")
    assert len(page.workers) >= 1
    page.click("#cancel")
    page.wait_for_selector("#running", state="hidden")
    assert page.text_content("#status") == "Cancelled."
    assert page.locator("#outcome:visible").count() == 0
    page.wait_for_timeout(200)
    assert page.workers == []
    assert {request.method for request in asked} <= {"GET"}
    assert all(request.url.startswith((site.address, "blob:")) for request in asked)


def test_what_a_browser_refuses(open_page, site, tmp_path):
    page = open_page(site.address)
    assert page.locator("#backends:visible").count() == 0  # there is no server to choose
    fake = tmp_path / "notes.mp4"
    fake.write_text("no video at all\n" * 100)
    choose(page, fake)
    said = refusal(page)
    assert said.startswith("notes.mp4 is no video or picture")
    assert "MP4" in said
    large = tmp_path / "large.png"
    Image.fromarray(np.zeros((900, 1000, 3), np.uint8)).save(large)
    choose(page, large, width="")
    said = refusal(page)
    assert "262,144" in said
    remedy = said.split("a width of ")[1].split(",")[0]
    page.fill("#width", remedy)
    assert page.text_content("#plan-note").startswith(f"1 frame of {remedy}")
    choose(page, write_numbered(tmp_path / "whole.mp4", 12), width=400, clip="all")
    assert "Choose clips of 8 frames or a width of " in refusal(page)
    page.fill("#clip", "8")
    assert page.text_content("#plan-note").startswith("12 frames of 400")
    damaged = tmp_path / "damaged.mp4"
    whole = (tmp_path / "whole.mp4").read_bytes()
    damaged.write_bytes(whole[: len(whole) // 2])
    choose(page, damaged, width=48)
    assert refusal(page).startswith("damaged.mp4 is damaged or cut off")


@pytest.mark.slow
def test_a_video_in_the_browser(open_page, site, tmp_path):
    """Read, shown and saved by the browser: the result is a video that the package reads."""
    video = write_numbered(tmp_path / "numbered.mp4", 6)
    page = open_page(site.address)
    choose(page, video, width=96, clip=4, overlap=2)
    reconstruct(page)
    seek(page, 5)
    assert shown(page) == ["5", "5"]
    for label, width in (("Result", 96), ("Comparison", 3 * 96)):
        with VideoReader(download(page, label, tmp_path)) as reader:
            assert (reader.width, reader.height) == (width, 48)
            stamps = [float(stamp) for clip in reader.clips(8) for stamp in clip.timestamps]
        assert stamps == pytest.approx([number / 12 for number in range(6)], abs=2e-3)
    found = latents_of(download(page, "Latents", tmp_path))[2]
    encode_video(video, tmp_path / "right.safetensors")
    right = latents_of(tmp_path / "right.safetensors")[2]
    for name in ("rate", "source_sha256", "model", "pixel_aspect"):
        assert found[name] == right[name]
    assert times_of(found) == times_of(right)
    assert Fraction(found["last_duration"]) == Fraction(right["last_duration"] or "1/12")


def times_of(about):
    tick = Fraction(about["timestamps"]["tick"])
    return [count * tick for count in about["timestamps"]["ticks"]]


@pytest.mark.slow
def test_a_host_that_allows_no_threads(built_page, take_sample):
    with static_site(built_page, {}) as plain:
        page = take_sample(plain.address)
        assert "one thread" in page.text_content("#backend-note")
        reconstruct(page)
        assert "WebAssembly, 1 thread" in page.text_content("#plan")


@pytest.mark.slow
def test_a_folder_below_the_root(built_page, take_sample, tmp_path):
    (tmp_path / "demo").symlink_to(built_page)
    with static_site(tmp_path, {}) as plain:
        reconstruct(take_sample(f"{plain.address}demo/"))


@pytest.mark.slow
def test_webgpu_in_software(chromium_with_gpu, site, tmp_path):
    """The path of graphics cards, on a card that is computed: the same latents."""
    picture = tmp_path / "scene.png"
    Image.fromarray(render_scene(3, frames=1, height=16, width=20)[0]).save(picture)
    page = chromium_with_gpu.new_page()
    page.set_default_timeout(400_000)
    page.goto(f"{site.address}?device=webgpu")
    page.wait_for_selector("html[data-ready]")
    choose(page, picture, width="")
    page.click("#start")
    page.wait_for_selector("#outcome:visible, #error:visible")
    if "gives no WebGPU adapter" in page.text_content("#error"):
        pytest.skip("this chromium has no WebGPU in software")
    finish(page)
    assert "WebGPU" in page.text_content("#plan")
    encode_video(picture, tmp_path / "right.safetensors")
    found, right = latents_of(download(page, "Latents", tmp_path)), latents_of(tmp_path / "right.safetensors")
    assert np.abs(found[0] - right[0]).max() <= 1e-4 * np.abs(right[0]).max()
