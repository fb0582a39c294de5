"""Connections of clients, as uvicorn keeps them, without those that come to a stop."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

_PATIENCE = 30.0  # seconds in which a request begins, or some of an answer is read


class Connection(H11Protocol):
    """Ends where the client neither asks nor reads, and answers in JSON where it does not speak HTTP."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Begin to watch the client."""
        super().connection_made(transport)
        self._last: Any = None
        self._unread: asyncio.TimerHandle | None = None
        self._watch = self.loop.call_later(_PATIENCE, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        """End to watch it."""
        self._watch.cancel()
        self.resume_writing()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The client has not read what it was sent."""
        super().pause_writing()
        self._unread = self._unread or self.loop.call_later(_PATIENCE, self.transport.abort)

    def resume_writing(self) -> None:
        """It has, or is gone."""
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP, unless something else is being answered."""
        if self.cycle is None or self.cycle.response_complete:
            detail = "this is no request of HTTP that the server understands; look at its first lines"
            body = json.dumps({"detail": detail}).encode()
            head = (
                f"HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
            )
            self.transport.write(f"{head}\r\nConnection: close\r\n\r\n".encode() + body)
            self.transport.close()
        else:
            self.transport.abort()

    def _look(self) -> None:
        """Every half minute: whether the client has sent a whole request since, where none is being answered."""
        idle = self.cycle is None or self.cycle.response_complete
        if idle and self.cycle is self._last:
            self.transport.abort()
            return
        self._last = self.cycle
        self._watch = self.loop.call_later(_PATIENCE, self._look)
