"""The page in front of a running server, in a real browser."""

import numpy as np
import pytest
from page_steps import (
    choose,
    decoded,
    download,
    download_json,
    finish,
    pixels,
    reconstruct,
    refusal,
    seek,
    shown,
)
from page_videos import number_of, numbered_frame, write_numbered
from PIL import Image
from serving import serving

from temporal_vae.media import VideoWriter
from temporal_vae.training.data.scenes import render_scene

pytest_plugins = ("page_fixtures",)

# Both canvases as they are at one moment, many times over, while the video plays.
WATCH = """async () => {
    const canvases = ["source-canvas", "result-canvas"].map((id) => document.getElementById(id));
    const seen = [];
    const moment = () => new Promise((resolve) => requestAnimationFrame(resolve));
    while (new Set(seen.map(([, [number]]) => number)).size < 4) {
        await moment();
        const numbers = canvases.map((canvas) => canvas.dataset.frame);
        seen.push([canvases.map((canvas) => canvas.toDataURL("image/png")), numbers]);
    }
    return seen;
}"""


@pytest.fixture(scope="module")
def server(built_page):
    with serving() as running:
        yield running


@pytest.fixture(scope="module")
def numbered(tmp_path_factory):
    return write_numbered(tmp_path_factory.mktemp("videos") / "numbered.mp4", 9)


def numbers_shown(page):
    return [number_of(pixels(page, f"{side}-canvas")) for side in ("source", "result")]


def test_source_and_result_in_step(server, open_page, numbered, tmp_path):
    page = open_page(server.url)
    choose(page, numbered, clip=4, overlap=1)
    page.click("#start")
    page.wait_for_selector("#running:visible")
    finish(page)
    for number in (8, 0, 5, 4, 3, 7):
        seek(page, number)
        assert shown(page) == [str(number)] * 2
        assert numbers_shown(page) == [number] * 2
    page.click("#back")
    page.wait_for_selector("#result-canvas[data-frame='6']")
    assert numbers_shown(page) == [6, 6]

    page.click("#play")
    for pictures, numbers in page.evaluate(WATCH):
        assert numbers[0] == numbers[1]
        assert [number_of(decoded(picture)) for picture in pictures] == list(map(int, numbers))
    page.click("#play")
    assert page.get_attribute("#play", "aria-label") == "Play"
    assert len(set(shown(page))) == 1

    chart = page.locator("#charts .u-over").nth(1)
    chart.click(position={"x": chart.bounding_box()["width"] * 3 / 8, "y": 20})
    page.wait_for_selector("#result-canvas[data-frame='3']")
    assert numbers_shown(page) == [3, 3]
    # Keys that come faster than frames are drawn are all counted.
    page.evaluate(
        """() => { for (const key of ["Home", ...Array(5).fill("ArrowRight"), "ArrowLeft"])
            document.getElementById("charts").dispatchEvent(new KeyboardEvent("keydown", { key })); }"""
    )
    page.wait_for_selector("#result-canvas[data-frame='4']")
    assert numbers_shown(page) == [4, 4]
    seek(page, 3)
    figures = download_json(page, "Metrics", tmp_path)
    assert figures["overlap"] == 1
    row = figures["per_frame"][3]
    spoken = page.get_attribute("#charts", "aria-valuetext")
    assert spoken == (
        f"Frame 4 of 9: PSNR {row['psnr']:.2f} dB, SSIM {row['ssim']:.4f}, Flicker {row['flicker']:.2f} levels"
    )


def test_downloads_are_the_servers_files(server, open_page, tmp_path):
    picture = tmp_path / "scene.png"
    Image.fromarray(render_scene(3, frames=1, height=32, width=40)[0]).save(picture)
    page = open_page(server.url)
    choose(page, picture)
    with page.expect_response(lambda response: response.url.endswith("/jobs")) as sent:
        page.click("#start")
    finish(page)
    job = server.get(f"/jobs/{sent.value.json()['id']}").json()
    assert job["state"] == "done"
    labels = {"Result": "result", "Latents": "latents", "Contact sheet": "sheet", "Metrics": "metrics"}
    for label, name in labels.items():
        own = server.get(job["results"][name].removeprefix(".")).content
        assert download(page, label, tmp_path / "out").read_bytes() == own
    result = np.asarray(Image.open(tmp_path / "out/scene.result.png"))
    assert (pixels(page, "result-canvas") == result).all()
    assert not page.locator("#charts-section, #transport").filter(visible=True).count()
    assert page.locator("#latents canvas").count() == 8


def test_errors_are_sentences_with_a_remedy(server, open_page, numbered, tmp_path):
    fake = tmp_path / "notes.mp4"
    fake.write_text("no video at all\n" * 100)
    page = open_page(server.url)
    assert "take the sample" in refusal(page)
    choose(page, fake)
    assert "the server may read it" in page.text_content("#chosen")
    said = refusal(page)
    assert said.startswith("notes.mp4")
    assert page.locator("#outcome:visible").count() == 0
    choose(page, numbered, memory="1KiB")
    assert "memory" in refusal(page)
    page.fill("#memory", "")
    page.fill("#clip", "some")
    assert "Frames in a clip" in refusal(page)
    assert page.get_attribute("#clip", "aria-invalid") == "true"
    page.fill("#clip", "4")
    reconstruct(page)  # and then it works


def test_cancel(server, open_page, tmp_path):
    video = write_numbered(tmp_path / "long.mp4", 15)
    page = open_page(server.url)
    choose(page, video, width=768, clip="all")
    with page.expect_response(lambda response: response.url.endswith("/jobs")) as sent:
        page.click("#start")
    page.wait_for_selector("#progress[value]:visible")
    with page.expect_response(lambda response: response.request.method == "DELETE") as cancelled:
        page.click("#cancel")
    assert cancelled.value.status == 204
    page.wait_for_selector("#running", state="hidden")
    assert page.text_content("#status") == "Cancelled."
    assert page.evaluate("document.activeElement.id") == "start"
    assert server.get(f"/jobs/{sent.value.json()['id']}").status_code == 404


@pytest.mark.slow
def test_what_only_the_server_reads(server, open_page, tmp_path):
    """FFV1 in Matroska, of an odd size: the browser is shown the server's copy."""
    video = tmp_path / "scene.mkv"
    with VideoWriter(video, rate=24) as writer:
        writer.write(render_scene(5, frames=3, height=37, width=51))
    page = open_page(server.url)
    choose(page, video)
    assert "the server may read it" in page.text_content("#chosen")
    reconstruct(page)
    seek(page, 2)
    assert pixels(page, "source-canvas").shape == (37, 51, 3)
    page.check("input[name=backend][value=browser]", force=True)
    assert refusal(page).startswith("scene.mkv is coded as ")


@pytest.mark.slow
def test_a_server_that_went_away(built_page, open_page, numbered):
    with serving() as running:
        page = open_page(running.url)
        choose(page, numbered)
        running.end()
        assert "temporal-vae serve" in refusal(page)


@pytest.mark.slow
def test_a_token(built_page, open_page, numbered):
    with serving("--token", "secret-of-this-test") as running:
        page = open_page(running.url)
        choose(page, numbered)
        assert "token" in refusal(page)
        page.fill("#token", "another")
        page.click("#use-token")
        page.wait_for_selector("#error:visible")
        page.fill("#token", "secret-of-this-test")
        page.press("#token", "Enter")
        page.wait_for_selector("#token-field", state="hidden")
        reconstruct(page)
        assert numbers_shown(page) == [0, 0]


def test_numbered_frames_are_told_apart():
    assert [number_of(numbered_frame(number)) for number in range(16)] == list(range(16))
    with pytest.raises(AssertionError):
        number_of(np.full_like(numbered_frame(0), 200))
