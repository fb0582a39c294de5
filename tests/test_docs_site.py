"""The site: Zensical builds it strictly, every link on it leads somewhere, and it loads nothing from elsewhere."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from functools import lru_cache
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest
import yaml
from doc_pages import ROOT

pytestmark = pytest.mark.skipif(
    find_spec("zensical") is None, reason="Zensical is not installed; pip install 'temporal-vae[docs]'"
)
NEEDED = ("mkdocs.yml", "README.md", "CHANGELOG.md", "docs", "src", "integrations")
LOADS = {"script": "src", "link": "href", "img": "src", "source": "src", "iframe": "src", "video": "src"}
HINTS = {"canonical", "next", "prev"}  # links of a head that load nothing


def copy_to(folder: Path) -> Path:
    """What the site is made of, where a build can leave its cache."""
    for name in NEEDED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder / name)
    return folder


def build(folder: Path) -> "subprocess.CompletedProcess[str]":
    """`make docs`."""
    return subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--strict", "--clean"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=False,
    )


class Page(HTMLParser):
    """What a page links to, what it loads, and the anchors that it has."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.anchors: set[str] = {""}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        if "id" in values:
            self.anchors.add(values["id"])
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        if tag in LOADS and LOADS[tag] in values and values.get("rel") not in HINTS:
            self.loads.append(values[LOADS[tag]])


@dataclass
class Site:
    """A site that was built."""

    folder: Path
    pages: dict[Path, Page] = field(default_factory=dict)

    @lru_cache  # noqa: B019  # there is one
    def page(self, file: Path) -> Page:
        return Page(file.read_text())

    def target(self, page: Path, link: str) -> tuple[Path, str]:
        """The file that a link leads to, and the anchor in it."""
        path, anchor = urldefrag(unquote(link))
        file = self.folder / path.lstrip("/") if path.startswith("/") else page.parent / path
        file = page if not path else file.resolve()
        return (file / "index.html" if file.is_dir() else file), anchor

    def __hash__(self) -> int:
        return hash(self.folder)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    folder = copy_to(tmp_path_factory.mktemp("site"))
    done = build(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return Site(folder / "site")


def is_outside(link: str) -> bool:
    return re.match(r"[a-z]+:|//", link) is not None


def test_every_link_and_anchor_leads_somewhere(site):
    count = 0
    for file in sorted(site.folder.rglob("*.html")):
        if file.name == "404.html":  # its links begin at the root of wherever the site is
            continue
        for link in site.page(file).links:
            if not is_outside(link):
                target, anchor = site.target(file, link)
                assert target.is_file(), f"{file.relative_to(site.folder)}: {link}"
                assert anchor in site.page(target).anchors, f"{file.relative_to(site.folder)}: {link}"
                count += 1
    assert count > 1000


def test_nothing_is_loaded_from_elsewhere(site):
    for file in site.folder.rglob("*.html"):
        for load in site.page(file).loads:
            assert not is_outside(load) or load.startswith("data:"), f"{file}: {load}"
    for style in site.folder.rglob("*.css"):
        found = re.findall(r"url\(\"?(?!data:|#)([^)\"]+)", style.read_text())
        assert not [url for url in found if is_outside(url)], style


def test_the_front_page_leads_to_the_first_task(site):
    text = (site.folder / "index.html").read_text()
    body = re.sub(r"<[^>]+>", "", text[text.index("<article") :])
    assert "video autoencoder of Stable Video Diffusion" in body[:600]
    leads = [
        site.target(site.folder / "index.html", link)[0]
        for link in site.page(site.folder / "index.html").links
    ]
    assert (site.folder / "decode-25-frames" / "index.html") in leads


def test_every_page_is_in_the_navigation():
    def files(entry):
        if isinstance(entry, str):
            return [entry]
        values = entry.values() if isinstance(entry, dict) else entry
        return [file for each in values for file in files(each)]

    nav = files(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    pages = [str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")]
    assert sorted(nav) == sorted(pages)


def test_commands_are_those_of_the_command_line(site):
    from temporal_vae.cli import commands

    text = (site.folder / "commands" / "index.html").read_text()
    page = site.page(site.folder / "commands" / "index.html")
    for name, command in commands.commands.items():
        assert f"temporal-vae-{name}" in page.anchors
        for param in command.params:
            assert all(option in text for option in param.opts if option.startswith("--")), (name, param.opts)


def test_the_api_is_that_of_the_docstrings(site):
    text = (site.folder / "api" / "autoencoders" / "index.html").read_text()
    for words in (
        "an image encoder, and a decoder with temporal layers",
        "enable_tiling",
        "memory_limit",
        "plan_decode",
    ):
        assert words in text


@pytest.mark.slow
@pytest.mark.skipif(find_spec("mkdocs") is None, reason="MkDocs is not installed; it comes with mkdocstrings")
def test_mkdocs_builds_it_too(tmp_path):
    """`mkdocs.yml` is portable: with a theme that MkDocs has, it is as strict."""
    config = copy_to(tmp_path) / "mkdocs.yml"
    text, count = re.subn(r"^theme:\n(?:  .*\n)+", "theme: mkdocs\n", config.read_text(), flags=re.M)
    assert count == 1
    config.write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "decode-25-frames" / "index.html").is_file()


def test_what_is_broken_ends_the_build(tmp_path):
    index = copy_to(tmp_path) / "docs" / "index.md"
    index.write_text(index.read_text() + "\n[a](nowhere.md)\n\n[b](training.md#nothing-of-the-kind)\n")
    done = build(tmp_path)
    assert done.returncode != 0
    plain = re.sub(r"\x1b\[[\d;]*m", "", done.stdout + done.stderr)
    assert "page does not exist" in plain
    assert "anchor does not exist" in plain
