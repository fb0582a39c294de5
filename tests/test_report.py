"""The report of a reconstruction: what stands in it, that it needs nothing else, and what it may cost."""

import ast
import base64
import importlib.util
import io
import json
import math
import re
import shlex
import threading
import tracemalloc
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from fractions import Fraction
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from command_line import run
from oracle import config, randomise
from PIL import Image
from refusals import refused
from video_files import scene

from temporal_vae import AutoencoderKLTemporalDecoder, reconstruct_video
from temporal_vae.errors import InputError, MediaError
from temporal_vae.media.writer import VideoWriter
from temporal_vae.metrics import QualityMeter
from temporal_vae.video.beside import save_charts
from temporal_vae.video.coder import Coder
from temporal_vae.video.report.charts import Area, Line, Series, Timeline, chart, columns
from temporal_vae.video.report.facts import weights_sha256
from temporal_vae.video.report.page import Page

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


@pytest.fixture(scope="module")
def vae():
    return randomise(AutoencoderKLTemporalDecoder(**config(block_out_channels=(32,)))).eval()


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "in.mkv"
    with VideoWriter(path, rate=25) as writer:
        writer.write(scene(FRAMES, HEIGHT, WIDTH))
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory, clip, vae):
    """A report, its charts and its figures."""
    folder = tmp_path_factory.mktemp("made")
    options = {"vae": vae, "coder_type": Worse, "charts": True, **CUT}
    figures = reconstruct_video(clip, folder / "out.mkv", report=folder / "page.html", **options)
    return folder, figures, (folder / "page.html").read_text(encoding="utf-8")


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


# Charts


def test_chart_files(made):
    """The same every time; the same lines as SVG and as pixels."""
    folder, figures, _ = made

    timeline = Timeline(stamps=[i / 25 for i in range(FRAMES)], clips=[(0, 8), (8, 16), (16, 23)])
    for name in ("out.mkv.charts.svg", "out.mkv.charts.png"):
        again = folder / f"again{Path(name).suffix}"
        save_charts(again, again, figures.quality, timeline)
        assert again.read_bytes() == (folder / name).read_bytes()
    tree = ElementTree.parse(folder / "out.mkv.charts.svg").getroot()
    texts = [element.text for element in tree.iter("{http://www.w3.org/2000/svg}text")]
    assert {"PSNR (dB)", "SSIM", "Flicker (levels)", "clip 3"} <= set(texts)
    with Image.open(folder / "out.mkv.charts.png") as picture:
        assert picture.size == (2 * int(tree.get("width")), 2 * int(tree.get("height")))
        blue = np.all(np.abs(np.asarray(picture, int) - (0x1F, 0x5F, 0xBF)) < 8, axis=2)
    lines = tree.iter("{http://www.w3.org/2000/svg}polyline")
    line = next(element for element in lines if element.get("stroke") == "#1f5fbf")
    x, y = map(float, line.get("points").split()[5].split(","))
    assert blue[round(2 * y) - 3 : round(2 * y) + 4, round(2 * x) - 3 : round(2 * x) + 4].any()


def test_a_chart_of_many_frames_loses_no_extreme():
    rng = np.random.default_rng(0)
    values = (rng.normal(size=10_007) + 40).tolist()
    values[5_003], values[77], values[9_000] = 12.0, 77.0, math.nan
    found = columns(values, 400)
    assert len(found) <= 400
    assert [part.start for part in found[1:]] == [part.stop for part in found[:-1]]
    assert (found[0].start, found[-1].stop) == (0, len(values))
    for part in found:
        inside = [value for value in values[part.start : part.stop] if not math.isnan(value)]
        assert (part.least, part.most) == (min(inside), max(inside))
        assert part.mean == pytest.approx(np.mean(inside))
    series = Series(name="PSNR", unit="dB", values=values, digits=2)
    drawn = chart(series, Timeline(stamps=[i / 25 for i in range(len(values))]), width=800, height=168)
    lines = [shape for shape in drawn.shapes if isinstance(shape, Line) and shape.role == "line"]
    spread = [shape for shape in drawn.shapes if isinstance(shape, Area) and shape.role == "spread"]
    assert sum(len(shape.points) for shape in lines) <= 400
    heights = [y for shape in spread for _, y in shape.points]
    assert max(heights) - min(heights) > 80  # both outliers are there
    assert all(0 <= x <= 800 and 0 <= y <= 168 for shape in (*lines, *spread) for x, y in shape.points)


def test_frames_that_are_identical_are_above_all_others():
    values = [30.0, math.inf, 31.0, 30.5]
    drawn = chart(
        Series(name="PSNR", unit="dB", values=values, digits=2),
        Timeline(stamps=[0, 1, 2, 3]), width=800, height=168,
    )  # fmt: skip
    (line,) = [shape for shape in drawn.shapes if isinstance(shape, Line) and shape.role == "line"]
    heights = [y for _, y in line.points]
    assert heights[1] < min(heights[0], heights[2], heights[3]) - 5
    assert heights[0] > heights[3] > heights[2]


# What it costs


def test_memory_does_not_grow_with_the_frames():
    """Each new frame is worse than all before, so that the weakest change all the time."""

    def most(count):
        page = Page(width=256, height=192, pixel_aspect=Fraction(1), expected=None)
        frame = scene(1, 192, 256)
        tracemalloc.start()
        for number in range(count):
            result = np.roll(frame, number % 7, axis=2)
            page.write(frame, result, [1.0 + number])
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    assert most(400) < most(100) * 1.25 + 100_000


def test_ten_thousand_frames_make_a_page_of_reasonable_size(made, vae):
    """The charts and tables alone, then with pictures of noise, which compress worst."""
    count, rng = 10_000, np.random.default_rng(0)
    quality = QualityMeter(
        mse=rng.uniform(5, 50, count).tolist(),
        ssim=rng.uniform(0.8, 0.9, count).tolist(),
        flicker=rng.uniform(1, 3, count - 1).tolist(),
    )
    figures = replace(made[1], quality=quality, clip_frames=25)
    timeline = Timeline(
        stamps=[i / 25 for i in range(count)], clips=[(i, i + 25) for i in range(0, count, 25)]
    )
    lengths = []
    for height, width in ((16, 16), (720, 1280)):
        page = Page(width=width, height=height, pixel_aspect=Fraction(1), expected=count)
        noise = rng.integers(0, 256, (2, 1, height, width, 3), dtype=np.uint8)
        for _ in range(20):
            page.write(noise[0], noise[1], [1.0])
        html = page.html(figures, timeline, vae, "")
        assert "Each column covers several frames" in html
        assert "10,000 of" in Document(html).text
        lengths.append(len(html))
    assert lengths[0] < 250_000
    assert lengths[1] < 16_000_000


# Outputs that are complete or not there


def test_a_page_that_cannot_be_written_leaves_nothing(clip, vae, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("temporal_vae.video.report.page.Page.html", full)
    options = {
        "vae": vae,
        "coder_type": Worse,
        "compare": True,
        "charts": True,
        "report": tmp_path / "page.html",
    }
    (tmp_path / "page.html").write_text("old")
    call = lambda: reconstruct_video(clip, tmp_path / "out.mkv", **options, **CUT)  # noqa: E731
    refused(MediaError, call, "page.html", "no space left", "free space")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"page.html": "old"}


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ("page.pdf", "page.pdf: a report is a page of HTML; give a name that ends in .html"),
        ("no/page.html", "no"),
        ("", "the output has no name"),
        ("-", "standard output"),
        ("in.html", "is the source itself"),
        ("out.html", "two outputs at once"),
    ],
)
def test_names_that_no_page_can_have(clip, vae, tmp_path, monkeypatch, page, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.html").write_bytes(clip.read_bytes())
    target = "out.html" if page == "out.html" else "out.mkv"
    options = {"vae": vae, "coder_type": Worse, "codec": "ffv1", **CUT}
    refused(MediaError, lambda: reconstruct_video("in.html", target, report=page, **options), message)
    assert [path.name for path in tmp_path.iterdir()] == ["in.html"]


def test_without_its_extra_nothing_begins(clip, tmp_path, monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "temporal_vae.video.report.page.find_spec", lambda name: None if name == "jinja2" else find(name)
    )
    monkeypatch.setattr("temporal_vae.cli.options.load_model", lambda *_: pytest.fail("a model was loaded"))
    assert run("reconstruct", clip, tmp_path / "out.mkv", "--report", tmp_path / "page.html") == 1
    printed = capsys.readouterr().err
    assert printed == "temporal-vae: report: jinja2 is not installed; pip install 'temporal-vae[report]'\n"
    refused(
        InputError,
        lambda: reconstruct_video(clip, tmp_path / "out.mkv", report=tmp_path / "page.html"),
        "pip install 'temporal-vae[report]'",
    )
    assert list(tmp_path.iterdir()) == []


def test_the_command(clip, tmp_path, monkeypatch, capsys):
    """What was typed is shown, with the home folder as it was typed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a b.mkv").write_bytes(clip.read_bytes())
    words = ["reconstruct", f"{tmp_path}/a b.mkv", "out.mkv", "--frames", "2", "--size", "64", "--charts"]
    assert run(*words, "--report", "page.html") == 0
    assert "report   page.html" in capsys.readouterr().out
    names = {
        "a b.mkv",
        "out.mkv",
        "out.mkv.metrics.json",
        "out.mkv.charts.svg",
        "out.mkv.charts.png",
        "page.html",
    }
    assert {path.name for path in tmp_path.iterdir()} >= names
    html = (tmp_path / "page.html").read_text()
    command = Document(html[html.index('<pre class="command">') : html.index("</pre>")] + "</pre>").text
    assert command.startswith("temporal-vae reconstruct ~/'a b.mkv' out.mkv")
    assert shlex.split(command)[3:] == [*words[2:], "--report", "page.html"]
    assert str(tmp_path) not in html


def test_two_at_once(clip, vae, tmp_path):
    """Each page is that of its own video."""
    pages, errors, together = {}, [], threading.Barrier(2)

    def work(name, coder):
        try:
            together.wait(30)
            options = {"vae": vae, "coder_type": coder, "report": tmp_path / f"{name}.html", "charts": True}
            for _ in range(2):
                reconstruct_video(clip, tmp_path / f"{name}.mkv", command=name, **options, **CUT)
            pages[name] = (tmp_path / f"{name}.html").read_text()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=job) for job in (("worse", Worse), ("same", Same))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert "Identical to the source" in pages["same"]
    assert "clips pump" in pages["worse"]
    assert "<code>worse</code>" in pages["worse"]
