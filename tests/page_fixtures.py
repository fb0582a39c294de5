"""Debian's chromium, the built page and a static host for it, as fixtures of pytest."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from page_site import ISOLATED, static_site

ROOT = Path(__file__).resolve().parents[1]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--no-sandbox",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
TIMEOUT = 120_000  # milliseconds: a loaded machine is slow, a broken page waits for ever


def builder():
    """`page/build.py` as a module."""
    spec = importlib.util.spec_from_file_location("page_build", ROOT / "page/build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def built_page():
    """The folder of the page, built once where it is missing or old, whichever worker comes first."""
    filelock = pytest.importorskip("filelock")
    pytest.importorskip("onnxscript", reason="needs temporal-vae[export]")
    page = builder()
    with filelock.FileLock(ROOT / "page/.build.lock"):
        if not page.is_current():
            if shutil.which("npm") is None:
                pytest.skip("the page is not built and there is no Node to build it with")
            done = subprocess.run([sys.executable, page.__file__], capture_output=True, text=True)
            if any(word in done.stderr for word in ("ENOTFOUND", "ECONNREFUSED", "EAI_AGAIN")):
                pytest.skip("the page is not built and npm reaches no registry")
            assert done.returncode == 0, done.stderr
    return page.STATIC


@pytest.fixture(scope="module")  # while it is there, nothing else in this thread may run an event loop
def playwright():
    sync_api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine")
    with sync_api.sync_playwright() as running:
        yield running


@pytest.fixture(scope="module")
def chromium(playwright):
    browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS, "--disable-gpu"])
    yield browser
    browser.close()


@pytest.fixture
def chromium_with_gpu(playwright):
    """One whose graphics card is computed by the processor."""
    software = ["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--enable-features=Vulkan"]
    browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS, *software])
    yield browser
    browser.close()


@pytest.fixture(scope="session")
def site(built_page):
    """The page as a static site whose host allows threads."""
    with static_site(built_page, ISOLATED) as server:
        yield server


@pytest.fixture
def open_page(chromium):
    """Opens the page in a fresh window; whatever goes wrong in it fails the test."""
    contexts, troubles = [], []

    def open_(address, **options):
        context = chromium.new_context(**options)
        contexts.append(context)
        context.set_default_timeout(TIMEOUT)
        page = context.new_page()
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("console", lambda message: _note(message, troubles))
        page.goto(address)
        page.wait_for_selector("html[data-ready]")
        return page

    yield open_
    for context in contexts:
        context.close()
    assert not troubles


def _note(message, troubles):
    """Keep what the page complains of; a host without a server has no `info`, and refusals are asked for."""
    if message.type == "error" and "Failed to load resource" not in message.text:
        troubles.append(message.text)


@pytest.fixture(scope="session")
def axe(built_page):
    """The script of axe-core."""
    script = ROOT / "page/node_modules/axe-core/axe.min.js"
    if not script.exists():
        pytest.skip("axe-core is not installed; make page does it")
    return script.read_text()
