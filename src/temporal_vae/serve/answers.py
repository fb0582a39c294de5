"""Answers that may be large: sent piece by piece, as fast as the client reads, and released when they are sent."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from temporal_vae.serve.desk import Place

logger = logging.getLogger(__name__)

_PIECE = 2**18  # bytes


class Answer(Response):
    """A complete answer, whose length is told first: what is cut off on its way is never taken for the whole.

    Args:
        content: its bytes.
        media_type: of the content.
        headers: beside those of every answer.

    Attributes:
        place: of the request, given back when it is sent.
        seconds: how long that may take.
    """

    def __init__(self, content: bytes | memoryview, media_type: str, headers: Mapping[str, str] = {}) -> None:
        self.place: Place | None = None
        self.seconds: float | None = None
        super().__init__(None, headers=dict(headers), media_type=media_type)
        self._content = memoryview(content)
        self.headers["Content-Length"] = str(self._content.nbytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it, then give back the place of the request."""
        try:
            await asyncio.wait_for(self._send(send), self.seconds)
        except asyncio.TimeoutError:  # the connection is closed then
            logger.warning("a client did not read its answer within %g s", self.seconds)
        finally:
            if self.place is not None:
                self.place.release()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        for start in range(0, self._content.nbytes, _PIECE):
            piece = bytes(self._content[start : start + _PIECE])
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
