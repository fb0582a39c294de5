"""What every request passes before the service sees it: who it is from, how long its body is, how it is counted."""

from __future__ import annotations

import asyncio
import hmac
import re
from collections.abc import Callable, MutableMapping
from contextlib import suppress
from http import HTTPStatus
from time import perf_counter
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from temporal_vae.serve.counters import Counters
from temporal_vae.serve.refusals import Refusal, stopping, too_large
from temporal_vae.serve.settings import MIB, Settings

_READING = ("GET", "HEAD", "OPTIONS")
_DRAINED = 64 * MIB  # of a body that nobody wants, so that the client gets to read why
_DRAINING = 5.0  # seconds
_SILENCE = 1.0  # seconds of it in which nothing may come
_SHOWN = 80  # characters of what a client sent


class Guard:
    """An ASGI middleware.

    Args:
        app: what it guards.
        settings: token, hosts, origins and the limit of bodies.
        counters: of requests and the time they take.
        is_open: whether a path may be read without a token.
    """

    def __init__(
        self, app: ASGIApp, settings: Settings, counters: Counters, is_open: Callable[[str], bool]
    ) -> None:
        self._app, self._settings, self._counters, self._is_open = app, settings, counters, is_open

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["method"] == "HEAD":  # the server leaves out the body of the answer
            scope = {**scope, "method": "GET"}
        headers = Headers(scope=scope)
        began, status, started = perf_counter(), 500, False
        body = _Body(receive, waits=headers.get("expect", "").lower() == "100-continue")

        async def answer(message: MutableMapping[str, Any]) -> None:
            nonlocal status, started
            if message["type"] == "http.response.start":
                status = message["status"]
                if status >= HTTPStatus.BAD_REQUEST and body.waits:
                    message = {**message, "headers": [*message["headers"], (b"connection", b"close")]}
                elif status >= HTTPStatus.BAD_REQUEST:
                    await body.drain()
            started = True
            await send(message)

        try:
            refusal = self._refusal(scope, headers)
            inner = self._app if refusal is None else refused(refusal)
            await inner(scope, body, answer)
        except asyncio.CancelledError:  # the server has stopped waiting for it
            if not started:
                status = HTTPStatus.SERVICE_UNAVAILABLE
                await refused(stopping())(scope, receive, send)
            raise
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self._counters.requests.labels(route, str(status)).inc()
            self._counters.seconds.labels(route).observe(perf_counter() - began)

    def _refusal(self, scope: Scope, headers: Headers) -> Refusal | None:
        try:
            self._check_sender(scope["method"], headers)
            if scope["method"] not in _READING or not self._is_open(scope["path"]):
                self._check_token(headers.get("authorization"))
            if scope["method"] not in _READING:
                self._check_length(headers, needed=scope["method"] == "POST")
        except Refusal as refusal:
            return refusal
        return None

    def _check_sender(self, method: str, headers: Headers) -> None:
        """Pages of other sites, which a browser lets send requests to this machine, may not."""
        host = headers.get("host", "")
        if self._settings.hosts is not None and _hostname(host) not in self._settings.hosts:
            raise Refusal(
                HTTPStatus.MISDIRECTED_REQUEST,
                f"the request is for host {host[:_SHOWN]!r}, and this server is {' or '.join(self._settings.hosts)}; "
                "use that, or start it with --host",
            )
        origin = headers.get("origin")
        if method in _READING or origin is None or origin in self._settings.origins:
            return
        if origin.partition("://")[2] != host:
            known = "://" in origin
            raise Refusal(
                HTTPStatus.FORBIDDEN,
                f"pages of {origin[:_SHOWN]} may not use this server; start it with --origin {origin[:_SHOWN]} if they "
                "are to"
                if known
                else "pages without an address of their own may not use this server; open them over HTTP",
            )

    def _check_token(self, shown: str | None) -> None:
        token = self._settings.token
        if token is None:
            return
        scheme, _, found = (shown or "").partition(" ")
        right = hmac.compare_digest(found.strip().encode(), token.encode())
        if scheme.lower() != "bearer" or not right:
            refusal = Refusal(
                HTTPStatus.UNAUTHORIZED, "this server has a token; send it as Authorization: Bearer TOKEN"
            )
            refusal.headers["WWW-Authenticate"] = "Bearer"
            raise refusal

    def _check_length(self, headers: Headers, *, needed: bool) -> None:
        told = headers.get("content-length", "")
        plain = re.fullmatch("[0-9]{1,18}", told) is not None
        in_chunks = "transfer-encoding" in headers  # which would overrule the length, and have no end
        if in_chunks or (needed and not plain):
            raise Refusal(
                HTTPStatus.LENGTH_REQUIRED,
                "the request is sent in chunks, or has no Content-Length; send a body of known length",
            )
        if plain and int(told) > self._settings.body_limit:
            raise too_large(
                f"a body of {int(told):,} bytes; this server takes {self._settings.body_limit:,}, "
                "see --body-limit"
            )


class _Body:
    """What a client sends, and how much of it is still to come.

    Args:
        receive: the next of it.
        waits: whether the client sends nothing until somebody asks for it.

    Attributes:
        waits: whether it still does.
    """

    def __init__(self, receive: Receive, *, waits: bool) -> None:
        self._receive, self.waits, self._complete = receive, waits, False

    async def __call__(self) -> Message:
        self.waits = False
        message = await self._receive()
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            self._complete = True
        return message

    async def drain(self) -> None:
        """Read what nobody asked for: a client whose connection is closed meanwhile would not see the answer."""
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._discard(), _DRAINING)

    async def _discard(self) -> None:
        left = _DRAINED
        while not self._complete and left > 0:
            left -= len((await asyncio.wait_for(self(), _SILENCE)).get("body", b""))


def refused(refusal: Refusal) -> JSONResponse:
    """The answer to what is refused."""
    return JSONResponse({"detail": refusal.detail}, refusal.status, headers=refusal.headers)


def _hostname(host: str) -> str:
    """The name in a `Host` header, without the port; none where that is no header of HTTP."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
