"""The page for people: files that were built beforehand, and served as they are."""

from __future__ import annotations

from pathlib import Path

from starlette.responses import FileResponse, HTMLResponse, Response

FOLDER = Path(__file__).parent / "static"
"""Where `make page` puts the page; in the wheel it is there."""

_TYPES = {
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
    ".json": "application/json",
    ".mjs": "text/javascript",
    ".mp4": "video/mp4",
    ".onnx": "application/octet-stream",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".txt": "text/plain",
    ".wasm": "application/wasm",
    ".webm": "video/webm",
    ".webp": "image/webp",
    ".woff2": "font/woff2",
}
_POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'wasm-unsafe-eval'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' blob: data:",
        "media-src 'self' blob:",
        "worker-src 'self' blob:",
        "connect-src 'self' blob: data:",
        "object-src 'none'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",  # this and the next: threads of WebAssembly need both
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
_NOT_BUILT = """<!doctype html><html lang="en"><meta charset="utf-8"><title>temporal-vae</title>
<p>The service runs. Its page is not built in this checkout: <code>make page</code> does that, with Node.js.
<p><a href="openapi.json">What the service takes</a>"""


class Page:
    """The files of a folder, known by their paths from the beginning: nothing else is ever opened.

    Args:
        folder: what `make page` built, if it did; `FOLDER` by default.
    """

    def __init__(self, folder: Path | None = None) -> None:
        folder = folder or FOLDER
        files = (path for path in folder.rglob("*") if path.is_file())
        self._files = {f"/{path.relative_to(folder).as_posix()}": path for path in files}
        if "/index.html" in self._files:
            self._files["/"] = self._files["/index.html"]

    def has(self, path: str) -> bool:
        """Whether a path is one of the page, which needs no token."""
        return path == "/" or path in self._files

    def response(self, path: str) -> Response | None:
        """The file of a path; None where there is none."""
        file = self._files.get(path)
        if file is None:
            return HTMLResponse(_NOT_BUILT, headers=_HEADERS) if path == "/" else None
        named_by_content = path.startswith("/assets/")
        caching = "public, max-age=31536000, immutable" if named_by_content else "no-cache"
        kind = _TYPES.get(file.suffix, "application/octet-stream")
        return FileResponse(file, media_type=kind, headers={**_HEADERS, "Cache-Control": caching})
