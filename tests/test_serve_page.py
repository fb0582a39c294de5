"""The files of the page, as the service hands them out."""

from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from temporal_vae import AutoencoderKLTemporalDecoder
from temporal_vae.serve import Service, Settings, page


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as `make page` leaves it."""
    folder = tmp_path / "static"
    for name, content in {
        "index.html": "<!doctype html><title>page</title>",
        "assets/index-1a2b.js": "export {}",
        "assets/ort.wasm": "\0asm",
        "assets/ort.mjs": "export {}",
        "models/encoder.onnx": "graph",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    (tmp_path / "secret.txt").write_text("secret")
    monkeypatch.setattr(page, "FOLDER", folder)
    return folder


def client(tmp_path: Path, token: str | None = None) -> TestClient:
    vae = AutoencoderKLTemporalDecoder.from_embedded()
    return TestClient(Service(vae, Settings(memory_limit=2**30, folder=tmp_path, token=token)).app)


def test_files_have_the_types_and_policies_that_browsers_want(built: Path, tmp_path: Path) -> None:
    with client(tmp_path) as server:
        for path, kind in {
            "/": "text/html",
            "/index.html": "text/html",
            "/assets/index-1a2b.js": "text/javascript",
            "/assets/ort.mjs": "text/javascript",
            "/assets/ort.wasm": "application/wasm",
            "/models/encoder.onnx": "application/octet-stream",
        }.items():
            found = server.get(path)
            assert found.status_code == 200, path
            assert found.headers["content-type"].partition(";")[0] == kind
            assert found.headers["cross-origin-opener-policy"] == "same-origin"
            assert found.headers["cross-origin-embedder-policy"] == "require-corp"
            assert "default-src 'self'" in found.headers["content-security-policy"]
            assert found.headers["x-content-type-options"] == "nosniff"
        assert "immutable" in server.get("/assets/index-1a2b.js").headers["cache-control"]
        assert server.get("/").headers["cache-control"] == "no-cache"


@pytest.mark.parametrize(
    "path",
    [
        "/secret.txt",
        "/../secret.txt",
        "/%2e%2e/secret.txt",
        "/assets/../../secret.txt",
        "/assets",
        "//etc/passwd",
    ],
)
def test_nothing_else_is_handed_out(built: Path, tmp_path: Path, path: str) -> None:
    with client(tmp_path) as server:
        found = server.get(path)
        assert found.status_code == 404
        assert found.json()["detail"].endswith("/openapi.json lists what there is")


def test_the_page_needs_no_token_and_all_else_does(built: Path, tmp_path: Path) -> None:
    with client(tmp_path, token="hush") as server:
        for path in ("/", "/assets/ort.wasm", "/healthz"):
            assert server.get(path).status_code == 200
        for method, path in (
            ("GET", "/info"),
            ("GET", "/metrics"),
            ("GET", "/openapi.json"),
            ("POST", "/"),
            ("POST", "/decode"),
            ("POST", "/jobs"),
            ("GET", "/jobs/some"),
            ("DELETE", "/jobs/some"),
        ):
            found = server.request(method, path)
            assert found.status_code == 401, path
            assert found.headers["www-authenticate"] == "Bearer"
            assert "Authorization: Bearer" in found.json()["detail"]
            wrong = server.request(method, path, headers={"Authorization": "Bearer loud"})
            assert wrong.status_code == 401
            right = server.request(method, path, headers={"Authorization": "Bearer hush"})
            assert right.status_code not in (401, 500)


def test_without_a_page_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "FOLDER", tmp_path / "nothing")
    with client(tmp_path) as server:
        found = server.get("/")
        assert found.status_code == 200
        assert "make page" in found.text
