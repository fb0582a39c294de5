"""Files of a report: charts, what they and the page may cost, names and errors, and two at once."""

import importlib.util
import math
import shlex
import threading
import tracemalloc
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from command_line import run
from PIL import Image
from refusals import refused
from report_pages import CUT, FRAMES, Document, Same, Worse
from video_files import scene

from temporal_vae import reconstruct_video
from temporal_vae.errors import InputError, MediaError
from temporal_vae.metrics import QualityMeter
from temporal_vae.video.beside import save_charts
from temporal_vae.video.report.charts import Area, Line, Series, Timeline, chart, columns
from temporal_vae.video.report.page import Page

pytest_plugins = ("report_fixtures",)


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
        "temporal_vae.namespace.find_spec", lambda name: None if name == "jinja2" else find(name)
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
