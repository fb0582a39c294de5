"""The report of a reconstruction: what stands in it, and that it needs nothing else."""

import ast
import base64
import io
import json
import re
import xml.etree.ElementTree as ElementTree
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from oracle import config, randomise
from PIL import Image
from report_pages import CUT, FRAMES, HEIGHT, WIDTH, Document, Same, Worse, pictures_of
from video_files import scene

from temporal_vae import AutoencoderKLTemporalDecoder, reconstruct_video
from temporal_vae.media.writer import VideoWriter
from temporal_vae.video.report.facts import weights_sha256

pytest_plugins = ("report_fixtures",)


def test_figures_are_those_of_the_metrics_file(made):
    folder, _, html = made
    metrics, text = json.loads((folder / "out.mkv.metrics.json").read_text()), Document(html).text
    psnr = [row["psnr"] for row in metrics["per_frame"]]
    worst = psnr.index(min(psnr))
    assert (
        f"PSNR (dB) {metrics['summary']['psnr']:.2f} {np.median(psnr):.2f} {max(psnr):.2f} {min(psnr):.2f} "
        in text
    )
    assert f"{min(psnr):.2f} frame {worst}, 0:00.{40 * worst:03d}" in text
    assert f"SSIM {metrics['summary']['ssim']:.4f} " in text
    assert f"Flicker (levels) {metrics['summary']['flicker']:.2f} " in text
    assert f"PSNR of the mean error (dB) {metrics['summary']['psnr_of_mean_error']:.2f} " in text
    flicker = [row["flicker"] for row in metrics["per_frame"]]
    assert f"Flicker from clip to clip (levels) {(flicker[8] + flicker[16]) / 2:.2f} " in text
    assert f"within clips {np.mean([*flicker[1:8], *flicker[9:16], *flicker[17:]]):.2f} " in text
    assert f"{FRAMES} of {WIDTH}x{HEIGHT} pixels" in text
    assert "3 of 8 frames" in text


def test_the_verdict_says_that_clips_pump(made):
    document = Document(made[2])
    assert re.search(r"<h1>.*, but clips pump</h1>", made[2])
    assert "the clips pump. Longer clips, or clips that overlap, help." in document.text


def test_the_weakest_frames_are_shown_as_they_are(made, clip):
    """Their pictures, and the part that differs most."""
    _, figures, html = made
    psnr = figures.quality.psnr
    weakest = [int(number) for number in re.findall(r'id="moment-\d+">.*?Frame (\d+) ', html)]
    assert len(weakest) == 4
    assert weakest[0] == psnr.index(min(psnr)) == 19
    assert [psnr[number] for number in weakest] == sorted(psnr[number] for number in weakest)
    images = pictures_of(Document(html))
    source = np.asarray(images[f"Source, frame {weakest[0]}"], int)
    assert np.abs(source - scene(FRAMES, HEIGHT, WIDTH)[weakest[0]]).mean() < 3  # JPEG
    part = re.search(r"Enlarged: 144.72 pixels from column (\d+), row (\d+)", html)
    left, top = map(int, part.groups())
    assert left <= 200 <= left + 140
    assert top <= 100 <= top + 68
    exact = np.asarray(pictures_of_first(html, "Source where it differs most, enlarged"))
    assert np.array_equal(exact, scene(FRAMES, HEIGHT, WIDTH)[weakest[0], top : top + 72, left : left + 144])


def pictures_of_first(html, alt):
    data = re.search(rf'<img src="data:image/png;base64,([^"]+)" alt="{alt}"', html)[1]
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_it_needs_nothing_else(made):
    """No address, no script; and the page says so to the browser."""
    document = Document(made[2])
    assert document.all("script") == document.all("link") == document.all("iframe") == []
    for _, attributes in document.elements:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href", "xlink:href"):
                assert value.startswith(("data:image/", "#")), value[:60]
    without = re.sub(r"data:image/[^\"]+", "", made[2])
    assert not re.search(r"https?:|file://|//[a-z]|@import|url\(", without)
    policy = document.all("meta")[3]["content"]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_it_can_be_read_without_seeing_it(made):
    document = Document(made[2])
    assert document.all("html")[0]["lang"] == "en"
    assert all(image["alt"] for image in document.all("img"))
    headings = [int(tag[1]) for tag, _ in document.elements if re.fullmatch(r"h\d", tag)]
    assert headings[0] == 1
    assert headings.count(1) == 1
    assert all(below <= above + 1 for above, below in pairwise(headings))
    for drawn in document.all("svg"):
        assert drawn["role"] == "img"
        assert "on average, from" in drawn["aria-label"]
    assert all(cell.get("scope") in ("col", "row") for cell in document.all("th"))
    names = [attributes["id"] for _, attributes in document.elements if "id" in attributes]
    assert len(names) == len(set(names))
    for _, attributes in document.elements:
        if "aria-labelledby" in attributes:
            assert attributes["aria-labelledby"] in names
        if attributes.get("href", "").startswith("#"):
            assert attributes["href"][1:] in names


def test_model_and_machine(made, vae):
    text = Document(made[2]).text
    count = sum(parameter.numel() for parameter in vae.parameters())
    facts = (type(vae).__name__, f"{count:,}", "float32 on cpu", "torch", "Processor", "Plan to decode")
    for fact in facts:
        assert fact in text
    before = re.search(r"SHA-256 of the weights (\w{64})", text)[1]
    assert weights_sha256(vae) == before
    other = randomise(AutoencoderKLTemporalDecoder(**config(block_out_channels=(32,))), 1)
    assert weights_sha256(other) != before


def test_the_call_is_shown(made, clip):
    command = re.search(r'<pre class="command"><code>(.*?)</code>', made[2])[1].replace("&#39;", "'")
    call = ast.parse(command.replace("…", "None")).body[0].value
    assert call.func.id == "reconstruct_video"
    assert call.args[0].value == str(clip)
    given = {word.arg: ast.literal_eval(word.value) for word in call.keywords}
    assert given["clip_frames"] == 8
    assert given["charts"] is True
    assert "overlap" not in given  # as it would be anyway


def test_names_and_commands_are_text(clip, vae, tmp_path):
    """A name that would be HTML, one of the longest, and signs that no page can hold."""
    evil = tmp_path / "<script>alert(1)<﹤script>&\"'\u202ex\udcff.mkv"
    evil.write_bytes(clip.read_bytes())
    page, command = (
        tmp_path / "page.html",
        "--x '</code><img src=http:x onerror=alert(2)>' {{ 7 * 7 }} \x1b[31m",
    )
    options = {"vae": vae, "coder_type": Worse, "report": page, "frames": 3, "clip_frames": None}
    reconstruct_video(evil, tmp_path / "out.mkv", command=command, **options | {"coder_type": Same})
    html = page.read_text(encoding="utf-8")
    document = Document(html)
    assert document.all("script") == []
    assert not [image for image in document.all("img") if "onerror" in image]
    assert "<script>alert(1)" in document.text
    assert "{{ 7 * 7 }}" in document.text
    assert not re.search("[\x00-\x09\x0b-\x1f\u202e]", html)
    long = tmp_path / f"{'x' * 240}.mkv"
    long.write_bytes(clip.read_bytes())
    reconstruct_video(long, tmp_path / "out.mkv", command="", **options | {"coder_type": Same})
    html = page.read_text(encoding="utf-8")
    assert long.name in html
    assert '<pre class="command">' not in html


def test_identical_frames(clip, vae, tmp_path):
    options = {"vae": vae, "coder_type": Same, "report": tmp_path / "page.html", "charts": True, **CUT}
    reconstruct_video(clip, tmp_path / "out.mkv", **options)
    text = Document((tmp_path / "page.html").read_text()).text
    assert f"Identical to the source All {FRAMES} frames are the same as in the source" in text.replace(
        "  ", " "
    )
    assert "∞" in text
    assert "Weakest moments" not in text
    ElementTree.parse(tmp_path / "out.mkv.charts.svg")


@pytest.mark.parametrize("size", [(64, 48), (9, 7)])
def test_one_picture(vae, tmp_path, size):
    """Without charts over time; smaller than a window of SSIM too."""
    Image.fromarray(scene(1, size[1], size[0])[0]).save(tmp_path / "in.png")
    page = tmp_path / "page.html"
    reconstruct_video(tmp_path / "in.png", tmp_path / "out.png", vae=vae, report=page, charts=True)
    document = Document(page.read_text())
    assert "The picture" in document.text
    assert "Frame by frame" not in document.text
    assert document.all("svg") == []
    assert ("SSIM is not defined here" in document.text) == (size == (9, 7))
    assert len(pictures_of(document)) == 4  # source, result, difference, map
    ElementTree.parse(tmp_path / "out.png.charts.svg")


def test_a_folder_of_images(vae, tmp_path):
    (tmp_path / "shots").mkdir()
    for index, frame in enumerate(scene(3, 16, 24)):
        Image.fromarray(frame).save(tmp_path / "shots" / f"{index}.png")
    reconstruct_video(tmp_path / "shots", tmp_path / "out", vae=vae, report=tmp_path / "page.html")
    assert "shots through" in Document((tmp_path / "page.html").read_text()).text


def test_pixels_that_are_not_square(vae, tmp_path):
    with VideoWriter(tmp_path / "in.mkv", rate=25, pixel_aspect=Fraction(2)) as writer:
        writer.write(scene(3, 48, 64))
    reconstruct_video(tmp_path / "in.mkv", tmp_path / "out.mkv", vae=vae, report=tmp_path / "page.html")
    assert pictures_of(Document((tmp_path / "page.html").read_text()))["Source, frame 0"].size == (128, 48)
